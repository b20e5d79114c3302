package providertest

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"berth/sandbox"
)

// What a sandbox has at home before it is forked or kept, and how that shows.
const (
	makeCopied = "echo a >a; ln a hard; ln -s a soft; mkdir -p d/closed; echo in >d/closed/in; chmod 700 d/closed; chmod 640 a; printf 'x\\0y' >bytes; touch -d @1000000000 d/closed/in"
	showCopied = "cat soft d/closed/in; readlink soft; stat -c '%n %a %h' a hard d/closed; stat -c %Y d/closed/in; wc -c <bytes; ls"
)

// adopt is a box of an instance that another made.
func (s *suite) adopt(t *testing.T, key sandbox.Key, inst sandbox.Instance) *box {
	t.Helper()
	s.destroyAtEnd(t, key)
	b := &box{suite: s, t: t, key: key, inst: inst}
	b.info = b.status(sandbox.StatusRunning)
	return b
}

func (b *box) fork(change func(*sandbox.Spec)) *box {
	b.t.Helper()
	key := b.suite.key()
	spec := b.info.Spec.Clone()
	spec.Name = string(key.Session)
	if change != nil {
		change(&spec)
	}
	inst, err := b.inst.(sandbox.Forker).Fork(b.ctx(b.t), key, spec)
	if err != nil {
		b.t.Fatalf("Fork: %v", err)
	}
	return b.adopt(b.t, key, inst)
}

// stepping keeps two files in step: the first is never more than one ahead.
const stepping = `n=0; while [ ! -e end ]; do n=$((n+1)); echo $n >a.new; mv a.new a; echo $n >b.new; mv b.new b; [ $n != 3 ] || echo ready; done; echo ended`

// inStep checks the files of a copy that was made while stepping ran.
func (b *box) inStep() {
	b.t.Helper()
	var first, second int
	if _, err := fmt.Sscan(b.must("cat a b"), &first, &second); err != nil || first < 3 || first != second && first != second+1 {
		b.t.Errorf("the files have %d and %d (%v), want the same, or the first one more", first, second, err)
	}
}

func testForks(t *testing.T, s *suite) {
	if !s.can(t, Forks) {
		return
	}
	t.Run("quiet", func(t *testing.T) {
		b := s.makeWith(t, func(s *sandbox.Spec) { s.Labels = map[string]string{"of": "source"} })
		b.must(makeCopied)
		before := b.must(showCopied)
		to := b.fork(func(s *sandbox.Spec) { s.Labels = map[string]string{"of": "fork"} })
		b.status(sandbox.StatusRunning)
		for _, x := range []*box{b, to} {
			if got := x.must(showCopied); got != before {
				t.Errorf("files of %s: got\n%s\nwant\n%s", x.key.Session, got, before)
			}
		}
		if got := b.info.Spec.Labels["of"] + " " + to.info.Spec.Labels["of"]; got != "source fork" {
			t.Errorf("labels are of %q", got)
		}
		b.must("echo source >who; rm d/closed/in")
		to.must("test ! -e who; cat d/closed/in; echo fork >who")
		if got := b.must("cat who"); got != "source\n" {
			t.Errorf("the fork wrote into its source: %q", got)
		}
		// Each has its own processes.
		ps, err := to.inst.Processes(s.ctx(t))
		if err != nil || len(ps) != 2 {
			t.Errorf("processes of the fork: got %d, %v; want the 2 that were run in it", len(ps), err)
		}
		if ps, err = b.inst.Processes(s.ctx(t)); err != nil || len(ps) < 5 {
			t.Errorf("processes of the source: got %d, %v; want all that were run in it", len(ps), err)
		}
		if err := b.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if got := to.must("cat who d/closed/in"); got != "fork\nin\n" {
			t.Errorf("files after the source was destroyed: %q", got)
		}
		if s.h.Reopen != nil {
			s.p = s.h.Reopen(t, s.p)
			to.lookup()
			to.must("test -e d/closed/in")
		}
	})
	t.Run("busy", func(t *testing.T) {
		b := s.make(t)
		p := b.spawn(b.command(stepping))
		b.waitFor(p, "ready")
		to := b.fork(nil)
		if s.can(t, OneInstant) {
			to.inStep()
		}
		if info, err := p.Info(s.ctx(t)); err != nil || info.State != sandbox.ProcessRunning {
			t.Fatalf("the source's process after the fork: %+v, %v", info, err)
		}
		if s.can(t, Isolation) && to.alive("end ]; do n=") {
			t.Error("a process of the source runs in the fork")
		}
		b.must("touch end")
		if info, out, _ := b.ended(p); code(info) != 0 || out != "ready\nended\n" {
			t.Errorf("the source's process: got exit %d, %q", code(info), out)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		b := s.make(t)
		b.must(makeCopied)
		before := b.must(showCopied)
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		to := b.fork(nil)
		b.status(sandbox.StatusStopped)
		if got := to.must(showCopied); got != before {
			t.Errorf("files: got\n%s\nwant\n%s", got, before)
		}
		again := to.fork(nil)
		if got := again.must(showCopied); got != before {
			t.Errorf("files of the fork's fork: got\n%s\nwant\n%s", got, before)
		}
	})
	t.Run("exists", func(t *testing.T) {
		b, other := s.make(t), s.make(t)
		other.must("echo mine >f")
		_, err := b.inst.(sandbox.Forker).Fork(s.ctx(t), other.key, other.info.Spec)
		wantErr(t, "Fork onto a sandbox that is there", err, sandbox.ErrExists)
		_, err = b.inst.(sandbox.Forker).Fork(s.ctx(t), b.key, b.info.Spec)
		wantErr(t, "Fork onto itself", err, sandbox.ErrExists)
		b.must("true")
		if got := other.must("cat f"); got != "mine\n" {
			t.Errorf("the file of the sandbox that was there: %q", got)
		}
	})
	t.Run("racing", func(t *testing.T) {
		b := s.make(t)
		b.must("echo kept >f")
		key := s.key()
		errs := make([]error, 4)
		var wg sync.WaitGroup
		for i := range errs {
			wg.Go(func() { _, errs[i] = b.inst.(sandbox.Forker).Fork(s.ctx(t), key, b.info.Spec) })
		}
		wg.Wait()
		made := 0
		for _, err := range errs {
			if err == nil {
				made++
			} else if !errors.Is(err, sandbox.ErrExists) {
				t.Errorf("a racing fork: %v, want ErrExists", err)
			}
		}
		if made != 1 {
			t.Errorf("%d of 4 racing forks succeeded, want 1", made)
		}
		inst, err := s.p.Lookup(s.ctx(t), key)
		if err != nil {
			t.Fatal(err)
		}
		to := s.adopt(t, key, inst)
		for _, x := range []*box{b, to} {
			if got := x.must("cat f"); got != "kept\n" {
				t.Errorf("file after racing forks: %q", got)
			}
		}
	})
	t.Run("destroyed", func(t *testing.T) {
		b := s.make(t)
		if err := b.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		key := s.key()
		_, err := b.inst.(sandbox.Forker).Fork(s.ctx(t), key, b.info.Spec)
		wantErr(t, "Fork of a destroyed sandbox", err, sandbox.ErrNotFound)
		_, err = s.p.Lookup(s.ctx(t), key)
		wantErr(t, "Lookup after a failed fork", err, sandbox.ErrNotFound)
	})
}

func testSnapshots(t *testing.T, s *suite) {
	if !s.can(t, Snapshots) {
		return
	}
	keeper := func() sandbox.SnapshotKeeper { return s.p.(sandbox.SnapshotKeeper) }
	keep := func(t *testing.T, b *box, name string) sandbox.SnapshotInfo {
		t.Helper()
		info, err := b.inst.(sandbox.Snapshotter).Snapshot(s.ctx(t), name)
		if err != nil {
			t.Fatalf("Snapshot(%s): %v", name, err)
		}
		return info
	}
	find := func(t *testing.T, owner sandbox.Owner, name string) *sandbox.SnapshotInfo {
		t.Helper()
		list, err := keeper().Snapshots(s.ctx(t), owner)
		if err != nil {
			t.Fatalf("Snapshots: %v", err)
		}
		if i := slices.IndexFunc(list, func(x sandbox.SnapshotInfo) bool { return x.Name == name }); i >= 0 {
			return &list[i]
		}
		return nil
	}
	of := func(t *testing.T, name string) *box {
		return s.makeWith(t, func(s *sandbox.Spec) { s.Snapshot = name })
	}
	drop := func(t *testing.T, name string) {
		t.Helper()
		if err := keeper().DeleteSnapshot(s.ctx(t), "suite", name); err != nil {
			t.Errorf("DeleteSnapshot(%s): %v", name, err)
		}
	}
	t.Run("life", func(t *testing.T) {
		b := s.make(t)
		b.must(makeCopied)
		before := b.must(showCopied)
		info := keep(t, b, "one")
		b.status(sandbox.StatusRunning)
		b.must("echo later >a")
		listed := find(t, "suite", "one")
		if listed == nil || listed.Owner != "suite" || listed.From != b.key.Session || listed.Created.IsZero() || listed.Digest == "" || listed.Digest != info.Digest || len(listed.UsedBy) != 0 {
			t.Fatalf("listed: got %+v, made %+v", listed, info)
		}
		_, err := b.inst.(sandbox.Snapshotter).Snapshot(s.ctx(t), "one")
		wantErr(t, "Snapshot of a name that is taken", err, sandbox.ErrExists)
		if x := find(t, "another", "one"); x != nil {
			t.Errorf("another owner's list: got %+v", x)
		}
		wantErr(t, "DeleteSnapshot by another owner", keeper().DeleteSnapshot(s.ctx(t), "another", "one"), sandbox.ErrNotFound)
		if err := b.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if s.h.Reopen != nil {
			s.p = s.h.Reopen(t, s.p)
		}
		first, second := of(t, "one"), of(t, "one")
		first.must("echo changed >>a")
		if got := second.must(showCopied); got != before {
			t.Errorf("files: got\n%s\nwant\n%s", got, before)
		}
		listed = find(t, "suite", "one")
		if listed == nil || len(listed.UsedBy) != 2 || !slices.Contains(listed.UsedBy, first.key.Session) {
			t.Errorf("used by: got %+v", listed)
		}
		err = keeper().DeleteSnapshot(s.ctx(t), "suite", "one")
		var ue *sandbox.UserError
		if !errors.As(err, &ue) || !strings.Contains(ue.Text, string(first.key.Session)) || !strings.Contains(ue.Text, string(second.key.Session)) {
			t.Errorf("DeleteSnapshot in use: got %v, want a UserError that names both sessions", err)
		}
		for _, x := range []*box{first, second} {
			if err := x.inst.Destroy(s.ctx(t)); err != nil {
				t.Fatal(err)
			}
		}
		drop(t, "one")
		wantErr(t, "DeleteSnapshot again", keeper().DeleteSnapshot(s.ctx(t), "suite", "one"), sandbox.ErrNotFound)
		if x := find(t, "suite", "one"); x != nil {
			t.Errorf("after it was deleted: %+v", x)
		}
	})
	t.Run("of_a_stopped_one", func(t *testing.T) {
		b := s.make(t)
		b.must(makeCopied)
		before := b.must(showCopied)
		if err := b.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		keep(t, b, "stopped")
		b.status(sandbox.StatusStopped)
		x := of(t, "stopped")
		if got := x.must(showCopied); got != before {
			t.Errorf("files: got\n%s\nwant\n%s", got, before)
		}
		// And of a sandbox of it, which is not the same.
		x.must("echo next >next")
		keep(t, x, "next")
		if got := of(t, "next").must("cat next soft"); got != "next\na\n" {
			t.Errorf("files of a snapshot's snapshot: %q", got)
		}
	})
	t.Run("busy", func(t *testing.T) {
		b := s.make(t)
		p := b.spawn(b.command(stepping))
		b.waitFor(p, "ready")
		keep(t, b, "busy")
		if info, err := p.Info(s.ctx(t)); err != nil || info.State != sandbox.ProcessRunning {
			t.Fatalf("the process after the snapshot: %+v, %v", info, err)
		}
		if s.can(t, OneInstant) {
			of(t, "busy").inStep()
		}
		b.must("touch end")
		if info, out, _ := b.ended(p); code(info) != 0 || out != "ready\nended\n" {
			t.Errorf("the process: got exit %d, %q", code(info), out)
		}
	})
	t.Run("none", func(t *testing.T) {
		key := s.key()
		_, err := s.p.Create(s.ctx(t), key, s.spec(func(s *sandbox.Spec) { s.Snapshot = "none" }))
		if err == nil || !strings.Contains(err.Error(), "none") {
			t.Errorf("Create of a snapshot that is not there: got %v, want an error that names it", err)
		}
		_, err = s.p.Lookup(s.ctx(t), key)
		wantErr(t, "Lookup after that", err, sandbox.ErrNotFound)
	})
}

func testVolumes(t *testing.T, s *suite) {
	if !s.can(t, Volumes) {
		return
	}
	const place = "/home/agent/shared"
	with := func(t *testing.T, mounts ...sandbox.VolumeMount) (*box, string) {
		t.Helper()
		b := s.makeWith(t, func(s *sandbox.Spec) {
			for _, m := range mounts {
				if m.Path == "" {
					m.Path = place
				}
				s.Volumes = append(s.Volumes, m)
			}
		})
		if s.p.Name() == "fake" { // whose paths are the host's
			return b, b.info.Home + "/shared"
		}
		return b, place
	}
	find := func(t *testing.T, owner sandbox.Owner, name string) *sandbox.Volume {
		t.Helper()
		list, err := s.p.(sandbox.VolumeLister).Volumes(s.ctx(t), owner)
		if err != nil {
			t.Fatalf("Volumes: %v", err)
		}
		if i := slices.IndexFunc(list, func(v sandbox.Volume) bool { return v.Name == name }); i >= 0 {
			return &list[i]
		}
		return nil
	}
	remove := func(t *testing.T, name string) error {
		return s.p.(sandbox.VolumeDeleter).DeleteVolume(s.ctx(t), "suite", name)
	}
	t.Run("shared", func(t *testing.T) {
		one, at := with(t, sandbox.VolumeMount{Volume: "data"})
		two, at2 := with(t, sandbox.VolumeMount{Volume: "data"})
		one.must("echo from one >" + at + "/f")
		two.must("cat " + at2 + "/f; echo and two >>" + at2 + "/f")
		if got := one.must("cat " + at + "/f"); got != "from one\nand two\n" {
			t.Errorf("what two sandboxes wrote: %q", got)
		}
		v := find(t, "suite", "data")
		if v == nil || v.Created.IsZero() || len(v.UsedBy) != 2 || !slices.Contains(v.UsedBy, two.key.Session) {
			t.Fatalf("listed: got %+v", v)
		}
		if x := find(t, "another", "data"); x != nil {
			t.Errorf("another owner's list: got %+v", x)
		}
		if err := one.inst.Stop(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := two.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		err := remove(t, "data")
		var ue *sandbox.UserError
		if !errors.As(err, &ue) || !errors.Is(err, sandbox.ErrLimit) || !strings.Contains(ue.Text, string(one.key.Session)) || strings.Contains(ue.Text, string(two.key.Session)+" ") {
			t.Errorf("DeleteVolume in use: got %v, want a UserError that names %s", err, one.key.Session)
		}
		if err := one.inst.Start(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		one.must("test -e " + at + "/f")
		if err := one.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if s.h.Reopen != nil {
			s.p = s.h.Reopen(t, s.p)
		}
		three, at3 := with(t, sandbox.VolumeMount{Volume: "data"})
		if got := three.must("cat " + at3 + "/f"); got != "from one\nand two\n" {
			t.Errorf("after all sandboxes were destroyed: %q", got)
		}
		if err := three.inst.Destroy(s.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if err := remove(t, "data"); err != nil {
			t.Errorf("DeleteVolume: %v", err)
		}
		wantErr(t, "DeleteVolume again", remove(t, "data"), sandbox.ErrNotFound)
		fresh, at4 := with(t, sandbox.VolumeMount{Volume: "data"})
		if got := fresh.must("ls -A " + at4 + "/"); got != "" {
			t.Errorf("a volume that was deleted comes back with %q", got)
		}
	})
	t.Run("subpath", func(t *testing.T) {
		part, at := with(t, sandbox.VolumeMount{Volume: "parts", Subpath: "a/b"})
		part.must("echo x >" + at + "/f")
		all, at2 := with(t, sandbox.VolumeMount{Volume: "parts"})
		if got := all.must("cat " + at2 + "/a/b/f"); got != "x\n" {
			t.Errorf("the file of a part, seen in the whole: %q", got)
		}
	})
	t.Run("read_only", func(t *testing.T) {
		if !s.can(t, ReadOnlyVolumes) {
			return
		}
		w, at := with(t, sandbox.VolumeMount{Volume: "fixed"})
		w.must("echo x >" + at + "/f")
		r, at := with(t, sandbox.VolumeMount{Volume: "fixed", ReadOnly: true})
		users := []string{r.info.User}
		if s.can(t, RootUser) {
			users = append(users, "root")
		}
		for _, user := range users {
			c := r.command("cat " + at + "/f; echo y >>" + at + "/f; rm -f " + at + "/f; mount -o remount,rw " + at + " && rm -f " + at + "/f; cat " + at + "/f")
			c.User = user
			if _, out, _ := r.ended(r.spawn(c)); out != "x\nx\n" {
				t.Errorf("as %s: got %q, want the file as it was", user, out)
			}
		}
	})
	t.Run("forked", func(t *testing.T) {
		if !s.can(t, Forks) {
			return
		}
		b, at := with(t, sandbox.VolumeMount{Volume: "common"})
		b.must("echo x >" + at + "/f")
		to := b.fork(nil)
		if s.p.Name() == "fake" {
			at = to.info.Home + "/shared"
		}
		to.must("echo y >>" + at + "/f")
		if v := find(t, "suite", "common"); v == nil || len(v.UsedBy) != 2 {
			t.Errorf("a volume that a fork has, too: got %+v", v)
		}
		if s.p.Name() != "fake" {
			if got := b.must("cat " + at + "/f"); got != "x\ny\n" {
				t.Errorf("what the fork wrote into the volume: %q", got)
			}
		}
	})
}
