//go:build linux

// Package tree removes, packs and unpacks the file trees that a sandbox has
// written. Such trees are hostile: links that lead anywhere, directories of mode
// 000, nesting deeper than any path, holes of petabytes, owners that are not
// ours. Every step is relative to an open directory and follows no link.
//
// As runs an operation as the root of a sandbox's id map, in a process of its
// own, where the calling user alone may not.
package tree

import (
	"io/fs"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// flattenDepth is how deep Remove goes with one descriptor a level; what lies
// deeper is moved up to the top first.
const flattenDepth = 64

// emptyTries is how often a directory is emptied: one that is being removed may
// still get a file from a process that has it open, such as `box settle`.
const emptyTries = 100

// Remove deletes path and everything below it. What is not there is no error.
// The last element of path is not followed when it is a link. Directories
// without permissions are opened up first, as far as we may.
func Remove(path string) error {
	parent, err := unix.Open(filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		if err == unix.ENOENT {
			return nil
		}
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	defer unix.Close(parent)
	r := remover{top: parent, topName: filepath.Base(path)}
	err = r.remove(parent, r.topName, 0)
	for err == nil && len(r.moved) > 0 {
		name := r.moved[len(r.moved)-1]
		r.moved = r.moved[:len(r.moved)-1]
		err = r.remove(parent, name, 0)
	}
	if err != nil {
		return &fs.PathError{Op: "remove", Path: path, Err: err}
	}
	return nil
}

type remover struct {
	top     int
	topName string
	count   int
	moved   []string // names in top of deep trees that were moved up
}

func (r *remover) remove(dir int, name string, depth int) error {
	err := unix.Unlinkat(dir, name, 0)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	var st unix.Stat_t
	if serr := unix.Fstatat(dir, name, &st, unix.AT_SYMLINK_NOFOLLOW); serr != nil {
		if serr == unix.ENOENT {
			return nil
		}
		return serr
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return err
	}
	if depth >= flattenDepth {
		return r.moveUp(dir, name)
	}
	if err := unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err == nil {
		return nil
	}
	fd, err := openDir(dir, name, st.Mode)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for range emptyTries {
		if err = r.empty(fd, depth); err != nil {
			return err
		}
		if err = unix.Unlinkat(dir, name, unix.AT_REMOVEDIR); err != unix.ENOTEMPTY {
			break
		}
	}
	if err == unix.ENOENT {
		return nil
	}
	return err
}

// empty removes what is in the directory fd. Names are read in batches: a
// directory of millions must not be held in memory.
func (r *remover) empty(fd, depth int) error {
	for {
		if _, err := unix.Seek(fd, 0, 0); err != nil {
			return err
		}
		names, err := readNames(fd, 4096)
		if err != nil || len(names) == 0 {
			return err
		}
		for _, n := range names {
			if err := r.remove(fd, n, depth+1); err != nil {
				return err
			}
		}
	}
}

// moveUp renames a deep directory beside the tree that is being removed. Its
// mode must let us write "..", hence the opening up.
func (r *remover) moveUp(dir int, name string) error {
	fd, err := openDir(dir, name, 0)
	if err != nil {
		return err
	}
	_ = unix.Close(fd)
	for {
		r.count++
		to := r.topName + ".deep" + strconv.Itoa(r.count)
		err := unix.Renameat2(dir, name, r.top, to, unix.RENAME_NOREPLACE)
		if err == unix.EEXIST {
			continue
		}
		if err != nil {
			return err
		}
		r.moved = append(r.moved, to)
		return nil
	}
}

// openDir opens a directory for reading and makes it ours to change. mode is
// its present mode, or 0 when not known.
func openDir(dir int, name string, mode uint32) (int, error) {
	if mode&0o700 != 0o700 {
		p, err := unix.Openat(dir, name, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return -1, err
		}
		// chmod has no flag for a descriptor without rights; the magic link
		// leads to exactly this directory.
		err = unix.Chmod("/proc/self/fd/"+strconv.Itoa(p), 0o700)
		_ = unix.Close(p)
		if err != nil && mode&0o500 == 0 {
			return -1, err
		}
	}
	return unix.Openat(dir, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// readNames returns at least max names of the directory fd from its present
// offset on, or all that are left.
func readNames(fd, max int) ([]string, error) {
	var names []string
	buf := make([]byte, 32<<10)
	for max <= 0 || len(names) < max {
		n, err := unix.ReadDirent(fd, buf)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n <= 0 {
			break
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
	return names, nil
}

// Usage counts the bytes that a tree takes on disk, without following links. ok
// is false when something could not be read or limit passed first, so that the
// true figure is larger.
func Usage(path string, limit time.Duration) (bytes int64, ok bool) {
	end := time.Now().Add(limit)
	seen := map[inode]bool{}
	err := filepath.WalkDir(path, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if err != nil {
			return err
		}
		st, is := i.Sys().(*syscall.Stat_t)
		if !is {
			return nil
		}
		if st.Nlink > 1 && !d.IsDir() {
			key := inode{uint64(st.Dev), st.Ino}
			if seen[key] {
				return nil
			}
			seen[key] = true
		}
		bytes += st.Blocks * 512
		if time.Now().After(end) {
			return fs.SkipAll
		}
		return nil
	})
	return bytes, err == nil && time.Now().Before(end)
}
