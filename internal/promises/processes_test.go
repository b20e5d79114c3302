//go:build linux

package promises_test

import (
	"bytes"
	"crypto/md5"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/driver"
)

// spawn starts a background process and returns its id.
func (b *box) spawn(a args) string {
	b.t.Helper()
	id := b.call("spawn_process", a).Result.ProcessID
	if id == "" {
		b.t.Fatal("no process_id")
	}
	return id
}

// ended waits for a process's end.
func (b *box) ended(id string) *driver.Answer {
	b.t.Helper()
	r := b.call("read_output", args{"process_id": id, "wait_for": "exit", "wait_seconds": 20})
	if exit(r) == -1 {
		b.t.Fatalf("no exit code: %s", r.Text)
	}
	return r
}

func TestPromise56ProcessTools(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	list, err := b.Client.ListTools(t.Context(), mcp.ListToolsRequest{})
	must(t, err)
	have := map[string]bool{}
	for _, tool := range list.Tools {
		have[tool.Name] = true
	}
	for _, name := range []string{"spawn_process", "list_processes", "read_output", "kill_process", "send_stdin"} {
		if !have[name] {
			t.Errorf("no tool %s", name)
		}
	}
}

func TestPromise57Server(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	r := b.call("spawn_process", args{
		"command": `exec python3 -u -c 'import http.server, os
class H(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers(); self.wfile.write(b"served")
    def log_message(self, *a): pass
s = http.server.HTTPServer(("127.0.0.1", int(os.environ["PORT"])), H); print("listening on", os.environ["PORT"]); s.serve_forever()'`,
		"env": args{"PORT": "8123"}, "wait_for": "pattern", "pattern": "listening on 8123", "wait_seconds": 20,
	})
	if r.Result.ProcessID == "" || exit(r) != -1 {
		t.Fatalf("%s", r.Text)
	}
	b.want("python3 -c 'import urllib.request as u; print(u.urlopen(\"http://127.0.0.1:8123/\").read().decode())'", "served")
	begin := time.Now()
	b.spawn(args{"command": "sleep 5"})
	if took := time.Since(begin); took > 4*time.Second {
		t.Errorf("the id took %s", took)
	}
}

func TestPromise58Output(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	id := b.spawn(args{"command": "echo one; echo err >&2; read -r x; echo two; read -r x; echo three"})
	first := b.call("read_output", args{"process_id": id, "wait_for": "pattern", "pattern": "(?s)one.*err|err.*one", "wait_seconds": 10})
	contains(t, first.Text, "one", "err")
	b.call("send_stdin", args{"process_id": id, "text": "\n", "wait_for": "none"})
	second := b.call("read_output", args{"process_id": id, "cursor": first.Result.Cursor, "wait_seconds": 10})
	if second.Output() != "two\n" {
		t.Errorf("only what is new: %s", second.Text)
	}
	b.call("send_stdin", args{"process_id": id, "text": "\n", "wait_for": "exit", "wait_seconds": 10})
	all := b.ended(id)
	contains(t, all.Text, "one\ntwo\nthree\n", "err")
	if all.Result.StdoutBytes != 14 || all.Result.StderrBytes != 4 || exit(all) != 0 {
		t.Errorf("%+v", all.Result)
	}
}

func TestPromise59Stdin(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	head := b.spawn(args{"command": "head -1"})
	r := b.call("send_stdin", args{"process_id": head, "text": "a line\n", "wait_for": "exit", "wait_seconds": 10})
	if r.Output() != "a line\n" || exit(r) != 0 {
		t.Errorf("head: %s", r.Text)
	}
	contains(t, b.refused("send_stdin", args{"process_id": head, "text": "more\n"}), head)
	cat := b.spawn(args{"command": "cat"})
	if r = b.call("send_stdin", args{"process_id": cat, "text": "x\n", "end": true, "wait_for": "exit", "wait_seconds": 10}); r.Output() != "x\n" || exit(r) != 0 {
		t.Errorf("cat: %s", r.Text)
	}
	repl := b.spawn(args{"command": "python3 -q", "tty": true, "wait_for": "pattern", "pattern": ">>> ", "wait_seconds": 20})
	r = b.call("send_stdin", args{"process_id": repl, "text": "6 * 7\n", "wait_for": "pattern", "pattern": `42\r?\n`, "wait_seconds": 10})
	contains(t, r.Text, "42")
	r = b.call("send_stdin", args{"process_id": repl, "text": "import os; os.get_terminal_size()\n", "cols": 120, "rows": 40, "wait_for": "pattern", "pattern": "columns=120, lines=40", "wait_seconds": 10})
	contains(t, r.Text, "columns=120, lines=40")
	if r = b.call("send_stdin", args{"process_id": repl, "text": "exit(3)\n", "wait_for": "exit", "wait_seconds": 10}); exit(r) != 3 {
		t.Errorf("the REPL: %s", r.Text)
	}
}

func TestPromise60Kill(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	id := b.spawn(args{"command": "(exec -a promise-60 sleep 1000) & setsid -f bash -c 'exec -a promise-60 sleep 1000'; echo before; wait", "wait_for": "pattern", "pattern": "before", "wait_seconds": 10})
	const count = "for f in /proc/[0-9]*/cmdline; do tr '\\0' ' ' < $f; echo; done 2>/dev/null | grep -c '^promise-6[0]' || true"
	wait(t, 10*time.Second, "two children run", func() bool { return b.sh(count) == "2" })
	r := b.call("kill_process", args{"process_id": id, "signal": "KILL"})
	if exit(r) != 137 || r.Result.Signal != "SIGKILL" {
		t.Errorf("%+v %s", r.Result, r.Text)
	}
	b.want(count, "0")
	if r = b.ended(id); r.Output() != "before\n" {
		t.Errorf("the output: %s", r.Text)
	}
	if again := b.call("kill_process", args{"process_id": id}); exit(again) != 137 {
		t.Errorf("a second kill: %s", again.Text)
	}
}

// The server is killed with SIGKILL in between.
func TestPromise61Survives(t *testing.T) {
	t.Parallel()
	for _, how := range transports {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			var b *box
			var kill func()
			if how == driver.Stdio {
				b = s.dial(t, how)
				kill = b.Kill
			} else {
				srv := s.listen(t)
				b = connect(t, srv, how)
				kill = srv.Kill
			}
			b.start(nil, "created")
			if n := len(b.processes()); n != 0 {
				t.Errorf("%d processes at first", n)
			}
			done := b.spawn(args{"command": "echo done; exit 42", "wait_for": "exit", "wait_seconds": 10})
			running := b.spawn(args{"command": "for i in 1 2 3; do echo $i; sleep 1; done; exit 42"})
			kill()
			b = b.as(s.dial(t, how))
			rows := b.processes()
			if len(rows) != 2 || rows[done]["exit_code"] != 42.0 || rows[running] == nil {
				t.Errorf("%v", rows)
			}
			for id, want := range map[string]string{done: "done\n", running: "1\n2\n3\n"} {
				if r := b.ended(id); exit(r) != 42 || r.Output() != want {
					t.Errorf("%s: %s", id, r.Text)
				}
			}
			contains(t, b.refused("read_output", args{"process_id": "p-aaaaaaaaaaaaaaaa"}), "p-aaaaaaaaaaaaaaaa", "list_processes")
		})
	}
}

func TestPromise68Files(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.start(nil, "created")
	data := make([]byte, 1<<16)
	for i := range data {
		data[i] = byte(i * 31 >> 3)
	}
	b.call("write_file", args{"path": "dir/bin", "base64": base64.StdEncoding.EncodeToString(data)})
	contains(t, b.sh("wc -c < dir/bin; base64 -w0 dir/bin | tail -c 40"), "65536", base64.StdEncoding.EncodeToString(data)[87344:])
	text := b.call("read_file", args{"path": "dir/bin", "base64": true}).Text
	encoded, _, _ := strings.Cut(text, "\n[")
	got, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil || !bytes.Equal(data, got) {
		t.Errorf("read back %d bytes of %d, %v: %.80s", len(got), len(data), err, text)
	}
	b.call("write_file", args{"path": "t", "content": "a ü\n"})
	b.want("cat t; ls; rm t; ls", "a ü\ndir\nt\ndir")
}

// It dies between two calls: monitor and init are killed from outside.
func TestPromise75DeadSandbox(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.sh("echo 0 >> ~/runs")
	for i := range 3 {
		s.crash(b)
		r := b.call("execute_command", args{"command": "echo run >> ~/runs; cat ~/runs | wc -l"})
		if want := fmt.Sprintln(i + 2); r.Output() != want || exit(r) != 0 {
			t.Errorf("after death %d: %s; want %s", i+1, r.Text, want)
		}
	}
}

// It dies while a command runs: the answer says so, in the call, and makes no
// exit code up; what the command had done is done once, and the next call works.
func TestPromise75DeathInACommand(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *site, b *box) {
		b.sh("mkfifo ~/go; echo 0 > ~/runs")
		for i := range 3 {
			var r *driver.Answer
			var err error
			var wg sync.WaitGroup
			wg.Go(func() {
				r, err = b.Call(b.t.Context(), "execute_command", b.with(args{"command": "echo begun; echo run >> ~/runs; read x < ~/go; sleep 1000", "wait_seconds": 30}))
			})
			b.sh("echo > ~/go") // somebody reads: the command runs
			s.crash(b)
			wg.Wait()
			must(t, err)
			if r.Result.ExitCode != nil || r.Result.State == "running" {
				t.Errorf("death %d: %+v %s", i+1, r.Result, r.Text)
			}
			if r.IsError {
				contains(t, r.Text, "was not run again", "exit code is not known")
			} else {
				contains(t, r.Text, "lost, exit code unknown", "not run again")
			}
			b.want("wc -l < ~/runs", fmt.Sprint(i+2))
		}
	})
}

// It dies while a client waits for output, and while files are written.
func TestPromise75DeathInOtherCalls(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	id := b.spawn(args{"command": "echo here; sleep 1000", "wait_for": "output", "wait_seconds": 10})
	var r *driver.Answer
	var err error
	var wg sync.WaitGroup
	wg.Go(func() {
		r, err = b.Call(b.t.Context(), "read_output", b.with(args{"process_id": id, "wait_for": "exit", "wait_seconds": 40}))
	})
	b.sh("sleep 0.2")
	s.crash(b)
	wg.Wait()
	must(t, err)
	if atDaytona {
		// What it wrote is in the sandbox, and read once that runs again.
		if !r.IsError || !strings.Contains(r.Text, "execute_command or start_sandbox starts it") {
			t.Errorf("the wait: %+v %s", r.Result, r.Text)
		}
		b.start(nil, "connected")
		r = b.call("read_output", args{"process_id": id})
	}
	if r.IsError || r.Result.State != "lost" || r.Result.ExitCode != nil || r.Output() != "here\n" {
		t.Errorf("the wait: %+v %s", r.Result, r.Text)
	}
	// A file is the old one or the new one, never a part.
	b.sh("printf %5000s | tr ' ' a > ~/f")
	for i := range 6 {
		want := strings.Repeat(string(rune('b'+i)), 300_000)
		before := b.sh("md5sum < ~/f")
		wg.Go(func() {
			r, err = b.Call(b.t.Context(), "write_file", b.with(args{"path": "f", "content": want}))
		})
		time.Sleep(time.Duration(i) * 2 * time.Millisecond) // anywhere in the call
		s.strike(b)
		wg.Wait()
		must(t, err)
		after, written := b.sh("md5sum < ~/f"), fmt.Sprintf("%x  -", md5.Sum([]byte(want)))
		if after != written && (!r.IsError || after != before) {
			t.Errorf("write %d: answered %s; the file is neither old nor new", i, r.Text)
		}
	}
}

// It dies at any moment of a call: a command that succeeds ran once, one that
// does not at most once.
func TestPromise75DeathAtAnyMoment(t *testing.T) {
	t.Parallel()
	s := newSite(t)
	b := s.dial(t, driver.Stdio)
	b.sh("true")
	succeeded := map[string]bool{}
	for i := range 25 {
		var r *driver.Answer
		var err error
		var wg sync.WaitGroup
		wg.Go(func() {
			r, err = b.Call(b.t.Context(), "execute_command", b.with(args{"command": fmt.Sprintf("echo mark-%d >> ~/runs", i)}))
		})
		time.Sleep(time.Duration(rand.IntN(25)) * time.Millisecond)
		s.strike(b)
		wg.Wait()
		must(t, err)
		if !r.IsError && exit(r) == 0 {
			succeeded[fmt.Sprint("mark-", i)] = true
		}
	}
	count := map[string]int{}
	for _, l := range strings.Fields(b.sh("touch ~/runs; cat ~/runs")) {
		count[l]++
	}
	t.Logf("%d of 25 calls succeeded, %d commands ran", len(succeeded), len(count))
	for l, n := range count {
		if n != 1 {
			t.Errorf("%s ran %d times", l, n)
		}
	}
	for l := range succeeded {
		if count[l] != 1 {
			t.Errorf("%s succeeded and ran %d times", l, count[l])
		}
	}
}

// A reboot ends every process; what was written is still there and nothing is
// made up about what was lost.
func TestReboot(t *testing.T) {
	t.Parallel()
	each(t, func(t *testing.T, s *site, b *box) {
		b.sh("echo kept > ~/f")
		ended := b.spawn(args{"command": "echo all; exit 5", "wait_for": "exit", "wait_seconds": 10})
		lost := b.spawn(args{"command": "seq 1 5000; sleep 1000", "wait_for": "pattern", "pattern": "(?m)^5000$", "wait_seconds": 20})
		s.crash(b)
		if got := b.sandbox(); got["status"] != "stopped" {
			t.Errorf("status %v", got["status"])
		} else {
			t.Logf("reason: %v", got["reason"])
			if !atDaytona { // the platform tells no reason of a stop
				contains(t, fmt.Sprint(got["reason"]), "1 ")
			}
		}
		if atDaytona { // what ran, and what it wrote, is kept in the sandbox
			contains(t, b.refused("list_processes", nil), "start_sandbox")
			b.start(nil, "connected")
		}
		rows := b.processes()
		if r := rows[lost]; r["state"] != "lost" || r["exit_code"] != nil {
			t.Errorf("the running one: %v", r)
		}
		if r := rows[ended]; r["state"] != "exited" || r["exit_code"] != 5.0 {
			t.Errorf("the ended one: %v", r)
		}
		var want strings.Builder
		for i := range 5000 {
			fmt.Fprintln(&want, i+1)
		}
		r := b.call("read_output", args{"process_id": lost, "cursor": "c0.0", "max_bytes": 1 << 20})
		if r.Output() != want.String() || exit(r) != -1 {
			t.Errorf("output of the lost one: %d bytes of %d, exit %d", len(r.Output()), want.Len(), exit(r))
		}
		if r := b.call("read_output", args{"process_id": ended}); r.Output() != "all\n" || exit(r) != 5 {
			t.Errorf("output of the ended one: %s", r.Text)
		}
		if b.status() != "stopped" && !atDaytona {
			t.Error("reading started it")
		}
		b.want("cat ~/f", "kept")
		if b.processes()[lost]["state"] != "lost" {
			t.Error("the lost one is forgotten after the start")
		}
	})
}
