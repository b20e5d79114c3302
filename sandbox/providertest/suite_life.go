package providertest

import (
	"errors"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
)

func testLife(t *testing.T, s *suite) {
	if s.p.Name() == "" {
		t.Error("Name is empty")
	}
	t.Run("never_seen", func(t *testing.T) {
		_, err := s.p.Lookup(s.ctx(t), s.key())
		wantErr(t, "Lookup of a session never seen", err, sandbox.ErrNotFound)
	})
	t.Run("describe", func(t *testing.T) {
		spec := s.spec(func(s *sandbox.Spec) { s.Name = "described" })
		info, err := s.p.Describe(s.ctx(t), spec)
		if err != nil || info.Status != sandbox.StatusPending || info.Key != (sandbox.Key{}) {
			t.Errorf("Describe: got %+v, %v; want StatusPending and no key", info, err)
		}
		if l, err := s.p.List(s.ctx(t), ""); err != nil || len(l) != 0 {
			t.Errorf("List after Describe: got %v, %v; want nothing", l, err)
		}
	})
	t.Run("create_twice", func(t *testing.T) {
		b := s.make(t)
		_, err := s.p.Create(s.ctx(t), b.key, s.spec(nil))
		wantErr(t, "Create again", err, sandbox.ErrExists)
		b.must("true")
		if b.info.Home == "" || b.info.User == "" || b.info.Created.IsZero() || b.info.Provider != s.p.Name() {
			t.Errorf("Info lacks something: %+v", b.info)
		}
	})
	t.Run("stop_start_keeps_files", func(t *testing.T) {
		b := s.make(t)
		b.must("echo kept >kept; mkdir -p d; ln -s ../kept d/l; chmod 750 kept")
		early := b.spawn(b.command("echo early; exit 3"))
		b.ended(early)
		running := b.spawn(b.command("echo started; exec sleep 600"))
		b.waitFor(running, "started")
		for range 2 { // also of a stopped one
			if err := b.inst.Stop(s.ctx(t)); err != nil {
				t.Fatalf("Stop: %v", err)
			}
		}
		if info := b.status(sandbox.StatusStopped); info.Stopped.IsZero() {
			t.Error("Stopped is zero")
		}
		_, err := b.inst.Spawn(s.ctx(t), b.command("true"))
		wantErr(t, "Spawn in a stopped sandbox", err, sandbox.ErrNotRunning)
		_, err = b.inst.Files().Stat(s.ctx(t), b.info.Home)
		wantErr(t, "Stat in a stopped sandbox", err, sandbox.ErrNotRunning)
		kept := func(when string) {
			t.Helper()
			ps, err := b.inst.Processes(s.ctx(t))
			if err != nil || len(ps) != 3 || ps[1].ID != early.ID() || code(ps[1]) != 3 || ps[2].State == sandbox.ProcessRunning {
				t.Errorf("Processes %s: got %+v, %v", when, ps, err)
			}
			p, err := b.inst.Process(s.ctx(t), early.ID())
			if err != nil {
				t.Fatalf("Process %s: %v", when, err)
			}
			if _, out, _ := b.ended(p); out != "early\n" {
				t.Errorf("output of a process %s: got %q", when, out)
			}
		}
		if s.can(t, Afterlife) {
			kept("of a stopped sandbox")
		} else {
			_, err := b.inst.Processes(s.ctx(t))
			wantErr(t, "Processes of a stopped sandbox", err, sandbox.ErrNotRunning)
			_, err = b.inst.Process(s.ctx(t), early.ID())
			wantErr(t, "Process of a stopped sandbox", err, sandbox.ErrNotRunning)
			b.status(sandbox.StatusStopped)
		}
		for range 2 {
			if err := b.inst.Start(s.ctx(t)); err != nil {
				t.Fatalf("Start: %v", err)
			}
		}
		b.status(sandbox.StatusRunning)
		kept("from before the stop")
		if out := b.must("cat d/l; stat -c %a kept"); out != "kept\n750\n" {
			t.Errorf("files after stop and start: got %q", out)
		}
	})
	t.Run("archive", func(t *testing.T) {
		b := s.make(t)
		a, ok := b.inst.(sandbox.Archiver)
		if !ok {
			if s.can(t, Archives) {
				t.Error("there is no Archiver, and the harness does not say so")
			}
			return
		}
		b.must("echo kept >kept; head -c 100000 /dev/urandom >r; cksum r >sum; ln -s kept l; chmod 700 r")
		if err := a.Archive(s.ctx(t)); err == nil {
			t.Error("Archive of a running sandbox succeeded")
		}
		b.must("true")
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := a.Archive(s.ctx(t)); err != nil {
				t.Fatalf("Archive: %v", err)
			}
			b.status(sandbox.StatusArchived)
		}
		if err := b.inst.Start(s.ctx(t)); err != nil {
			t.Fatalf("Start of an archived sandbox: %v", err)
		}
		b.status(sandbox.StatusRunning)
		b.must(`test "$(cat l)" = kept && test "$(cksum r)" = "$(cat sum)" && test "$(stat -c %a r)" = 700`)
	})
	t.Run("ephemeral", func(t *testing.T) {
		b := s.makeWith(t, func(s *sandbox.Spec) { s.Ephemeral = new(true) })
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatalf("Stop: %v", err)
		}
		b.isGone()
	})
	t.Run("destroy", func(t *testing.T) {
		b := s.make(t)
		p := b.spawn(b.command("exec sleep 600"))
		for range 2 {
			if err := b.inst.Destroy(s.ctx(t)); err != nil {
				t.Fatalf("Destroy: %v", err)
			}
		}
		b.isGone()
		_, err := b.inst.Spawn(s.ctx(t), b.command("true"))
		wantErr(t, "Spawn after Destroy", err, sandbox.ErrNotRunning, sandbox.ErrNotFound)
		wantErr(t, "Start after Destroy", b.inst.Start(s.ctx(t)), sandbox.ErrNotFound)
		_, err = b.inst.Process(s.ctx(t), p.ID())
		wantErr(t, "Process after Destroy", err, sandbox.ErrNoProcess, sandbox.ErrNotFound)
		fresh, err := s.p.Create(s.ctx(t), b.key, s.spec(nil))
		if err != nil {
			t.Fatalf("Create after Destroy: %v", err)
		}
		b.inst = fresh
		b.info = b.status(sandbox.StatusRunning)
		if out := b.must("ls -A " + b.info.Home + " | grep -c kept || true"); out != "0\n" {
			t.Errorf("files of the destroyed sandbox: %q", out)
		}
	})
	t.Run("destroy_stopped", func(t *testing.T) {
		b := s.make(t)
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := b.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatalf("Destroy: %v", err)
		}
		b.isGone()
	})
	t.Run("list", func(t *testing.T) {
		s := &suite{h: s.h, p: s.h.Open(t)}
		a, b := s.make(t), s.make(t)
		other := sandbox.Key{Owner: "another owner/ü", Session: a.key.Session}
		o, err := s.p.Create(s.ctx(t), other, s.spec(nil))
		if err != nil {
			t.Fatalf("Create with the same session of another owner: %v", err)
		}
		defer func() { _ = o.Destroy(s.ctx(t)) }()
		if err := a.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		list, err := s.p.List(s.ctx(t), "suite")
		if err != nil || len(list) != 2 || list[0].Key != a.key || list[1].Key != b.key || list[0].Status != sandbox.StatusStopped {
			t.Errorf("List: got %+v, %v", list, err)
		}
		if list, err = s.p.List(s.ctx(t), ""); err != nil || len(list) != 3 {
			t.Errorf("List of all: got %d, %v; want 3", len(list), err)
		}
		if err := b.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if list, err = s.p.List(s.ctx(t), "suite"); err != nil || len(list) != 1 {
			t.Errorf("List after Destroy: got %d, %v; want 1", len(list), err)
		}
	})
	t.Run("retire", func(t *testing.T) {
		if s.h.Break == nil {
			return
		}
		b := s.make(t)
		s.h.Break(t, s.p, b.key)
		b.lookup()
		if info := b.status(sandbox.StatusError); info.Reason == "" {
			t.Error("StatusError without a Reason")
		}
		r, ok := b.inst.(sandbox.Retirer)
		if !ok {
			if s.can(t, Retirement) {
				t.Error("there is no Retirer, and the harness does not say so")
			}
			return
		}
		if _, err := r.Retire(s.ctx(t), "broken by the suite"); err != nil {
			t.Fatalf("Retire: %v", err)
		}
		if _, err := s.p.Create(s.ctx(t), b.key, s.spec(nil)); err != nil {
			t.Errorf("Create after Retire: %v", err)
		}
	})
	t.Run("close", func(t *testing.T) {
		s := &suite{h: s.h, p: s.h.Open(t)}
		b := s.make(t)
		if s.h.Reopen == nil {
			return
		}
		old := s.p
		s.p = s.h.Reopen(t, old)
		if _, err := old.Create(s.ctx(t), s.key(), s.spec(nil)); err == nil {
			t.Error("Create after Close succeeded")
		}
		b.lookup()
		b.must("true")
	})
}

// isGone checks that a destroyed sandbox is at most known by its tombstone.
func (b *box) isGone() {
	b.t.Helper()
	inst, err := b.p.Lookup(b.ctx(b.t), b.key)
	if _, no := b.h.Cannot[Tombstones]; no {
		wantErr(b.t, "Lookup of a destroyed sandbox", err, sandbox.ErrNotFound)
		return
	}
	if err != nil {
		b.t.Errorf("Lookup of a destroyed sandbox: %v; want its tombstone", err)
		return
	}
	b.inst = inst
	b.status(sandbox.StatusDestroyed)
}

func testSpec(t *testing.T, s *suite) {
	t.Run("kept", func(t *testing.T) {
		b := s.makeWith(t, func(s *sandbox.Spec) {
			s.Name, s.Labels, s.Language, s.AutoStop = "a name", map[string]string{"a/b": "c d"}, sandbox.Python, new(7*time.Minute)
			s.Env = map[string]string{"FOO": "bar\nbaz"}
		})
		b.lookup()
		got := b.status(sandbox.StatusRunning)
		if got.Name != "a name" || got.Spec.Labels["a/b"] != "c d" || got.Spec.Language != sandbox.Python || *got.Spec.AutoStop != 7*time.Minute || got.Spec.Env["FOO"] != "bar\nbaz" {
			t.Errorf("got %+v", got.Spec)
		}
	})
	t.Run("resources", func(t *testing.T) {
		if !s.can(t, Resources) {
			return
		}
		asked := sandbox.Resources{CPU: 0.5, Memory: 512 << 20, Disk: 256 << 20}
		key := s.key()
		inst, err := s.p.Create(s.ctx(t), key, s.spec(func(s *sandbox.Spec) { s.Resources = asked }))
		if err != nil {
			if !strings.Contains(err.Error(), "resources.") {
				t.Errorf("refused without naming a key: %v", err)
			}
			if _, err := s.p.Lookup(s.ctx(t), key); !errors.Is(err, sandbox.ErrNotFound) {
				t.Errorf("the refused sandbox: %v, want ErrNotFound", err)
			}
			return
		}
		info, err := inst.Info(s.ctx(t))
		if err != nil || info.Spec.Resources != asked {
			t.Errorf("got %+v, %v; want %+v", info.Spec.Resources, err, asked)
		}
		held := map[string]sandbox.Enforcement{}
		for _, g := range info.Guarantees {
			held[g.Name] = g.State
		}
		for _, name := range []string{"cpu_limit", "memory_limit", "disk_limit"} {
			if held[name] != sandbox.Enforced {
				t.Errorf("%s was asked for and is %q", name, held[name])
			}
		}
		if err := inst.Destroy(s.ctx(t)); err != nil {
			t.Error(err)
		}
	})
	t.Run("update", func(t *testing.T) {
		if !s.can(t, Updates) {
			return
		}
		b := s.make(t)
		u, ok := b.inst.(sandbox.Updater)
		if !ok {
			t.Fatal("there is no Updater, and the harness does not say so")
		}
		want := b.info.Spec.Clone()
		want.Name, want.Labels, want.Env = "other", map[string]string{"x": "y"}, map[string]string{"N": "1"}
		want.AutoStop, want.Timeout, want.WorkingDirectory = new(time.Hour), new(time.Minute), "/tmp"
		if err := u.Update(s.ctx(t), want); err != nil {
			t.Fatalf("Update: %v", err)
		}
		check := func() {
			t.Helper()
			got := b.status(sandbox.StatusRunning)
			if got.Name != "other" || got.Spec.Labels["x"] != "y" || got.Spec.Env["N"] != "1" || *got.Spec.AutoStop != time.Hour ||
				*got.Spec.Timeout != time.Minute || got.Spec.WorkingDirectory != "/tmp" {
				t.Errorf("after Update: got %+v", got.Spec)
			}
		}
		b.lookup()
		check()
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := b.inst.Start(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		check()
	})
	t.Run("sweep", func(t *testing.T) {
		w, ok := s.p.(sandbox.Sweeper)
		if !ok {
			return
		}
		b := s.make(t)
		if err := w.Sweep(s.ctx(t)); err != nil {
			t.Errorf("Sweep: %v", err)
		}
		b.must("true")
	})
}
