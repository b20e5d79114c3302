//go:build linux

package bucketfs

import (
	"context"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// dirHandle is a directory being read. Entries have positions counted from 0;
// "." and ".." are the first two. What lies before the present page cannot be
// gone back to without starting anew.
type dirHandle struct {
	n  *node
	mu sync.Mutex
	// scan reads from the bucket; nil when a kept list is read.
	scan  *scan
	names []string
	attrs []attr
	base  uint64 // position of names[0]
	done  bool
	// local are names that are not in the bucket yet.
	local []string
}

// dots are "." and "..".
const dots = 2

// OpenDir is as fuse.RawFileSystem says.
func (f *FS) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil || !n.isDir() {
		return fuse.ENOENT
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.last++
	f.dirs[f.last] = &dirHandle{n: n}
	out.Fh = f.last
	return fuse.OK
}

// ReleaseDir is as fuse.RawFileSystem says.
func (f *FS) ReleaseDir(in *fuse.ReleaseIn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.dirs, in.Fh)
}

// FsyncDir has nothing to do: names are in the bucket when their call returns.
func (f *FS) FsyncDir(<-chan struct{}, *fuse.FsyncIn) fuse.Status { return fuse.OK }

// ReadDir is as fuse.RawFileSystem says.
func (f *FS) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, out, false)
}

// ReadDirPlus is as fuse.RawFileSystem says.
func (f *FS) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return f.readDir(in, out, true)
}

// nodesMax is how many nodes there may be for a list to make more; beyond it,
// the kernel looks up those that it needs.
const nodesMax = 20_000

func (f *FS) readDir(in *fuse.ReadIn, out *fuse.DirEntryList, plus bool) fuse.Status {
	f.mu.Lock()
	h := f.dirs[in.Fh]
	plus = plus && len(f.nodes) < nodesMax
	f.mu.Unlock()
	if h == nil {
		return fuse.EBADF
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	pos := in.Offset
	for ; pos < dots; pos++ {
		e := fuse.DirEntry{Name: [...]string{".", ".."}[pos], Mode: syscall.S_IFDIR, Off: pos + 1, Ino: h.n.id}
		if !addEntry(out, e, in, nil) {
			return fuse.OK
		}
	}
	if in.Offset == 0 || h.names == nil && !h.done || pos < h.base {
		if err := f.startDir(h); err != nil {
			return f.status("readdir", f.key(h.n), err)
		}
	}
	for {
		for pos >= h.base+uint64(len(h.names)) {
			if h.done {
				return fuse.OK
			}
			if err := f.moreDir(h); err != nil {
				return f.status("readdir", f.key(h.n), err)
			}
		}
		i := pos - h.base
		a := h.attrs[i]
		e := fuse.DirEntry{Name: h.names[i], Mode: typeOf(a), Off: pos + 1}
		var show func(*fuse.EntryOut)
		if plus && a.noted {
			show = func(eo *fuse.EntryOut) { f.showEntry(h, e.Name, a, eo) }
		}
		if !addEntry(out, e, in, show) {
			return fuse.OK
		}
		pos++
	}
}

// addEntry adds an entry to an answer of the kind that the kernel asked for. One
// without show is a name only: its node id stays 0.
func addEntry(out *fuse.DirEntryList, e fuse.DirEntry, in *fuse.ReadIn, show func(*fuse.EntryOut)) bool {
	if in.Opcode != opReadDirPlus {
		return out.AddDirEntry(e)
	}
	eo := out.AddDirLookupEntry(e)
	if eo == nil {
		return false
	}
	if show != nil {
		show(eo)
	}
	return true
}

const opReadDirPlus = 44 // FUSE_READDIRPLUS

func modeOf(k kind) uint32 {
	switch k {
	case dir:
		return syscall.S_IFDIR
	case link:
		return syscall.S_IFLNK
	}
	return syscall.S_IFREG
}

// typeOf is the kind of a name in a list, or none, which lets programs ask: an
// object whose note was not read may be a symbolic link.
func typeOf(a attr) uint32 {
	if a.kind == file && !a.noted {
		return 0
	}
	return modeOf(a.kind)
}

// showEntry answers a lookup that was not asked yet.
func (f *FS) showEntry(h *dirHandle, name string, a attr, eo *fuse.EntryOut) {
	until := time.Now().Add(f.o.View.AttrTimeout)
	if h.scan != nil {
		until = h.scan.begun.Add(f.o.View.AttrTimeout)
	}
	f.mu.Lock()
	if h.n.list != nil && h.scan == nil {
		until = h.n.list.until
	}
	n := f.adoptLocked(h.n, name, a, until, false)
	n.lookups++
	f.mu.Unlock()
	f.entry(n, eo)
}

// startDir begins at the first name: from the kept list while it is fresh, else
// from the bucket.
func (f *FS) startDir(h *dirHandle) error {
	h.names, h.attrs, h.base, h.done, h.scan = h.names[:0], h.attrs[:0], dots, false, nil
	f.mu.Lock()
	h.local = h.local[:0]
	for name, c := range h.n.children {
		if c.local() {
			h.local = append(h.local, name)
		}
	}
	slices.Sort(h.local)
	if l := h.n.list; l != nil && l.whole && time.Now().Before(l.until) {
		for name := range l.entries {
			h.names = append(h.names, name)
		}
		slices.Sort(h.names)
		for _, name := range h.names {
			h.attrs = append(h.attrs, l.entries[name].attr())
		}
		f.mu.Unlock()
		f.addLocal(h)
		return nil
	}
	f.mu.Unlock()
	h.scan = f.scan(h.n)
	h.scan.reads = true
	return f.moreDir(h)
}

// moreDir reads the next page, and after the last what is only here.
func (f *FS) moreDir(h *dirHandle) error {
	h.base += uint64(len(h.names))
	h.names, h.attrs = h.names[:0], h.attrs[:0]
	if h.scan == nil || h.scan.done {
		h.done = true
		return nil
	}
	if err := h.scan.next(f.ctx); err != nil {
		return err
	}
	h.names, h.attrs = h.scan.names, h.scan.attrs
	h.local = slices.DeleteFunc(h.local, func(name string) bool { return slices.Contains(h.names, name) })
	if h.scan.done {
		f.mu.Lock()
		f.keep(h.n, h.scan)
		f.mu.Unlock()
		f.addLocal(h)
	}
	return nil
}

// addLocal adds what the bucket does not have yet, if it is still here.
func (f *FS) addLocal(h *dirHandle) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, name := range h.local {
		if c := h.n.children[name]; c != nil && !slices.Contains(h.names, name) {
			c.mu.Lock()
			h.names, h.attrs = append(h.names, name), append(h.attrs, c.attr)
			c.mu.Unlock()
		}
	}
	h.local = nil
}

// Count returns how many names the mount has at its top, at most a page of
// them, and whether there are more.
func (f *FS) Count(ctx context.Context) (n int, more bool, err error) {
	s := f.scan(f.root)
	if err := s.next(ctx); err != nil {
		return 0, false, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.keep(f.root, s)
	return len(s.names), !s.done, nil
}
