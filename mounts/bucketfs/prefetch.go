//go:build linux

package bucketfs

import "slices"

// walked is how far somebody has opened the files of a directory one after the
// other.
type walked struct {
	at  int // index in list.files
	run int // how many in a row
}

const (
	// smallFile is the size of files that are fetched before they are opened.
	smallFile = 64 << 10
	// walkMax is how many of them at a time.
	walkMax = 32
	// walkAfter is how many must have been opened in a row.
	walkAfter = 2
)

// walk is told of each file that is opened for reading. It hands over what was
// fetched of it, and fetches those that come next.
func (f *FS) walk(n *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if n.parent == nil || n.parent.list == nil {
		return
	}
	l := n.parent.list
	if c := l.ahead[n.name]; c != nil {
		delete(l.ahead, n.name)
		n.mu.Lock()
		if n.content == nil && n.attr.version == c.version {
			n.content = c
		}
		n.mu.Unlock()
	}
	i, ok := slices.BinarySearch(l.files, n.name)
	if !ok {
		return
	}
	w := &n.parent.walked
	switch {
	case i > w.at && i <= w.at+2:
		w.run++
	case i != w.at:
		w.run = 0
	}
	w.at = i
	if w.run < walkAfter {
		return
	}
	width := min(1<<min(w.run, 8), walkMax)
	// A few at a time, not one for each that is opened.
	if w.run > walkAfter && len(l.ahead) > width/2 {
		return
	}
	prefix := f.keyLocked(n.parent)
	for j := i + 1; j <= i+width && j < len(l.files); j++ {
		name := l.files[j]
		e, ok := l.entries[name]
		if !ok || e.kind != file || !e.noted || e.size == 0 || e.size > smallFile || l.ahead[name] != nil {
			continue
		}
		if child := n.parent.children[name]; child != nil {
			child.mu.Lock()
			skip := child.stage != nil || f.cache.has(child.content)
			child.mu.Unlock()
			if skip {
				continue
			}
		}
		c := &content{version: e.version, size: e.size, blocks: map[int64]*block{}}
		f.cache.mu.Lock()
		b := f.cache.add(c, 0, false)
		f.cache.mu.Unlock()
		if b == nil {
			return
		}
		if l.ahead == nil {
			l.ahead = map[string]*content{}
		}
		l.ahead[name] = c
		f.background(func() { f.fetch(func() string { return prefix + name }, c, []*block{b}) })
	}
}
