//go:build linux

package tree

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Copy copies the directory src to dst, which must not exist: owners, modes,
// times, extended attributes, hard links, holes, and what an overlay means by
// its own nodes and attributes. File systems that can share the blocks of two
// files do; no file of src is written to. What a user other than root may not
// read of its own is opened up for the moment.
//
// It copies one state only as long as nobody writes below src.
func Copy(ctx context.Context, src, dst string) (Summary, error) {
	c := &copier{ctx: ctx, links: map[inode]*place{}, top: dst}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return c.sum, &fs.PathError{Op: "copy", Path: src, Err: err}
	}
	if err := unix.Mkdir(dst, 0o700); err != nil {
		return c.sum, &fs.PathError{Op: "mkdir", Path: dst, Err: err}
	}
	err := c.directory(unix.AT_FDCWD, src, unix.AT_FDCWD, dst, "", nil, &st, 0)
	return c.sum, err
}

// CopyFile copies the regular file src to dst, which must not exist, as Copy does.
func CopyFile(ctx context.Context, src, dst string) error {
	c := &copier{ctx: ctx}
	var st unix.Stat_t
	if err := unix.Lstat(src, &st); err != nil {
		return &fs.PathError{Op: "copy", Path: src, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		return &fs.PathError{Op: "copy", Path: src, Err: unix.EINVAL}
	}
	in, err := unix.Open(src, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "copy", Path: src, Err: err}
	}
	defer unix.Close(in)
	out, err := unix.Open(dst, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return &fs.PathError{Op: "copy", Path: dst, Err: err}
	}
	defer unix.Close(out)
	if err := c.content(in, out, st.Size); err != nil {
		return &fs.PathError{Op: "copy", Path: dst, Err: err}
	}
	return c.attributes(in, out, &st, dst)
}

// Copy is the function Copy.
func (a As) Copy(ctx context.Context, src, dst string) (Summary, error) {
	if a.Map == nil {
		return Copy(ctx, src, dst)
	}
	return a.help(ctx, nil, nil, "copy", src, dst)
}

type copier struct {
	ctx   context.Context
	top   string
	links map[inode]*place // names below top of files with several
	whole bool             // sharing blocks is not possible here
	sum   Summary
}

// directory copies what is in a directory, then what is said of it: making
// entries would change its times.
func (c *copier) directory(from int, name string, to int, toName, at string, dir *place, st *unix.Stat_t, depth int) error {
	if depth > maxDepth {
		return &fs.PathError{Op: "copy", Path: at, Err: ErrTooDeep}
	}
	if st.Mode&0o500 != 0o500 && os.Geteuid() != 0 {
		if unix.Fchmodat(from, name, st.Mode&0o7777|0o500, 0) == nil {
			defer func() { _ = unix.Fchmodat(from, name, st.Mode&0o7777, 0) }()
		}
	}
	const flags = unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	in, err := unix.Openat(from, name, flags, 0)
	if err != nil {
		return &fs.PathError{Op: "copy", Path: at, Err: err}
	}
	defer unix.Close(in)
	out, err := unix.Openat(to, toName, flags, 0)
	if err != nil {
		return &fs.PathError{Op: "copy", Path: at, Err: err}
	}
	defer unix.Close(out)
	for {
		names, err := readNames(in, 4096)
		if err != nil {
			return &fs.PathError{Op: "copy", Path: at, Err: err}
		}
		for _, n := range names {
			if err := c.ctx.Err(); err != nil {
				return err
			}
			if err := c.entry(in, out, n, at+"/"+n, dir, depth); err != nil {
				return err
			}
		}
		if len(names) < 4096 {
			break
		}
	}
	return c.attributes(in, out, st, at)
}

func (c *copier) entry(in, out int, name, at string, above *place, depth int) error {
	fail := func(err error) error {
		var pe *fs.PathError
		if err == nil || errors.As(err, &pe) {
			return err
		}
		return &fs.PathError{Op: "copy", Path: at, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstatat(in, name, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	c.sum.Entries++
	kind := st.Mode & unix.S_IFMT
	key := inode{st.Dev, st.Ino}
	if kind != unix.S_IFDIR && st.Nlink > 1 {
		if first, ok := c.links[key]; ok {
			return fail(unix.Linkat(unix.AT_FDCWD, c.top+"/"+first.String(), out, name, 0))
		}
		if len(c.top)+len(at) < maxName {
			c.links[key] = &place{above, name}
		}
	}
	switch kind {
	case unix.S_IFDIR:
		if err := unix.Mkdirat(out, name, 0o700); err != nil {
			return fail(err)
		}
		return c.directory(in, name, out, name, at, &place{above, name}, &st, depth+1)
	case unix.S_IFREG:
		return fail(c.file(in, out, name, at, &st))
	case unix.S_IFLNK:
		buf := make([]byte, 4096)
		n, err := unix.Readlinkat(in, name, buf)
		if err == nil {
			err = unix.Symlinkat(string(buf[:n]), out, name)
		}
		if err != nil {
			return fail(err)
		}
	case unix.S_IFSOCK:
		// Nobody listens to it in the copy, but its name is there.
		if err := unix.Mknodat(out, name, st.Mode&^0o7777|0o600, 0); err != nil {
			return fail(err)
		}
	default:
		if err := unix.Mknodat(out, name, st.Mode&^0o7777|0o600, int(st.Rdev)); err != nil {
			return fail(err)
		}
	}
	// A node that cannot be opened without effects is named through its
	// directory, which only we write to.
	if err := unix.Fchownat(out, name, int(st.Uid), int(st.Gid), unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fail(err)
	}
	if err := copyXattrs(magic(in)+"/"+name, magic(out)+"/"+name, false); err != nil {
		return fail(err)
	}
	if kind != unix.S_IFLNK {
		if err := unix.Fchmodat(out, name, st.Mode&0o7777, 0); err != nil {
			return fail(err)
		}
	}
	return fail(utimes(out, name, st.Mtim.Sec, st.Mtim.Nsec))
}

func magic(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (c *copier) file(dir, to int, name, at string, st *unix.Stat_t) error {
	if st.Mode&0o400 == 0 && os.Geteuid() != 0 {
		if unix.Fchmodat(dir, name, st.Mode&0o7777|0o400, 0) == nil {
			defer func() { _ = unix.Fchmodat(dir, name, st.Mode&0o7777, 0) }()
		}
	}
	in, err := unix.Openat(dir, name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(in)
	out, err := unix.Openat(to, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	defer unix.Close(out)
	if st.Size > 0 {
		if err := c.content(in, out, st.Size); err != nil {
			return err
		}
	}
	return c.attributes(in, out, st, at)
}

// content makes out hold what in holds: by sharing its blocks, else by copying
// what is not a hole.
func (c *copier) content(in, out int, size int64) error {
	if !c.whole {
		err := unix.IoctlFileClone(out, in)
		if err == nil {
			c.sum.Bytes += size
			return nil
		}
		c.whole = err == unix.EOPNOTSUPP || err == unix.ENOTTY || err == unix.EXDEV || err == unix.ENOSYS
	}
	for off := int64(0); off < size; {
		start, err := unix.Seek(in, off, unix.SEEK_DATA)
		if err == unix.ENXIO {
			break
		}
		if err != nil {
			return err
		}
		end, err := unix.Seek(in, start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		end = min(end, size)
		if err := c.extent(in, out, start, end); err != nil {
			return err
		}
		off = end
	}
	return unix.Ftruncate(out, size)
}

func (c *copier) extent(in, out int, start, end int64) error {
	for from, to := start, start; from < end; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.CopyFileRange(in, &from, out, &to, int(min(end-from, 64<<20)), 0)
		switch {
		case err == unix.EINTR:
		case err != nil && from == start: // not on this file system, or not on this kernel
			return c.plain(in, out, start, end)
		case err != nil:
			return err
		case n == 0:
			return io.ErrUnexpectedEOF
		default:
			c.sum.Bytes += int64(n)
		}
	}
	return nil
}

func (c *copier) plain(in, out int, start, end int64) error {
	buf := make([]byte, 256<<10)
	for at := start; at < end; {
		if err := c.ctx.Err(); err != nil {
			return err
		}
		n, err := unix.Pread(in, buf[:min(int64(len(buf)), end-at)], at)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		if err := writeAt(out, buf[:n], at); err != nil {
			return err
		}
		at += int64(n)
		c.sum.Bytes += int64(n)
	}
	return nil
}

// attributes of an open file or directory, in the order in which none undoes
// another.
func (c *copier) attributes(in, out int, st *unix.Stat_t, at string) error {
	err := unix.Fchown(out, int(st.Uid), int(st.Gid))
	if err == nil {
		err = copyXattrs(magic(in), magic(out), true)
	}
	if err == nil {
		err = unix.Fchmod(out, st.Mode&0o7777)
	}
	if err == nil {
		err = utimes(out, "", st.Mtim.Sec, st.Mtim.Nsec)
	}
	if err != nil {
		return &fs.PathError{Op: "copy", Path: at, Err: err}
	}
	return nil
}

// copyXattrs copies all but overlay's notes about files below, which name them
// by their numbers. With open, the names are those of open files, to be followed.
func copyXattrs(from, to string, open bool) error {
	list, get, set := unix.Llistxattr, unix.Lgetxattr, unix.Lsetxattr
	if open {
		list, get, set = unix.Listxattr, unix.Getxattr, unix.Setxattr
	}
	buf := make([]byte, 4096)
	n, err := list(from, buf)
	if err == unix.ERANGE {
		buf = make([]byte, 64<<10)
		n, err = list(from, buf)
	}
	if err == unix.ENOTSUP || err == nil && n == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for _, name := range strings.Split(string(buf[:n]), "\x00") {
		if name == "" || droppedXattr(name) || strings.HasPrefix(name, "security.selinux") {
			continue
		}
		n, err := get(from, name, value)
		if err == unix.ENODATA || err == unix.EPERM || err == unix.EACCES {
			continue
		}
		if err != nil {
			return err
		}
		if err := set(to, name, value[:n], 0); err != nil {
			return err
		}
	}
	return nil
}
