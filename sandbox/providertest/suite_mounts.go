package providertest

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/mounts"
	"berth/sandbox"
)

// Bucket is one of a service that the provider's sandboxes show.
type Bucket struct {
	// Job leads to it, and may write.
	Job mounts.Job
	// Put and Get reach its objects by another way.
	Put func(t *testing.T, key, data string)
	Get func(t *testing.T, key string) (data string, found bool)
}

func (s *suite) bucket(t *testing.T) Bucket {
	t.Helper()
	return s.h.Bucket(t, s.p)
}

// DirBucket is a bucket whose objects are the files of a directory.
func DirBucket(dir string, job mounts.Job) Bucket {
	return Bucket{Job: job,
		Put: func(t *testing.T, key, data string) {
			t.Helper()
			at := filepath.Join(dir, key)
			if err := errors.Join(os.MkdirAll(filepath.Dir(at), 0o755), os.WriteFile(at, []byte(data), 0o644)); err != nil {
				t.Fatal(err)
			}
		},
		Get: func(t *testing.T, key string) (string, bool) {
			t.Helper()
			b, err := os.ReadFile(filepath.Join(dir, key))
			if err != nil && !os.IsNotExist(err) {
				t.Fatal(err)
			}
			return string(b), err == nil
		}}
}

// at is an order for the bucket.
func (b Bucket) at(path string, change ...func(*sandbox.MountOrder)) sandbox.MountOrder {
	o := sandbox.MountOrder{Job: b.Job}
	o.Path, o.Connection = path, "test"
	for _, c := range change {
		c(&o)
	}
	o.Bucket, o.Prefix, o.ReadOnly = o.Job.Bucket, o.Job.Prefix, o.Job.ReadOnly
	return o
}

func (b *box) mounter() sandbox.Mounter {
	b.t.Helper()
	m, ok := b.inst.(sandbox.Mounter)
	if !ok {
		b.t.Fatalf("%T is no Mounter", b.inst)
	}
	return m
}

func (b *box) mount(o sandbox.MountOrder) sandbox.MountInfo {
	b.t.Helper()
	i, err := b.mounter().Mount(b.ctx(b.t), o)
	if err != nil {
		b.t.Fatalf("Mount(%s): %v", o.Path, err)
	}
	if i.Mount != o.Mount || i.State != sandbox.Mounted {
		b.t.Fatalf("Mount(%s): got %+v", o.Path, i)
	}
	return i
}

// on runs a command that names places of mounts. A fake's commands see them
// beneath its root.
func (b *box) on(shell string) string {
	b.t.Helper()
	root, fake := strings.CutSuffix(b.info.Home, "/home/agent")
	if !fake {
		root = ""
	}
	for _, dir := range []string{"/data/", "/mnt/"} {
		shell = strings.ReplaceAll(shell, dir, root+dir)
	}
	return b.must(shell)
}

func (b *box) unmount(path string) {
	b.t.Helper()
	if err := b.mounter().Unmount(b.ctx(b.t), path); err != nil {
		b.t.Fatalf("Unmount(%s): %v", path, err)
	}
}

// mounts lists the mounts in Info as "path state".
func (b *box) mounts(want ...string) []sandbox.MountInfo {
	b.t.Helper()
	info, err := b.inst.Info(b.ctx(b.t))
	if err != nil {
		b.t.Fatal(err)
	}
	var got []string
	for _, mt := range info.Mounts {
		got = append(got, mt.Path+" "+string(mt.State))
	}
	if strings.Join(got, ", ") != strings.Join(want, ", ") {
		b.t.Errorf("mounts: got %q, want %q", got, want)
	}
	return info.Mounts
}

func wantFault(t *testing.T, what string, got error, kind mounts.FaultKind) {
	t.Helper()
	var f *mounts.Fault
	if !errors.As(got, &f) || f.Kind != kind || f.Message == "" {
		t.Errorf("%s: got error %v, want a fault %s", what, got, kind)
	}
}

func testMounts(t *testing.T, s *suite) {
	if !s.can(t, Mounts) {
		return
	}
	if s.h.Bucket == nil {
		t.Fatal("the harness has no Bucket")
	}
	if err := s.p.(sandbox.MountChecker).CheckMounts(s.ctx(t)); err != nil {
		t.Fatalf("CheckMounts: %v", err)
	}
	t.Run("files", func(t *testing.T) { mountedFiles(t, s) })
	t.Run("places", func(t *testing.T) { mountPlaces(t, s) })
	t.Run("faults", func(t *testing.T) { mountFaults(t, s) })
	t.Run("life", func(t *testing.T) { mountLife(t, s) })
	t.Run("spec", func(t *testing.T) { specMounts(t, s) })
	t.Run("walls", func(t *testing.T) { mountWalls(t, s) })
}

func mountedFiles(t *testing.T, s *suite) {
	bucket := s.bucket(t)
	bucket.Put(t, "in/a.txt", "one\n")
	b := s.make(t)
	if i := b.mount(bucket.at("/data/deep")); i.Entries != 1 || i.More || i.OfSpec {
		t.Errorf("got %+v, want one entry", i)
	}
	if got := b.on("cat /data/deep/in/a.txt; test -O /data/deep && test -O /data/deep/in/a.txt && echo own"); got != "one\nown\n" {
		t.Errorf("got %q", got)
	}
	b.on("mkdir /data/deep/out && echo two >/data/deep/out/b.txt")
	if got, _ := bucket.Get(t, "out/b.txt"); got != "two\n" {
		t.Errorf("the bucket has %q", got)
	}
	b.mount(bucket.at("/data/deep")) // the same again
	b.mounts("/data/deep mounted")

	other := s.make(t)
	other.mount(bucket.at("/mnt/part", func(o *sandbox.MountOrder) { o.Job.Prefix = "out/" }))
	if got := other.on("ls /mnt/part; cat /mnt/part/b.txt"); got != "b.txt\ntwo\n" {
		t.Errorf("the other sandbox sees %q", got)
	}
	// Another order in the same place.
	other.mount(bucket.at("/mnt/part", func(o *sandbox.MountOrder) { o.Job.Prefix = "in/" }))
	if got := other.on("ls /mnt/part"); got != "a.txt\n" {
		t.Errorf("after another order it shows %q", got)
	}
	other.mounts("/mnt/part mounted")
	other.unmount("/mnt/part")
	other.mounts()
	other.on("test ! -e /mnt/part")
	b.on("cat /data/deep/in/a.txt")
}

func mountPlaces(t *testing.T, s *suite) {
	bucket := s.bucket(t)
	bucket.Put(t, "x", "x")
	b := s.make(t)
	home := b.info.Home
	b.must("mkdir full empty; echo mine >full/file; echo f >file")
	for _, p := range []string{"full", "file"} {
		_, err := b.mounter().Mount(s.ctx(t), bucket.at(home+"/"+p))
		wantErr(t, "Mount on "+p, err, sandbox.ErrMountpoint)
	}
	b.mounts()
	if got := b.must("cat full/file file"); got != "mine\nf\n" {
		t.Errorf("got %q", got)
	}
	b.mount(bucket.at(home + "/empty"))
	b.must("test -e empty/x")
	b.unmount(home + "/empty")
	b.must("test -d empty && test ! -e empty/x")
	wantErr(t, "Unmount again", b.mounter().Unmount(s.ctx(t), home+"/empty"), sandbox.ErrNotFound)
	if !s.can(t, RealMounts) {
		return
	}
	for _, p := range []string{"/proc", "/dev/shm"} {
		_, err := b.mounter().Mount(s.ctx(t), bucket.at(p))
		wantErr(t, "Mount on "+p, err, sandbox.ErrMountpoint)
	}
	b.mount(bucket.at(home + "/empty"))
	b.must("echo kept >empty/y")
	_, err := b.mounter().Mount(s.ctx(t), bucket.at(home+"/empty/within"))
	wantErr(t, "Mount within a mount", err, sandbox.ErrMountpoint)
	// In use.
	p := b.spawn(b.command("cd empty && echo there && exec sleep 600"))
	b.waitFor(p, "there")
	err = b.mounter().Unmount(s.ctx(t), home+"/empty")
	wantErr(t, "Unmount of what is in use", err, sandbox.ErrMountpoint)
	if err != nil && !strings.Contains(err.Error(), "by process ") { // the shell, or sleep by now
		t.Errorf("Unmount of what is in use does not say by whom: %v", err)
	}
	_, err = b.mounter().Mount(s.ctx(t), bucket.at(home+"/empty", func(o *sandbox.MountOrder) { o.Job.Prefix = "p/" }))
	wantErr(t, "another order for what is in use", err, sandbox.ErrMountpoint)
	if got := b.must("cat empty/y"); got != "kept\n" {
		t.Errorf("got %q", got)
	}
	if err := p.Kill(s.ctx(t), "KILL", 0, "the test"); err != nil {
		t.Fatal(err)
	}
	b.ended(p)
	b.unmount(home + "/empty")
}

func mountFaults(t *testing.T, s *suite) {
	bucket := s.bucket(t)
	b := s.make(t)
	wrongKey := bucket.at("/data/a", func(o *sandbox.MountOrder) { o.Job.Service.SecretAccessKey = "wrong" + "key" })
	noBucket := bucket.at("/data/a", func(o *sandbox.MountOrder) { o.Job.Bucket = "there-is-no-such-bucket" })
	_, err := b.mounter().Mount(s.ctx(t), wrongKey)
	wantFault(t, "Mount with a wrong key", err, mounts.FaultCredentials)
	if err != nil && strings.Contains(err.Error(), "wrongkey") {
		t.Errorf("the error shows the key: %v", err)
	}
	_, err = b.mounter().Mount(s.ctx(t), noBucket)
	wantFault(t, "Mount of no bucket", err, mounts.FaultNoBucket)
	b.mounts()
	b.on("test ! -e /data/a")

	// What is wanted stays wanted, and comes back.
	b.mount(bucket.at("/data/a"))
	_, err = b.mounter().Mount(s.ctx(t), wrongKey)
	wantFault(t, "another order with a wrong key", err, mounts.FaultCredentials)
	_, err = b.mounter().Mount(s.ctx(t), noBucket)
	wantFault(t, "another order for no bucket", err, mounts.FaultNoBucket)
	b.mounts("/data/a mounted")
	b.on("echo still >/data/a/works && rm /data/a/works")
	b.mount(bucket.at("/data/a"))
	// What is refused goes, also while it is in use.
	b.on("(exec 3>/data/a/open; exec sleep 600) >/dev/null 2>&1 & for i in $(seq 100); do test -e /data/a/open && break; sleep 0.1; done; test -e /data/a/open")
	refused := bucket.at("/data/a", func(o *sandbox.MountOrder) { o.Refused, o.Job = "not any more", mounts.Job{Bucket: o.Job.Bucket} })
	if _, err := b.mounter().Mount(s.ctx(t), refused); err != nil {
		t.Errorf("Mount of what is refused: %v", err)
	}
	if list := b.mounts("/data/a error"); list[0].Reason != "not any more" {
		t.Errorf("got reason %q", list[0].Reason)
	}
	b.on("! mountpoint -q /data/a; test ! -L /data/a")
	b.unmount("/data/a")
	b.mounts()
}

func mountLife(t *testing.T, s *suite) {
	bucket := s.bucket(t)
	bucket.Put(t, "x", "x")
	b := s.make(t)
	b.mount(bucket.at("/data/a"))
	b.on("echo written >/data/a/y")
	if s.h.Another != nil {
		other := s.h.Another(t, s.p)
		inst, err := other.Lookup(s.ctx(t), b.key)
		if err != nil {
			t.Fatal(err)
		}
		o := &box{suite: s, t: t, key: b.key, inst: inst, info: b.info}
		o.mounts("/data/a mounted")
		o.mount(bucket.at("/data/a"))
	}
	if s.can(t, Forks) {
		fork := b.fork(nil)
		fork.mounts("/data/a pending")
		fork.mount(bucket.at("/data/a"))
		fork.on("cat /data/a/y")
		b.mount(bucket.at("/data/a")) // it may have made way
	}
	if err := b.inst.Stop(s.ctx(t)); err != nil {
		t.Fatal(err)
	}
	b.mounts("/data/a pending")
	_, err := b.mounter().Mount(s.ctx(t), bucket.at("/data/a"))
	wantErr(t, "Mount while stopped", err, sandbox.ErrNotRunning)
	if err := b.inst.Start(s.ctx(t)); err != nil {
		t.Fatal(err)
	}
	b.mounts("/data/a pending")
	b.on("test ! -e /data/a/x")
	b.mount(bucket.at("/data/a"))
	b.on("cat /data/a/x /data/a/y")
	b.mount(bucket.at("/data/b"))
	if err := b.inst.Stop(s.ctx(t)); err != nil {
		t.Fatal(err)
	}
	b.unmount("/data/a")
	b.mounts("/data/b pending")
	if got, _ := bucket.Get(t, "y"); got != "written\n" {
		t.Errorf("the bucket has %q", got)
	}
}

func specMounts(t *testing.T, s *suite) {
	bucket := s.bucket(t)
	bucket.Put(t, "x", "x")
	one, two := bucket.at("/data/one"), bucket.at("/data/two")
	b := s.makeWith(t, func(s *sandbox.Spec) { s.Mounts = []sandbox.Mount{two.Mount, one.Mount} })
	b.mounts("/data/two pending", "/data/one pending")
	if i := b.mount(two); !i.OfSpec {
		t.Errorf("got %+v, want one of the spec", i)
	}
	_, err := b.mounter().Mount(s.ctx(t), bucket.at("/data/one", func(o *sandbox.MountOrder) { o.Job.Bucket = "there-is-no-such-bucket" }))
	wantFault(t, "Mount of no bucket", err, mounts.FaultNoBucket)
	if list := b.mounts("/data/two mounted", "/data/one error"); !list[1].OfSpec || list[1].Reason == "" {
		t.Errorf("got %+v", list[1])
	}
	b.mount(bucket.at("/data/three"))
	b.mounts("/data/two mounted", "/data/one error", "/data/three mounted")
	b.unmount("/data/two")
	b.mounts("/data/one error", "/data/three mounted")
	if s.can(t, Updates) {
		info, err := b.inst.Info(s.ctx(t))
		if err != nil {
			t.Fatal(err)
		}
		spec := info.Spec.Clone()
		spec.Mounts = []sandbox.Mount{one.Mount, two.Mount}
		if err := b.inst.(sandbox.Updater).Update(s.ctx(t), spec); err != nil {
			t.Fatal(err)
		}
		b.mounts("/data/one error", "/data/two pending", "/data/three mounted")
	}
	b.mount(one)
}

func mountWalls(t *testing.T, s *suite) {
	if !s.can(t, RealMounts) {
		return
	}
	bucket := s.bucket(t)
	bucket.Put(t, "in/x", "x")
	bucket.Put(t, "out", "out")
	b := s.make(t)
	b.mount(bucket.at("/data/ro", func(o *sandbox.MountOrder) { o.Job.ReadOnly, o.Job.Prefix = true, "in/" }))
	for _, user := range []string{b.info.User, "root"} {
		c := b.command("cd /data/ro && cat x && ls .. >/dev/null && ! cat ../ro/../out 2>/dev/null && ! touch y && ! rm x && ! mkdir z; ! test -e /data/ro/out")
		c.User = user
		if user == "root" && !s.can(t, RootUser) {
			continue
		}
		info, out, errs := b.ended(b.spawn(c))
		if code(info) != 0 || out != "x" || !strings.Contains(errs, "Read-only") {
			t.Errorf("as %s: got exit %d, %q, %q", user, code(info), out, errs)
		}
	}
	for _, path := range []string{"/data/ro/x", "/data/ro/new"} {
		_, err := b.inst.Files().Write(s.ctx(t), path, strings.NewReader("y"), sandbox.WriteOptions{})
		wantErr(t, "write of "+path, err, sandbox.ErrReadOnly)
	}
	if got, _ := bucket.Get(t, "in/x"); got != "x" {
		t.Errorf("the bucket has %q", got)
	}
	// Foreign mounts are nobody's business.
	if s.can(t, RootUser) {
		c := b.command("! umount /data/ro && ! mount -o remount,rw /data/ro")
		c.User = "root"
		if info, out, errs := b.ended(b.spawn(c)); code(info) != 0 {
			t.Errorf("root inside unmounts: exit %d, %q, %q", code(info), out, errs)
		}
	}
}
