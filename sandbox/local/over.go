//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// buildOver makes the layer that lies over the host's directory dir, which it
// reads once from top to bottom.
//
// The layer hides what not everyone on the host may read, files and whole
// directories: where the host's root is root inside, or berth's user is, they
// would be open to it. It hides /usr/local/etc, too, the configuration of the
// host's own programs, and whatever is neither file, directory nor link.
//
// With skeleton it repeats all directories, and copies those package files that
// are changed in place, so that inside's root owns what it must write.
//
// What the host closes or adds later is as the host has it, until the layers are
// built again: its user's rights are what then counts.
func buildOver(ctx context.Context, layer, dir string, skeleton bool) error {
	done := make(chan error, 1)
	go func() {
		// The thread ends with this goroutine, and with it the umask of its own
		// that lets a directory have its mode at once.
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- os.NewSyscallError("unshare", err)
			return
		}
		unix.Umask(0)
		o := overlayer{ctx: ctx, skeleton: skeleton, owned: os.Geteuid() == 0 && !skeleton}
		done <- o.build(layer, dir)
	}()
	if err := <-done; err != nil {
		return err
	}
	if !skeleton {
		return nil
	}
	for _, p := range changedInPlace[dir] {
		to := filepath.Join(layer, p)
		_ = os.Remove(to) // it may be hidden
		if err := copyReadable(filepath.Join(dir, p), to); err != nil {
			return err
		}
	}
	return nil
}

// changedInPlace are files that programs inside open for writing where they
// are, which overlayfs refuses for files of an owner that is nobody inside.
var changedInPlace = map[string][]string{
	"/var/lib/dpkg": {"status", "status-old", "available", "available-old", "diversions", "diversions-old", "statoverride", "statoverride-old", "lock", "lock-frontend", "cmethopt", "arch",
		"triggers/File", "triggers/Lock", "triggers/Unincorp"},
	"/var/lib/apt": {"extended_states", "lists/lock", "daily_lock"},
}

// overlayer makes one layer.
type overlayer struct {
	ctx      context.Context
	skeleton bool
	owned    bool // directories of the layer belong to whom the host's do
}

// level is a directory of the host and its place in the layer.
type level struct {
	above *level
	name  string // in above; of the top the whole path
	path  string
	host  int // open for reading
	copy  int // open, -1 as long as the layer does not have it
	st    unix.Stat_t
}

func (o *overlayer) build(layer, dir string) error {
	top := &level{name: layer, path: dir, copy: -1}
	var err error
	if top.host, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer top.close()
	if err := unix.Fstat(top.host, &top.st); err != nil {
		return &os.PathError{Op: "stat", Path: dir, Err: err}
	}
	if err := o.ensure(top); err != nil {
		return err
	}
	return o.walk(top)
}

func (d *level) close() {
	_ = unix.Close(d.host)
	if d.copy >= 0 {
		_ = unix.Close(d.copy)
	}
}

// ensure makes d, and what is above it, in the layer.
func (o *overlayer) ensure(d *level) error {
	if d.copy >= 0 {
		return nil
	}
	at := unix.AT_FDCWD
	if d.above != nil {
		if err := o.ensure(d.above); err != nil {
			return err
		}
		at = d.above.copy
	}
	fail := func(op string, err error) error { return &os.PathError{Op: op + " in a layer", Path: d.path, Err: err} }
	mode := d.st.Mode & 0o7777
	if o.skeleton {
		mode |= 0o700
	}
	if err := unix.Mkdirat(at, d.name, mode|0o700); err != nil && err != unix.EEXIST {
		return fail("mkdir", err)
	}
	fd, err := unix.Openat(at, d.name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail("open", err)
	}
	d.copy = fd
	if o.owned && (d.st.Uid != 0 || d.st.Gid != 0) {
		if err := unix.Fchown(fd, int(d.st.Uid), int(d.st.Gid)); err != nil {
			return fail("chown", err)
		}
	}
	// mkdir takes no more than these, and chown may drop some.
	if mode&^0o1777 != 0 || mode&0o700 != 0o700 {
		if err := unix.Fchmod(fd, mode); err != nil {
			return fail("chmod", err)
		}
	}
	return nil
}

func (o *overlayer) walk(d *level) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	names, err := readNames(d.host)
	if err != nil {
		return &os.PathError{Op: "read", Path: d.path, Err: err}
	}
	for _, name := range names {
		sub := &level{above: d, name: name, host: -1, copy: -1}
		if err := unix.Fstatat(d.host, name, &sub.st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			if err == unix.ENOENT {
				continue
			}
			return &os.PathError{Op: "stat", Path: d.path + "/" + name, Err: err}
		}
		switch sub.st.Mode & unix.S_IFMT {
		case unix.S_IFLNK:
			continue
		case unix.S_IFDIR:
			sub.path = d.path + "/" + name
			err = o.directory(sub)
		case unix.S_IFREG:
			if sub.st.Mode&0o004 == 0 {
				err = o.hide(d, name)
			}
		default:
			err = o.hide(d, name)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (o *overlayer) directory(d *level) error {
	open := d.st.Mode&0o001 != 0 && d.path != "/usr/local/etc"
	if open {
		// Overlayfs shows what lies below a mount, instead of what is mounted.
		fd, err := unix.Openat2(d.above.host, d.name, &unix.OpenHow{
			Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_SYMLINKS,
		})
		switch {
		case err == unix.ENOENT || err == unix.ENOTDIR || err == unix.ELOOP:
			return nil // replaced meanwhile
		case err != nil:
			open = false
		}
		d.host = fd
	}
	if !open {
		if err := o.ensure(d); err != nil {
			return err
		}
		err := hideContent(d.copy)
		_ = unix.Close(d.copy)
		if err != nil {
			return fmt.Errorf("hide %s: %w", d.path, err)
		}
		return nil
	}
	defer d.close()
	if o.skeleton {
		if err := o.ensure(d); err != nil {
			return err
		}
	}
	return o.walk(d)
}

// hide makes the file name of d vanish.
func (o *overlayer) hide(d *level, name string) error {
	if err := o.ensure(d); err != nil {
		return err
	}
	err := unix.Mknodat(d.copy, name, unix.S_IFCHR, 0)
	if err == unix.EPERM {
		// Before Linux 5.8 only root makes whiteouts; an empty file hides, too.
		var fd int
		if fd, err = unix.Openat(d.copy, name, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_CLOEXEC, 0o600); err == nil {
			_ = unix.Close(fd)
		}
	}
	if err != nil && err != unix.EEXIST {
		return &os.PathError{Op: "hide", Path: d.path + "/" + name, Err: err}
	}
	return nil
}

// hideContent makes a directory of a layer hide what the one below it holds.
func hideContent(fd int) error {
	// Which of the two names counts depends on who mounts the overlay.
	err := unix.Fsetxattr(fd, "user.overlay.opaque", []byte("y"), 0)
	if os.Geteuid() == 0 {
		if terr := unix.Fsetxattr(fd, "trusted.overlay.opaque", []byte("y"), 0); terr == nil {
			err = nil
		}
	}
	return err
}

func readNames(fd int) (names []string, err error) {
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.ReadDirent(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return names, err
		}
		_, _, names = unix.ParseDirent(buf[:n], -1, names)
	}
}
