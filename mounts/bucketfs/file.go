//go:build linux

package bucketfs

import (
	"errors"
	"io"
	"log/slog"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts/objects"
)

// handle is an open file.
type handle struct {
	n *node
	r reader
	// stale: a write of it was refused since others had changed the file, or they
	// had and somebody opened it anew since. Guarded by FS.mu.
	stale bool
}

func (f *FS) handle(id uint64) (*handle, fuse.Status) {
	f.mu.Lock()
	defer f.mu.Unlock()
	h := f.handles[id]
	switch {
	case h == nil:
		return nil, fuse.EBADF
	case h.stale:
		return nil, fuse.Status(syscall.ESTALE)
	}
	return h, fuse.OK
}

// renew drops what is staged of a file that others have changed since, when it is
// opened anew. Those who have it open already are told when they go on.
func (f *FS) renew(n *node) {
	n.mu.Lock()
	old := n.stage != nil && n.stage.old
	n.mu.Unlock()
	if !old {
		return
	}
	n.write.Lock() // nobody is just saving it
	defer n.write.Unlock()
	f.mu.Lock()
	n.mu.Lock()
	if n.stage == nil || !n.stage.old {
		n.mu.Unlock()
		f.mu.Unlock()
		return
	}
	s, made := n.forfeit()
	n.mu.Unlock()
	for _, h := range f.handles {
		h.stale = h.stale || h.n == n
	}
	if made {
		f.removeLocked(n)
	}
	f.mu.Unlock()
	s.drop()
}

// opened makes a handle; f.mu is held.
func (f *FS) openedLocked(n *node) uint64 {
	n.opens++
	f.last++
	f.handles[f.last] = &handle{n: n}
	return f.last
}

// Open is as fuse.RawFileSystem says.
func (f *FS) Open(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	writes := in.Flags&syscall.O_ACCMODE != syscall.O_RDONLY || in.Flags&syscall.O_TRUNC != 0
	if writes && f.o.ReadOnly {
		return fuse.EROFS
	}
	f.renew(n)
	if err := f.know(n); err != nil {
		return f.status("open", f.key(n), err)
	}
	f.mu.Lock()
	id := f.openedLocked(n)
	f.mu.Unlock()
	if in.Flags&syscall.O_TRUNC != 0 {
		if err := f.truncate(n, 0); err != nil {
			f.release(id)
			return f.status("open", f.key(n), err)
		}
	}
	n.mu.Lock()
	if n.stage != nil && !n.stage.old || n.kept != "" && n.kept == n.attr.version {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	n.kept = n.attr.version
	n.mu.Unlock()
	if !writes {
		f.walk(n)
	}
	out.Fh = id
	return fuse.OK
}

// Create is as fuse.RawFileSystem says. The bucket hears of the file when it is
// closed or synced.
func (f *FS) Create(_ <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	n, err := f.create(in.NodeId, name, in.Mode)
	if err != nil {
		return f.status("create", name, err)
	}
	f.mu.Lock()
	n.lookups++
	out.Fh = f.openedLocked(n)
	f.mu.Unlock()
	f.entry(n, &out.EntryOut)
	out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	return fuse.OK
}

func (f *FS) create(dirID uint64, name string, mode uint32) (*node, error) {
	parent, err := f.place(dirID, name)
	if err != nil {
		return nil, err
	}
	a := attr{kind: file, mtime: time.Now(), noted: true}
	if mode&0o7777 != f.o.View.FileMode {
		a.note.mode = syscall.S_IFREG | mode&0o7777
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if parent.gone {
		return nil, syscall.ENOENT
	}
	if old := parent.children[name]; old != nil {
		// It went since the kernel looked, or came back.
		if old.local() || old.isDir() {
			return nil, syscall.EEXIST
		}
		f.removeLocked(old)
	}
	n := f.addLocked(parent, name, a)
	n.fresh = true
	n.stage = f.newStage()
	n.stage.dirty = true
	parent.changes++
	f.touch(parent)
	return n, nil
}

// Mknod makes empty files; a bucket holds nothing else.
func (f *FS) Mknod(_ <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	if in.Mode&syscall.S_IFMT != syscall.S_IFREG {
		return fuse.EPERM
	}
	n, err := f.create(in.NodeId, name, in.Mode)
	if err == nil {
		n.write.Lock()
		err = f.save(n)
		n.write.Unlock()
	}
	if err != nil {
		if n != nil {
			f.discard(n)
		}
		return f.status("mknod", name, err)
	}
	f.mu.Lock()
	n.lookups++
	f.mu.Unlock()
	f.entry(n, out)
	return fuse.OK
}

// Read is as fuse.RawFileSystem says.
func (f *FS) Read(_ <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	h, st := f.handle(in.Fh)
	if !st.Ok() {
		return nil, st
	}
	n := h.n
	n.mu.Lock()
	s := n.stage
	n.mu.Unlock()
	if s != nil {
		k, err := s.ReadAt(buf[:min(len(buf), int(in.Size))], int64(in.Offset))
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, f.status("read", f.key(n), err)
		}
		return fuse.ReadResultData(buf[:k]), fuse.OK
	}
	res, err := f.readContent(n, &h.r, int64(in.Offset), int(in.Size))
	if err != nil {
		return nil, f.status("read", f.key(n), err)
	}
	return res, fuse.OK
}

// Write is as fuse.RawFileSystem says. Who was told that the file is another's now
// is told so again: what it writes next follows from what it has written, or so
// it believes.
func (f *FS) Write(_ <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h, st := f.handle(in.Fh)
	if !st.Ok() {
		return 0, st
	}
	k, err := f.write(h.n, data, int64(in.Offset), in.Flags&syscall.O_APPEND != 0)
	if err != nil && k == 0 {
		st := f.status("write", f.key(h.n), err)
		if st == fuse.Status(syscall.ESTALE) {
			f.mu.Lock()
			h.stale = true
			f.mu.Unlock()
		}
		return 0, st
	}
	return uint32(k), fuse.OK
}

func (f *FS) write(n *node, data []byte, off int64, atEnd bool) (int, error) {
	n.write.Lock()
	defer n.write.Unlock()
	s, err := f.stageOf(n, -1)
	if err != nil {
		return 0, err
	}
	if end := s.length(); atEnd && off != end {
		// The kernel took the end of a version that it knew before.
		off = end
		go f.server.InodeNotify(n.id, 0, 0) // which waits for this write
	}
	k, err := s.WriteAt(data, off)
	if k == 0 {
		return 0, err
	}
	n.mu.Lock()
	s.dirty = true
	n.attr.size = s.length()
	n.attr.mtime, n.attr.note.mtime = time.Now(), time.Time{}
	n.mu.Unlock()
	f.ahead(n, s, off, off+int64(k))
	return k, nil
}

// Writev tells the server that there is only Write.
func (f *FS) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

// truncate changes a file's size, here; saving it is the caller's.
func (f *FS) truncate(n *node, size int64) error {
	n.write.Lock()
	defer n.write.Unlock()
	return f.truncateLocked(n, size)
}

func (f *FS) truncateLocked(n *node, size int64) error {
	s, err := f.stageOf(n, size)
	if errors.Is(err, objects.ErrChanged) && size == 0 {
		// Nothing of the old content is wanted, whichever it is.
		if err = f.refresh(n); err == nil {
			s, err = f.stageOf(n, size)
		}
	}
	if err != nil {
		return err
	}
	if before := s.length(); s.upload != nil {
		// First: a part that is just being sent may meet its end.
		s.upload.wrote(min(before, size), max(before, size))
	}
	if err := s.truncate(size); err != nil {
		return err
	}
	s.end = size
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.attr.size != size || size == 0 {
		s.dirty = true
		n.attr.mtime, n.attr.note.mtime = time.Now(), time.Time{}
	}
	n.attr.size = size
	return nil
}

// Flush is called by each close.
func (f *FS) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status { return f.sync("close", in.Fh) }

// Fsync is as fuse.RawFileSystem says.
func (f *FS) Fsync(_ <-chan struct{}, in *fuse.FsyncIn) fuse.Status { return f.sync("fsync", in.Fh) }

func (f *FS) sync(op string, id uint64) fuse.Status {
	h, st := f.handle(id)
	if !st.Ok() {
		return st
	}
	if !h.n.dirty() {
		return fuse.OK
	}
	h.n.write.Lock()
	defer h.n.write.Unlock()
	return f.status(op, f.key(h.n), f.save(h.n))
}

// Release is as fuse.RawFileSystem says.
func (f *FS) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { f.release(in.Fh) }

// release ends a handle. With the last one of a file goes what is staged of it;
// content that came after the last close, as by mmap, is saved first.
func (f *FS) release(id uint64) {
	f.mu.Lock()
	h := f.handles[id]
	delete(f.handles, id)
	f.mu.Unlock()
	if h == nil {
		return
	}
	n := h.n
	n.write.Lock()
	f.mu.Lock()
	n.opens--
	last := n.opens == 0
	gone := n.gone
	f.mu.Unlock()
	if last {
		if n.dirty() && !gone {
			if err := f.save(n); err != nil {
				f.log.Error("lost: content that could not be saved, as its close or fsync said", slog.String("key", f.key(n)), slog.Any("err", err))
			}
		}
		f.settle(n)
	}
	n.write.Unlock()
	f.mu.Lock()
	f.dropLocked(n)
	f.mu.Unlock()
}

// settle drops what is staged of a file that nobody has open; what was not saved
// is not shown any more. n.write is held.
func (f *FS) settle(n *node) {
	f.mu.Lock()
	if n.opens > 0 {
		f.mu.Unlock()
		return
	}
	n.mu.Lock()
	s, made := n.forfeit()
	n.mu.Unlock()
	if made {
		f.removeLocked(n)
	}
	f.mu.Unlock()
	s.drop()
}

// discard drops a file that could not be made.
func (f *FS) discard(n *node) {
	n.write.Lock()
	defer n.write.Unlock()
	f.settle(n)
}
