//go:build linux

package isolate

import (
	"bytes"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/guest"
	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

func checkIDs(l *wire.Launch) error {
	bad := func(text string) error { return &wire.Error{Code: wire.CodeInvalid, Text: "ids: " + text} }
	switch l.IDs.Mode {
	case wire.IDsRange:
		if os.Geteuid() != 0 {
			return bad("mode range needs root; use sub or single")
		}
		if l.IDs.Base == 0 || l.IDs.Count == 0 {
			return bad("mode range needs a base and a count above 0")
		}
	case wire.IDsSub:
		if l.IDs.Count < 2 || l.IDs.SubUID == 0 || l.IDs.SubGID == 0 {
			return bad("mode sub needs a count above 1, and the first ids of the caller's ranges in /etc/subuid and /etc/subgid")
		}
	case wire.IDsSingle:
	default:
		return bad("mode " + strconv.Quote(l.IDs.Mode) + " is none of range, sub, single")
	}
	for _, m := range l.Mounts {
		if m.MapOwner == "" || l.IDs.Mode == wire.IDsSingle {
			continue
		}
		u := userOf(l, m.MapOwner)
		switch {
		case u == nil:
			return bad("mount " + m.Target + " maps its owner to " + strconv.Quote(m.MapOwner) + ", who is not among the users")
		case l.IDs.Mode == wire.IDsSub && u.UID != 0:
			return &wire.Error{Code: wire.CodeUnsupported, Text: "mount " + m.Target + ": only root can show a folder under another owner; run berth as root, or with one id (mode single)"}
		case l.IDs.Mode == wire.IDsRange && !l.IDs.IDMapped:
			return &wire.Error{Code: wire.CodeUnsupported, Text: "mount " + m.Target + ": this kernel cannot show a folder under another owner; Linux 5.12 or newer can"}
		}
	}
	return nil
}

func userOf(l *wire.Launch, name string) *wire.User {
	for i := range l.Users {
		if l.Users[i].Name == name {
			return &l.Users[i]
		}
	}
	return nil
}

// extent is one line of an id map: count ids from inside on, which are those
// from outside on.
type extent struct{ inside, outside, count uint32 }

func (e extent) String() string {
	return strconv.FormatUint(uint64(e.inside), 10) + " " + strconv.FormatUint(uint64(e.outside), 10) + " " + strconv.FormatUint(uint64(e.count), 10)
}

// mapIDs gives init's user namespace its ids.
func (b *builder) mapIDs() error {
	ids := b.launch.IDs
	switch ids.Mode {
	case wire.IDsRange:
		e := extent{0, ids.Base, ids.Count}
		return writeMaps(b.pid, e, e, false)
	case wire.IDsSingle:
		return writeMaps(b.pid, extent{0, uint32(os.Geteuid()), 1}, extent{0, uint32(os.Getegid()), 1}, true)
	}
	if err := mapTool("newuidmap", b.pid, uint32(os.Geteuid()), ids.SubUID, ids.Count-1); err != nil {
		return err
	}
	return mapTool("newgidmap", b.pid, uint32(os.Getegid()), ids.SubGID, ids.Count-1)
}

func writeMaps(pid int, uid, gid extent, deny bool) error {
	dir := "/proc/" + strconv.Itoa(pid) + "/"
	if deny {
		if err := os.WriteFile(dir+"setgroups", []byte("deny"), 0); err != nil {
			return rootfs.Explain("map ids", err)
		}
	}
	for _, m := range []struct {
		name string
		e    extent
	}{{"uid_map", uid}, {"gid_map", gid}} {
		if err := os.WriteFile(dir+m.name, []byte(m.e.String()), 0); err != nil {
			return explainInside(nil, rootfs.Explain("map ids", err))
		}
	}
	return nil
}

// mapTool runs newuidmap or newgidmap, which are setuid.
func mapTool(name string, pid int, self, sub, count uint32) error {
	path := ""
	for _, dir := range append(filepath.SplitList(os.Getenv("PATH")), "/usr/bin", "/bin") {
		if p := filepath.Join(dir, name); unix.Access(p, unix.X_OK) == nil {
			path = p
			break
		}
	}
	if path == "" {
		return &wire.Error{Code: wire.CodeUnsupported, Text: name + " is not installed; as root: apt-get install uidmap"}
	}
	num := func(v uint32) string { return strconv.FormatUint(uint64(v), 10) }
	argv := []string{name, strconv.Itoa(pid), "0", num(self), "1", "1", num(sub), num(count)}
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	proc, err := os.StartProcess(path, argv, &os.ProcAttr{Files: []*os.File{nil, nil, w}, Env: []string{"LC_ALL=C"}})
	_ = w.Close()
	if err != nil {
		return err
	}
	var said bytes.Buffer
	_, _ = said.ReadFrom(r)
	state, err := proc.Wait()
	if err != nil {
		return err
	}
	if !state.Success() {
		return &wire.Error{Code: wire.CodePermission, Text: strings.TrimSpace(said.String()) + "; give this user a line of at least " + num(count) +
			" ids from " + num(sub) + " in /etc/subuid and /etc/subgid (usermod --add-subuids, --add-subgids), and check that " + path + " is setuid root"}
	}
	return nil
}

// mounts makes the mounts of the range mode, in a mount namespace that only
// this thread has. It returns a descriptor of the limited file system among them,
// -1 when there is none.
func (b *builder) mounts() (limited int, err error) {
	limited = -1
	defer func() {
		if err != nil && limited >= 0 {
			_ = unix.Close(limited)
			limited = -1
		}
	}()
	l := b.launch
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return -1, rootfs.Explain("make a mount namespace", err)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return -1, rootfs.Explain("make mounts private", err)
	}
	if limited, err = limit(l); err != nil {
		return limited, err
	}
	maps := &rootfs.Maps{Layers: -1, RootUID: int(l.IDs.Base), RootGID: int(l.IDs.Base)}
	if l.IDs.IDMapped {
		ns, err := unix.Open("/proc/"+strconv.Itoa(b.pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return limited, b.died(err)
		}
		defer unix.Close(ns)
		maps.Layers = ns
		maps.Owner = func(uid, gid uint32, name string) (int, error) {
			u := userOf(l, name)
			return userNS(extent{uid, l.IDs.Base + u.UID, 1}, extent{gid, l.IDs.Base + u.GID, 1})
		}
	}
	// No layer lies below it, and making a directory costs more than one would think.
	maps.Scratch = filepath.Join(l.Dir, journal.OutputDir)
	if err := os.MkdirAll(maps.Scratch, 0o700); err != nil {
		return limited, err
	}
	fds, err := rootfs.Build(l.Mounts, maps)
	if err != nil {
		return limited, err
	}
	for _, fd := range fds {
		b.add(guest.FileMount, fd)
	}
	return limited, nil
}

// userNS makes a user namespace with that map, in which nobody lives.
func userNS(uid, gid extent) (int, error) {
	var gate, report [2]int
	if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
		return -1, err
	}
	if err := unix.Pipe2(report[:], unix.O_CLOEXEC); err != nil {
		rootfs.Close(gate[:])
		return -1, err
	}
	p := &raw.Program{}
	p.Report(report[1])
	p.Try(unix.SYS_CLOSE, uintptr(gate[1]))
	p.Try(unix.SYS_READ, uintptr(gate[0]), raw.Keep(p, &[8]byte{}), 1)
	pid, err := p.Start(unix.CLONE_NEWUSER)
	rootfs.Close([]int{gate[0], report[0], report[1]})
	if err != nil {
		_ = unix.Close(gate[1])
		return -1, explainClone(err)
	}
	defer func() {
		_ = unix.Close(gate[1])
		_, _ = unix.Wait4(pid, nil, unix.WALL, nil)
	}()
	if err := writeMaps(pid, uid, gid, false); err != nil {
		return -1, err
	}
	return unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
}

// setting reads a number below /proc/sys; -1 when there is none.
func setting(name string) int {
	b, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return -1
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return -1
	}
	return n
}

// explainClone tells why the kernel gives no namespaces, and what to do.
func explainClone(err error) error {
	text := "this machine refuses user namespaces (" + err.Error() + "): "
	switch {
	case setting("kernel/unprivileged_userns_clone") == 0 && os.Geteuid() != 0:
		text += "as root, sysctl kernel.unprivileged_userns_clone=1"
	case setting("user/max_user_namespaces") == 0 || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EUSERS):
		text += "as root, sysctl user.max_user_namespaces=100000"
	case errors.Is(err, unix.EPERM):
		text += "in a container, start it with --security-opt seccomp=unconfined --security-opt systempaths=unconfined; a chroot cannot have them"
	case errors.Is(err, unix.EINVAL):
		text += "its kernel was built without them"
	case errors.Is(err, unix.EAGAIN):
		return &wire.Error{Code: wire.CodeLimit, Text: "no more processes can be started on this machine; end some, or raise ulimit -u"}
	}
	return &wire.Error{Code: wire.CodeUnsupported, Text: text}
}

// explainInside adds to a refusal that init met what is known to cause it.
func explainInside(l *wire.Launch, e *wire.Error) error {
	if e.Code == wire.CodePermission && setting("kernel/apparmor_restrict_unprivileged_userns") == 1 && os.Geteuid() != 0 {
		e.Text += "; AppArmor takes the rights from this program's user namespaces: give it a profile with userns, (berth doctor --fix), or as root sysctl kernel.apparmor_restrict_unprivileged_userns=0"
	}
	return e
}

func decodeReady(f *wire.Frame) (*wire.Ready, error) {
	r := &wire.Ready{}
	if err := json.Unmarshal(f.Body, r); err != nil {
		return nil, errors.New("init's answer is malformed")
	}
	return r, nil
}

// startTicks is when a process started, in clock ticks since boot; 0: not known.
func startTicks(pid int) uint64 {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return 0
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0
	}
	v, _ := strconv.ParseUint(f[19], 10, 64)
	return v
}
