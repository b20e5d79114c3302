//go:build linux

package rootfs

import (
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// RunDir is berth's own directory inside, a tmpfs.
const RunDir = "/run/berth"

// What of /proc and /sys is hidden, or cannot be written.
var (
	maskedFiles = []string{"proc/kcore", "proc/keys", "proc/timer_list", "proc/latency_stats", "proc/sched_debug", "proc/kmsg", "proc/kallsyms"}
	maskedDirs  = []string{"proc/acpi", "proc/scsi", "proc/asound", "sys/firmware", "sys/devices/virtual/powercap"}
	frozen      = []string{"proc/sys", "proc/sysrq-trigger", "proc/irq", "proc/bus", "proc/fs", "proc/pressure"}
)

var devices = []string{"null", "zero", "full", "random", "urandom", "tty"}

// Extra is what Enter adds beside a Launch's mounts.
type Extra struct {
	FUSE int // a bind of /dev/fuse, for commands; -1: none
	// Fusermount: the program that stands as sudo stands as fusermount3 and
	// fusermount too.
	Fusermount bool
	Sudo       int  // a bind of the program that stands as sudo; -1: none
	TTY        bool // terminals belong to group 5
	// SudoDir is set by Enter where sudo had to go elsewhere, since nothing
	// can be made in /usr/bin.
	SudoDir string
}

// Enter attaches fds, the mounts that Build made, completes the root and moves
// into it; the old root is gone then. The caller is init in its own
// namespaces. It returns the directory of terminals, open.
func Enter(mounts []wire.Mount, fds []int, extra *Extra) (pts int, err error) {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, Explain("make mounts private", err)
	}
	r := &builder{root: fds[0]}
	// While the host's /dev is still there:
	r.open("dev/null", func() (int, error) { return r.clone("/dev/null") })
	if r.err != nil {
		return -1, r.err
	}
	null := r.pieces[0].fd
	r.pieces = nil
	for _, name := range devices {
		r.open("dev/"+name, func() (int, error) { return r.clone("/dev/" + name) })
	}
	nodes := r.pieces
	r.pieces = nil

	// A fresh /proc may be mounted only beside one that hides nothing, so
	// before the old root is covered.
	const quiet = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
	proc, err := NewFS("proc", quiet)
	if err != nil {
		e := Explain("mount /proc", err)
		if e.Code == wire.CodePermission {
			e.Text += "; parts of this machine's own /proc are hidden, as in a container: give it --security-opt systempaths=unconfined"
		}
		return -1, e
	}
	sys, err := NewFS("sysfs", quiet|unix.MOUNT_ATTR_RDONLY)
	sysMasked := err != nil
	if sysMasked {
		if sys, err = NewFS("tmpfs", quiet|unix.MOUNT_ATTR_RDONLY, "mode", "0555"); err != nil {
			return -1, Explain("mount /sys", err)
		}
	}
	empty, err := NewFS("tmpfs", quiet|unix.MOUNT_ATTR_RDONLY, "mode", "0555", "nr_inodes", "2")
	if err != nil {
		return -1, Explain("mount an empty directory", err)
	}

	at := ""
	for _, dir := range []string{"/tmp", "/usr", "/var", "/mnt"} {
		if unix.Access(dir, unix.F_OK) == nil {
			at = dir
			break
		}
	}
	if err := unix.MoveMount(fds[0], "", unix.AT_FDCWD, at, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return -1, Explain("attach the root", os.NewSyscallError("move_mount", err))
	}
	tmp := false
	named := map[string]bool{}
	for i := 1; i < len(mounts); i++ {
		var st unix.Stat_t
		if err := unix.Fstat(fds[i], &st); err != nil {
			return -1, Explain("mount "+mounts[i].Target, err)
		}
		target := path.Clean("/" + mounts[i].Target)
		named[target] = true
		tmp = tmp || target == "/tmp"
		r.attach(fds[i], target, st.Mode&unix.S_IFMT != unix.S_IFDIR)
		if r.err != nil {
			return -1, r.err
		}
	}
	if !tmp {
		r.dir("/tmp", 0o1777)
	}
	r.attach(proc, "/proc", false)
	r.attach(sys, "/sys", false)
	for _, name := range maskedFiles {
		r.cover(null, name, unix.S_IFREG)
	}
	for _, name := range maskedDirs {
		r.cover(empty, name, unix.S_IFDIR)
	}
	for _, name := range frozen {
		r.freeze(name)
	}
	pts = r.dev(nodes, extra)
	if !named[RunDir] {
		r.mount("tmpfs", RunDir, quiet, "mode", "0755", "size", "64m", "nr_inodes", "4096")
	}
	r.programs(extra)
	for i := range mounts {
		if !mounts[i].ReadOnly || mounts[i].Type == "bind" || r.err != nil {
			continue
		}
		attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}
		r.fail("make "+mounts[i].Target+" read-only", unix.MountSetattr(fds[i], "", unix.AT_EMPTY_PATH, &attr))
	}
	if r.err != nil {
		return -1, r.err
	}
	r.fail("chdir to the root", unix.Fchdir(r.root))
	if r.err == nil {
		r.fail("pivot_root", unix.PivotRoot(".", "."))
	}
	if r.err == nil {
		// The old root lies on top of the new one now.
		r.fail("detach the old root", unix.Unmount(".", unix.MNT_DETACH))
	}
	if r.err == nil {
		r.fail("chdir to /", unix.Chdir("/"))
	}
	if r.err != nil {
		return -1, r.err
	}
	return pts, nil
}

type piece struct {
	name string
	fd   int
}

// builder keeps the first error; after one it does nothing.
type builder struct {
	root   int
	pieces []piece
	err    error
}

func (r *builder) fail(what string, err error) {
	if err != nil && r.err == nil {
		r.err = Explain(what, err)
	}
}

func (r *builder) open(name string, f func() (int, error)) {
	if r.err != nil {
		return
	}
	fd, err := f()
	r.fail("bind /"+name, err)
	if err == nil {
		r.pieces = append(r.pieces, piece{name, fd})
	}
}

func (r *builder) clone(name string) (int, error) {
	return clone(unix.AT_FDCWD, name, 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC}, -1)
}

// within opens a path of the new root. Symbolic links in it, which may come
// from inside, cannot leave it.
func (r *builder) within(name string, flags uint64) (int, error) {
	if name = strings.TrimPrefix(name, "/"); name == "" {
		name = "."
	}
	return unix.Openat2(r.root, name, &unix.OpenHow{
		Flags: flags | unix.O_CLOEXEC, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_MAGICLINKS,
	})
}

// directory opens a directory, and makes it, with its parents, when absent.
func (r *builder) directory(name string) (int, error) {
	for {
		fd, err := r.within(name, unix.O_PATH|unix.O_DIRECTORY)
		if err != unix.ENOENT {
			return fd, err
		}
		above, err := r.directory(path.Dir(name))
		if err != nil {
			return -1, err
		}
		err = unix.Mkdirat(above, path.Base(name), 0o755)
		_ = unix.Close(above)
		if err != nil {
			// A link to nowhere, for one: it names a place that cannot be made here.
			return -1, err
		}
	}
}

func (r *builder) dir(name string, mode uint32) {
	if r.err != nil {
		return
	}
	above, err := r.directory(path.Dir(name))
	if err != nil {
		r.fail("make "+name, err)
		return
	}
	defer unix.Close(above)
	if err := unix.Mkdirat(above, path.Base(name), 0o755); err != nil {
		return // as the image has it
	}
	r.fail("make "+name, unix.Fchmodat(above, path.Base(name), mode, 0))
}

// target opens the place for a mount, and makes it when absent.
func (r *builder) target(name string, file bool) (int, error) {
	if !file {
		return r.directory(name)
	}
	fd, err := r.within(name, unix.O_PATH)
	if err != unix.ENOENT {
		return fd, err
	}
	above, err := r.directory(path.Dir(name))
	if err != nil {
		return -1, err
	}
	defer unix.Close(above)
	made, err := unix.Openat(above, path.Base(name), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o755)
	if err != nil {
		return -1, err
	}
	_ = unix.Close(made)
	return r.within(name, unix.O_PATH)
}

// attach puts a detached mount at its place.
func (r *builder) attach(fd int, name string, file bool) {
	if r.err != nil {
		return
	}
	at, err := r.target(name, file)
	if err != nil {
		r.fail("make the mount point "+name, err)
		return
	}
	defer unix.Close(at)
	r.fail("mount "+name, unix.MoveMount(fd, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

func (r *builder) mount(kind, name string, attrs int, options ...string) {
	if r.err != nil {
		return
	}
	fd, err := NewFS(kind, attrs, options...)
	if err != nil {
		r.fail("mount "+name, err)
		return
	}
	r.attach(fd, name, false)
	_ = unix.Close(fd)
}

// cover hides name, when it exists, behind a copy of the mount fd.
func (r *builder) cover(fd int, name string, kind uint32) {
	if r.err != nil {
		return
	}
	at, err := r.within(name, unix.O_PATH)
	if err != nil {
		return // this kernel does not have it
	}
	defer unix.Close(at)
	c, err := clone(fd, "", 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, -1)
	if err != nil {
		r.fail("hide "+name, err)
		return
	}
	defer unix.Close(c)
	r.fail("hide "+name, unix.MoveMount(c, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// copied puts a copy of the mount fd, which is attached elsewhere, at name.
func (r *builder) copied(fd int, name string) {
	if r.err != nil {
		return
	}
	c, err := clone(fd, "", 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, -1)
	if err != nil {
		r.fail("mount "+name, err)
		return
	}
	r.attach(c, name, true)
	_ = unix.Close(c)
}

// freeze makes name read-only, when it exists.
func (r *builder) freeze(name string) {
	if r.err != nil {
		return
	}
	at, err := r.within(name, unix.O_PATH)
	if err != nil {
		return
	}
	defer unix.Close(at)
	c, err := clone(at, "", 0, unix.MountAttr{Attr_set: unix.MOUNT_ATTR_RDONLY}, -1)
	if err != nil {
		r.fail("make "+name+" read-only", err)
		return
	}
	defer unix.Close(c)
	r.fail("make "+name+" read-only", unix.MoveMount(c, "", at, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH))
}

// dev makes the private /dev.
func (r *builder) dev(nodes []piece, extra *Extra) (pts int) {
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NOEXEC
	r.mount("tmpfs", "/dev", attrs, "mode", "0755", "size", "64k", "nr_inodes", "64")
	for _, p := range nodes {
		r.attach(p.fd, "/"+p.name, true)
		_ = unix.Close(p.fd)
	}
	if extra.FUSE >= 0 {
		r.attach(extra.FUSE, "/dev/fuse", true)
	}
	options := []string{"ptmxmode", "0666", "mode", "0620"}
	if extra.TTY {
		options = append(options, "gid", "5")
	}
	r.mount("devpts", "/dev/pts", attrs, options...)
	r.mount("tmpfs", "/dev/shm", attrs|unix.MOUNT_ATTR_NODEV, "mode", "1777")
	r.mount("mqueue", "/dev/mqueue", attrs|unix.MOUNT_ATTR_NODEV)
	if r.err != nil {
		return -1
	}
	dev, err := r.within("/dev", unix.O_PATH|unix.O_DIRECTORY)
	if err != nil {
		r.fail("open /dev", err)
		return -1
	}
	defer unix.Close(dev)
	for _, link := range [][2]string{
		{"/proc/self/fd", "fd"}, {"/proc/self/fd/0", "stdin"}, {"/proc/self/fd/1", "stdout"}, {"/proc/self/fd/2", "stderr"}, {"pts/ptmx", "ptmx"},
	} {
		r.fail("make /dev/"+link[1], unix.Symlinkat(link[0], dev, link[1]))
	}
	pts, err = r.within("/dev/pts", unix.O_PATH|unix.O_DIRECTORY)
	r.fail("open /dev/pts", err)
	return pts
}
