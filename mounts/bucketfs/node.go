//go:build linux

package bucketfs

import (
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"berth/mounts/objects"
)

type kind uint8

const (
	file kind = iota
	dir
	link
)

// attr is what is known of a file, directory or link.
type attr struct {
	kind  kind
	size  int64
	mtime time.Time
	// stored is when the service stored it, where that was told.
	stored  time.Time
	version string
	note    note
	// noted: note is known. What is not noted must be asked for before it is
	// shown.
	noted bool
}

// node is a name that the kernel knows, or that has content of its own here.
type node struct {
	id   uint64
	kind kind

	// Guarded by FS.mu.
	parent   *node
	name     string
	children map[string]*node
	lookups  uint64
	opens    int
	gone     bool // removed, and alive only for those who have it open
	list     *list
	recent   recent
	walked   walked
	// changes counts what was changed in the directory from here.
	changes int

	// write is held by whoever changes content or puts it into the bucket.
	write sync.Mutex

	mu    sync.Mutex // guards what follows
	attr  attr
	until time.Time // attr may be shown until then
	// stage holds content that is, or was, about to be written.
	stage *stage
	// fresh: there is no object of it in the bucket yet.
	fresh bool
	// content is what is cached of the object as of attr.version.
	content *content
	// kept is the version whose pages the kernel has.
	kept   string
	target string // of a link, once read
	// marker: the directory has an object of its own; hinted: and one that
	// says that objects in it have notes.
	marker, hinted bool
}

func (n *node) dirty() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.stage != nil && n.stage.dirty
}

// local: what is here is ahead of the bucket.
func (n *node) local() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fresh || n.stage != nil && n.stage.dirty
}

func (n *node) isDir() bool { return n.kind == dir }

// key is the object's key; a directory's ends with '/', the root's is the
// prefix.
func (f *FS) key(n *node) string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.keyLocked(n)
}

func (f *FS) keyLocked(n *node) string {
	var names []string
	for p := n; p != f.root && p != nil; p = p.parent {
		names = append(names, p.name)
	}
	var b strings.Builder
	b.WriteString(f.o.Prefix)
	for i := len(names) - 1; i >= 0; i-- {
		b.WriteString(names[i])
		if i > 0 || n.isDir() {
			b.WriteByte('/')
		}
	}
	return b.String()
}

// hintName names an object in a directory in which objects have notes that lists
// must be completed with. It is not shown, and nobody can make a file of it.
const hintName = ".berth-metadata"

func (f *FS) node(id uint64) *node {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nodes[id]
}

// addLocked makes a node; the caller holds f.mu.
func (f *FS) addLocked(parent *node, name string, a attr) *node {
	f.last++
	n := &node{id: f.last, kind: a.kind, parent: parent, name: name, attr: a}
	f.nodes[n.id] = n
	if parent.children == nil {
		parent.children = map[string]*node{}
	}
	parent.children[name] = n
	return n
}

// dropLocked takes a node that nobody needs any more out of the tree.
func (f *FS) dropLocked(n *node) {
	if n == f.root || n.lookups > 0 || n.opens > 0 || len(n.children) > 0 || !n.gone && n.local() {
		return
	}
	delete(f.nodes, n.id)
	f.forgetList(n)
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
		// A parent may have waited for its last child.
		f.dropLocked(n.parent)
	}
	f.cache.drop(n.content)
}

// removeLocked takes a name away, unless it is another's by now; those who have
// it open keep the node.
func (f *FS) removeLocked(n *node) {
	n.gone = true
	if n.parent != nil && n.parent.children[n.name] == n {
		delete(n.parent.children, n.name)
		n.parent.changes++
		n.parent.list.remove(n.name)
	}
	f.dropLocked(n)
}

// stored tells the directory that a name in it now stands in the bucket as n
// says; f.mu is held.
func (f *FS) storedLocked(n *node) {
	if n.parent == nil || n.gone {
		return
	}
	n.parent.changes++
	n.mu.Lock()
	n.parent.list.put(n.name, entryOf(n.attr))
	n.mu.Unlock()
}

// adoptLocked makes what the bucket says of a name known, and returns its node.
// What is ahead of the bucket stays as it is. The caller, who holds f.mu, says
// how long it holds.
func (f *FS) adoptLocked(parent *node, name string, a attr, until time.Time, marker bool) *node {
	n := parent.children[name]
	if n != nil && n.kind != a.kind && !n.local() {
		f.removeLocked(n)
		n = nil
	}
	if n == nil {
		n = f.addLocked(parent, name, a)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.fresh || n.stage != nil && n.stage.dirty {
		return n
	}
	n.marker = n.marker || marker
	n.until = until
	n.see(a)
	return n
}

// see takes in what the bucket says; n.mu is held.
func (n *node) see(a attr) {
	old := n.attr
	same := a.version == old.version && a.kind == old.kind && a.kind != dir &&
		(old.stored.IsZero() || a.stored.IsZero() || a.stored.Equal(old.stored))
	switch {
	case same && !a.noted || same && a.noted && a.note == old.note:
		// Our own times stay, which are finer than the service's.
		if !a.stored.IsZero() {
			n.attr.stored = a.stored
		}
		return
	case a.kind == dir:
		if !a.noted {
			return
		}
		if !a.note.mtime.IsZero() {
			n.attr.mtime = a.note.mtime
		}
		n.attr.note, n.attr.noted = a.note, true
		return
	}
	n.attr = a
	n.target = ""
	if n.stage != nil && a.version != old.version {
		// It is clean, and out of date; those who have it open go on with it.
		n.stage.old = true
	}
}

// forfeit takes the stage away. When it had something that was not saved, what the
// bucket has is not known any more; made tells that the bucket never had the file.
// n.mu is held.
func (n *node) forfeit() (s *stage, made bool) {
	s = n.stage
	n.stage = nil
	if s == nil || !s.dirty {
		return s, false
	}
	made = n.fresh
	n.until, n.kept, n.attr.version, n.fresh = time.Time{}, "", "", false
	return s, made
}

// objectAttr is what an object says of a file or link. Lists of S3 leave notes
// out; hinted says whether there are any.
func objectAttr(o objects.Object, hinted bool) attr {
	a := attr{kind: file, size: o.Size, mtime: o.ModTime, stored: o.ModTime, version: o.Version, noted: o.Noted || !hinted}
	if o.Noted {
		a.note = parseNote(o.Note)
		if a.note.mode&syscall.S_IFMT == syscall.S_IFLNK {
			a.kind = link
		}
		if !a.note.mtime.IsZero() {
			a.mtime = a.note.mtime
		}
	}
	return a
}

// fill writes attributes as the kernel wants them, and for how long they hold.
func (f *FS) fill(n *node, out *fuse.Attr) (valid time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	a := n.attr
	v := f.o.View
	*out = fuse.Attr{Ino: n.id, Size: uint64(a.size), Nlink: 1, Owner: fuse.Owner{Uid: v.UID, Gid: v.GID}, Blksize: 256 << 10}
	switch a.kind {
	case dir:
		out.Mode = syscall.S_IFDIR | v.DirMode
		out.Size = 4096
	case link:
		out.Mode = syscall.S_IFLNK | 0o777
	default:
		out.Mode = syscall.S_IFREG | v.FileMode
	}
	if a.note.mode != 0 && a.kind != link {
		out.Mode = out.Mode&syscall.S_IFMT | a.note.mode&0o7777
	}
	out.Blocks = (out.Size + 511) / 512
	out.SetTimes(&a.mtime, &a.mtime, &a.mtime)
	if n.fresh || n.stage != nil && n.stage.dirty {
		return f.o.View.AttrTimeout
	}
	if a.kind == dir {
		return f.o.View.AttrTimeout
	}
	return max(0, time.Until(n.until))
}

func (f *FS) entry(n *node, out *fuse.EntryOut) {
	out.NodeId, out.Generation = n.id, 1
	valid := f.fill(n, &out.Attr)
	out.SetAttrTimeout(valid)
	if n.isDir() {
		n.mu.Lock()
		valid = max(0, time.Until(n.until))
		n.mu.Unlock()
	}
	out.SetEntryTimeout(valid)
}
