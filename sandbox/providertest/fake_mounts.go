//go:build unix

package providertest

import (
	"context"
	"os"
	"path/filepath"
	"slices"

	"berth/mounts"
	"berth/sandbox"
)

var (
	_ sandbox.MountChecker = (*Fake)(nil)
	_ sandbox.Mounter      = (*fakeInstance)(nil)
)

// fakeMount is a bucket that a sandbox is to have. What is mounted is a link to
// the bucket's directory, and never read-only.
type fakeMount struct {
	sandbox.MountInfo
	fingerprint string // of what is mounted; "" when nothing is
	made        bool   // nothing was there before
}

// MakeBucket makes a bucket of the fake's own service, which takes that secret key,
// and returns the directory that it is.
func (f *Fake) MakeBucket(name, key string) (string, error) {
	s := f.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.buckets == nil {
		s.buckets = map[string]string{}
	}
	s.buckets[name] = key
	dir := filepath.Join(s.dir, "bucket-"+name)
	return dir, os.MkdirAll(dir, 0o755)
}

// CheckMounts never refuses.
func (f *Fake) CheckMounts(ctx context.Context) error { return f.usable(ctx) }

// mountInfos lists what b is to have; b.mu is held.
func (b *fakeBox) mountInfos() []sandbox.MountInfo {
	var list []sandbox.MountInfo
	at := func(path string) *fakeMount {
		for _, mt := range b.mounts {
			if mt.Path == path {
				return mt
			}
		}
		return nil
	}
	show := func(want sandbox.Mount, ofSpec bool) {
		i := sandbox.MountInfo{Mount: want, OfSpec: ofSpec, State: sandbox.MountPending, Entries: -1}
		if mt := at(want.Path); mt != nil && b.status == sandbox.StatusRunning && mt.State != "" {
			i.State, i.Reason, i.Entries = mt.State, mt.Reason, mt.Entries
		}
		list = append(list, i)
	}
	for _, mt := range b.spec.Mounts {
		show(mt, true)
	}
	for _, mt := range b.mounts {
		if !mt.OfSpec {
			show(mt.Mount, false)
		}
	}
	return list
}

// unmountAll ends what is mounted, and leaves what is wanted; b.mu is held.
func (b *fakeBox) unmountAll() {
	for _, mt := range b.mounts {
		b.unmount(mt)
		mt.State, mt.Reason = "", ""
	}
}

func (b *fakeBox) unmount(mt *fakeMount) {
	if mt.fingerprint == "" {
		return
	}
	at := b.host(mt.Path)
	_ = os.Remove(at)
	if !mt.made {
		_ = os.Mkdir(at, 0o755)
	}
	mt.fingerprint = ""
}

// Mount is the contract's.
func (i *fakeInstance) Mount(ctx context.Context, o sandbox.MountOrder) (sandbox.MountInfo, error) {
	if err := i.provider.usable(ctx); err != nil {
		return sandbox.MountInfo{}, err
	}
	b, s := i.box, i.box.store
	s.mu.Lock()
	key, exists := s.buckets[o.Bucket]
	s.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status != sandbox.StatusRunning {
		return sandbox.MountInfo{}, sandbox.ErrNotRunning
	}
	inSpec := slices.IndexFunc(b.spec.Mounts, func(m sandbox.Mount) bool { return m.Path == o.Path })
	n := slices.IndexFunc(b.mounts, func(m *fakeMount) bool { return m.Path == o.Path })
	wanted := inSpec >= 0 || n >= 0
	var mt *fakeMount
	if n >= 0 {
		mt = b.mounts[n]
	} else {
		mt = &fakeMount{MountInfo: sandbox.MountInfo{Mount: o.Mount, OfSpec: inSpec >= 0, Entries: -1}}
	}
	fail := func(err error) (sandbox.MountInfo, error) {
		if !wanted {
			return sandbox.MountInfo{}, err
		}
		if n < 0 {
			b.mounts = append(b.mounts, mt)
		}
		mt.State, mt.Reason = sandbox.MountError, o.Refused
		if err != nil {
			mt.Reason = err.Error()
		}
		return mt.MountInfo, err
	}
	if o.Refused != "" {
		b.unmount(mt)
		return fail(nil)
	}
	print := o.Job.Fingerprint()
	if mt.fingerprint == print {
		return mt.MountInfo, nil
	}
	var fault *mounts.Fault
	switch {
	case !exists:
		fault = &mounts.Fault{Kind: mounts.FaultNoBucket, Message: "there is no bucket " + o.Bucket + "; check the name, or make it"}
	case o.Job.Service.SecretAccessKey != key:
		fault = &mounts.Fault{Kind: mounts.FaultCredentials, Message: "the service does not know these keys"}
	}
	if fault != nil && mt.State == sandbox.Mounted {
		return mt.MountInfo, fault
	}
	b.unmount(mt)
	if fault != nil {
		return fail(fault)
	}
	at := b.host(o.Path)
	refuse := func(why string) (sandbox.MountInfo, error) {
		return fail(&sandbox.UserError{Err: sandbox.ErrMountpoint, Text: o.Path + " " + why})
	}
	fi, err := os.Lstat(at)
	switch {
	case os.IsNotExist(err):
		mt.made = true
	case err != nil:
		return fail(err)
	case fi.Mode()&os.ModeSymlink != 0:
		return refuse("has something mounted on it that is not berth's")
	case !fi.IsDir():
		return refuse("is no directory")
	default:
		if err := os.Remove(at); err != nil {
			return refuse("is not empty")
		}
		mt.made = false
	}
	dir := filepath.Join(s.dir, "bucket-"+o.Bucket, o.Prefix)
	for _, d := range []string{dir, filepath.Dir(at)} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return fail(err)
		}
	}
	if err := os.Symlink(dir, at); err != nil {
		return fail(err)
	}
	entries, _ := os.ReadDir(dir)
	mt.Mount, mt.State, mt.Reason, mt.Entries, mt.fingerprint = o.Mount, sandbox.Mounted, "", len(entries), print
	if inSpec >= 0 {
		b.spec = b.spec.Clone()
		b.spec.Mounts[inSpec] = o.Mount
	}
	if n < 0 {
		b.mounts = append(b.mounts, mt)
	}
	return mt.MountInfo, nil
}

// Unmount is the contract's; nothing is ever in use.
func (i *fakeInstance) Unmount(ctx context.Context, path string) error {
	if err := i.provider.usable(ctx); err != nil {
		return err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	before := len(b.mounts) + len(b.spec.Mounts)
	b.mounts = slices.DeleteFunc(b.mounts, func(m *fakeMount) bool {
		if m.Path == path {
			b.unmount(m)
			if m.made {
				_ = os.Remove(b.host(path))
			}
		}
		return m.Path == path
	})
	b.spec = b.spec.Clone()
	b.spec.Mounts = slices.DeleteFunc(b.spec.Mounts, func(m sandbox.Mount) bool { return m.Path == path })
	if len(b.mounts)+len(b.spec.Mounts) == before {
		return sandbox.ErrNotFound
	}
	return nil
}

// takeMounts gives a fork what its source is to have.
func (b *fakeBox) takeMounts(from *fakeBox) {
	from.mu.Lock()
	var list []*fakeMount
	for _, mt := range from.mounts {
		list = append(list, &fakeMount{MountInfo: mt.MountInfo, made: mt.made})
	}
	from.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, mt := range list {
		if at := b.host(mt.Path); mt.State == sandbox.Mounted { // the copied link
			_ = os.Remove(at)
		}
		mt.State, mt.Reason = "", ""
	}
	b.mounts = list
}
