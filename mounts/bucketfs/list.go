//go:build linux

package bucketfs

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"time"

	"berth/mounts/objects"
)

// list is what a directory was seen to hold, all of it or its first names. It
// is guarded by FS.mu, and a nil list knows nothing.
type list struct {
	entries map[string]entry
	// files are the names of files in the bucket's order, for reading ahead of
	// those who open one after the other.
	files []string
	until time.Time
	// whole: a name that is not in it is not there. Else upTo is the last key
	// that was read, and that holds for what comes before.
	whole bool
	upTo  string
	// ahead is content of small files that was fetched before they were opened.
	ahead map[string]*content
	// counted is its part of FS.listed.
	counted int
}

// entry is an attr in less memory.
type entry struct {
	version string
	size    int64
	mtime   int64 // Unix nanoseconds
	stored  int64
	note    note
	kind    kind
	noted   bool
	there   bool
}

func (e entry) none() bool { return !e.there }

func (e entry) attr() attr {
	a := attr{kind: e.kind, size: e.size, version: e.version, note: e.note, noted: e.noted, mtime: time.Unix(0, e.mtime)}
	if e.stored != 0 {
		a.stored = time.Unix(0, e.stored)
	}
	return a
}

func entryOf(a attr) entry {
	e := entry{there: true, kind: a.kind, size: a.size, version: a.version, note: a.note, noted: a.noted, mtime: a.mtime.UnixNano()}
	if !a.stored.IsZero() {
		e.stored = a.stored.UnixNano()
	}
	return e
}

// get returns what is known of a name, or that nothing is.
func (l *list) get(name string, now time.Time) (e entry, known bool, until time.Time) {
	if l == nil || !now.Before(l.until) {
		return entry{}, false, time.Time{}
	}
	e, ok := l.entries[name]
	return e, ok || l.whole || name+"/" <= l.upTo, l.until
}

func (l *list) put(name string, e entry) {
	if l != nil {
		l.entries[name] = e
	}
}

func (l *list) remove(name string) {
	if l != nil {
		delete(l.entries, name)
	}
}

// Limits of what lists are kept. Longer ones are read through page by page.
const (
	listMax  = 20_000
	listsMax = 40_000
	pageSize = 1000
	// Where changes of others are to be seen sooner than that, a page that was read
	// ahead would be too old.
	aheadAtLeast = time.Second
)

// keep remembers what was read of a directory, if nothing was changed in it
// meanwhile; f.mu is held. Others go when there are too many.
func (f *FS) keep(n *node, s *scan) {
	l := s.list()
	if l == nil || n.gone || n.changes != s.changes {
		return
	}
	f.forgetList(n)
	for _, m := range f.nodes {
		if f.listed+len(l.entries) <= listsMax {
			break
		}
		f.forgetList(m)
	}
	n.list = l
	l.counted = len(l.entries)
	f.listed += l.counted
}

// forgetList is called with f.mu held.
func (f *FS) forgetList(n *node) {
	if n.list != nil {
		f.listed -= n.list.counted
		n.list = nil
	}
}

// scan reads a directory page by page.
type scan struct {
	f      *FS
	n      *node
	prefix string
	begun  time.Time
	// changes is node.changes when it began, or when its last page did, where all
	// changes were noted in whole.
	changes int
	token   string
	done    bool
	hinted  bool
	// reads: all pages are read, one after the other, so that the next is asked for
	// while the present one is handed out. From the second on, since many want no more
	// than some names.
	reads bool
	ahead *pageAhead
	// names and attrs are the present page's.
	names []string
	attrs []attr
	// above are names of files that the present key begins with: a directory
	// of the same name may follow, with others in between.
	above  []string
	hidden int
	last   string // key, without the prefix
	// whole collects, until it is too long, or something was changed meanwhile.
	// Guarded by FS.mu: it may be the directory's list already.
	whole   *list
	tooLong bool
}

func (f *FS) scan(n *node) *scan {
	s := &scan{f: f, n: n, prefix: f.key(n), begun: time.Now()}
	f.mu.Lock()
	s.changes = n.changes
	f.mu.Unlock()
	s.whole = &list{entries: map[string]entry{}, until: s.begun.Add(f.o.View.AttrTimeout)}
	n.mu.Lock()
	s.hinted = n.hinted
	n.mu.Unlock()
	return s
}

// pageAhead is a page that is being read before somebody wants it.
type pageAhead struct {
	begun   time.Time
	changes int // node.changes then
	page    objects.Page
	err     error
	read    chan struct{} // closed when it is
}

// readAhead asks for the page after the present one.
func (s *scan) readAhead() {
	f := s.f
	a := &pageAhead{begun: time.Now(), read: make(chan struct{})}
	f.mu.Lock()
	a.changes = s.n.changes
	f.mu.Unlock()
	s.ahead = a
	token := s.token
	f.background(func() {
		defer close(a.read)
		a.page, a.err = f.bucket.List(f.ctx, s.prefix, false, token, pageSize)
	})
}

// page reads the page after the present one, or takes what was read ahead, if it is
// not older than what is shown may be and nothing was changed here since.
func (s *scan) page(ctx context.Context) (objects.Page, error) {
	if a := s.ahead; a != nil {
		s.ahead = nil
		select {
		case <-a.read:
		case <-ctx.Done():
			return objects.Page{}, ctx.Err()
		}
		s.f.mu.Lock()
		same := s.n.changes == a.changes
		s.f.mu.Unlock()
		if a.err == nil && same && time.Since(a.begun) < s.f.o.View.AttrTimeout {
			return a.page, nil
		}
	}
	return s.f.bucket.List(ctx, s.prefix, false, s.token, pageSize)
}

// next reads the page after the present one. After the last, done is set and
// there are no names.
func (s *scan) next(ctx context.Context) error {
	s.names, s.attrs = s.names[:0], s.attrs[:0]
	if s.done {
		return nil
	}
	p, err := s.page(ctx)
	if err != nil {
		return err
	}
	if err := s.look(ctx, p); err != nil {
		return err
	}
	first := s.token == ""
	if s.token, s.done = p.Next, p.Next == ""; s.reads && !first && !s.done && s.f.o.View.AttrTimeout >= aheadAtLeast {
		s.readAhead()
	}
	s.f.mu.Lock()
	defer s.f.mu.Unlock()
	if s.n.changes != s.changes {
		s.whole = nil // the page may be older than the change
	}
	for _, o := range p.Objects {
		name := strings.TrimPrefix(o.Key, s.prefix)
		s.last = name
		if name == "" {
			// The directory's own object.
			s.n.mu.Lock()
			s.n.marker = true
			s.n.mu.Unlock()
			continue
		}
		if name == hintName {
			continue
		}
		a := attr{kind: dir, mtime: s.f.begun, noted: !s.hinted}
		if o.Dir {
			name = strings.TrimSuffix(name, "/")
		} else {
			a = objectAttr(o, s.hinted)
		}
		if !fileName(name) || len(name) > nameMax {
			s.hidden++
			continue
		}
		for len(s.above) > 0 && !strings.HasPrefix(name, s.above[len(s.above)-1]) {
			s.above = s.above[:len(s.above)-1]
		}
		if a.kind == dir && slices.Contains(s.above, name) {
			// Both are there. The directory is shown, as lookup does.
			if i := slices.Index(s.names, name); i >= 0 {
				s.attrs[i] = a
			}
			s.whole.put(name, entryOf(a))
			continue
		}
		if a.kind != dir {
			s.above = append(s.above, name)
			if s.whole != nil {
				s.whole.files = append(s.whole.files, name)
			}
		}
		s.names, s.attrs = append(s.names, name), append(s.attrs, a)
		s.whole.put(name, entryOf(a))
	}
	if s.whole != nil && len(s.whole.entries) > listMax {
		s.whole, s.tooLong = nil, true
	}
	if s.done && s.hidden > 0 {
		s.f.log.Warn("keys that no file can be named after are not shown", slog.String("directory", s.prefix), slog.Int("count", s.hidden))
	}
	return nil
}

// look finds out, with the first page, whether notes must be asked for.
func (s *scan) look(ctx context.Context, p objects.Page) error {
	if s.token != "" || s.hinted {
		return nil
	}
	key := s.prefix + hintName
	for _, o := range p.Objects {
		s.hinted = s.hinted || o.Key == key
	}
	if last := len(p.Objects) - 1; !s.hinted && p.Next != "" && p.Objects[last].Key < key {
		_, err := s.f.bucket.Head(ctx, key)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.hinted = err == nil
	}
	if s.hinted {
		s.n.mu.Lock()
		s.n.hinted = true
		s.n.mu.Unlock()
	}
	return nil
}

// list returns what was read so far.
func (s *scan) list() *list {
	if s.whole != nil {
		s.whole.whole, s.whole.upTo = s.done, s.last
	}
	return s.whole
}
