//go:build linux

// Package rootfs makes a sandbox's root. Build makes the mounts of a Launch,
// detached, either outside (as the host's root, so that layers can be
// id-mapped) or inside by init; Enter attaches them, adds what every sandbox
// has, and makes the result the root.
package rootfs

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// Maps are user namespaces, as descriptors, whose maps mounts are seen through.
type Maps struct {
	// Layers maps a layer's ids to the sandbox's; -1: no map.
	Layers int
	// Owner makes the namespace that shows the owner of a host folder, given by its ids, as
	// that user; the caller closes it. Nil: it cannot be done here.
	Owner func(uid, gid uint32, user string) (int, error)
	// Root are the ids, outside, of root inside; new directories are its own.
	RootUID, RootGID int
	// UserXattr: the caller is not root of the host.
	UserXattr bool
	// Scratch is a directory that may be mounted on for a while; the caller
	// is in a mount namespace of its own.
	Scratch string
}

// Build makes one detached mount for each of mounts, in order.
func Build(mounts []wire.Mount, maps *Maps) (fds []int, err error) {
	defer func() {
		if err != nil {
			Close(fds)
		}
	}()
	if len(mounts) == 0 || mounts[0].Target != "/" {
		return nil, &wire.Error{Code: wire.CodeInvalid, Text: "mounts: the first must have target /"}
	}
	for i := range mounts {
		m := &mounts[i]
		var fd int
		switch m.Type {
		case "overlay":
			fd, err = overlay(m, maps)
		case "bind":
			fd, err = bind(m, maps)
		case "tmpfs":
			fd, err = tmpfs(m)
		default:
			return fds, &wire.Error{Code: wire.CodeInvalid, Text: "mounts: type " + strconv.Quote(m.Type) + " is none of overlay, bind, tmpfs"}
		}
		if err != nil {
			return fds, Explain("mount "+m.Target+" ("+m.Type+")", err)
		}
		fds = append(fds, fd)
	}
	return fds, nil
}

// Scarce mounts a file system of so many bytes in memory on dir, as the caller
// sees it.
func Scarce(dir string, bytes int64) error {
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0755,size="+strconv.FormatInt(bytes, 10)); err != nil {
		return Explain("mount tmpfs for the disk limit", err)
	}
	return nil
}

// Close closes descriptors.
func Close(fds []int) {
	for _, fd := range fds {
		_ = unix.Close(fd)
	}
}

// Explain makes a wire.Error of what failed, unless err is one.
func Explain(what string, err error) *wire.Error {
	var we *wire.Error
	if errors.As(err, &we) {
		return we
	}
	code, text := wire.CodeInternal, what+": "+err.Error()
	switch {
	case errors.Is(err, unix.ENOENT):
		code = wire.CodeNotExist
	case errors.Is(err, unix.ENOSYS):
		code, text = wire.CodeUnsupported, what+": this kernel lacks a system call that sandboxes need; Linux 5.12 or newer has it"
	case errors.Is(err, unix.ENODEV):
		code, text = wire.CodeUnsupported, what+": this kernel lacks that file system; load its module as root (modprobe overlay)"
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.EACCES):
		code = wire.CodePermission
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		code = wire.CodeNoSpace
	}
	return &wire.Error{Code: code, Text: text}
}

func tmpfs(m *wire.Mount) (int, error) {
	options := []string{"mode", "0" + strconv.FormatUint(uint64(orMode(m.Mode, 0o755)), 8)}
	if m.Size > 0 {
		options = append(options, "size", strconv.FormatInt(m.Size, 10))
	}
	return NewFS("tmpfs", attributes(m), options...)
}

func orMode(mode, other uint32) uint32 {
	if mode == 0 {
		return other
	}
	return mode & 0o7777
}

// attributes of a mount but for ReadOnly, which comes last, when mount points
// have been made in it.
func attributes(m *wire.Mount) int {
	a := unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	if m.NoExec {
		a |= unix.MOUNT_ATTR_NOEXEC
	}
	return a
}

// NewFS makes a detached mount of a new file system. Options are keys and
// values in turn.
func NewFS(kind string, attrs int, options ...string) (int, error) {
	fs, err := unix.Fsopen(kind, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, os.NewSyscallError("fsopen", err)
	}
	defer unix.Close(fs)
	for i := 0; i+1 < len(options); i += 2 {
		if err := setString(fs, options[i], options[i+1]); err != nil {
			return -1, os.NewSyscallError("option "+options[i], explainFS(fs, err))
		}
	}
	if err := unix.FsconfigCreate(fs); err != nil {
		return -1, os.NewSyscallError("create", explainFS(fs, err))
	}
	fd, err := unix.Fsmount(fs, unix.FSMOUNT_CLOEXEC, attrs)
	return fd, os.NewSyscallError("fsmount", err)
}

func setString(fs int, key, value string) error {
	if value == "" {
		return unix.FsconfigSetFlag(fs, key)
	}
	return unix.FsconfigSetString(fs, key, value)
}

// reason is a kernel's own words about a refused mount.
type reason struct {
	errno error
	text  string
}

func (r *reason) Error() string { return r.errno.Error() + " (" + r.text + ")" }
func (r *reason) Unwrap() error { return r.errno }

func explainFS(fs int, err error) error {
	buf := make([]byte, 512)
	n, rerr := unix.Read(fs, buf)
	if rerr != nil || n < 3 {
		return err
	}
	return &reason{err, strings.TrimSpace(string(buf[2:n]))}
}

// bind clones a host path's mount.
func bind(m *wire.Mount, maps *Maps) (int, error) {
	source, err := unix.Open(m.Source, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: m.Source, Err: err}
	}
	defer unix.Close(source)
	if m.Sub != "" {
		sub, err := below(source, m.Sub, maps)
		if err != nil {
			return -1, err
		}
		defer unix.Close(sub)
		source = sub
	}
	idmap := -1
	if m.Layer {
		fd, err := clone(source, "", 0, bindAttr(m), maps.Layers)
		if err != nil {
			return -1, &os.PathError{Op: "clone", Path: m.Source, Err: err}
		}
		return fd, nil
	}
	if m.MapOwner != "" {
		var st unix.Stat_t
		if err := unix.Fstat(source, &st); err != nil {
			return -1, err
		}
		if maps.Owner != nil {
			if idmap, err = maps.Owner(st.Uid, st.Gid, m.MapOwner); err != nil {
				return -1, err
			}
			if idmap >= 0 {
				defer unix.Close(idmap)
			}
		}
	}
	attr := bindAttr(m)
	// What is mounted below comes along, unless it cannot be id-mapped.
	fd, err := clone(source, "", unix.AT_RECURSIVE, attr, idmap)
	if err != nil && idmap >= 0 {
		fd, err = clone(source, "", 0, attr, idmap)
	}
	if err != nil {
		return -1, &os.PathError{Op: "clone", Path: m.Source, Err: err}
	}
	return fd, nil
}

func bindAttr(m *wire.Mount) unix.MountAttr {
	attr := unix.MountAttr{Attr_set: uint64(attributes(m))}
	if m.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	return attr
}

// below opens the directory sub below dir. What lies in dir was made by code
// in sandboxes, which may change it at this moment; so the kernel resolves the
// path and lets it lead nowhere else. Missing directories are made, but not
// through links.
func below(dir int, sub string, maps *Maps) (int, error) {
	outside := func(err error) error {
		switch err {
		case unix.EXDEV, unix.ELOOP:
			return &wire.Error{Code: wire.CodeBadSubpath, Text: strconv.Quote(sub) + " leads out of its volume, or through a link to nothing"}
		case unix.ENOTDIR:
			return &wire.Error{Code: wire.CodeBadSubpath, Text: strconv.Quote(sub) + " is no directory in its volume"}
		}
		return &os.PathError{Op: "open", Path: sub, Err: err}
	}
	const flags = unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC
	fd, err := openBelow(dir, sub, flags, 0)
	if err == nil {
		return fd, nil
	}
	if err != unix.ENOENT {
		return -1, outside(err)
	}
	at, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	for part := range strings.SplitSeq(sub, "/") {
		next, err := openBelow(at, part, flags, unix.RESOLVE_NO_SYMLINKS)
		if err == unix.ENOENT {
			if err = unix.Mkdirat(at, part, 0o700); err == nil || err == unix.EEXIST {
				made := err == nil
				if next, err = openBelow(at, part, flags, unix.RESOLVE_NO_SYMLINKS); err == nil && made {
					err = open(next, maps)
				}
			}
		}
		_ = unix.Close(at)
		if err != nil {
			return -1, outside(err)
		}
		at = next
	}
	return at, nil
}

func openBelow(dir int, name string, flags, resolve uint64) (int, error) {
	for try := 0; ; try++ {
		fd, err := unix.Openat2(dir, name, &unix.OpenHow{Flags: flags, Resolve: resolve | unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS})
		// Something was renamed meanwhile; who does nothing else holds no start.
		if err != unix.EAGAIN && err != unix.EINTR || try == 10_000 {
			return fd, err
		}
	}
}

// open lets every user inside write to a directory just made.
func open(fd int, maps *Maps) error {
	if maps.Layers < 0 && !maps.UserXattr {
		if err := unix.Fchownat(fd, "", maps.RootUID, maps.RootGID, unix.AT_EMPTY_PATH); err != nil {
			return err
		}
	}
	return unix.Chmod("/proc/self/fd/"+strconv.Itoa(fd), 0o777)
}

// CloneFile makes a detached bind of one host file, read-only or a device.
func CloneFile(name string, readOnly bool) (int, error) {
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID}
	if readOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NODEV
	} else {
		attr.Attr_clr = unix.MOUNT_ATTR_NODEV // as the state directory's file system may be mounted
	}
	return clone(unix.AT_FDCWD, name, 0, attr, -1)
}

// clone makes a detached copy of the mount at path below dir, with attr, seen through the
// user namespace idmap unless that is negative.
func clone(dir int, path string, recursive uint, attr unix.MountAttr, idmap int) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW) | recursive
	if path == "" {
		flags |= unix.AT_EMPTY_PATH
	}
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return -1, os.NewSyscallError("open_tree", err)
	}
	if idmap >= 0 {
		attr.Attr_set |= unix.MOUNT_ATTR_IDMAP
		attr.Userns_fd = uint64(idmap)
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH|recursive, &attr); err != nil {
			_ = unix.Close(fd)
			if idmap >= 0 && err == unix.EINVAL {
				return -1, &wire.Error{Code: wire.CodeUnsupported, Text: "the file system of " + pathOf(dir, path) +
					" cannot show its files under other ids; put it on ext4, xfs, btrfs or tmpfs, and use Linux 5.19 or newer"}
			}
			return -1, os.NewSyscallError("mount_setattr", err)
		}
	}
	return fd, nil
}

func pathOf(dir int, path string) string {
	if path != "" {
		return path
	}
	name, err := os.Readlink("/proc/self/fd/" + strconv.Itoa(dir))
	if err != nil {
		return "a layer"
	}
	return name
}

// asUser runs f with files accessed as uid and gid, but with all rights. The
// caller's goroutine is locked to its thread.
func asUser(uid, gid int, f func() error) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&header, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	raise := func() error { return os.NewSyscallError("capset", unix.Capset(&header, &caps[0])) }
	set := func(uid, gid int) error {
		// Only this thread, unlike package unix's.
		syscall.RawSyscall(unix.SYS_SETFSGID, uintptr(gid), 0, 0)
		syscall.RawSyscall(unix.SYS_SETFSUID, uintptr(uid), 0, 0)
		return raise()
	}
	if err := set(uid, gid); err != nil {
		return err
	}
	err := f()
	if back := set(0, 0); err == nil {
		err = back
	}
	return err
}
