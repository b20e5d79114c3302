//go:build linux

package bucketfs

import (
	"bytes"
	"errors"
	"io/fs"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts/objects"
)

// SetAttr is as fuse.RawFileSystem says. Sizes of open files are saved by their
// close; what is set by name is in the bucket when the call returns.
func (f *FS) SetAttr(_ <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	if err := f.setAttr(n, in); err != nil {
		return f.status("setattr", f.key(n), err)
	}
	out.SetTimeout(f.fill(n, &out.Attr))
	return fuse.OK
}

func (f *FS) setAttr(n *node, in *fuse.SetAttrIn) error {
	if f.o.ReadOnly {
		return syscall.EROFS
	}
	if uid, ok := in.GetUID(); ok && uid != f.o.View.UID {
		return syscall.EPERM
	}
	if gid, ok := in.GetGID(); ok && gid != f.o.View.GID {
		return syscall.EPERM
	}
	n.write.Lock()
	defer n.write.Unlock()
	size, sized := in.GetSize()
	if sized {
		if n.isDir() {
			return syscall.EISDIR
		}
		if err := f.truncateLocked(n, int64(size)); err != nil {
			f.settle(n)
			return err
		}
	}
	var want note
	var now bool
	if mode, ok := in.GetMode(); ok && n.kind != link {
		want.mode = modeOf(n.kind) | mode&0o7777
	}
	if mtime, ok := in.GetMTime(); ok {
		now = in.Valid&fuse.FATTR_MTIME_NOW != 0
		want.mtime = mtime
	}
	if want != (note{}) {
		if err := f.setNote(n, want, now); err != nil {
			return err
		}
	}
	if _, open := in.GetFh(); sized && !open {
		err := f.save(n)
		if err != nil || !f.isOpen(n) {
			f.settle(n)
		}
		return err
	}
	return nil
}

func (f *FS) isOpen(n *node) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return n.opens > 0
}

// setNote changes mode and time, here when the content is here too, else in the
// bucket; now: the time is the present one. n.write is held.
func (f *FS) setNote(n *node, want note, now bool) error {
	f.moving.RLock()
	defer f.moving.RUnlock()
	n.mu.Lock()
	a := n.attr
	here := n.fresh || n.stage != nil && n.stage.dirty
	if want.mode != 0 && want.mode == f.modeLocked(n) {
		want.mode = 0 // it is that already
	}
	if !want.mtime.IsZero() && want.mtime.Equal(a.mtime) && !now {
		want.mtime = time.Time{}
	}
	if here {
		if want.mode != 0 {
			n.attr.note.mode = want.mode
		}
		if !want.mtime.IsZero() {
			n.attr.mtime = want.mtime
			if n.attr.note.mtime = want.mtime; now {
				n.attr.note.mtime = time.Time{}
			}
		}
	}
	n.mu.Unlock()
	f.mu.Lock()
	parent, gone := n.parent, n.gone
	f.mu.Unlock()
	if here || gone || want == (note{}) {
		return nil
	}
	if parent == nil {
		return syscall.EPERM // the mount's own directory is the operator's
	}
	for again := false; ; again = true {
		err := f.storeNote(n, parent, want, now)
		if !errors.Is(err, objects.ErrChanged) || again {
			return err
		}
	}
}

// storeNote replaces the note of an object in the bucket.
func (f *FS) storeNote(n, parent *node, want note, now bool) error {
	key := f.key(n)
	o, err := f.bucket.Head(f.ctx, key)
	if errors.Is(err, fs.ErrNotExist) && n.isDir() {
		// A directory that only is there because of what is in it.
		o, err = objects.Object{}, nil
	}
	if err != nil {
		return err
	}
	next := parseNote(o.Note)
	next.id = newID()
	if next.mtime.IsZero() && want.mtime.IsZero() && n.kind == file {
		next.mtime = o.ModTime // storing a note changes the service's time
	}
	if want.mode != 0 {
		next.mode = want.mode
	}
	if !want.mtime.IsZero() {
		if next.mtime = want.mtime; now && n.kind == file {
			next.mtime = time.Time{}
		}
	}
	if next.special() {
		if err := f.hint(f.ctx, parent); err != nil {
			return err
		}
	}
	var version string
	if n.isDir() {
		version, err = f.bucket.Put(f.ctx, key, bytes.NewReader(nil), 0, objects.Options{Note: next.String()})
	} else {
		version, err = f.bucket.Note(f.ctx, o, next.String(), "")
	}
	if err != nil {
		return err
	}
	n.mu.Lock()
	if n.attr.version == o.Version || n.isDir() {
		n.attr.version, n.attr.note, n.attr.noted = version, next, true
		n.attr.stored = time.Time{}
		if !want.mtime.IsZero() {
			n.attr.mtime = want.mtime
		}
		n.until = time.Now().Add(f.o.View.AttrTimeout)
		n.marker = n.marker || n.isDir()
		n.kept = version
		if n.content != nil && n.content.version == o.Version {
			n.content = nil
		}
	} else {
		n.until = time.Time{}
	}
	n.mu.Unlock()
	f.mu.Lock()
	f.storedLocked(n)
	f.mu.Unlock()
	return nil
}

// modeLocked is what a node shows; n.mu is held.
func (f *FS) modeLocked(n *node) uint32 {
	perm := f.o.View.FileMode
	if n.isDir() {
		perm = f.o.View.DirMode
	}
	if n.attr.note.mode != 0 {
		perm = n.attr.note.mode & 0o7777
	}
	return modeOf(n.kind) | perm
}

// Names of extended attributes. The service's own ones are read only.
const (
	xattrETag    = "user.bucket.etag"
	xattrVersion = "user.bucket.version"
	xattrKey     = "user.bucket.key"
	xattrType    = "user.bucket.content_type"
)

// GetXAttr is as fuse.RawFileSystem says.
func (f *FS) GetXAttr(_ <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	n := f.node(h.NodeId)
	if n == nil {
		return 0, fuse.ENOENT
	}
	switch name {
	case xattrETag, xattrVersion, xattrKey, xattrType:
	default:
		return 0, fuse.ENODATA
	}
	if n.isDir() {
		return 0, fuse.ENODATA
	}
	key := f.key(n)
	o, err := f.bucket.Head(f.ctx, key)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, fuse.ENODATA // it is only here yet
	}
	if err != nil {
		return 0, f.status("getxattr", key, err)
	}
	value := map[string]string{xattrETag: o.ETag, xattrVersion: o.Version, xattrKey: key, xattrType: o.ContentType}[name]
	return fit(dest, []byte(value))
}

// ListXAttr is as fuse.RawFileSystem says.
func (f *FS) ListXAttr(_ <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	n := f.node(h.NodeId)
	if n == nil {
		return 0, fuse.ENOENT
	}
	if n.isDir() {
		return 0, fuse.OK
	}
	return fit(dest, bytes.Join([][]byte{[]byte(xattrETag), []byte(xattrVersion), []byte(xattrKey), []byte(xattrType), nil}, []byte{0}))
}

func fit(dest, value []byte) (uint32, fuse.Status) {
	if len(dest) < len(value) {
		return uint32(len(value)), fuse.ERANGE
	}
	return uint32(copy(dest, value)), fuse.OK
}

// SetXAttr sets the content type; there is no other attribute.
func (f *FS) SetXAttr(_ <-chan struct{}, in *fuse.SetXAttrIn, name string, data []byte) fuse.Status {
	n := f.node(in.NodeId)
	switch {
	case n == nil:
		return fuse.ENOENT
	case f.o.ReadOnly:
		return fuse.EROFS
	case name != xattrType || n.kind != file:
		return fuse.Status(syscall.EOPNOTSUPP)
	case len(data) == 0 || len(data) > 255 || bytes.ContainsFunc(data, func(r rune) bool { return r < ' ' || r > '~' }):
		return fuse.EINVAL
	}
	n.write.Lock()
	defer n.write.Unlock()
	f.moving.RLock()
	defer f.moving.RUnlock()
	key := f.key(n)
	if err := f.saveAs(n, key); err != nil {
		return f.status("setxattr", key, err)
	}
	o, err := f.bucket.Head(f.ctx, key)
	if err != nil {
		return f.status("setxattr", key, err)
	}
	keep := parseNote(o.Note)
	if keep.mtime.IsZero() {
		keep.mtime = o.ModTime
	}
	f.mu.Lock()
	parent, gone := n.parent, n.gone
	f.mu.Unlock()
	if gone || parent == nil {
		return fuse.ENOENT
	}
	if err := f.hint(f.ctx, parent); err != nil {
		return f.status("setxattr", key, err)
	}
	version, err := f.bucket.Note(f.ctx, o, keep.String(), string(data))
	if err != nil {
		return f.status("setxattr", key, err)
	}
	n.mu.Lock()
	if n.attr.version == o.Version {
		n.attr.version, n.attr.stored = version, time.Time{}
	}
	n.mu.Unlock()
	f.mu.Lock()
	f.storedLocked(n)
	f.mu.Unlock()
	return fuse.OK
}

// RemoveXAttr is as fuse.RawFileSystem says.
func (f *FS) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status {
	return fuse.Status(syscall.EOPNOTSUPP)
}
