//go:build linux

package bucketfs

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"berth/mounts/objects"
)

// Rename is as fuse.RawFileSystem says. A bucket cannot rename: objects are
// copied, and the old ones go when all copies are there. What is interrupted
// leaves things twice, and never not at all.
func (f *FS) Rename(_ <-chan struct{}, in *fuse.RenameIn, oldName, newName string) fuse.Status {
	from, err := f.place(in.NodeId, oldName)
	if err != nil {
		return f.status("rename", oldName, err)
	}
	to, err := f.place(in.Newdir, newName)
	if err != nil {
		return f.status("rename", newName, err)
	}
	if in.Flags&^uint32(unix.RENAME_NOREPLACE) != 0 {
		return fuse.EINVAL
	}
	return f.status("rename", f.key(from)+oldName, f.rename(from, oldName, to, newName, in.Flags&unix.RENAME_NOREPLACE != 0))
}

func (f *FS) rename(from *node, oldName string, to *node, newName string, keep bool) error {
	n, _, err := f.lookup(f.ctx, from, oldName)
	if err != nil {
		return err
	}
	target, _, err := f.lookup(f.ctx, to, newName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		target = nil
	case err != nil:
		return err
	case target == n:
		return nil
	case keep:
		return syscall.EEXIST
	case target.isDir() && !n.isDir():
		return syscall.EISDIR
	case !target.isDir() && n.isDir():
		return syscall.ENOTDIR
	}
	if n.isDir() {
		err = f.renameDir(n, to, newName, target)
	} else {
		err = f.renameFile(n, to, newName, target)
	}
	if err != nil {
		return err
	}
	f.touch(from)
	f.touch(to)
	return nil
}

// renameAge is how much a file's time may change when it gets another name,
// where keeping it takes a note. Most are renamed right after they were written.
const renameAge = 5 * time.Second

func (f *FS) renameFile(n *node, to *node, newName string, target *node) error {
	f.moving.RLock()
	defer f.moving.RUnlock()
	n.write.Lock()
	defer n.write.Unlock()
	cond := objects.Cond{Absent: true}
	var freshTarget bool
	if target != nil {
		// Renames in opposite directions would wait for each other; the kernel
		// lets one at a time change between two directories.
		target.write.Lock()
		defer target.write.Unlock()
		if err := f.orphan(target); err != nil {
			return err
		}
		target.mu.Lock()
		freshTarget = target.fresh
		if !freshTarget {
			cond = objects.Cond{Version: target.attr.version}
		}
		target.mu.Unlock()
	}
	f.mu.Lock()
	oldKey, newKey := f.keyLocked(n), f.keyLocked(to)+newName
	oldDir := n.parent
	f.mu.Unlock()
	n.mu.Lock()
	fresh := n.fresh
	n.mu.Unlock()
	if n.dirty() {
		return f.renameDirty(n, to, newName, target, oldKey, newKey, fresh)
	}
	o, err := f.bucket.Head(f.ctx, oldKey)
	if err != nil {
		return err
	}
	// A copy is new to the service; an older file's time must be kept by us.
	kept := parseNote(o.Note)
	var note *string
	if kept.mtime.IsZero() && time.Since(o.ModTime) > renameAge {
		kept.mtime, kept.id = o.ModTime, newID()
		text := kept.String()
		note = &text
	}
	if kept.special() && !f.bucket.NotedLists() {
		if err := f.hint(f.ctx, to); err != nil {
			return err
		}
	}
	version, err := f.bucket.Copy(f.ctx, o, newKey, cond, note)
	if err != nil {
		// Did an earlier try of ours succeed, whose answer was lost?
		h, herr := f.bucket.Head(f.ctx, newKey)
		if !errors.Is(err, objects.ErrChanged) || herr != nil || kept.id == "" || parseNote(h.Note).id != kept.id || h.Size != o.Size {
			return err
		}
		version = h.Version
	}
	if err := f.keepDir(f.ctx, oldDir); err != nil {
		return err
	}
	if err := f.bucket.Delete(f.ctx, oldKey, o.Version); err != nil {
		return err
	}
	n.mu.Lock()
	if n.attr.version == o.Version {
		n.rebase(version)
		n.attr.note = kept
	} else {
		n.until = time.Time{}
	}
	n.mu.Unlock()
	f.moved(n, to, newName, target)
	return nil
}

// rebase goes over to a copy of the same content; n.mu is held.
func (n *node) rebase(version string) {
	if n.kept == n.attr.version {
		n.kept = version
	}
	n.attr.version, n.attr.stored = version, time.Time{}
	n.until = time.Now().Add(time.Second)
}

// renameDirty saves content that the bucket has not got yet under the new name.
func (f *FS) renameDirty(n, to *node, newName string, target *node, oldKey, newKey string, fresh bool) error {
	n.mu.Lock()
	old := n.attr.version
	wasFresh := n.fresh
	n.mu.Unlock()
	f.mu.Lock()
	oldDir, oldName := n.parent, n.name
	f.mu.Unlock()
	// The condition is the target's.
	n.mu.Lock()
	n.fresh = target == nil
	if target != nil {
		target.mu.Lock()
		n.attr.version, n.fresh = target.attr.version, target.fresh
		target.mu.Unlock()
	}
	n.mu.Unlock()
	f.moved(n, to, newName, target)
	if err := f.saveAs(n, newKey); err != nil {
		// Back to where it was; what the target was, a lookup will tell.
		n.mu.Lock()
		n.attr.version, n.fresh = old, wasFresh
		n.mu.Unlock()
		f.moved(n, oldDir, oldName, nil)
		return err
	}
	if fresh {
		return nil
	}
	if err := f.keepDir(f.ctx, oldDir); err != nil {
		return err
	}
	return f.bucket.Delete(f.ctx, oldKey, "")
}

// moved changes the tree.
func (f *FS) moved(n, to *node, newName string, target *node) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if target != nil && target != n {
		f.removeLocked(target)
	}
	old := n.parent
	old.changes++
	old.list.remove(n.name)
	if old.children[n.name] == n {
		delete(old.children, n.name)
	}
	n.parent, n.name = to, newName
	if to.children == nil {
		to.children = map[string]*node{}
	}
	to.children[newName] = n
	f.storedLocked(n)
	if old != to {
		f.dropLocked(old)
	}
}

// copyAtOnce is how many objects of a directory are copied at a time.
const copyAtOnce = 16

// renameDir copies all below a directory, then removes the old objects, then
// looks whether others put something there meanwhile.
func (f *FS) renameDir(n, to *node, newName string, target *node) error {
	f.moving.Lock()
	defer f.moving.Unlock()
	f.mu.Lock()
	oldKey, newKey := f.keyLocked(n), f.keyLocked(to)+newName+"/"
	oldDir := n.parent
	f.mu.Unlock()
	if strings.HasPrefix(newKey, oldKey) {
		return syscall.EINVAL
	}
	if target != nil {
		if err := f.empty(target); err != nil {
			return err
		}
	} else if p, err := f.bucket.List(f.ctx, newKey, true, "", 1); err != nil {
		return err
	} else if len(p.Objects) > 0 {
		return syscall.ENOTEMPTY
	}
	n.mu.Lock()
	special := n.attr.note.special()
	n.mu.Unlock()
	if special {
		if err := f.hint(f.ctx, to); err != nil {
			return err
		}
	}
	copied := map[string]string{} // old key: its version when it was copied
	versions := map[string]string{}
	for {
		more, err := f.copyAll(oldKey, newKey, copied, versions)
		if err != nil {
			return err
		}
		if !more {
			break
		}
	}
	if err := f.keepDir(f.ctx, oldDir); err != nil {
		return err
	}
	// Directories' own objects go last, the innermost first: some services
	// refuse to part with one that has something in it.
	markers := keys(copied)
	files := slices.DeleteFunc(slices.Clone(markers), isMarker)
	markers = slices.DeleteFunc(markers, func(key string) bool { return !isMarker(key) })
	slices.SortFunc(markers, func(a, b string) int { return len(b) - len(a) })
	remove := func(ctx context.Context, key string) error { return f.bucket.Delete(ctx, key, "") }
	if err := f.each(files, remove); err != nil {
		return err
	}
	for _, key := range markers {
		if err := remove(f.ctx, key); err != nil {
			return err
		}
	}
	f.moved(n, to, newName, target)
	n.mu.Lock()
	n.marker = n.marker || copied[oldKey] != ""
	n.until = time.Now().Add(f.o.View.AttrTimeout)
	n.mu.Unlock()
	f.rebase(n, newKey, versions)
	return nil
}

// copyAll copies what is below a directory and was not copied as it is now. It
// tells whether there was anything.
func (f *FS) copyAll(oldKey, newKey string, copied, versions map[string]string) (bool, error) {
	any := false
	token := ""
	for {
		p, err := f.bucket.List(f.ctx, oldKey, true, token, pageSize)
		if err != nil {
			return false, err
		}
		todo := map[string]objects.Object{}
		for _, o := range p.Objects {
			if copied[o.Key] != o.Version {
				if len(newKey)+len(o.Key)-len(oldKey) > keyMax {
					return false, syscall.ENAMETOOLONG
				}
				todo[o.Key] = o
			}
		}
		var mu sync.Mutex
		err = f.each(keys(todo), func(ctx context.Context, key string) error {
			o := todo[key]
			v, err := f.copyOne(ctx, o, newKey+key[len(oldKey):])
			if errors.Is(err, objects.ErrChanged) || errors.Is(err, fs.ErrNotExist) {
				return nil // the next round sees it as it is then
			}
			if err != nil {
				return err
			}
			mu.Lock()
			copied[key], versions[newKey+key[len(oldKey):]] = o.Version, v
			mu.Unlock()
			return nil
		})
		if err != nil {
			return false, err
		}
		any = any || len(todo) > 0
		if p.Next == "" {
			return any, nil
		}
		token = p.Next
	}
}

func isMarker(key string) bool { return strings.HasSuffix(key, "/") }

// copyOne copies an object. A directory's own is made anew, since some services
// copy none of those.
func (f *FS) copyOne(ctx context.Context, o objects.Object, to string) (string, error) {
	if isMarker(o.Key) {
		h, err := f.bucket.Head(ctx, o.Key)
		if err != nil {
			return "", err
		}
		if h.Size == 0 {
			return f.bucket.Put(ctx, to, bytes.NewReader(nil), 0, objects.Options{ContentType: h.ContentType, Note: h.Note})
		}
	}
	return f.bucket.Copy(ctx, o, to, objects.Cond{}, nil)
}

// rebase tells the nodes below n that their objects are copies now.
func (f *FS) rebase(n *node, key string, versions map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var walk func(n *node, key string)
	walk = func(n *node, key string) {
		f.forgetList(n)
		n.changes++
		n.recent.scan = nil
		for name, c := range n.children {
			if c.isDir() {
				walk(c, key+name+"/")
				continue
			}
			c.mu.Lock()
			if v := versions[key+name]; v != "" && !c.fresh {
				c.rebase(v)
			}
			c.mu.Unlock()
		}
	}
	walk(n, key)
}

func keys[V any](m map[string]V) []string {
	list := make([]string, 0, len(m))
	for k := range m {
		list = append(list, k)
	}
	return list
}

// each does something with each key, some at a time, until one fails.
func (f *FS) each(list []string, do func(ctx context.Context, key string) error) error {
	ctx, cancel := context.WithCancelCause(f.ctx)
	defer cancel(nil)
	places := make(chan struct{}, copyAtOnce)
	var wg sync.WaitGroup
	for _, key := range list {
		places <- struct{}{}
		if ctx.Err() != nil {
			break
		}
		wg.Go(func() {
			defer func() { <-places }()
			if err := do(ctx, key); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); err != nil {
		return err
	}
	return nil
}
