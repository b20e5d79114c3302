//go:build linux

package bucketfs

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts/objects"
)

// found is what the bucket says of one name.
type found struct {
	attr   attr
	marker bool
	until  time.Time
}

// recent counts names of a directory that were asked for one by one, to notice
// when a list would be cheaper.
type recent struct {
	since time.Time
	asked int
	// scan reads its list, a page whenever a name beyond the last is asked for.
	scan *scan
	// busy is held by who does.
	busy sync.Mutex
}

// askSingly is how many names of a directory are asked for, within one attribute
// time-out, before a page of it is listed instead.
const askSingly = 2

// askAfterChange is how many more are asked for when a page was for nothing, since
// the directory was changed from here while it was read: many write into it at once.
const askAfterChange = 50

// Lookup is as fuse.RawFileSystem says.
func (f *FS) Lookup(_ <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	parent := f.node(h.NodeId)
	if parent == nil {
		return fuse.ENOENT
	}
	n, until, err := f.lookup(f.ctx, parent, name)
	if errors.Is(err, fs.ErrNotExist) {
		// The kernel may remember that as long as we do.
		out.SetEntryTimeout(max(0, time.Until(until)))
		return fuse.OK
	}
	if err != nil {
		return f.status("lookup", f.key(parent)+name, err)
	}
	f.mu.Lock()
	n.lookups++
	f.mu.Unlock()
	f.entry(n, out)
	return fuse.OK
}

// Forget is as fuse.RawFileSystem says.
func (f *FS) Forget(id, count uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	n := f.nodes[id]
	if n == nil {
		return
	}
	n.lookups -= min(count, n.lookups)
	f.dropLocked(n)
}

// lookup returns the node of a name, with attributes that may be shown, or
// fs.ErrNotExist and for how long that holds.
func (f *FS) lookup(ctx context.Context, parent *node, name string) (*node, time.Time, error) {
	if !fileName(name) || name == hintName {
		return nil, time.Time{}, fs.ErrNotExist
	}
	if len(name) > nameMax || len(f.key(parent))+len(name) > keyMax {
		return nil, time.Time{}, syscall.ENAMETOOLONG
	}
	now := time.Now()
	f.mu.Lock()
	if n := parent.children[name]; n != nil {
		n.mu.Lock()
		ready := n.fresh || n.stage != nil && n.stage.dirty || now.Before(n.until) && n.attr.noted
		n.mu.Unlock()
		if ready {
			f.mu.Unlock()
			return n, time.Time{}, nil
		}
	}
	gone := parent.gone
	e, known, until := parent.list.get(name, now)
	f.mu.Unlock()
	if gone {
		return nil, time.Time{}, fs.ErrNotExist
	}
	var err error
	fd := found{attr: e.attr(), until: until, marker: false}
	switch {
	case !known:
		fd, err = f.find(ctx, parent, name)
	case e.none():
		err = fs.ErrNotExist
		fd.until = until
	case !fd.attr.noted:
		fd, err = f.complete(ctx, parent, name, fd)
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if errors.Is(err, fs.ErrNotExist) {
		if n := parent.children[name]; n != nil {
			if n.local() {
				return n, time.Time{}, nil
			}
			f.removeLocked(n)
		}
		return nil, fd.until, fs.ErrNotExist
	}
	if err != nil {
		return nil, time.Time{}, err
	}
	n := f.adoptLocked(parent, name, fd.attr, fd.until, fd.marker)
	if fd.attr.kind != dir && parent.list != nil && known { // after it, for a node of another kind takes its name along
		parent.list.put(name, entryOf(fd.attr))
	}
	return n, time.Time{}, nil
}

// fileName tells whether a name can be a file's. What else keys hold between
// slashes (nothing, ".", "..", NUL) is not shown.
func fileName(name string) bool {
	return name != "" && name != "." && name != ".." && !strings.ContainsAny(name, "/\x00")
}

// find asks the bucket about one name.
func (f *FS) find(ctx context.Context, parent *node, name string) (found, error) {
	now := time.Now()
	f.mu.Lock()
	r := &parent.recent
	if now.Sub(r.since) > f.o.View.AttrTimeout {
		r.since, r.asked = now, 0
	}
	r.asked++
	list := r.asked > askSingly
	f.mu.Unlock()
	if list && r.busy.TryLock() {
		fd, known, err := f.listFor(ctx, parent, name)
		r.busy.Unlock()
		if err != nil || known {
			return fd, err
		}
	}
	return f.ask(ctx, f.key(parent)+name)
}

// listFor reads a page of a directory's list, where that may tell of a name.
// recent.busy is held.
func (f *FS) listFor(ctx context.Context, parent *node, name string) (fd found, known bool, err error) {
	now := time.Now()
	f.mu.Lock()
	s := parent.recent.scan
	// While it is the directory's list, what is changed from here is noted in it.
	fresh := s != nil && now.Before(s.begun.Add(f.o.View.AttrTimeout))
	usable := fresh && s.whole != nil && s.whole == parent.list
	if usable {
		s.changes = parent.changes
	}
	f.mu.Unlock()
	switch {
	case fresh && s.tooLong:
		return found{}, false, nil
	case !usable:
		s = f.scan(parent)
	case s.done || name+"/" <= s.last:
		return found{}, false, nil
	}
	if err := s.next(ctx); err != nil {
		return found{}, true, err
	}
	f.mu.Lock()
	parent.recent.scan = s
	if s.whole == nil && !s.tooLong {
		parent.recent.asked = -askAfterChange
	}
	f.keep(parent, s)
	e, known, until := s.list().get(name, now)
	f.mu.Unlock()
	fd = found{attr: e.attr(), until: until}
	switch {
	case !known:
		return fd, false, nil
	case e.none():
		return fd, true, fs.ErrNotExist
	case !fd.attr.noted:
		fd, err = f.complete(ctx, parent, name, fd)
	}
	return fd, true, err
}

// ask asks for the object of a key and for anything below it at once. Where
// there are both, the directory is shown: it holds more.
func (f *FS) ask(ctx context.Context, key string) (found, error) {
	until := time.Now().Add(f.o.View.AttrTimeout)
	var (
		wg     sync.WaitGroup
		o      objects.Object
		page   objects.Page
		oerr   error
		listed error
	)
	wg.Go(func() { o, oerr = f.bucket.Head(ctx, key) })
	wg.Go(func() { page, listed = f.bucket.List(ctx, key+"/", true, "", 1) })
	wg.Wait()
	if listed != nil && !errors.Is(listed, fs.ErrNotExist) {
		return found{}, listed
	}
	if len(page.Objects) > 0 {
		fd := found{attr: attr{kind: dir, mtime: f.begun, noted: true}, until: until}
		first := page.Objects[0]
		if first.Key != key+"/" {
			return fd, nil
		}
		fd.marker = true
		fd.attr.mtime = first.ModTime
		if !first.Noted {
			marker, err := f.bucket.Head(ctx, first.Key)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return found{}, err
			}
			first = marker
		}
		fd.attr.note = parseNote(first.Note)
		if !fd.attr.note.mtime.IsZero() {
			fd.attr.mtime = fd.attr.note.mtime
		}
		return fd, nil
	}
	if oerr != nil {
		return found{until: until}, oerr
	}
	a := objectAttr(o, false)
	if strings.HasSuffix(key, "/") {
		a.kind = dir
	}
	return found{attr: a, until: until}, nil
}

// complete asks for the notes of a name that a list told without.
func (f *FS) complete(ctx context.Context, parent *node, name string, fd found) (found, error) {
	key := f.key(parent) + name
	if fd.attr.kind == dir {
		return f.ask(ctx, key)
	}
	until := time.Now().Add(f.o.View.AttrTimeout)
	o, err := f.bucket.Head(ctx, key)
	if err != nil {
		return found{until: until}, err
	}
	return found{attr: objectAttr(o, false), until: until}, nil
}

// GetAttr is as fuse.RawFileSystem says.
func (f *FS) GetAttr(_ <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	n := f.node(in.NodeId)
	if n == nil {
		return fuse.ENOENT
	}
	f.mu.Lock()
	parent, name, gone := n.parent, n.name, n.gone
	f.mu.Unlock()
	n.mu.Lock()
	stale := n.kind != dir && !n.fresh && (n.stage == nil || !n.stage.dirty) && !time.Now().Before(n.until)
	n.mu.Unlock()
	if stale && !gone && parent != nil {
		m, _, err := f.lookup(f.ctx, parent, name)
		// The kernel asks again by name where there is one, and finds none; a
		// read of an open file ends with it.
		if errors.Is(err, fs.ErrNotExist) || err == nil && m != n {
			return fuse.Status(syscall.ESTALE)
		}
		if err != nil {
			return f.status("getattr", f.key(n), err)
		}
	}
	out.SetTimeout(f.fill(n, &out.Attr))
	return fuse.OK
}
