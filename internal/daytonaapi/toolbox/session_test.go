//go:build linux

package toolbox_test

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/sandbox"
)

func TestSessionIsOneShell(t *testing.T) {
	w := newWorld(t)
	w.session("one")
	for _, c := range []struct {
		name, command string
		code          int
		out, err      string
	}{
		{"state", "cd /usr; export X=1 Y='a b'; Z=3; f() { echo \"f $1\"; }", 0, "", ""},
		{"carried", "pwd; echo $X \"$Y\" $Z; f 4; echo e >&2; (exit 7)", 7, "/usr\n1 a b 3\nf 4\n", "e\n"},
		{"exact", "printf 'no newline'; printf '\\0x\\377' >&2", 0, "no newline", "\x00x\ufffd"},
		{"job", "sleep 1000 & echo bg", 0, "bg\n", ""},
		{"job carried", "kill %1; wait; echo ended", 0, "ended\n", ""},
		{"here-document", "cat <<E\nhello $X\nE\nfalse", 1, "hello 1\n", ""},
		{"stdin at its end", "cat; read x; echo \"$?\"", 0, "1\n", ""},
		{"loop control", "for i in 1 2; do echo $i; break 9; done", 0, "1\n", ""},
		{"return", "return 4", 4, "", ""},
		{"comment", "# nothing", 0, "", ""},
		{"quotes", "echo \"it's \\$5 `echo x`\" '\"'", 0, "it's $5 x \"\n", ""},
		{"after", "echo $X", 0, "1\n", ""},
	} {
		code, out, errs := w.in("one", c.command)
		if code != c.code || out != c.out || errs != c.err {
			t.Errorf("%s: %q = %d %q %q, want %d %q %q", c.name, c.command, code, out, errs, c.code, c.out, c.err)
		}
	}
	if code, _, errs := w.in("one", "if"); code == 0 || errs == "" {
		t.Errorf("a syntax error: %d %q", code, errs)
	}
	if code, out, _ := w.in("one", "echo still $X"); code != 0 || out != "still 1\n" {
		t.Errorf("after a syntax error: %d %q", code, out)
	}
}

func TestSessionLife(t *testing.T) {
	w := newWorld(t)
	w.session("a/b ü")
	path := "/process/session/" + url.PathEscape("a/b ü")
	w.problem(w.do("POST", "/process/session", m{"sessionId": "a/b ü"}, 409, nil), 409, "CONFLICT", "exists")
	w.problem(w.do("POST", "/process/session", m{"sessionId": "entrypoint"}, 400, nil), 400, "BAD_REQUEST", "entrypoint")
	w.problem(w.do("POST", "/process/session", m{}, 400, nil), 400, "BAD_REQUEST", "sessionId")
	for _, id := range []string{".", ".."} { // no client could ask for it, or delete it
		w.problem(w.do("POST", "/process/session", m{"sessionId": id}, 400, nil), 400, "BAD_REQUEST", "sessionId")
		w.problem(w.do("POST", "/process/pty", m{"id": id}, 400, nil), 400, "BAD_REQUEST", "id")
	}
	w.problem(w.do("POST", "/process/session/none/exec", m{"command": "true"}, 404, nil), 404, "NOT_FOUND", "none")
	w.problem(w.do("POST", path+"/exec", m{"command": " "}, 400, nil), 400, "BAD_REQUEST", "command")
	w.problem(w.do("GET", "/process/session/none", nil, 404, nil), 404, "NOT_FOUND", "none")
	w.problem(w.do("GET", path+"/command/none", nil, 404, nil), 404, "PROCESS_NOT_FOUND", "none")
	name := url.PathEscape("a/b ü")
	w.in(name, "sleep 1000 &")
	running := w.begin(name, "trap '' TERM; echo on; sleep 1000; sleep 1000", true)
	waiting := w.begin(name, "echo never", true)
	w.until(name, running, "on")
	var s struct {
		SessionID string
		Commands  []commandState
	}
	w.do("GET", path, nil, 200, &s)
	if s.SessionID != "a/b ü" || len(s.Commands) != 3 || s.Commands[0].ExitCode == nil || s.Commands[1].ID != running || s.Commands[1].ExitCode != nil || s.Commands[2].Command != "echo never" {
		t.Errorf("session: %+v", s)
	}
	var all []struct{ SessionID string }
	w.session("second")
	w.do("GET", "/process/session", nil, 200, &all)
	if len(all) != 2 || all[0].SessionID != "a/b ü" {
		t.Errorf("sessions: %+v", all)
	}
	w.do("GET", "/process/session/entrypoint", nil, 200, &s)
	w.do("DELETE", path, nil, 204, nil)
	w.problem(w.do("GET", path, nil, 404, nil), 404, "NOT_FOUND", "a/b")
	w.problem(w.do("DELETE", path, nil, 404, nil), 404, "NOT_FOUND", "a/b")
	w.problem(w.do("GET", path+"/command/"+waiting+"/logs", nil, 404, nil), 404, "NOT_FOUND", "a/b")
	w.do("DELETE", "/process/session/second", nil, 204, nil)
	if out := w.run("ps -e -o args= | grep '[s]leep 1000'; ls -A /tmp"); out != "" {
		t.Errorf("left behind: %s", out)
	}
	// The name is free again, for a shell of its own.
	w.session("a/b ü")
	if code, out, _ := w.in(name, "echo fresh"); code != 0 || out != "fresh\n" {
		t.Errorf("made again: %d %q", code, out)
	}
}

// A shell that ends takes its session with it, and says with which code.
func TestShellEnds(t *testing.T) {
	w := newWorld(t)
	for i, c := range []struct {
		command string
		code    int
	}{
		{"echo out; exit 3", 3},
		{"set -e; echo out; false; echo never", 1},
		{"exec sh -c 'echo out; exit 5'", 5},
		{"echo out; kill -9 $$", 137},
	} {
		name := fmt.Sprint("s", i)
		w.session(name)
		first := w.begin(name, "sleep 0.2", true)
		id := w.begin(name, c.command, true)
		queued := w.begin(name, "echo never", true)
		if code := w.finished(name, id); code != c.code {
			t.Errorf("%s: %d, want %d", c.command, code, c.code)
		}
		if l := w.logs(name, id); l.Stdout != "out\n" {
			t.Errorf("%s: %+v", c.command, l)
		}
		if code := w.finished(name, queued); code != 137 {
			t.Errorf("after %s: %d", c.command, code)
		}
		if l := w.logs(name, queued); l.Stdout != "" || !strings.Contains(l.Stderr, "not run") {
			t.Errorf("after %s: %+v", c.command, l)
		}
		if code := w.finished(name, first); code != 0 {
			t.Errorf("before %s: %d", c.command, code)
		}
		// The last of its processes says that it has ended after those that waited do.
		for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
			if a := w.request("POST", "/process/session/"+name+"/exec", "application/json", strings.NewReader(`{"command": "true"}`)); a.status == 410 {
				break
			}
		}
		w.problem(w.do("POST", "/process/session/"+name+"/exec", m{"command": "true"}, 410, nil), 410, "SESSION_ENDED", name)
		w.problem(w.do("POST", "/process/session/"+name+"/command/"+id+"/input", m{"data": "x"}, 410, nil), 410, "COMMAND_ALREADY_COMPLETED", id)
		w.problem(w.do("POST", "/process/session", m{"sessionId": name}, 409, nil), 409, "CONFLICT", name)
		w.do("DELETE", "/process/session/"+name, nil, 204, nil)
	}
	w.session("sync")
	if code, out, _ := w.in("sync", "echo out; exit 4"); code != 4 || out != "out\n" {
		t.Errorf("exit in a command that is waited for: %d %q", code, out)
	}
}

// Shell and guard may be killed together, by what runs in the session itself:
// nobody waits for ever.
func TestGuardKilled(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	a := w.do("POST", "/process/session/s/exec", m{"command": "echo on; kill -9 $PPID $$; sleep 1000"}, 200, nil)
	var r sessionResult
	must(t, json.Unmarshal([]byte(a.body), &r))
	if r.ExitCode == nil || *r.ExitCode != 137 || *r.Stdout != "on\n" {
		t.Errorf("after the end of both: %s", a.body)
	}
	w.problem(w.do("POST", "/process/session/s/exec", m{"command": "true"}, 410, nil), 410, "SESSION_ENDED", "s")
}

func TestInput(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	for _, quiet := range []bool{true, false} {
		id := w.begin("s", "read a; echo \"got $a\"; read b; echo \"and $b\"; cat", quiet)
		w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": "one"}, 204, nil)
		w.until("s", id, "got one\n")
		w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": "two $x'\"\n"}, 204, nil)
		w.until("s", id, "and two $x'\"\n")
		w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": "three"}, 204, nil)
		w.until("s", id, "three\n")
		want := "got one\nand two $x'\"\nthree\n"
		if !quiet {
			w.until("s", id, "three\nthree\n")
			want = "one\ngot one\ntwo $x'\"\nand two $x'\"\nthree\nthree\n"
		}
		if l := w.logs("s", id); l.Stdout != want || l.Stderr != "" {
			t.Errorf("quiet %v: %q, want %q", quiet, l.Stdout, want)
		}
		w.problem(w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": 1}, 400, nil), 400, "INVALID_REQUEST_BODY", "data")
		w.run("pkill -x cat")
		if code := w.finished("s", id); code != 143 {
			t.Errorf("a cat that was ended: %d", code)
		}
		w.problem(w.do("POST", "/process/session/s/command/"+id+"/input", m{"data": "x"}, 410, nil), 410, "COMMAND_ALREADY_COMPLETED", id)
	}
}

// Whatever a session left is there for the next server: the shell's state, a
// command that runs, one that waits, and all output.
func TestSessionOutlivesServer(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	w.in("s", "cd /usr; X=kept")
	done := w.begin("s", "echo early; echo error >&2; exit_code() { return $1; }; exit_code 9", true)
	running := w.begin("s", "echo before; read line; echo \"after $line\"", true)
	waiting := w.begin("s", "pwd; echo $X", true)
	w.until("s", running, "before\n")
	w.again()
	if code := w.finished("s", done); code != 9 {
		t.Errorf("the finished one: %d", code)
	}
	if l := w.logs("s", done); l.Stdout != "early\n" || l.Stderr != "error\n" || l.Output != "\x01\x01\x01early\n\x02\x02\x02error\n" {
		t.Errorf("its output: %+v", l)
	}
	w.problem(w.do("POST", "/process/session", m{"sessionId": "s"}, 409, nil), 409, "CONFLICT", "s")
	w.do("POST", "/process/session/s/command/"+running+"/input", m{"data": "hello"}, 204, nil)
	if code := w.finished("s", running); code != 0 {
		t.Errorf("the running one: %d", code)
	}
	if l := w.logs("s", running); l.Stdout != "before\nafter hello\n" {
		t.Errorf("its output: %+v", l)
	}
	if code := w.finished("s", waiting); code != 0 {
		t.Errorf("the waiting one: %d", code)
	}
	if l := w.logs("s", waiting); l.Stdout != "/usr\nkept\n" {
		t.Errorf("its output: %+v", l)
	}
	// Sessions end with the sandbox; then their names are free.
	_, err := w.manager.StopSandbox(t.Context(), w.key, false)
	must(t, err)
	_, err = w.manager.StartSandbox(t.Context(), w.key, sandbox.Spec{})
	must(t, err)
	w.problem(w.do("GET", "/process/session/s", nil, 404, nil), 404, "NOT_FOUND", "s")
	w.session("s")
	if code, out, _ := w.in("s", "echo ${X-none}"); code != 0 || out != "none\n" {
		t.Errorf("after the sandbox's stop: %d %q", code, out)
	}
}

// A background child of one command writes on into that command's output, also
// when the command and many others have ended.
func TestBackgroundOutput(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	var r sessionResult
	w.do("POST", "/process/session/s/exec", m{"command": "mkfifo /tmp/go; (read x </tmp/go; echo late; sleep 1000) & echo now"}, 200, &r)
	if *r.Stdout != "now\n" {
		t.Fatalf("at once: %q", *r.Stdout)
	}
	if code, out, _ := w.in("s", "echo other; echo go >/tmp/go"); code != 0 || out != "other\n" {
		t.Errorf("another command: %d %q", code, out)
	}
	w.until("s", r.CmdID, "now\nlate\n")
}

func TestLongCommand(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	text := strings.Repeat("x", 300<<10)
	if code, out, errs := w.in("s", "Y='"+text+"'; echo ${#Y}"); code != 0 || out != "307200\n" {
		t.Errorf("a long command: %d %q %q", code, out, errs)
	}
	if code, out, _ := w.in("s", "echo ${#Y}"); code != 0 || out != "307200\n" {
		t.Errorf("after a long command: %d %q", code, out)
	}
	if out := w.run("ls -I '*.sent' /tmp/.session-*"); out != "commands\n" {
		t.Errorf("left behind: %q", out)
	}
}

// Commands run in the order in which they were asked for, busy as the machine is.
func TestCommandsInOrder(t *testing.T) {
	w := newWorld(t)
	w.session("s")
	w.session("other")
	w.begin("other", "for i in 1 2 3 4; do while :; do :; done & done; wait", true)
	var last, want string
	for i := range 40 {
		last = w.begin("s", fmt.Sprintf("echo %d >>/tmp/order", i), true)
		want += fmt.Sprintln(i)
	}
	if code := w.finished("s", last); code != 0 {
		t.Errorf("the last: %d", code)
	}
	if out := w.run("cat /tmp/order"); out != want {
		t.Errorf("the order: %q", out)
	}
	if out := w.run("[ $(ls /tmp/.session-*/ | grep -c sent) -lt 4 ] && echo few"); out != "few\n" {
		t.Error("marks of commands that have ended stay")
	}
}

// Of many who create one session, one does; all may use it at once.
func TestRacingSessions(t *testing.T) {
	w := newWorld(t)
	var made, had atomic.Int32
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			a := w.request("POST", "/process/session", "application/json", strings.NewReader(`{"sessionId":"s"}`))
			switch a.status {
			case 201:
				made.Add(1)
			case 409:
				had.Add(1)
			default:
				t.Errorf("create: %d %s", a.status, a.body)
			}
			_ = i
		})
	}
	wg.Wait()
	if made.Load() != 1 || had.Load() != 7 {
		t.Errorf("%d made it, %d found it", made.Load(), had.Load())
	}
	for i := range 12 {
		wg.Go(func() {
			if code, out, errs := w.in("s", fmt.Sprintf("N=$((N+1)); echo out %d; echo err %d >&2; (exit %d)", i, i, i)); code != i || out != fmt.Sprintf("out %d\n", i) || errs != fmt.Sprintf("err %d\n", i) {
				t.Errorf("%d: %d %q %q", i, code, out, errs)
			}
		})
	}
	wg.Wait()
	if _, out, _ := w.in("s", "echo $N"); out != "12\n" {
		t.Errorf("counted %s", out)
	}
}
