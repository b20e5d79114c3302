//go:build linux

package guest

import (
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path"
	"runtime"
	"sort"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// maxEntries bounds OpReadDir.
const maxEntries = 10000

// random is a name that nobody guesses. Not by crypto/rand, which would make
// box a quarter larger; files of such names are made with O_EXCL, so that a
// failure does no harm.
func random() string {
	var b [8]byte
	_, _ = unix.Getrandom(b[:], 0)
	return hex.EncodeToString(b[:])
}

func errnoIn(err error) error {
	var errno unix.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// as runs f with u's rights to files and no others. It uses a thread of its
// own for that; should the rights not come back, the thread ends.
func (g *guest) as(u *wire.User, f func() error) error {
	if g.free != nil && u.UID == g.free.uid {
		return f()
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		before, err := g.become(u)
		if err != nil {
			done <- err
			return // locked, so the thread ends
		}
		err = f()
		if g.restore(before) == nil {
			runtime.UnlockOSThread()
		}
		done <- err
	}()
	return <-done
}

type rights struct{ caps [2]unix.CapUserData }

// become changes this thread alone, and hence uses none of package syscall's wrappers.
func (g *guest) become(u *wire.User) (*rights, error) {
	r := &rights{}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	if err := unix.Capget(&header, &r.caps[0]); err != nil {
		return nil, err
	}
	uid := uintptr(u.UID)
	if !g.single() {
		groups := append([]uint32{u.GID}, u.Groups...)
		if err := perThread(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(&groups[0]))); err != nil {
			return nil, err
		}
		runtime.KeepAlive(groups)
		_ = perThread(unix.SYS_SETFSGID, uintptr(u.GID), 0)
		_ = perThread(unix.SYS_SETFSUID, uid, 0)
		// They tell no error; asking for what is not valid tells what is.
		if now, _, _ := syscall.RawSyscall(unix.SYS_SETFSUID, ^uintptr(0), 0, 0); now != uid {
			return nil, &wire.Error{Code: wire.CodeNoUser, Text: "user " + u.Name + " has ids that this sandbox does not have"}
		}
	}
	caps := r.caps
	caps[0].Effective, caps[1].Effective = 0, 0
	if u.UID == 0 { // init alone: a resident that is root is root already
		caps[0].Effective = commandCaps & 0xffffffff
	}
	return r, unix.Capset(&header, &caps[0])
}

func (g *guest) restore(r *rights) error {
	if !g.single() {
		// With the fs ids still the user's, the right to set them is in the
		// permitted set, and comes first.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		if err := unix.Capset(&header, &r.caps[0]); err != nil {
			return err
		}
		var uid, gid uint32
		var groups []uint32
		if g.free != nil {
			uid, gid, groups = g.free.uid, g.free.gid, g.free.groups
		}
		_ = perThread(unix.SYS_SETFSUID, uintptr(uid), 0)
		_ = perThread(unix.SYS_SETFSGID, uintptr(gid), 0)
		if err := perThread(unix.SYS_SETGROUPS, uintptr(len(groups)), uintptr(unsafe.Pointer(unsafe.SliceData(groups)))); err != nil {
			return err
		}
		runtime.KeepAlive(groups)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	return unix.Capset(&header, &r.caps[0])
}

func perThread(nr, a, b uintptr) error {
	if _, _, errno := syscall.RawSyscall(nr, a, b, 0); errno != 0 {
		return errno
	}
	return nil
}

// onProc tells whether fd is a file of /proc.
func onProc(fd int) bool {
	var fs unix.Statfs_t
	return unix.Fstatfs(fd, &fs) != nil || fs.Type == unix.PROC_SUPER_MAGIC
}

func (g *guest) nameOf(fd int) string {
	buf := make([]byte, 4096)
	n, err := unix.Readlinkat(g.self, strconv.Itoa(fd), buf)
	if err != nil {
		return ""
	}
	return string(buf[:n])
}

// at opens a path for what flags say. Links that lead through a process's descriptors,
// which here would be init's own, are not followed.
func at(dir int, name string, flags uint64) (int, error) {
	return unix.Openat2(dir, name, &unix.OpenHow{Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_MAGICLINKS})
}

var errProc = &wire.Error{Code: wire.CodePermission, Text: "files of processes cannot be read this way; use a command"}

// resolve opens a path, of whatever kind, without touching what it names.
func (g *guest) resolve(name string) (fd int, st unix.Stat_t, err error) {
	fd, err = at(unix.AT_FDCWD, name, unix.O_PATH)
	if err != nil {
		return -1, st, pathError(name, err)
	}
	err = unix.Fstat(fd, &st)
	if err == nil && onProc(fd) {
		// /proc/self is init itself, and it may read and write itself.
		first, _, _ := strings.Cut(strings.TrimPrefix(g.nameOf(fd), "/proc/"), "/")
		if _, nerr := strconv.Atoi(first); nerr == nil || first == "" {
			err = errProc
		}
	}
	if err != nil {
		_ = unix.Close(fd)
		return -1, st, pathError(name, err)
	}
	return fd, st, nil
}

func check(name string) error {
	switch {
	case !strings.HasPrefix(name, "/"):
		return invalid("path: " + strconv.Quote(name) + " must be absolute")
	case strings.IndexByte(name, 0) >= 0:
		return invalid("path: holds a NUL byte")
	}
	return nil
}

func fileOf(name string, st *unix.Stat_t) wire.File {
	return wire.File{Path: name, Mode: st.Mode, Size: st.Size, ModTime: st.Mtim.Nano(), UID: st.Uid, GID: st.Gid}
}

// look serves stat, open and readdir.
func (g *guest) look(op string, r *wire.Path) (body any, files []*os.File, err error) {
	u, err := g.user(r.User)
	if err != nil {
		return nil, nil, err
	}
	if err := check(r.Path); err != nil {
		return nil, nil, err
	}
	err = g.as(u, func() error {
		fd, st, err := g.resolve(r.Path)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		kind := st.Mode & unix.S_IFMT
		info := fileOf(g.nameOf(fd), &st)
		switch op {
		case wire.OpStat:
			body = info
			return nil
		case wire.OpReadDir:
			if kind != unix.S_IFDIR {
				return pathError(r.Path, unix.ENOTDIR)
			}
			body, err = list(fd, r.Path)
			return err
		}
		switch kind {
		case unix.S_IFREG:
		case unix.S_IFDIR:
			return pathError(r.Path, unix.EISDIR)
		default:
			return pathError(r.Path, unix.ENXIO)
		}
		f, err := unix.Openat(g.self, strconv.Itoa(fd), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
		if err != nil {
			return pathError(r.Path, err)
		}
		served := g.unanswered(fd)
		if !served && !pseudo(fd) {
			body, files = info, []*os.File{os.NewFile(uintptr(f), "file")}
			return nil
		}
		file, size, err := copied(f, r.Path, served)
		if err != nil {
			return err
		}
		info.Size = size
		body, files = info, []*os.File{file}
		return nil
	})
	return body, files, err
}

func list(fd int, name string) (*wire.Files, error) {
	dirfd, err := at(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, pathError(name, err)
	}
	dir := os.NewFile(uintptr(dirfd), name)
	defer dir.Close()
	names, err := dir.Readdirnames(maxEntries + 1)
	if err != nil && err != io.EOF {
		return nil, pathError(name, errnoIn(err))
	}
	sort.Strings(names)
	out := &wire.Files{Truncated: len(names) > maxEntries}
	for _, n := range names[:min(len(names), maxEntries)] {
		var st unix.Stat_t
		if err := unix.Fstatat(dirfd, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				continue // gone meanwhile
			}
			return nil, pathError(path.Join(name, n), err)
		}
		out.Files = append(out.Files, fileOf(n, &st))
	}
	return out, nil
}
