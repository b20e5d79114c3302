//go:build linux

package isolate_test

import (
	"errors"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

func code(err error) string {
	var we *wire.Error
	if errors.As(err, &we) {
		return we.Code
	}
	if err != nil {
		return err.Error()
	}
	return ""
}

// Each way to start a command, and each way that it cannot be started.
func TestExec(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			long := strings.Repeat("# filler\n", 20<<10) + "echo long $0; exit 3"
			for _, c := range []struct {
				name string
				r    wire.StartProcess
				out  string
				code int
				sig  int
				fail string
			}{
				{name: "argv", r: wire.StartProcess{Argv: []string{"echo", "a b", "c"}}, out: "a b c\n"},
				{name: "exit", r: wire.StartProcess{Shell: "exit 7"}, code: 7},
				{name: "signal", r: wire.StartProcess{Shell: "kill -SEGV $$"}, code: -1, sig: 11},
				{name: "text_is_one_argument", r: wire.StartProcess{Shell: "echo \"$0\" '$x' \"a\nb\""}, out: "bash $x a\nb\n"},
				{name: "env", r: wire.StartProcess{Shell: "echo $A-$LANG-$HOME-$USER-$SHELL", Env: map[string]string{"A": "1"}, Unset: []string{"LANG"}}, out: "1--/home/agent-agent-/bin/bash\n"},
				{name: "root_env", r: wire.StartProcess{Shell: "echo $HOME $LOGNAME", User: "root"}, out: "/root root\n"},
				{name: "cwd", r: wire.StartProcess{Shell: "pwd", Cwd: "/home/agent"}, out: "/home/agent\n"},
				{name: "umask", r: wire.StartProcess{Shell: "umask"}, out: "0022\n"},
				{name: "long_text", r: wire.StartProcess{Shell: long}, code: 3, out: "long /run/berth/command-"},
				{name: "no_program", r: wire.StartProcess{Argv: []string{"no-such-program"}}, fail: wire.CodeNoProgram},
				{name: "no_path", r: wire.StartProcess{Argv: []string{"/no/such"}}, fail: wire.CodeNoProgram},
				{name: "denied", r: wire.StartProcess{Argv: []string{"/etc/passwd"}}, fail: wire.CodePermission},
				{name: "directory", r: wire.StartProcess{Argv: []string{"/etc"}}, fail: wire.CodePermission},
				{name: "bad_cwd", r: wire.StartProcess{Shell: "true", Cwd: "/nowhere"}, fail: wire.CodeBadCwd},
				{name: "cwd_is_file", r: wire.StartProcess{Shell: "true", Cwd: "/etc/passwd"}, fail: wire.CodeBadCwd},
				{name: "no_user", r: wire.StartProcess{Shell: "true", User: "nobody-here"}, fail: wire.CodeNoUser},
				{name: "both", r: wire.StartProcess{Shell: "true", Argv: []string{"true"}}, fail: wire.CodeInvalid},
				{name: "too_large", r: wire.StartProcess{Argv: []string{"true", strings.Repeat("x", 200<<10)}}, fail: wire.CodeInvalid},
			} {
				t.Run(c.name, func(t *testing.T) {
					b := b.in(t)
					p, err := b.spawn(c.r)
					if code(err) != c.fail {
						t.Fatalf("start: %v (code %q), want code %q", err, code(err), c.fail)
					}
					if err != nil {
						return
					}
					p.stdin.Close()
					e := p.wait()
					if out := <-p.out; !strings.HasPrefix(out, c.out) || c.out == "" && out != "" || e.Code != c.code || e.Signal != c.sig {
						t.Errorf("got %q, %+v, want %q, code %d, signal %d", out, e, c.out, c.code, c.sig)
					}
					p.waitGone()
				})
			}
			if out, _ := b.sh("root", "ls /run/berth"); strings.Contains(out, "command") {
				t.Errorf("left in /run/berth: %q", out)
			}
			if mode != wire.IDsSingle {
				if out, _ := b.sh("other", "echo $(id -u) $(id -G)"); out != "1001 1001 2000\n" {
					t.Errorf("ids of a user of /etc/passwd: %q", out)
				}
				if _, err := b.spawn(wire.StartProcess{Shell: "true", User: "agent", Cwd: "/root/secret"}); code(err) != wire.CodeBadCwd {
					t.Errorf("start in a directory that is not there: %v", err)
				}
				b.sh("root", "mkdir -m 700 /root/secret; chmod 700 /root")
				if _, err := b.spawn(wire.StartProcess{Shell: "true", User: "agent", Cwd: "/root/secret"}); code(err) != wire.CodePermission {
					t.Errorf("start in a directory that the user may not enter: %v", err)
				}
			}
		})
	}
}

func (b *box) in(t testing.TB) *box {
	b.t = t
	return b
}

// Nothing but its own three descriptors reaches a command, with no signal blocked or ignored.
func TestCleanStart(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			for _, user := range []string{"agent", "root"} {
				out, _ := b.sh(user, "ls /proc/$$/fd; cat /proc/self/oom_score_adj; cut -d' ' -f5,6 /proc/$$/stat; echo $$")
				f := strings.Fields(out)
				if len(f) != 7 || !strings.HasPrefix(out, "0\n1\n2\n") {
					t.Fatalf("as %s: descriptors: %q", user, out)
				}
				if f[3] != "500" || f[4] != f[6] || f[5] != f[6] {
					t.Errorf("as %s: oom score, group, session, pid: %v, want 500 and three times the pid", user, f[3:])
				}
				p, err := b.spawn(wire.StartProcess{Argv: []string{"grep", "-hE", "SigBlk|SigIgn|CapInh|CapAmb", "/proc/self/status"}, User: user})
				if err != nil {
					t.Fatal(err)
				}
				p.wait()
				const zero = ":\t0000000000000000\n"
				if got, want := <-p.out, "SigBlk"+zero+"SigIgn"+zero+"CapInh"+zero+"CapAmb"+zero; got != want {
					t.Errorf("as %s: %q, want %q", user, got, want)
				}
			}
		})
	}
}

func TestTerminal(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			p, err := b.spawn(wire.StartProcess{Shell: "tty; stty size; test -t 0 && test -w /dev/tty && echo yes; read x; echo got $x; sleep 100", Cols: 97, Rows: 31})
			if err != nil {
				t.Fatal(err)
			}
			defer p.master.Close()
			_ = p.master.SetReadDeadline(time.Now().Add(20 * time.Second))
			if _, err := p.master.WriteString("hello\n"); err != nil {
				t.Fatal(err)
			}
			var text []byte
			for !strings.Contains(string(text), "got hello") {
				buf := make([]byte, 1000)
				n, err := p.master.Read(buf)
				if err != nil {
					t.Fatalf("terminal said %q: %v", text, err)
				}
				text = append(text, buf[:n]...)
			}
			for _, want := range []string{"/dev/pts/0\r\n", "31 97\r\n", "yes\r\n"} {
				if !strings.Contains(string(text), want) {
					t.Errorf("terminal said %q, want %q in it", text, want)
				}
			}
			// Ctrl-C reaches what runs in the foreground.
			if _, err := p.master.Write([]byte{3}); err != nil {
				t.Fatal(err)
			}
			if e := p.wait(); e.Signal != int(unix.SIGINT) && e.Code != 130 {
				t.Errorf("after Ctrl-C: %+v", e)
			}
			p.waitGone()
			if _, err := io.ReadAll(p.master); err != nil && !errors.Is(err, unix.EIO) {
				t.Errorf("read at the end: %v", err)
			}
		})
	}
}

// A program that reads its terminal to the end exits by itself: it is not hung
// up, though it closes the terminal first, whose master is closed at once when
// nothing more can come from it. Several at a time, since numbers of
// descriptors and processes are used again.
func TestTerminalEnd(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			var group sync.WaitGroup
			for range 8 {
				group.Go(func() {
					for range 12 {
						p, err := b.spawn(wire.StartProcess{Shell: "read l; echo got $l; cat", Cols: 80, Rows: 24})
						if err != nil {
							t.Errorf("start: %v", err)
							return
						}
						_, err = p.master.WriteString("hello\n\x04")
						text, _ := io.ReadAll(p.master)
						_ = p.master.Close()
						if e := p.wait(); err != nil || e.Code != 0 || !strings.Contains(string(text), "got hello") {
							t.Errorf("got %+v, write %v, terminal said %q; want exit 0", e, err, text)
						}
						p.waitGone()
					}
				})
			}
			group.Wait()
		})
	}
}

// A tree is known and killed whole: daemons of their own session, what sudo
// started, what keeps forking, what has stopped itself.
func TestTree(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			p, err := b.spawn(wire.StartProcess{Shell: "(setsid sh -c 'sleep 1001 & sleep 1002' >/dev/null 2>&1 &); sudo setsid sleep 1003 & sleep 0.2; exit 4"})
			if err != nil {
				t.Fatal(err)
			}
			e := p.wait()
			if e.Code != 4 || len(e.Leftovers) < 4 {
				t.Errorf("exited: %+v, want code 4 and 4 leftovers or more", e)
			}
			var tree wire.Tree
			if _, err := b.call(wire.OpTree, wire.ProcessRef{ID: p.id}, &tree); err != nil || tree.Count < 4 || tree.Memory <= 0 {
				t.Errorf("tree: %+v, %v", tree, err)
			}
			text := strings.Join(e.Leftovers, "\n")
			for _, want := range []string{"sleep 1001", "sleep 1002", "sleep 1003"} {
				if !strings.Contains(text, want) {
					t.Errorf("leftovers %q lack %q", e.Leftovers, want)
				}
			}
			other, err := b.spawn(wire.StartProcess{Shell: "exec sleep 1004"})
			if err != nil {
				t.Fatal(err)
			}
			var n wire.Signalled
			if _, err := b.call(wire.OpSignal, wire.Signal{ID: p.id, Signal: 9}, &n); err != nil || n.Count < 4 {
				t.Errorf("kill: %+v, %v", n, err)
			}
			p.waitGone()
			if _, err := b.call(wire.OpTree, wire.ProcessRef{ID: p.id}, &tree); code(err) != wire.CodeNoProcess {
				t.Errorf("tree after the end: %v", err)
			}
			if _, err := b.call(wire.OpTree, wire.ProcessRef{ID: other.id}, &tree); err != nil || tree.Count != 1 {
				t.Errorf("the other tree: %+v, %v", tree, err)
			}

			bomb, err := b.spawn(wire.StartProcess{Shell: "trap '' TERM; n=0; while test $n -lt 40; do (while :; do (setsid sh -c 'kill -STOP $$' &) ; sleep 0.01; done) & n=$((n+1)); done; wait"})
			if err != nil {
				t.Fatal(err)
			}
			time.Sleep(300 * time.Millisecond) // so that it is under way
			if _, err := b.call(wire.OpSignal, wire.Signal{ID: bomb.id, Signal: 9}, nil); err != nil {
				t.Fatal(err)
			}
			if e := bomb.wait(); e.Signal != 9 {
				t.Errorf("after a kill: %+v", e)
			}
			bomb.waitGone()
			if out, _ := b.sh("root", "ps -eo stat,args | grep -v -e berth-init -e ps -e '^STAT' -e grep"); strings.Count(out, "\n") != 1 {
				t.Errorf("left of the bomb: %q", out)
			}
		})
	}
}

// The watchers of commands are processes inside. Whoever ends one ends its
// command, and nothing else.
func TestKilledWatcher(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			bystander, err := b.spawn(wire.StartProcess{Shell: "exec cat"})
			if err != nil {
				t.Fatal(err)
			}
			for _, text := range []string{
				"(setsid sleep 1005 &); sleep 0.1; kill -9 $PPID; sleep 1006",
				"kill -STOP $PPID; exit 0",
			} {
				p, err := b.spawn(wire.StartProcess{Shell: text, User: "root"})
				if err != nil {
					t.Fatal(err)
				}
				p.wait()
				p.waitGone()
			}
			if out, _ := b.sh("root", "ps -eo args | grep '[s]leep 100'"); out != "" {
				t.Errorf("left: %q", out)
			}
			var tree wire.Tree
			if _, err := b.call(wire.OpTree, wire.ProcessRef{ID: bystander.id}, &tree); err != nil || tree.Count != 1 {
				t.Errorf("the bystander: %+v, %v", tree, err)
			}
			// All at once, as root and as the user; init answers on.
			for _, user := range []string{"agent", "root"} {
				p, err := b.spawn(wire.StartProcess{Shell: "kill -9 -1; sleep 1007", User: user})
				if err != nil {
					t.Fatal(err)
				}
				_, _ = b.call(wire.OpSignal, wire.Signal{ID: p.id, Signal: 9}, nil)
				p.wait()
				p.waitGone()
			}
			if out, _ := b.sh("agent", "echo alive"); out != "alive\n" {
				t.Errorf("afterwards: %q", out)
			}
		})
	}
}

func TestHalt(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			b := start(t, launch(t, mode))
			kind, err := b.spawn(wire.StartProcess{Shell: "trap 'exit 9' TERM; : > /tmp/kind; while :; do sleep 0.01; done"})
			if err != nil {
				t.Fatal(err)
			}
			deaf, err := b.spawn(wire.StartProcess{Shell: "trap '' TERM; (setsid sleep 1008 &); : > /tmp/deaf; while :; do sleep 1; done", User: "root"})
			if err != nil {
				t.Fatal(err)
			}
			b.sh("agent", "until test -e /tmp/kind -a -e /tmp/deaf; do sleep 0.01; done")
			if _, err := b.call(wire.OpHalt, wire.Halt{GraceMS: 300}, nil); err != nil {
				t.Fatal(err)
			}
			if e := kind.wait(); e.Code != 9 {
				t.Errorf("what heeds TERM: %+v, want code 9", e)
			}
			if e := deaf.wait(); e.Signal != 9 {
				t.Errorf("what does not: %+v, want signal 9", e)
			}
			if _, err := b.spawn(wire.StartProcess{Shell: "true"}); code(err) != wire.CodeStopping {
				t.Errorf("start after the halt: %v", err)
			}
		})
	}
}

// At the limit of processes a start says so, init answers, and a kill makes room.
func TestProcessLimit(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			l := launch(t, mode)
			l.Limits.PIDs = 60
			b := start(t, l)
			t.Logf("%+v", b.Ready.PIDs)
			if b.Ready.PIDs.State != "enforced" {
				if os.Geteuid() == 0 {
					t.Fatalf("pids: %+v, want enforced", b.Ready.PIDs)
				}
			}
			p, err := b.spawn(wire.StartProcess{Shell: "n=0; while test $n -lt 200; do sleep 1009 & n=$((n+1)); done 2>/dev/null; wait"})
			if err != nil {
				t.Fatal(err)
			}
			var failed error
			for range 100 {
				var q *process
				if q, failed = b.spawn(wire.StartProcess{Argv: []string{"sleep", "1010"}}); failed != nil {
					break
				}
				_ = q
				time.Sleep(5 * time.Millisecond)
			}
			if code(failed) != wire.CodeLimit {
				t.Errorf("start at the limit: %v, want code %s", failed, wire.CodeLimit)
			}
			var tree wire.Tree
			if _, err := b.call(wire.OpTree, wire.ProcessRef{ID: p.id}, &tree); err != nil || tree.Count > 60 {
				t.Errorf("tree at the limit: %d, %v", tree.Count, err)
			}
			if _, err := b.call(wire.OpSignal, wire.Signal{ID: p.id, Signal: 9}, nil); err != nil {
				t.Fatal(err)
			}
			p.waitGone()
			if out, _ := b.sh("agent", "echo room"); out != "room\n" {
				t.Errorf("after the kill: %q", out)
			}
		})
	}
}

// Memory beyond the limit ends a process, and the answer says why.
func TestMemoryLimit(t *testing.T) {
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			l := launch(t, mode)
			l.Limits.Memory = 64 << 20
			b := start(t, l)
			t.Logf("%+v", b.Ready.Memory)
			_, e := b.sh("agent", "exec python3 -c 'x = bytearray(400 << 20); print(len(x))'")
			switch b.Ready.Memory.State {
			case "enforced":
				if e.Signal != 9 || !e.OOM {
					t.Errorf("beyond the limit: %+v, want signal 9 and oom", e)
				}
				if u := b.Usage(); u.Memory < 0 || u.CPUNS <= 0 {
					t.Errorf("usage: %+v", u)
				}
			case "soft":
				if e.Code == 0 {
					t.Errorf("beyond the limit: %+v, want a failure", e)
				}
			}
			if _, e := b.sh("agent", "true"); e.Code != 0 || e.OOM {
				t.Errorf("the next command: %+v", e)
			}
		})
	}
}

var _ = strconv.Itoa
