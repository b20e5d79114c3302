//go:build linux

package promises_test

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"strings"
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
	// What is too large for one answer is read piecewise; here the beginning is enough.
	got, err := base64.StdEncoding.DecodeString(strings.TrimSpace(encoded))
	if err != nil || len(got) == 0 || !bytes.HasPrefix(data, got) {
		t.Errorf("read back %d bytes, %v: %.80s", len(got), err, text)
	}
	b.call("write_file", args{"path": "t", "content": "a ü\n"})
	b.want("cat t; ls; rm t; ls", "a ü\ndir\nt\ndir")
}

// The sandbox dies between two calls: monitor and init are killed from outside.
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
			contains(t, fmt.Sprint(got["reason"]), "1 ")
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
		if b.status() != "stopped" {
			t.Error("reading started it")
		}
		b.want("cat ~/f", "kept")
		if b.processes()[lost]["state"] != "lost" {
			t.Error("the lost one is forgotten after the start")
		}
	})
}
