package providertest

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

func testKilling(t *testing.T, s *suite) {
	b := s.make(t)
	for i, c := range []struct{ name, shell string }{
		{"child", "%s & echo ready; wait"},
		{"daemon", "(setsid sh -c '%s' </dev/null >/dev/null 2>&1 &); echo ready; sleep 600"},
		{"ignores_term", "trap '' TERM; echo ready; %s; sleep 600"},
		{"new_group", "set -m; (%s) & echo ready; sleep 600"},
	} {
		for j, how := range []string{"deadline", "kill"} {
			t.Run(c.name+"_"+how, func(t *testing.T) {
				b := b.in(t)
				mark := fmt.Sprintf("sleep 55%d%d00", i, j)
				cmd := b.command(fmt.Sprintf(c.shell, mark))
				if how == "deadline" {
					cmd.Timeout = 700 * time.Millisecond
				}
				p := b.spawn(cmd)
				b.waitFor(p, "ready\n")
				if how == "kill" {
					if err := p.Kill(s.ctx(t), "TERM", 300*time.Millisecond, "asked"); err != nil {
						t.Fatal(err)
					}
				}
				info, out, _ := b.ended(p)
				want := 137
				if how == "deadline" {
					want = 124
				}
				if code(info) != want || !info.Killed || info.TimedOut != (how == "deadline") || info.Reason == "" || out != "ready\n" {
					t.Errorf("got exit %d, %+v, %q", code(info), info, out)
				}
				if info.Signal != "SIGTERM" && info.Signal != "SIGKILL" {
					t.Errorf("got signal %q", info.Signal)
				}
				b.gone(mark)
			})
		}
	}
	t.Run("signal", func(t *testing.T) {
		b := b.in(t)
		p := b.spawn(b.command("trap 'echo caught; exit 7' USR1; echo ready; while :; do sleep 0.05; done"))
		b.waitFor(p, "ready\n")
		if err := p.Kill(s.ctx(t), "USR1", 0, "asked"); err != nil {
			t.Fatal(err)
		}
		if _, out, _ := b.ended(p); !strings.Contains(out, "caught\n") {
			t.Errorf("got %q", out)
		}
	})
	t.Run("deadline_without_waiter", func(t *testing.T) {
		b := b.in(t)
		cmd := b.command("echo a; exec sleep 600")
		cmd.Timeout = 200 * time.Millisecond
		p := b.spawn(cmd)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			if i, err := p.Info(s.ctx(t)); err != nil || i.State != sandbox.ProcessRunning {
				if code(i) != 124 {
					t.Errorf("got %+v, %v", i, err)
				}
				return
			}
			if time.Now().After(end) {
				t.Fatal("the deadline did not hold")
			}
		}
	})
	t.Run("ended", func(t *testing.T) {
		b := b.in(t)
		p := b.spawn(b.command("exit 6"))
		b.ended(p)
		if err := p.Kill(s.ctx(t), "KILL", 0, "late"); err != nil {
			t.Errorf("Kill after the exit: %v", err)
		}
		if info, _, _ := b.ended(p); code(info) != 6 || info.Killed || info.Reason != "" {
			t.Errorf("Kill after the exit changed the record: %+v", info)
		}
	})
}

func testProcesses(t *testing.T, s *suite) {
	b := s.make(t)
	_, err := b.inst.Process(s.ctx(t), "p-unknown")
	wantErr(t, "Process with an unknown id", err, sandbox.ErrNoProcess)
	if l, err := b.inst.Processes(s.ctx(t)); err != nil || len(l) != 0 {
		t.Errorf("Processes of a new sandbox: got %v, %v", l, err)
	}
	c := b.command("exit 5")
	c.Display = "what lists show"
	b.ended(b.spawn(c))
	r := b.spawn(b.command("exec sleep 600"))
	l, err := b.inst.Processes(s.ctx(t))
	if err != nil || len(l) != 2 || l[0].ID != c.ID || code(l[0]) != 5 || l[0].Command != "what lists show" ||
		l[1].ID != r.ID() || l[1].State != sandbox.ProcessRunning || l[1].ExitCode != nil {
		t.Errorf("Processes: got %+v, %v", l, err)
	}
	if info := b.status(sandbox.StatusRunning); s.can(t, Usages) && (info.Usage == nil || info.Usage.Processes == 0) {
		t.Errorf("Usage: got %+v", info.Usage)
	}
	if s.can(t, CountsRead) {
		if i, err := r.Info(s.ctx(t)); err != nil || i.Memory < 0 && i.CPU < 0 {
			t.Errorf("neither CPU nor memory are known: %+v, %v", i, err)
		}
	}
	b.kill(r)
}

func testTerminals(t *testing.T, s *suite) {
	b := s.make(t)
	c := b.command("test -t 0 && test -t 1 && test -t 2 && stty size; echo err >&2; read l; echo got $l; stty size; cat")
	c.TTY, c.OpenStdin = &sandbox.WindowSize{Cols: 91, Rows: 17}, true
	if !s.can(t, Terminals) {
		_, err := b.inst.Spawn(s.ctx(t), c)
		wantErr(t, "Spawn with a terminal", err, sandbox.ErrUnsupported)
		return
	}
	p := b.spawn(c)
	b.waitFor(p, "17 91\r\nerr\r\n")
	if i, err := p.Info(s.ctx(t)); err != nil || i.Window != *c.TTY {
		t.Errorf("the terminal is told to have %v, %v, want %v", i.Window, err, *c.TTY)
	}
	if err := p.Resize(s.ctx(t), sandbox.WindowSize{Cols: 120, Rows: 40}); err != nil {
		t.Errorf("Resize: %v", err)
	}
	if err := p.Write(s.ctx(t), []byte("hello\r"), false); err != nil {
		t.Fatal(err)
	}
	b.waitFor(p, "got hello\r\n40 120\r\n")
	if err := p.Write(s.ctx(t), []byte{4}, false); err != nil { // Ctrl-D ends cat
		t.Fatal(err)
	}
	info, _, errs := b.ended(p)
	if code(info) != 0 || errs != "" || !info.TTY || info.Window != (sandbox.WindowSize{Cols: 120, Rows: 40}) {
		t.Errorf("got %+v, stderr %q", info, errs)
	}
	// Closing the terminal is not leaving it.
	d := b.command("exec </dev/null >closed 2>&1; sleep 0.2; echo late >/dev/tty; exit 4")
	d.TTY = &sandbox.WindowSize{Cols: 80, Rows: 24}
	if info, out, _ := b.ended(b.spawn(d)); code(info) != 4 || out != "late\r\n" {
		t.Errorf("a program that closes its terminal: got %+v and %q, want exit 4 and its last line", info, out)
	}
	i := b.command("exec sleep 600")
	i.TTY, i.OpenStdin = &sandbox.WindowSize{Cols: 80, Rows: 24}, true
	p = b.spawn(i)
	time.Sleep(100 * time.Millisecond) // until it has its terminal
	if err := p.Write(s.ctx(t), []byte{3}, false); err != nil {
		t.Fatal(err)
	}
	if info, _, _ := b.ended(p); code(info) != 130 || info.Killed {
		t.Errorf("Ctrl-C: got %+v, want exit 130", info)
	}
	q := b.spawn(b.command("exec sleep 600"))
	wantErr(t, "Resize without a terminal", q.Resize(s.ctx(t), sandbox.WindowSize{Cols: 1, Rows: 1}), sandbox.ErrUnsupported)
	b.kill(q)
}
