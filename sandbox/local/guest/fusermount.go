//go:build linux

package guest

import (
	"errors"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// opFuse is a question of the fusermount inside, over sudoSocket: fuseRequest,
// and to mount one descriptor, of the directory -> to mount one descriptor, of
// /dev/fuse.
const opFuse = "fuse"

type fuseRequest struct {
	Path    string   `json:"path"` // to unmount
	Unmount bool     `json:"unmount,omitempty"`
	Lazy    bool     `json:"lazy,omitempty"`
	Options []string `json:"options,omitempty"`
}

// fusermount answers a caller with that id.
func (g *guest) fusermount(f *wire.Frame, uid uint32) (*os.File, error) {
	if !g.launch.FUSE || g.fuse.device < 0 {
		return nil, &wire.Error{Code: wire.CodeUnsupported, Text: "this sandbox mounts no file systems of programs: the operator has switched it off, or this machine has no /dev/fuse"}
	}
	var r fuseRequest
	if err := decode(f, &r); err != nil {
		return nil, err
	}
	if r.Unmount {
		return nil, g.unmountOther(&r, uid)
	}
	if len(f.Files) != 1 {
		return nil, invalid("malformed request")
	}
	dir, err := unix.FcntlInt(f.Files[0].Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, err
	}
	defer unix.Close(dir)
	return g.mountOther(dir, r.Options, uid)
}

// mountOther mounts a program's file system on a directory that the caller has
// opened; so it is found with the caller's rights, and init walks no path.
func (g *guest) mountOther(dir int, options []string, uid uint32) (*os.File, error) {
	name := g.nameOf(dir)
	var st unix.Statx_t
	if err := unix.Statx(dir, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_MODE|unix.STATX_UID, &st); err != nil {
		return nil, pathError(name, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, mountpoint(name, "is no directory")
	case !strings.HasPrefix(name, "/") || systems(name):
		return nil, mountpoint(name, "belongs to the system; mount on a directory of your own")
	case uid != 0 && !g.single() && st.Uid != uid && (st.Mode&0o002 == 0 || st.Mode&unix.S_ISVTX != 0):
		return nil, mountpoint(name, "is not yours to mount on")
	}
	attrs, keys, err := fuseOptions(options)
	if err != nil {
		return nil, err
	}
	g.fuse.mu.Lock()
	full := len(g.fuse.others) >= maxOthers
	g.fuse.mu.Unlock()
	if full {
		return nil, &wire.Error{Code: wire.CodeLimit, Text: "programs of this sandbox have " + strconv.Itoa(maxOthers) + " file systems mounted, which is the most; unmount one with fusermount3 -u"}
	}
	id := strconv.FormatUint(uint64(uid), 10)
	m, server, err := g.newFUSE(attrs, append(keys, "user_id", id, "group_id", g.groupOf(uid))...)
	if err != nil {
		return nil, err
	}
	m.uid = uid
	if err := m.attach(dir); err != nil {
		_, _ = unix.Close(m.root), server.Close()
		return nil, rootfs.Explain("mount on "+name, err)
	}
	g.fuse.mu.Lock()
	if g.fuse.others == nil {
		g.fuse.others = map[string]*fuseMount{}
	}
	old := g.fuse.others[name]
	g.fuse.others[name] = m
	g.fuse.mu.Unlock()
	old.drop() // it is beneath now
	return server, nil
}

func (g *guest) groupOf(uid uint32) string {
	if u, err := g.user(strconv.FormatUint(uint64(uid), 10)); err == nil && !g.single() {
		return strconv.FormatUint(uint64(u.GID), 10)
	}
	return "0"
}

// systems are places that init itself, and every command, relies on.
func systems(name string) bool {
	if slices.Contains([]string{"/", "/usr", "/usr/bin", "/usr/lib", "/bin", "/sbin", "/lib", "/lib64", "/etc", "/run", "/var", "/tmp", "/home"}, name) {
		return true
	}
	for _, tree := range []string{"/proc", "/sys", "/dev", rootfs.RunDir} {
		if name == tree || strings.HasPrefix(name, tree+"/") {
			return true
		}
	}
	return false
}

// fuseOptions sorts the options that people and libraries give to fusermount.
func fuseOptions(options []string) (attrs int, keys []string, err error) {
	source, subtype := "", ""
	for _, o := range options {
		key, value, has := strings.Cut(o, "=")
		switch {
		case slices.Contains([]string{"", "rw", "nosuid", "nodev", "suid", "dev", "exec", "async", "atime", "diratime", "nonempty", "auto_unmount"}, o):
			// so, or not possible otherwise; or the client's
		case o == "ro":
			attrs |= unix.MOUNT_ATTR_RDONLY
		case o == "noexec":
			attrs |= unix.MOUNT_ATTR_NOEXEC
		case o == "noatime":
			attrs |= unix.MOUNT_ATTR_NOATIME
		case o == "nodiratime":
			attrs |= unix.MOUNT_ATTR_NODIRATIME
		case o == "allow_other", o == "allow_root":
			keys = append(keys, "allow_other", "")
		case o == "default_permissions":
			keys = append(keys, o, "")
		case key == "max_read" && has:
			if n, perr := strconv.ParseUint(value, 10, 31); perr != nil || n == 0 {
				return 0, nil, invalid("max_read: " + strconv.Quote(value) + " is no number of bytes")
			}
			keys = append(keys, key, value)
		case key == "fsname" && has:
			source = value
		case key == "subtype" && has:
			subtype = value
		case key == "user_id", key == "group_id", key == "rootmode", key == "fd", key == "user":
			// the kernel says who the caller is
		default:
			return 0, nil, invalid("unknown option " + strconv.Quote(o))
		}
	}
	for _, v := range []string{source, subtype} {
		if len(v) > 255 || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return 0, nil, invalid("fsname and subtype have at most 255 printable characters")
		}
	}
	if subtype != "" {
		keys = append(keys, "subtype", subtype)
	}
	if source == "" {
		source = subtype
	}
	if source == "" {
		source = "fuse"
	}
	return attrs, append(keys, "source", source), nil
}

// unmountOther unmounts what a program has mounted, by whom it was; root may all.
func (g *guest) unmountOther(r *fuseRequest, uid uint32) error {
	name := path.Clean(r.Path)
	g.fuse.mu.Lock()
	m := g.fuse.others[name]
	g.fuse.mu.Unlock()
	switch {
	case m == nil:
		if _, err := g.placed(name); err == nil {
			return mountpoint(name, "is a bucket of berth's; unmount_bucket takes it away")
		}
		return mountpoint(name, "is not mounted by fusermount3")
	case uid != 0 && uid != m.uid:
		return &wire.Error{Code: wire.CodePermission, Text: name + " was mounted by another user"}
	}
	g.fuse.mu.Lock()
	if g.fuse.others[name] != m { // somebody was faster
		g.fuse.mu.Unlock()
		return nil
	}
	delete(g.fuse.others, name)
	g.fuse.mu.Unlock()
	// In this thread, which is the caller's alone: it may wait for the program.
	if r.Lazy {
		m.drop()
		return nil
	}
	err := m.unmount()
	switch err {
	case nil:
		return nil
	case unix.EINVAL:
		m.forget()
		return nil
	}
	g.fuse.mu.Lock()
	if g.fuse.others[name] == nil {
		g.fuse.others[name] = m
	}
	g.fuse.mu.Unlock()
	if err == unix.EBUSY {
		return mountpoint(name, "is in use; fusermount3 -uz takes it away for those who come")
	}
	return rootfs.Explain("unmount "+name, err)
}

const fusermountUsage = `usage: fusermount3 [-o opt[,opt...]] MOUNTPOINT
       fusermount3 -u [-z] MOUNTPOINT
It is started by programs that serve a file system; it mounts as you, inside this sandbox.
`

// fuseCall is what the program inside was asked for.
type fuseCall struct {
	fuseRequest
	quiet       bool
	autoUnmount bool
	comm        string
}

// Fusermount is the main function of the fusermount inside. It returns the exit
// status.
func Fusermount(args []string) int {
	c, text, err := parseFusermount(args)
	if text != "" {
		_, _ = os.Stdout.WriteString(text)
		return 0
	}
	if err == nil {
		err = c.run()
	}
	if err != nil {
		if c == nil || !c.quiet {
			_, _ = os.Stderr.WriteString("fusermount3: " + err.Error() + "\n")
		}
		return 1
	}
	return 0
}

func parseFusermount(args []string) (c *fuseCall, text string, err error) {
	c = &fuseCall{comm: os.Getenv("_FUSE_COMMFD")}
	for len(args) > 0 {
		a := args[0]
		args = args[1:]
		switch {
		case a == "-h" || a == "--help":
			return nil, fusermountUsage, nil
		case a == "-V" || a == "--version":
			return nil, "fusermount3 version: 3.14.0 (of the berth sandbox)\n", nil
		case a == "-u" || a == "--unmount":
			c.Unmount = true
		case a == "-z" || a == "--lazy":
			c.Lazy = true
		case a == "-uz" || a == "-zu":
			c.Unmount, c.Lazy = true, true
		case a == "-q" || a == "--quiet":
			c.quiet = true
		case a == "-o" || a == "--options":
			if len(args) == 0 {
				return nil, "", errors.New("-o needs options")
			}
			c.options(args[0])
			args = args[1:]
		case strings.HasPrefix(a, "-o"):
			c.options(a[2:])
		case strings.HasPrefix(a, "--comm-fd="):
			c.comm = a[len("--comm-fd="):]
		case a == "-c" && len(args) > 0:
			c.comm, args = args[0], args[1:]
		case a == "--auto-unmount" || a == "-U":
			c.autoUnmount = true
		case a == "--":
		case strings.HasPrefix(a, "-"):
			return nil, "", errors.New("unknown option " + a + "\n" + fusermountUsage)
		case c.Path != "":
			return nil, "", errors.New("more than one mount point")
		default:
			c.Path = a
		}
	}
	if c.Path == "" {
		return nil, "", errors.New("missing mount point\n" + fusermountUsage) //nolint:staticcheck // as above
	}
	return c, "", nil
}

// options splits at commas, but for those after a backslash.
func (c *fuseCall) options(list string) {
	var b strings.Builder
	end := func() {
		if o := b.String(); o != "" {
			c.Options = append(c.Options, o)
			c.autoUnmount = c.autoUnmount || o == "auto_unmount"
		}
		b.Reset()
	}
	for i := 0; i < len(list); i++ {
		switch {
		case list[i] == '\\' && i+1 < len(list):
			i++
			b.WriteByte(list[i])
		case list[i] == ',':
			end()
		default:
			b.WriteByte(list[i])
		}
	}
	end()
}

func (c *fuseCall) run() error {
	// The mount point itself may be one that nobody answers for; its directory
	// is the caller's business.
	abs, err := filepath.Abs(c.Path)
	if err != nil {
		return err
	}
	if dir, err := filepath.EvalSymlinks(filepath.Dir(abs)); err == nil {
		c.Path = filepath.Join(dir, filepath.Base(abs))
	}
	if c.Unmount {
		file, err := askFuse(&c.fuseRequest, -1)
		closeAll(file)
		return err
	}
	comm, err := strconv.Atoi(c.comm)
	if err != nil || comm < 0 {
		return errors.New("_FUSE_COMMFD names no descriptor: fusermount3 is started by a program that serves a file system")
	}
	dir, err := unix.Open(abs, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return errors.New("the mount point " + abs + ": " + err.Error())
	}
	files, err := askFuse(&c.fuseRequest, dir)
	if err != nil {
		return err
	}
	defer closeAll(files)
	if len(files) != 1 {
		return errors.New("the sandbox's init sent no descriptor")
	}
	var serr error
	raw, err := files[0].SyscallConn()
	if err != nil {
		return err
	}
	_ = raw.Control(func(fd uintptr) {
		serr = unix.Sendmsg(comm, []byte{0}, unix.UnixRights(int(fd)), nil, 0)
	})
	closeAll(files)
	if serr != nil {
		return errors.New("send the descriptor: " + serr.Error())
	}
	if !c.autoUnmount {
		return nil
	}
	// The program that serves holds the other end for as long as it lives.
	_, _ = unix.Setsid()
	_ = unix.Chdir("/")
	buf := make([]byte, 16)
	for {
		n, err := unix.Read(comm, buf)
		if n == 0 || err != nil && err != unix.EINTR {
			break
		}
	}
	c.fuseRequest = fuseRequest{Path: c.Path, Unmount: true, Lazy: true}
	files, err = askFuse(&c.fuseRequest, -1)
	closeAll(files)
	var we *wire.Error
	if errors.As(err, &we) && we.Code == wire.CodeMountpoint {
		return nil // it has been unmounted before
	}
	return err
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

func askFuse(r *fuseRequest, dir int) ([]*os.File, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: sudoSocket}); err != nil {
		_ = unix.Close(fd)
		return nil, errors.New("no sandbox to ask: " + err.Error())
	}
	conn, err := wire.Socket(fd, 1<<20)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	var files []*os.File
	if dir >= 0 {
		files = append(files, os.NewFile(uintptr(dir), "mountpoint"))
	}
	defer closeAll(files)
	if err := conn.Send(wire.Header{Op: opFuse}, r, nil, files...); err != nil {
		return nil, err
	}
	f, err := conn.Recv()
	if err != nil {
		return nil, errors.New("the sandbox's init is gone")
	}
	if f.Error != nil {
		closeAll(f.Files)
		return nil, f.Error
	}
	return f.Files, nil
}
