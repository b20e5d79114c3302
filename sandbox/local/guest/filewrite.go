//go:build linux

package guest

import (
	"os"
	"path"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// write is a begun OpCreate.
type write struct {
	user   *wire.User
	dir    int    // the target's directory
	name   string // in it
	path   string
	temp   string // beside it; empty: the bytes are in file and get copied
	file   int
	append bool
	source bool        // file holds what is to be appended
	old    unix.Stat_t // of the target, when there was one
	fresh  bool
	mode   int64
	timer  *time.Timer
}

// dirAt opens the directory name below base, and makes it, with mode, and its
// parents.
func dirAt(base int, name string, mode uint32) (int, error) {
	fd, err := at(base, name, unix.O_PATH|unix.O_DIRECTORY)
	if err != unix.ENOENT || name == "/" || name == "." {
		return fd, err
	}
	above, err := dirAt(base, path.Dir(name), 0o755)
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	if err := unix.Mkdirat(above, path.Base(name), mode); err != nil && err != unix.EEXIST {
		return -1, err
	}
	return at(above, path.Base(name), unix.O_PATH|unix.O_DIRECTORY)
}

// locate finds where a write to w.path ends up, through links.
func (g *guest) locate(w *write) error {
	dir, name := unix.AT_FDCWD, w.path
	for range 40 {
		base := path.Base(name)
		if base == "/" || base == "." || base == ".." || strings.HasSuffix(name, "/") {
			return unix.EISDIR
		}
		fd, err := dirAt(dir, path.Dir(name), 0o755)
		if dir >= 0 {
			_ = unix.Close(dir)
		}
		if err != nil {
			return err
		}
		dir = fd
		if onProc(dir) {
			_ = unix.Close(dir)
			return errProc
		}
		err = unix.Fstatat(dir, base, &w.old, unix.AT_SYMLINK_NOFOLLOW)
		switch {
		case err == unix.ENOENT:
			w.dir, w.name, w.fresh = dir, base, true
			return nil
		case err != nil:
			_ = unix.Close(dir)
			return err
		}
		switch w.old.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			w.dir, w.name = dir, base
			return nil
		case unix.S_IFLNK:
			buf := make([]byte, 4096)
			n, err := unix.Readlinkat(dir, base, buf)
			if err != nil {
				_ = unix.Close(dir)
				return err
			}
			name = string(buf[:n])
		case unix.S_IFDIR:
			_ = unix.Close(dir)
			return unix.EISDIR
		default:
			_ = unix.Close(dir)
			return unix.ENXIO
		}
	}
	if dir >= 0 {
		_ = unix.Close(dir)
	}
	return unix.ELOOP
}

func (g *guest) create(r *wire.Create, from []*os.File) (body any, files []*os.File, err error) {
	u, err := g.user(r.User)
	if err != nil {
		return nil, nil, err
	}
	if err := check(r.Path); err != nil {
		return nil, nil, err
	}
	if r.Mode < -1 || r.Mode > 0o7777 {
		return nil, nil, invalid("mode: must be permission bits, 0 to 07777, or -1")
	}
	g.mu.Lock()
	busy := len(g.writes) >= 256
	g.mu.Unlock()
	if busy {
		return nil, nil, &wire.Error{Code: wire.CodeLimit, Text: "256 files are being written already; wait for some of them"}
	}
	w := &write{user: u, path: r.Path, append: r.Append, mode: r.Mode, dir: -1, file: -1}
	if r.Source {
		if len(from) != 1 || !r.Append {
			return nil, nil, invalid("source: goes with append and one file")
		}
		if w.file, err = unix.FcntlInt(from[0].Fd(), unix.F_DUPFD_CLOEXEC, 3); err != nil {
			return nil, nil, pathError("", err)
		}
		w.source = true
	}
	err = g.as(u, func() error {
		err := g.locate(w)
		if err == nil {
			err = w.readOnly(g.open(w))
		}
		if err != nil {
			w.close()
			return pathError(r.Path, err)
		}
		return nil
	})
	if err != nil {
		return nil, nil, err
	}
	out, err := unix.FcntlInt(uintptr(w.file), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		_, _ = g.finish(w, true)
		return nil, nil, pathError("", err)
	}
	g.mu.Lock()
	g.token++
	token := g.token
	g.writes[token] = w
	g.mu.Unlock()
	w.timer = time.AfterFunc(10*time.Minute, func() { _, _ = g.commit(&wire.Commit{Token: token, Abort: true}) })
	return wire.Created{Token: token, Fresh: w.fresh}, []*os.File{os.NewFile(uintptr(out), "file")}, nil
}

func (w *write) close() {
	for _, fd := range []*int{&w.dir, &w.file} {
		if *fd >= 0 {
			_ = unix.Close(*fd)
			*fd = -1
		}
	}
}

// readOnly is err, or that the file system is read-only, which the kernel says only
// to those whom the file's mode would let write.
func (w *write) readOnly(err error) error {
	var st unix.Statfs_t
	if (err == unix.EACCES || err == unix.EPERM) && unix.Fstatfs(w.dir, &st) == nil && st.Flags&unix.ST_RDONLY != 0 {
		return unix.EROFS
	}
	return err
}

// open opens what the bytes go to; the caller has the user's rights.
func (g *guest) open(w *write) (err error) {
	const flags = unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY
	mode := uint32(0o644)
	if w.mode >= 0 {
		mode = uint32(w.mode)
	}
	if w.source {
		if !w.fresh {
			return unix.Faccessat2(w.dir, w.name, unix.W_OK, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW)
		}
		return nil
	}
	served := g.unanswered(w.dir)
	if served && w.append {
		return &wire.Error{Code: wire.CodeUnsupported, Path: w.path, Text: w.path + ": nothing is appended this way to a file that a program inside serves; use a command"}
	}
	if w.append {
		w.file, err = unix.Openat(w.dir, w.name, unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|flags, mode&0o777)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(w.file, &st); err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT != unix.S_IFREG {
			return unix.ENXIO
		}
		if w.mode >= 0 && st.Mode&0o7777 != mode {
			return unix.Fchmod(w.file, mode)
		}
		return nil
	}
	if !w.fresh {
		if err := unix.Faccessat2(w.dir, w.name, unix.W_OK, unix.AT_EACCESS|unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return err
		}
	}
	// Somebody else's file stays theirs; only root can see to that beside a rename.
	foreign := !w.fresh && !g.single() && w.user.UID != 0 && w.old.Uid != w.user.UID
	if !foreign && !served {
		w.temp = ".berth-" + random()
		w.file, err = unix.Openat(w.dir, w.temp, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|flags, 0o600)
		if err == nil {
			return nil
		}
		w.temp = ""
		if w.fresh || err != unix.EACCES && err != unix.EPERM && err != unix.EROFS {
			return err
		}
	}
	if w.file, err = unix.Open("/tmp", unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600); err != nil {
		w.file, err = unix.MemfdCreate("write", unix.MFD_CLOEXEC)
	}
	return err
}

func (g *guest) commit(r *wire.Commit) (*wire.File, error) {
	g.mu.Lock()
	w := g.writes[r.Token]
	delete(g.writes, r.Token)
	g.mu.Unlock()
	if w == nil {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "that write has ended or was dropped after 10 minutes; write the file again"}
	}
	w.timer.Stop()
	return g.finish(w, r.Abort)
}

func (g *guest) finish(w *write, abort bool) (*wire.File, error) {
	defer w.close()
	out := &wire.File{Path: w.path}
	err := g.as(w.user, func() error {
		var err error
		if !abort {
			err = w.readOnly(g.put(w))
		}
		if w.temp != "" && (abort || err != nil) {
			_ = unix.Unlinkat(w.dir, w.temp, 0)
		}
		if err != nil || abort {
			return err
		}
		var st unix.Stat_t
		if err := unix.Fstat(w.file, &st); err != nil {
			return err
		}
		*out = fileOf(path.Join(g.nameOf(w.dir), w.name), &st)
		out.Fresh = w.fresh
		return nil
	})
	if err != nil {
		return nil, pathError(w.path, err)
	}
	return out, nil
}

// put makes the bytes written the target's.
func (g *guest) put(w *write) error {
	if w.source {
		return w.appendAll()
	}
	if w.append {
		return nil
	}
	mode := uint32(0o644)
	if !w.fresh {
		mode = w.old.Mode & 0o7777
	}
	if w.mode >= 0 {
		mode = uint32(w.mode)
	}
	if w.temp == "" {
		return g.copyOver(w)
	}
	if !w.fresh && w.user.UID == 0 && !g.single() {
		if err := unix.Fchown(w.file, int(w.old.Uid), int(w.old.Gid)); err != nil {
			return err
		}
	}
	if err := unix.Fchmod(w.file, mode); err != nil {
		return err
	}
	return unix.Renameat(w.dir, w.temp, w.dir, w.name)
}

// copyOver is for a target whose directory is not the user's to write.
func (g *guest) copyOver(w *write) error {
	flags := unix.O_WRONLY | unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_NOCTTY | unix.O_CLOEXEC
	if w.fresh {
		flags |= unix.O_CREAT
	}
	to, err := unix.Openat(w.dir, w.name, flags, 0o644)
	if err != nil {
		return err
	}
	var st unix.Stat_t
	if err = unix.Fstat(to, &st); err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
		err = unix.ENXIO
	}
	if err == nil {
		err = unix.Ftruncate(to, 0)
	}
	if err == nil && w.mode >= 0 && st.Mode&0o7777 != uint32(w.mode) {
		err = unix.Fchmod(to, uint32(w.mode))
	}
	var offset int64
	for err == nil {
		var n int
		n, err = unix.Sendfile(to, w.file, &offset, 1<<20)
		if n == 0 && err == nil {
			_ = unix.Close(w.file)
			w.file = to
			return nil
		}
		if err == unix.EINTR {
			err = nil
		}
	}
	_ = unix.Close(to)
	return err
}
