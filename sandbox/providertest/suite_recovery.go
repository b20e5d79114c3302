package providertest

import (
	"fmt"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
)

func testRecovery(t *testing.T, s *suite) {
	again := func(name string, reopen func(*testing.T, sandbox.Provider) sandbox.Provider) {
		if reopen == nil {
			return
		}
		t.Run(name, func(t *testing.T) {
			s := &suite{h: s.h, p: s.h.Open(t)}
			b := s.make(t)
			c := b.command("i=0; while [ $i -lt 50 ]; do echo line $i; i=$((i+1)); sleep 0.02; done; read x; echo got $x; exit 9")
			c.OpenStdin = true
			p := b.spawn(c)
			b.waitFor(p, "line 3\n")
			o, err := p.Read(s.ctx(t), sandbox.Cursor{}, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			s.p = reopen(t, s.p)
			b.lookup()
			b.status(sandbox.StatusRunning)
			if p, err = b.inst.Process(s.ctx(t), c.ID); err != nil {
				t.Fatalf("Process: %v", err)
			}
			if err := p.Write(s.ctx(t), []byte("word\n"), true); err != nil {
				t.Errorf("Write: %v", err)
			}
			info, all, _ := b.ended(p)
			want := ""
			for i := range 50 {
				want += fmt.Sprintf("line %d\n", i)
			}
			if want += "got word\n"; all != want || code(info) != 9 {
				t.Errorf("got %q, exit %d; want %q, 9", all, code(info), want)
			}
			rest, err := p.Read(s.ctx(t), o.Next, 1<<20)
			if err != nil || string(o.Stdout)+string(rest.Stdout) != want {
				t.Errorf("the two readers' bytes are %q and %q, %v", o.Stdout, rest.Stdout, err)
			}
			if same, err := b.inst.Spawn(s.ctx(t), c); err != nil || same.ID() != c.ID {
				t.Errorf("Spawn of the same ID: %v", err)
			} else if i, _, _ := b.ended(same); !i.Started.Equal(info.Started) {
				t.Error("Spawn of the same ID ran it twice")
			}
		})
	}
	again("reopen", s.h.Reopen)
	again("crash", s.h.Crash)
	if s.h.Kill != nil {
		t.Run("killed_from_outside", func(t *testing.T) {
			b := s.make(t)
			b.must("echo kept >kept; sync kept")
			p := b.spawn(b.command("echo begun; exec sleep 600"))
			b.waitFor(p, "begun\n")
			s.h.Kill(t, s.p, b.key)
			b.lookup()
			info := b.status(sandbox.StatusStopped)
			_, err := b.inst.Spawn(s.ctx(t), b.command("true"))
			wantErr(t, "Spawn in a dead sandbox", err, sandbox.ErrNotRunning)
			lost := func() {
				t.Helper()
				q, err := b.inst.Process(s.ctx(t), p.ID())
				if err != nil {
					t.Fatalf("Process: %v", err)
				}
				i, out, _ := b.ended(q)
				if i.State != sandbox.ProcessLost || i.ExitCode != nil || i.Reason == "" || out != "begun\n" {
					t.Errorf("the process that was beneath: got %+v, %q; want lost, no exit code, a reason", i, out)
				}
			}
			if s.can(t, Afterlife) {
				lost()
			}
			t.Logf("Reason of the sandbox: %q", info.Reason)
			if err := b.inst.Start(s.ctx(t)); err != nil {
				t.Fatalf("Start: %v", err)
			}
			lost()
			if out := b.must("cat kept"); out != "kept\n" {
				t.Errorf("file after the death: %q", out)
			}
		})
	}
}

func testRacing(t *testing.T, s *suite) {
	t.Run("creates", func(t *testing.T) {
		key := s.key()
		second := s.p
		if s.h.Another != nil {
			second = s.h.Another(t, s.p)
		}
		var wg sync.WaitGroup
		errs := make([]error, 8)
		for i := range errs {
			p := s.p
			if i%2 == 1 {
				p = second
			}
			wg.Go(func() { _, errs[i] = p.Create(s.ctx(t), key, s.spec(nil)) })
		}
		wg.Wait()
		won := 0
		for _, err := range errs {
			if err == nil {
				won++
			} else {
				wantErr(t, "a losing Create", err, sandbox.ErrExists)
			}
		}
		if won != 1 {
			t.Errorf("%d of the racing Creates succeeded, want 1", won)
		}
		inst, err := s.p.Lookup(s.ctx(t), key)
		if err != nil {
			t.Fatal(err)
		}
		if err := inst.Destroy(s.ctx(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("starts", func(t *testing.T) {
		b := s.make(t)
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for range 6 {
			wg.Go(func() {
				if err := b.inst.Start(s.ctx(t)); err != nil {
					t.Errorf("a racing Start: %v", err)
				}
			})
		}
		wg.Wait()
		b.must("true")
	})
	t.Run("commands", func(t *testing.T) {
		b := s.make(t)
		began := time.Now()
		var wg sync.WaitGroup
		for i := range 10 {
			wg.Go(func() {
				p, err := b.inst.Spawn(s.ctx(t), b.command(fmt.Sprintf("sleep 1; echo %d; exit %d", i, i)))
				if err != nil {
					t.Errorf("Spawn: %v", err)
					return
				}
				if err := p.Wait(s.ctx(t), sandbox.Cursor{}, true); err != nil {
					t.Errorf("Wait: %v", err)
					return
				}
				info, _ := p.Info(s.ctx(t))
				if o, err := p.Read(s.ctx(t), sandbox.Cursor{}, 100); err != nil || string(o.Stdout) != fmt.Sprintln(i) || code(info) != i {
					t.Errorf("command %d: got %q, exit %d, %v", i, o.Stdout, code(info), err)
				}
			})
		}
		wg.Wait()
		if d := time.Since(began); d > 8*time.Second {
			t.Errorf("10 commands of 1 s took %v: they do not run beside each other", d)
		}
	})
	t.Run("two_sessions_apart", func(t *testing.T) {
		a, b := s.make(t), s.make(t)
		a.must("echo a >mine")
		if _, err := b.inst.Files().Stat(s.ctx(t), b.info.Home+"/mine"); err == nil {
			t.Error("the other sandbox's file is there")
		}
		p := a.spawn(a.command("exec sleep 600"))
		_, err := b.inst.Process(s.ctx(t), p.ID())
		wantErr(t, "Process of the other sandbox", err, sandbox.ErrNoProcess)
		if err := b.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		a.must("true")
	})
}
