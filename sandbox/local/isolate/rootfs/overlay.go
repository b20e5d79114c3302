//go:build linux

package rootfs

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

func overlay(m *wire.Mount, maps *Maps) (int, error) {
	if len(m.Lower) == 0 {
		return -1, &wire.Error{Code: wire.CodeInvalid, Text: "mounts: the overlay at " + m.Target + " has no lower layer"}
	}
	if (m.Upper == "") != (m.Work == "") {
		return -1, &wire.Error{Code: wire.CodeInvalid, Text: "mounts: the overlay at " + m.Target + " needs both upper and work, or neither"}
	}
	lower, upper, work := m.Lower, m.Upper, m.Work
	for _, dir := range []string{upper, work} {
		if dir == "" {
			continue
		}
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return -1, err
		}
		if maps.Layers < 0 && !maps.UserXattr {
			if err := os.Chown(dir, maps.RootUID, maps.RootGID); err != nil {
				return -1, err
			}
		}
	}
	if maps.Layers >= 0 {
		if err := unix.Mount("tmpfs", maps.Scratch, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0700"); err != nil {
			return -1, &os.PathError{Op: "mount", Path: maps.Scratch, Err: err}
		}
		defer unix.Unmount(maps.Scratch, unix.MNT_DETACH)
		lower = nil
		for i, path := range m.Lower {
			at := filepath.Join(maps.Scratch, strconv.Itoa(i))
			if err := show(path, at, maps.Layers); err != nil {
				return -1, err
			}
			lower = append(lower, at)
		}
		if upper != "" {
			// Both must be seen through one mount.
			above := parent(upper, work)
			at := filepath.Join(maps.Scratch, "upper")
			if err := show(above, at, maps.Layers); err != nil {
				return -1, err
			}
			upper, work = at+upper[len(above):], at+work[len(above):]
		}
	}
	// The first layer is any directory; only this namespace sees what is mounted on it.
	place := lower[0]
	lower, upper, work, done, err := unnamed(lower, upper, work)
	defer done()
	if err != nil {
		return -1, err
	}
	mount := func() (int, error) {
		if fd, err := overlayNew(m, maps, lower, upper, work); err == nil {
			return fd, nil
		} else if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
			return -1, err
		}
		return overlayOld(m, maps, place, lower, upper, work)
	}
	if maps.UserXattr {
		return mount()
	}
	// Overlay works in its layers as whoever mounts it: as root inside, or it
	// could not even make its work directory through the id map.
	var fd int
	err = asUser(maps.RootUID, maps.RootGID, func() (err error) { fd, err = mount(); return err })
	return fd, err
}

// unnamed opens directories and names them by their descriptors, until done is
// called. The kernel shows the names of an overlay's layers as they were given
// to everyone inside, whom the host's paths do not concern.
func unnamed(lower []string, upper, work string) (lowers []string, up, wrk string, done func(), err error) {
	var fds []int
	name := func(dir string) string {
		if dir == "" || err != nil {
			return dir
		}
		fd, oerr := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if oerr != nil {
			err = &os.PathError{Op: "open", Path: dir, Err: oerr}
			return dir
		}
		fds = append(fds, fd)
		return "/proc/self/fd/" + strconv.Itoa(fd)
	}
	for _, l := range lower {
		lowers = append(lowers, name(l))
	}
	up, wrk = name(upper), name(work)
	return lowers, up, wrk, func() { Close(fds) }, err
}

func show(path, at string, idmap int) error {
	if err := os.Mkdir(at, 0o700); err != nil {
		return err
	}
	fd, err := clone(unix.AT_FDCWD, path, 0, unix.MountAttr{}, idmap)
	if err != nil {
		var we *wire.Error
		if errors.As(err, &we) {
			return err
		}
		return &os.PathError{Op: "clone", Path: path, Err: err}
	}
	defer unix.Close(fd)
	return os.NewSyscallError("move_mount", unix.MoveMount(fd, "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH))
}

// parent is the deepest directory above both.
func parent(a, b string) string {
	for dir := filepath.Dir(a); ; dir = filepath.Dir(dir) {
		if dir == "/" || strings.HasPrefix(b, dir+"/") {
			return strings.TrimSuffix(dir, "/")
		}
	}
}

func overlayNew(m *wire.Mount, maps *Maps, lower []string, upper, work string) (int, error) {
	var options []string
	for _, l := range lower {
		options = append(options, "lowerdir+", l)
	}
	if upper != "" {
		options = append(options, "upperdir", upper, "workdir", work)
	}
	if maps.UserXattr {
		options = append(options, "userxattr", "")
	}
	return NewFS("overlay", attributes(m), options...)
}

// overlayOld is for kernels before 6.8, which do not know lowerdir+.
func overlayOld(m *wire.Mount, maps *Maps, at string, lower []string, upper, work string) (int, error) {
	escape := strings.NewReplacer(`\`, `\\`, ":", `\:`, ",", `\,`)
	var names []string
	for _, l := range lower {
		names = append(names, escape.Replace(l))
	}
	data := "lowerdir=" + strings.Join(names, ":")
	if upper != "" {
		data += ",upperdir=" + escape.Replace(upper) + ",workdir=" + escape.Replace(work)
	}
	if maps.UserXattr {
		data += ",userxattr"
	}
	if err := unix.Mount("overlay", at, "overlay", unix.MS_NOSUID|unix.MS_NODEV, data); err != nil {
		return -1, os.NewSyscallError("mount", err)
	}
	defer unix.Unmount(at, unix.MNT_DETACH)
	return clone(unix.AT_FDCWD, at, 0, unix.MountAttr{Attr_set: uint64(attributes(m))}, -1)
}
