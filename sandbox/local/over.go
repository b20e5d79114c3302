//go:build linux

package local

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"

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
	o := overlayer{ctx: ctx, skeleton: skeleton, owned: os.Geteuid() == 0 && !skeleton,
		more: make(chan struct{}, min(runtime.GOMAXPROCS(0), maxWalkers)-1)}
	if err := o.build(layer, dir); err != nil {
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

// maxWalkers bounds the goroutines that read directories at the same time;
// more would only wait for one disk.
const maxWalkers = 4

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
	owned    bool          // directories of the layer belong to whom the host's do
	more     chan struct{} // holds one element for each further goroutine at work
}

// level is a directory of the host and its place in the layer.
type level struct {
	above *level
	name  string // in above; of the top the whole path
	path  string
	host  int // open for reading
	mode  uint32
	uid   uint32
	gid   uint32

	mu   sync.Mutex
	copy int // open, -1 as long as the layer does not have it
}

// entry is a name of a directory, and what kind of thing the file system says
// it is: DT_UNKNOWN where it does not say.
type entry struct {
	name string
	kind uint8
}

func (o *overlayer) build(layer, dir string) error {
	top := &level{name: layer, path: dir, copy: -1}
	var err error
	if top.host, err = unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer top.close()
	if err := top.stat(top.host, "", unix.AT_EMPTY_PATH); err != nil {
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

// stat fills in d's mode and owner. What a network file system remembers of them
// is good enough.
func (d *level) stat(fd int, name string, flags int) error {
	var st unix.Statx_t
	err := statx(fd, name, flags, &st)
	d.mode, d.uid, d.gid = uint32(st.Mode), st.Uid, st.Gid
	return err
}

func statx(fd int, name string, flags int, st *unix.Statx_t) error {
	for {
		err := unix.Statx(fd, name, flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_UID|unix.STATX_GID, st)
		if err != unix.EINTR {
			return err
		}
	}
}

// ensure makes d, and what is above it, in the layer.
func (o *overlayer) ensure(d *level) error {
	d.mu.Lock()
	defer d.mu.Unlock()
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
	mode := d.mode & 0o7777
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
	// The umask, and a set-group-id directory above, have changed what was made.
	var made unix.Statx_t
	if err := statx(fd, "", unix.AT_EMPTY_PATH, &made); err != nil {
		return fail("stat", err)
	}
	chown := o.owned && (d.uid != made.Uid || d.gid != made.Gid)
	if chown {
		if err := unix.Fchown(fd, int(d.uid), int(d.gid)); err != nil {
			return fail("chown", err)
		}
	}
	if chown || uint32(made.Mode)&0o7777 != mode { // chown may drop bits
		if err := unix.Fchmod(fd, mode); err != nil {
			return fail("chmod", err)
		}
	}
	return nil
}

// walk goes through d. Directories below are read by other goroutines while
// there is room for them; it returns when they have ended.
func (o *overlayer) walk(d *level) error {
	if err := o.ctx.Err(); err != nil {
		return err
	}
	entries, err := readEntries(d.host)
	if err != nil {
		return &os.PathError{Op: "read", Path: d.path, Err: err}
	}
	var others sync.WaitGroup
	var mu sync.Mutex
	var failed error // of another goroutine, the first
	for _, e := range entries {
		if e.kind == unix.DT_LNK {
			continue
		}
		sub := &level{above: d, name: e.name, host: -1, copy: -1}
		if err = sub.stat(d.host, e.name, 0); err == unix.ENOENT {
			err = nil
			continue
		} else if err != nil {
			err = &os.PathError{Op: "stat", Path: d.path + "/" + e.name, Err: err}
			break
		}
		switch sub.mode & unix.S_IFMT {
		case unix.S_IFLNK:
		case unix.S_IFDIR:
			sub.path = d.path + "/" + e.name
			select {
			case o.more <- struct{}{}:
				others.Go(func() {
					defer func() { <-o.more }()
					if err := o.directory(sub); err != nil {
						mu.Lock()
						defer mu.Unlock()
						failed = cmp.Or(failed, err)
					}
				})
			default:
				err = o.directory(sub)
			}
		case unix.S_IFREG:
			if sub.mode&0o004 == 0 {
				err = o.hide(d, e.name)
			}
		default:
			err = o.hide(d, e.name)
		}
		if err != nil {
			break
		}
	}
	others.Wait()
	return cmp.Or(err, failed)
}

// directory shows or hides one; it closes what d holds open.
func (o *overlayer) directory(d *level) error {
	defer d.close()
	open := d.mode&0o001 != 0 && d.path != "/usr/local/etc"
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
	if open && !o.skeleton {
		return o.walk(d)
	}
	if err := o.ensure(d); err != nil {
		return err
	}
	if open {
		return o.walk(d)
	}
	if err := hideContent(d.copy); err != nil {
		return fmt.Errorf("hide %s: %w", d.path, err)
	}
	return nil
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

// readEntries reads a whole directory.
func readEntries(fd int) (list []entry, err error) {
	buf := make([]byte, 16<<10)
	for {
		n, err := unix.Getdents(fd, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n <= 0 {
			return list, err
		}
		for b := buf[:n]; len(b) > 0; {
			// struct linux_dirent64: ino, off, reclen, type, name with a NUL.
			size := int(binary.NativeEndian.Uint16(b[16:]))
			name, _, _ := bytes.Cut(b[19:size], []byte{0})
			if n := string(name); n != "." && n != ".." {
				list = append(list, entry{n, b[18]})
			}
			b = b[size:]
		}
	}
}
