//go:build linux

package bucketfs

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts/objects"
)

// place checks that something may be made under a name, and returns its
// directory.
func (f *FS) place(id uint64, name string) (*node, error) {
	if f.o.ReadOnly {
		return nil, syscall.EROFS
	}
	parent := f.node(id)
	switch {
	case parent == nil:
		return nil, syscall.ESTALE
	case !fileName(name):
		return nil, syscall.EINVAL
	// A directory's key is one byte longer.
	case len(name) > nameMax || len(f.key(parent))+len(name)+1 > keyMax:
		return nil, syscall.ENAMETOOLONG
	case name == hintName:
		return nil, syscall.EPERM
	}
	return parent, nil
}

// hint makes sure that lists of a directory will be completed with notes. It
// comes before the first note is stored.
func (f *FS) hint(ctx context.Context, parent *node) error {
	parent.mu.Lock()
	done := parent.hinted
	parent.mu.Unlock()
	if done {
		return nil
	}
	if _, err := f.bucket.Put(ctx, f.key(parent)+hintName, bytes.NewReader(nil), 0, objects.Options{}); err != nil {
		return err
	}
	parent.mu.Lock()
	parent.hinted = true
	parent.mu.Unlock()
	f.mu.Lock()
	parent.changes++
	f.forgetList(parent)
	f.mu.Unlock()
	return nil
}

// keepDir gives a directory an object of its own, before the last thing that
// made it be there may go.
func (f *FS) keepDir(ctx context.Context, d *node) error {
	d.mu.Lock()
	done := d.marker || d == f.root || d.fresh || f.o.View.ImplicitDirs
	d.mu.Unlock()
	if done {
		return nil
	}
	_, err := f.bucket.Put(ctx, f.key(d), bytes.NewReader(nil), 0, objects.Options{Cond: objects.Cond{Absent: true}, Note: note{id: newID()}.String()})
	if err != nil && !errors.Is(err, objects.ErrChanged) {
		return err
	}
	d.mu.Lock()
	d.marker = true
	d.mu.Unlock()
	return nil
}

// Mkdir is as fuse.RawFileSystem says.
func (f *FS) Mkdir(_ <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	parent, err := f.place(in.NodeId, name)
	if err != nil {
		return f.status("mkdir", name, err)
	}
	n, err := f.mkdir(parent, name, in.Mode)
	if err != nil {
		return f.status("mkdir", f.key(parent)+name, err)
	}
	f.mu.Lock()
	n.lookups++
	f.mu.Unlock()
	f.entry(n, out)
	return fuse.OK
}

func (f *FS) mkdir(parent *node, name string, mode uint32) (*node, error) {
	f.moving.RLock()
	defer f.moving.RUnlock()
	a := attr{kind: dir, mtime: time.Now(), noted: true, note: note{id: newID()}}
	if mode&0o7777 != f.o.View.DirMode {
		a.note.mode = syscall.S_IFDIR | mode&0o7777
	}
	if !f.o.View.ImplicitDirs {
		if a.note.special() {
			if err := f.hint(f.ctx, parent); err != nil {
				return nil, err
			}
		}
		_, err := f.bucket.Put(f.ctx, f.key(parent)+name+"/", bytes.NewReader(nil), 0, objects.Options{Cond: objects.Cond{Absent: true}, Note: a.note.String()})
		if errors.Is(err, objects.ErrChanged) {
			return nil, syscall.EEXIST
		}
		if err != nil {
			return nil, err
		}
	}
	f.mu.Lock()
	n := f.adoptLocked(parent, name, a, time.Now().Add(f.o.View.AttrTimeout), true)
	f.storedLocked(n)
	f.mu.Unlock()
	n.mu.Lock()
	n.fresh = f.o.View.ImplicitDirs
	n.mu.Unlock()
	f.touch(parent)
	return n, nil
}

// touch is what a directory's time does when a name in it comes or goes.
func (f *FS) touch(d *node) {
	d.mu.Lock()
	d.attr.mtime = time.Now()
	d.mu.Unlock()
}

// Rmdir is as fuse.RawFileSystem says.
func (f *FS) Rmdir(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	parent, err := f.place(h.NodeId, name)
	if err == nil {
		err = f.rmdir(parent, name)
	}
	return f.status("rmdir", name, err)
}

func (f *FS) rmdir(parent *node, name string) error {
	f.moving.RLock()
	defer f.moving.RUnlock()
	n, _, err := f.lookup(f.ctx, parent, name)
	if err != nil {
		return err
	}
	if !n.isDir() {
		return syscall.ENOTDIR
	}
	if err := f.empty(n); err != nil {
		return err
	}
	// The directory that it was in stays.
	if err := f.keepDir(f.ctx, parent); err != nil {
		return err
	}
	if err := f.removeDir(n); err != nil {
		return err
	}
	f.mu.Lock()
	f.removeLocked(n)
	f.mu.Unlock()
	f.touch(parent)
	return nil
}

// removeDir removes the objects of an empty directory.
func (f *FS) removeDir(n *node) error {
	key := f.key(n)
	n.mu.Lock()
	hinted := n.hinted
	n.hinted = false
	n.mu.Unlock()
	if hinted {
		if err := f.bucket.Delete(f.ctx, key+hintName, ""); err != nil {
			return err
		}
	}
	return f.bucket.Delete(f.ctx, key, "")
}

// empty returns ENOTEMPTY when a directory holds anything, shown or not.
func (f *FS) empty(n *node) error {
	f.mu.Lock()
	for _, c := range n.children {
		if c.local() {
			f.mu.Unlock()
			return syscall.ENOTEMPTY
		}
	}
	f.mu.Unlock()
	key := f.key(n)
	p, err := f.bucket.List(f.ctx, key, true, "", 3)
	if err != nil {
		return err
	}
	for _, o := range p.Objects {
		switch o.Key {
		case key:
		case key + hintName:
			n.mu.Lock()
			n.hinted = true
			n.mu.Unlock()
		default:
			return syscall.ENOTEMPTY
		}
	}
	return nil
}

// Unlink is as fuse.RawFileSystem says.
func (f *FS) Unlink(_ <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	parent, err := f.place(h.NodeId, name)
	if err == nil {
		err = f.unlink(parent, name)
	}
	return f.status("unlink", name, err)
}

func (f *FS) unlink(parent *node, name string) error {
	f.moving.RLock()
	defer f.moving.RUnlock()
	n, _, err := f.lookup(f.ctx, parent, name)
	if err != nil {
		return err
	}
	if n.isDir() {
		return syscall.EISDIR
	}
	n.write.Lock()
	defer n.write.Unlock()
	if err := f.orphan(n); err != nil {
		return err
	}
	n.mu.Lock()
	fresh := n.fresh
	n.mu.Unlock()
	if !fresh {
		if err := f.keepDir(f.ctx, parent); err != nil {
			return err
		}
		if err := f.bucket.Delete(f.ctx, f.key(n), ""); err != nil {
			return err
		}
	}
	f.mu.Lock()
	f.removeLocked(n)
	f.mu.Unlock()
	f.touch(parent)
	return nil
}

// orphan fetches what those who have a file open may still want of it, before
// its object goes. n.write is held.
func (f *FS) orphan(n *node) error {
	f.mu.Lock()
	open := n.opens > 0
	f.mu.Unlock()
	if !open || n.kind != file {
		return nil
	}
	_, err := f.stageOf(n, -1)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, objects.ErrChanged) {
		return nil // there is nothing to keep any more
	}
	return err
}

// Symlink is as fuse.RawFileSystem says. The object holds the target.
func (f *FS) Symlink(_ <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	parent, err := f.place(h.NodeId, name)
	if err != nil {
		return f.status("symlink", name, err)
	}
	n, err := f.symlink(parent, name, target)
	if err != nil {
		return f.status("symlink", f.key(parent)+name, err)
	}
	f.mu.Lock()
	n.lookups++
	f.mu.Unlock()
	f.entry(n, out)
	return fuse.OK
}

func (f *FS) symlink(parent *node, name, target string) (*node, error) {
	f.moving.RLock()
	defer f.moving.RUnlock()
	if err := f.hint(f.ctx, parent); err != nil {
		return nil, err
	}
	a := attr{kind: link, size: int64(len(target)), mtime: time.Now(), noted: true, note: note{id: newID(), mode: syscall.S_IFLNK | 0o777}}
	v, err := f.bucket.Put(f.ctx, f.key(parent)+name, strings.NewReader(target), a.size,
		objects.Options{Cond: objects.Cond{Absent: true}, ContentType: "application/octet-stream", Note: a.note.String()})
	if errors.Is(err, objects.ErrChanged) {
		return nil, syscall.EEXIST
	}
	if err != nil {
		return nil, err
	}
	a.version = v
	f.mu.Lock()
	n := f.adoptLocked(parent, name, a, time.Now().Add(f.o.View.AttrTimeout), false)
	f.storedLocked(n)
	f.mu.Unlock()
	n.mu.Lock()
	n.target = target
	n.mu.Unlock()
	f.touch(parent)
	return n, nil
}

// targetMax is Linux's PATH_MAX.
const targetMax = 4096

// Readlink is as fuse.RawFileSystem says.
func (f *FS) Readlink(_ <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	n := f.node(h.NodeId)
	if n == nil || n.kind != link {
		return nil, fuse.EINVAL
	}
	n.mu.Lock()
	target, a := n.target, n.attr
	n.mu.Unlock()
	if target != "" {
		return []byte(target), fuse.OK
	}
	if a.size > targetMax || a.size == 0 {
		return nil, fuse.EIO
	}
	r, err := f.bucket.Read(f.ctx, f.key(n), a.version, 0, a.size)
	if err != nil {
		return nil, f.status("readlink", f.key(n), err)
	}
	defer r.Close()
	b := make([]byte, a.size)
	if _, err := io.ReadFull(r, b); err != nil {
		return nil, f.status("readlink", f.key(n), err)
	}
	n.mu.Lock()
	if n.attr.version == a.version {
		n.target = string(b)
	}
	n.mu.Unlock()
	return b, fuse.OK
}

// StatFs is as fuse.RawFileSystem says: a bucket has no size.
func (f *FS) StatFs(_ <-chan struct{}, _ *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	const size = 1 << 50
	*out = fuse.StatfsOut{Bsize: 4096, Frsize: 4096, Blocks: size / 4096, Bfree: size / 4096, Bavail: size / 4096, Files: 1 << 32, Ffree: 1 << 32, NameLen: nameMax}
	return fuse.OK
}

// Link is refused: a bucket has no second names.
func (f *FS) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EPERM
}
