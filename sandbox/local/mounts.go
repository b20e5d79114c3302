//go:build linux

package local

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

var (
	_ sandbox.MountChecker = (*Provider)(nil)
	_ sandbox.Mounter      = (*Instance)(nil)
)

// mountRecord is a mount in a record. It holds no keys.
type mountRecord struct {
	Path       string `json:"path"`
	Connection string `json:"connection"`
	Bucket     string `json:"bucket"`
	Prefix     string `json:"prefix,omitempty"`
	ReadOnly   bool   `json:"read_only,omitempty"`
}

func fromMounts(list []sandbox.Mount) []mountRecord {
	var out []mountRecord
	for _, m := range list {
		out = append(out, mountRecord(m))
	}
	return out
}

func toMounts(list []mountRecord) []sandbox.Mount {
	var out []sandbox.Mount
	for _, m := range list {
		out = append(out, sandbox.Mount(m))
	}
	return out
}

// CheckMounts looks for what mounting needs of this machine.
func (p *Provider) CheckMounts(context.Context) error {
	f, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err == nil {
		_ = f.Close()
		if _, err = p.bucketd(); err == nil {
			return nil
		}
		return &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "buckets cannot be mounted: " + err.Error()}
	}
	why := "/dev/fuse is missing: load it as root (modprobe fuse), in a container give it --device /dev/fuse"
	if errors.Is(err, fs.ErrPermission) {
		why = "this user may not open /dev/fuse: make it readable and writable for all (chmod 0666 /dev/fuse), as systemd's own rule does, or run berth as root"
	} else if !errors.Is(err, fs.ErrNotExist) {
		why = "/dev/fuse cannot be opened: " + err.Error()
	}
	return &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "buckets cannot be mounted: " + why + "; `berth doctor` shows it"}
}

// bucketd is the path of the program that serves buckets.
func (p *Provider) bucketd() (string, error) {
	if p.opts.Bucketd == nil {
		return "", errors.New("this berth was built without the program that serves them")
	}
	return p.opts.Bucketd(filepath.Join(p.opts.Dir, "bin"))
}

// mountTime bounds one order. The monitor's own bounds come first.
const mountTime = 100 * time.Second

// Mount shows a bucket.
func (in *Instance) Mount(ctx context.Context, o sandbox.MountOrder) (sandbox.MountInfo, error) {
	info := sandbox.MountInfo{Mount: o.Mount, State: sandbox.MountError, Entries: -1}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mountTime) // half a mount helps nobody
	defer cancel()
	rec, err := readRecord(in.dir())
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return info, fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	case err != nil:
		return info, err
	}
	wanted := rec.mountAt(o.Path)
	order := wire.MountOrder{Path: o.Path, Wanted: wanted != nil, Refused: o.Refused, ReadOnly: o.ReadOnly, Source: o.Bucket}
	var job []byte
	var program *os.File
	if o.Refused == "" {
		order.Print = o.Job.Fingerprint()
		name, err := in.p.bucketd()
		if err != nil {
			return info, &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "buckets cannot be mounted: " + err.Error()}
		}
		if program, err = os.Open(name); err != nil {
			return info, err
		}
		defer program.Close()
		if job, err = json.Marshal(o.Job); err != nil {
			return info, err
		}
		defer clear(job)
	}
	c, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return info, in.notRunning(err)
	}
	m, err := c.Mount(ctx, order, job, program)
	if err != nil {
		return info, in.notRunning(err)
	}
	if o.Refused != "" {
		info.Reason = o.Refused
		return info, nil
	}
	if wanted == nil || *wanted != o.Mount {
		if err := in.keepMount(ctx, o.Mount); err != nil {
			_ = c.Unmount(ctx, o.Path)
			return info, full(in.s, err)
		}
	}
	info.OfSpec = slices.ContainsFunc(rec.Spec.Mounts, func(r mountRecord) bool { return r.Path == o.Path })
	info.State, info.Entries, info.More = sandbox.Mounted, m.Entries, m.More
	return info, nil
}

// mountAt finds the mount that is wanted at a path.
func (r *record) mountAt(path string) *sandbox.Mount {
	for _, list := range [][]mountRecord{r.Spec.Mounts, r.Mounts} {
		for _, m := range list {
			if m.Path == path {
				return (*sandbox.Mount)(&m)
			}
		}
	}
	return nil
}

// change changes the record under the lock.
func (in *Instance) change(ctx context.Context, f func(*record) error) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	rec, err := readRecord(in.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if err := f(rec); err != nil {
		return err
	}
	return in.s.writeRecord(in.id, rec)
}

// keepMount keeps that the sandbox is to have m, in the place of another at its
// path.
func (in *Instance) keepMount(ctx context.Context, m sandbox.Mount) error {
	return in.change(ctx, func(r *record) error {
		for _, list := range [][]mountRecord{r.Spec.Mounts, r.Mounts} {
			for i := range list {
				if list[i].Path == m.Path {
					list[i] = mountRecord(m)
					return nil
				}
			}
		}
		r.Mounts = append(r.Mounts, mountRecord(m))
		return nil
	})
}

// Unmount takes a bucket away and forgets it.
func (in *Instance) Unmount(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), mountTime)
	defer cancel()
	c, err := in.p.engine.connect(ctx, in.dir())
	stray := false // mounted, and not kept by whoever was killed in between
	if err == nil {
		if list, lerr := c.Mounts(ctx); lerr == nil {
			stray = slices.ContainsFunc(list, func(m wire.MountState) bool { return m.Path == path })
		}
		err = c.Unmount(ctx, path)
	}
	if err != nil && !errors.Is(err, sandbox.ErrNotRunning) {
		if !errors.Is(err, sandbox.ErrUnsupported) { // an older monitor, which has none
			return err
		}
	}
	err = in.change(ctx, func(r *record) error {
		before := len(r.Spec.Mounts) + len(r.Mounts)
		at := func(m mountRecord) bool { return m.Path == path }
		r.Spec.Mounts, r.Mounts = slices.DeleteFunc(r.Spec.Mounts, at), slices.DeleteFunc(r.Mounts, at)
		if len(r.Spec.Mounts)+len(r.Mounts) == before && !stray {
			return fmt.Errorf("no bucket at %s: %w", path, sandbox.ErrNotFound)
		}
		return nil
	})
	return full(in.s, err)
}

// mounts tells what the sandbox is to have, and how it stands.
func (in *Instance) mounts(ctx context.Context, v *view) []sandbox.MountInfo {
	var list []sandbox.MountInfo
	add := func(records []mountRecord, ofSpec bool) {
		for _, m := range records {
			list = append(list, sandbox.MountInfo{Mount: sandbox.Mount(m), OfSpec: ofSpec, State: sandbox.MountPending, Entries: -1})
		}
	}
	add(v.rec.Spec.Mounts, true)
	add(v.rec.Mounts, false)
	if v.status != sandbox.StatusRunning || len(list) == 0 {
		return list
	}
	c, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return list
	}
	states, err := c.Mounts(ctx)
	if err != nil {
		return list
	}
	for i := range list {
		for _, s := range states {
			if s.Path != list[i].Path {
				continue
			}
			list[i].State, list[i].Reason, list[i].Entries, list[i].More = sandbox.MountError, s.Reason, s.Entries, s.More
			if s.Mounted {
				list[i].State = sandbox.Mounted
			}
		}
	}
	return list
}
