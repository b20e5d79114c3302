//go:build linux

package guest

import (
	"errors"
	"os"
	"path"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// fuse are the FUSE file systems of this sandbox, all of which init mounts:
// commands may not. Those of buckets are served outside. The others are served
// by programs inside, which may never answer: init does nothing with them that
// waits for an answer, but on threads that nobody else needs.
type fuse struct {
	device int // of /dev/fuse; -1: none

	mu      sync.Mutex
	buckets map[string]*bucket
	others  map[string]*fuseMount // by their places
}

// fuseMount is a mounted file system.
type fuseMount struct {
	root  int    // its root, by which it is reached without asking it anything
	under int    // the directory that it is mounted on
	id    uint64 // of the mount
	uid   uint32 // who had it mounted
}

// bucket is the place of a bucket: a directory under a file system that is empty
// and read-only, so that what is written while the bucket is away goes nowhere
// instead of into the sandbox's own files.
type bucket struct {
	mu    sync.Mutex
	plug  int
	made  bool // the directory was
	mount *fuseMount
}

const (
	maxOthers    = 32
	detachPeriod = 2 * time.Second // for whom was just killed to let go
)

func mountpoint(name, why string) error {
	return &wire.Error{Code: wire.CodeMountpoint, Path: name, Text: name + " " + why}
}

// reach is how a descriptor's file is named to calls that take a path.
func reach(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

// place makes the directory for a bucket and closes it for writing.
func (g *guest) place(r *wire.Place) (*wire.Placed, error) {
	u, err := g.user("")
	if err != nil {
		return nil, err
	}
	if err := check(r.Path); err != nil {
		return nil, err
	}
	if g.fuse.device < 0 {
		return nil, errNoFUSE
	}
	placed := &wire.Placed{UID: u.UID, GID: u.GID}
	if g.single() { // where that user's id is 0 here
		placed.UID, placed.GID = 0, 0
	}
	name := path.Clean(r.Path)
	g.fuse.mu.Lock()
	b := g.fuse.buckets[name]
	if b == nil {
		b = &bucket{plug: -1}
		if g.fuse.buckets == nil {
			g.fuse.buckets = map[string]*bucket{}
		}
		g.fuse.buckets[name] = b
	}
	g.fuse.mu.Unlock()
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.plug >= 0 {
		return placed, nil
	}
	if err := g.plug(b, name, u); err != nil {
		g.fuse.mu.Lock()
		delete(g.fuse.buckets, name)
		g.fuse.mu.Unlock()
		return nil, err
	}
	return placed, nil
}

var errNoFUSE = &wire.Error{Code: wire.CodeUnsupported, Text: "this sandbox has no /dev/fuse, which buckets need; `berth doctor` says how to get it, and then stop and start the sandbox"}

// plug checks the directory and covers it; b.mu is held.
func (g *guest) plug(b *bucket, name string, u *wire.User) error {
	dir, made, err := g.mountDir(name, u)
	if err != nil {
		return err
	}
	defer unix.Close(dir)
	err = func() error {
		var fs unix.Statfs_t
		var st unix.Statx_t
		if err := unix.Statx(dir, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
			return pathError(name, err)
		}
		switch {
		case g.other(st.Mnt_id):
			return mountpoint(name, "lies in a file system that a program inside serves")
		case st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0:
			return mountpoint(name, "has something mounted on it that is not berth's")
		}
		if err := unix.Fstatfs(dir, &fs); err != nil {
			return pathError(name, err)
		}
		switch fs.Type {
		case unix.PROC_SUPER_MAGIC, unix.SYSFS_MAGIC, unix.DEVPTS_SUPER_MAGIC, unix.CGROUP_SUPER_MAGIC, unix.CGROUP2_SUPER_MAGIC:
			return mountpoint(name, "belongs to the system")
		case unix.FUSE_SUPER_MAGIC:
			return mountpoint(name, "lies in another bucket")
		}
		empty, err := isEmpty(dir)
		if err != nil {
			return pathError(name, err)
		}
		if !empty {
			return mountpoint(name, "is not empty, and a bucket would hide what is in it; move that away, or choose another path")
		}
		plug, err := rootfs.NewFS("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOEXEC|unix.MOUNT_ATTR_RDONLY, "mode", "0555", "nr_inodes", "2")
		if err != nil {
			return rootfs.Explain("close "+name, err)
		}
		if err := unix.MoveMount(plug, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
			_ = unix.Close(plug)
			return rootfs.Explain("close "+name, err)
		}
		b.plug, b.made = plug, made
		return nil
	}()
	if err != nil && made {
		_ = unix.Rmdir(name)
	}
	return err
}

// mountDir opens a directory, and makes it, with its parents, when it is not there:
// with init's rights, since the user may not write to the root, and the user's then.
func (g *guest) mountDir(name string, u *wire.User) (dir int, made bool, err error) {
	const flags = unix.O_PATH | unix.O_DIRECTORY
	dir, err = at(unix.AT_FDCWD, name, flags)
	switch {
	case err == nil:
		return dir, false, nil
	case err == unix.ENOTDIR:
		return -1, false, mountpoint(name, "is no directory, or leads through something that is none")
	case err != unix.ENOENT || name == "/":
		return -1, false, pathError(name, err)
	}
	above, _, err := g.mountDir(path.Dir(name), u)
	if err != nil {
		return -1, false, err
	}
	defer unix.Close(above)
	if err := unix.Mkdirat(above, path.Base(name), 0o755); err != nil {
		if err == unix.EEXIST {
			return -1, false, mountpoint(name, "is a link that leads nowhere")
		}
		return -1, false, pathError(name, err)
	}
	if dir, err = at(above, path.Base(name), flags|unix.O_NOFOLLOW); err != nil {
		return -1, false, pathError(name, err)
	}
	if !g.single() {
		if err := unix.Fchownat(dir, "", int(u.UID), int(u.GID), unix.AT_EMPTY_PATH); err != nil {
			_ = unix.Close(dir)
			return -1, false, pathError(name, err)
		}
	}
	return dir, true, nil
}

func isEmpty(dir int) (bool, error) {
	fd, err := unix.Openat(dir, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, err
	}
	f := os.NewFile(uintptr(fd), "dir")
	defer f.Close()
	names, err := f.Readdirnames(1)
	if len(names) > 0 {
		return false, nil
	}
	if err != nil && err.Error() == "EOF" {
		err = nil
	}
	return true, err
}

// other tells whether a mount is of a program inside.
func (g *guest) other(mount uint64) bool {
	g.fuse.mu.Lock()
	defer g.fuse.mu.Unlock()
	for _, m := range g.fuse.others {
		if m.id == mount {
			return true
		}
	}
	return false
}

// unanswered tells whether the file of fd is served by a program inside, so that
// whoever reads or writes it may wait for ever. It asks nobody.
func (g *guest) unanswered(fd int) bool {
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		return true
	}
	return g.other(st.Mnt_id)
}

func (g *guest) placed(name string) (*bucket, error) {
	g.fuse.mu.Lock()
	b := g.fuse.buckets[path.Clean(name)]
	g.fuse.mu.Unlock()
	if b == nil {
		return nil, invalid(name + " is no place of a bucket")
	}
	return b, nil
}

// newFUSE makes a file system, detached, and the descriptor that serves it.
func (g *guest) newFUSE(attrs int, options ...string) (mount *fuseMount, server *os.File, err error) {
	if g.fuse.device < 0 {
		return nil, nil, errNoFUSE
	}
	dev, err := unix.Open(reach(g.fuse.device), unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, nil, rootfs.Explain("open /dev/fuse", err)
	}
	fd, err := rootfs.NewFS("fuse", attrs|unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, append([]string{"fd", strconv.Itoa(dev), "rootmode", "40000"}, options...)...)
	if err != nil {
		_ = unix.Close(dev)
		return nil, nil, rootfs.Explain("mount a FUSE file system", err)
	}
	var st unix.Statx_t
	if err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st); err != nil {
		_, _ = unix.Close(fd), unix.Close(dev)
		return nil, nil, rootfs.Explain("look at the mount", err)
	}
	return &fuseMount{root: fd, under: -1, id: st.Mnt_id}, os.NewFile(uintptr(dev), "fuse"), nil
}

// attach mounts it on a directory.
func (m *fuseMount) attach(dir int) error {
	under, err := unix.FcntlInt(uintptr(dir), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return err
	}
	if err := unix.MoveMount(m.root, "", dir, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		_ = unix.Close(under)
		return err
	}
	m.under = under
	return nil
}

// bucket mounts on a place. What was mounted there before, which has lost its
// server, goes.
func (g *guest) bucket(r *wire.FUSEMount) ([]*os.File, error) {
	b, err := g.placed(r.Path)
	if err != nil {
		return nil, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.plug < 0 {
		return nil, invalid(r.Path + " is no place of a bucket any more")
	}
	b.mount.drop()
	b.mount = nil
	attrs := 0
	if r.ReadOnly {
		attrs = unix.MOUNT_ATTR_RDONLY
	}
	m, server, err := g.newFUSE(attrs, "user_id", "0", "group_id", "0", "default_permissions", "", "allow_other", "", "source", r.Source, "subtype", "bucket")
	if err != nil {
		return nil, err
	}
	if err := m.attach(b.plug); err != nil {
		_, _ = unix.Close(m.root), server.Close()
		return nil, rootfs.Explain("mount "+r.Path, err)
	}
	b.mount = m
	return []*os.File{server}, nil
}

// drop takes a mount away, for those who come.
func (m *fuseMount) drop() {
	if m == nil {
		return
	}
	_ = unix.Unmount(reach(m.root), unix.MNT_DETACH)
	m.forget()
}

func (m *fuseMount) forget() {
	_, _ = unix.Close(m.root), unix.Close(m.under)
	m.root, m.under = -1, -1
}

// unmount takes it away unless somebody uses it: EBUSY. A descriptor of it is a
// use too, so that it is named without one: as what is mounted on the root
// directory of a thread, whose root is the directory beneath. No path is followed,
// which might lead into a file system that does not answer.
func (m *fuseMount) unmount() error {
	top, err := m.top()
	if err != nil {
		return err
	}
	now, err := mountOf(top)
	_ = unix.Close(top)
	below, berr := mountOf(m.under)
	switch {
	case err != nil || berr != nil:
		return errors.Join(err, berr)
	case now == below:
		return unix.EINVAL // it is not mounted any more
	case now != m.id:
		return unix.EBUSY // another is mounted on it
	}
	_ = unix.Close(m.root)
	m.root = -1
	ch := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // for good: the thread ends with this function
		ch <- func() error {
			if err := unix.Unshare(unix.CLONE_FS); err != nil {
				return err
			}
			if err := unix.Fchdir(m.under); err != nil {
				return err
			}
			if err := unix.Chroot("."); err != nil { // the thread's alone
				return err
			}
			return unix.Unmount("/..", 0)
		}()
	}()
	if err = <-ch; err == nil {
		m.forget()
		return nil
	}
	if m.root, _ = m.top(); m.root < 0 {
		m.root = -1
	}
	return err
}

// mountOf is the id of the mount that fd is in. It asks nobody: a file system that
// another user serves refuses everything to init but to be asked for nothing.
func mountOf(fd int) (uint64, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, 0, &st)
	return st.Mnt_id, err
}

// top opens the root of what is mounted last on the directory beneath, or that
// directory: its "..", where it is the root, is itself and what is mounted on it.
func (m *fuseMount) top() (int, error) {
	return unix.Openat2(m.under, "..", &unix.OpenHow{Flags: unix.O_PATH | unix.O_DIRECTORY | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT})
}

// detach unmounts a bucket.
func (g *guest) detach(r *wire.FUSEDetach) error {
	b, err := g.placed(r.Path)
	if err != nil {
		return nil // it is gone
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mount != nil {
		err := b.mount.unmount()
		for end := time.Now().Add(detachPeriod); err == unix.EBUSY && len(g.users(r.Path)) == 0 && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond) // who used it is just ending
			err = b.mount.unmount()
		}
		switch {
		case err == unix.EBUSY && !r.Force:
			who := strings.Join(g.users(r.Path), ", ")
			if who == "" {
				who = "a file system that is mounted in it"
			}
			return mountpoint(r.Path, "is in use, by "+who+"; end that, or wait for it, and try again")
		case err == unix.EBUSY:
			b.mount.drop()
		case err != nil && err != unix.EINVAL: // not mounted any more
			return rootfs.Explain("unmount "+r.Path, err)
		case err == unix.EINVAL:
			b.mount.forget()
		}
		b.mount = nil
	}
	if r.Keep || b.plug < 0 {
		return nil
	}
	_ = unix.Unmount(reach(b.plug), unix.MNT_DETACH)
	_ = unix.Close(b.plug)
	b.plug = -1
	if b.made {
		_ = unix.Rmdir(path.Clean(r.Path)) // what is in it now stays
	}
	g.fuse.mu.Lock()
	delete(g.fuse.buckets, path.Clean(r.Path))
	g.fuse.mu.Unlock()
	return nil
}

// users names processes that are in a directory or have something open in it, at
// most three. It reads names alone.
func (g *guest) users(dir string) []string {
	dir = path.Clean(dir)
	in := func(name string) bool {
		to, err := os.Readlink(name)
		return err == nil && (to == dir || strings.HasPrefix(to, dir+"/"))
	}
	var out []string
	for pid := range processes() {
		if pid == 1 {
			continue
		}
		proc := "/proc/" + strconv.Itoa(pid)
		uses := in(proc+"/cwd") || in(proc+"/root") || in(proc+"/exe")
		if fds, err := os.ReadDir(proc + "/fd"); err == nil && !uses {
			for _, fd := range fds {
				if uses = in(proc + "/fd/" + fd.Name()); uses {
					break
				}
			}
		}
		if uses {
			out = append(out, "process "+strconv.Itoa(pid)+" ("+comm(pid)+")")
			if len(out) == 3 {
				break
			}
		}
	}
	return out
}

func comm(pid int) string {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/comm")
	if err != nil {
		return "?"
	}
	return strings.TrimSpace(string(b))
}

// abortAll ends the file systems of programs inside, when these are killed: one
// that waits for itself would wait for ever. Who waits for an answer gets an
// error.
func (g *guest) abortAll() {
	g.fuse.mu.Lock()
	defer g.fuse.mu.Unlock()
	for name, m := range g.fuse.others {
		// Before Linux 6.? only root of the machine may force it; the monitor does.
		if err := unix.Unmount(reach(m.root), unix.MNT_FORCE|unix.MNT_DETACH); err != nil {
			_ = unix.Unmount(reach(m.root), unix.MNT_DETACH)
		}
		m.forget()
		delete(g.fuse.others, name)
	}
}
