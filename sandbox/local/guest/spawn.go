//go:build linux

package guest

import (
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/isolate/rootfs"
	"berth/sandbox/local/wire"
)

// Shell text longer than this goes by file: the kernel takes at most 128 KiB
// in one argument.
const longText = 100 << 10

// The stages at which a start can fail.
const (
	stageShim = iota + 1
	stageFork
	stageUser
	stageCwd
	stageTTY
	stageGuard
	stageExec
	stageCgroup
)

// command is what is to be started, by the monitor or through sudo.
type command struct {
	user       *wire.User
	shell      string // text, or
	argv       []string
	env        map[string]string
	cwd        string
	in, out, e int // descriptors
	tty        bool
}

// start starts a process of the monitor's. The last result is to be called
// when the answer has been sent, so that the process's events follow it.
func (g *guest) start(r *wire.StartProcess, files []*os.File) (body any, out []*os.File, after func(), err error) {
	u, err := g.user(r.User)
	if err != nil {
		return nil, nil, nil, err
	}
	c := &command{user: u, shell: r.Shell, argv: r.Argv, cwd: r.Cwd, env: g.env(u)}
	for k, v := range r.Env {
		c.env[k] = v
	}
	for _, k := range r.Unset {
		delete(c.env, k)
	}
	if r.ID == "" || (r.Shell == "") == (len(r.Argv) == 0) {
		return nil, nil, nil, invalid("a process needs an id, and either shell or argv")
	}
	var master *os.File
	if r.Cols > 0 {
		if len(files) != 0 {
			return nil, nil, nil, invalid("a process with a terminal takes no descriptors")
		}
		var slave int
		if master, slave, err = g.terminal(u, r.Cols, r.Rows); err != nil {
			return nil, nil, nil, err
		}
		defer unix.Close(slave)
		c.tty, c.in, c.out, c.e = true, slave, slave, slave
	} else {
		if r.NullStdin {
			files = append([]*os.File{g.null}, files...)
		}
		if len(files) != 3 {
			return nil, nil, nil, invalid("a process takes stdin, stdout and stderr")
		}
		for i, f := range files {
			fd := int(f.Fd())
			// They came in the mode that suits whoever holds the other end.
			if err := unix.SetNonblock(fd, false); err != nil {
				return nil, nil, nil, pathError("", err)
			}
			*[]*int{&c.in, &c.out, &c.e}[i] = fd
		}
	}
	defer func() {
		if err != nil && master != nil {
			_ = master.Close()
		}
	}()

	t := &tree{id: r.ID, shims: map[*shim]bool{}, oom: count(g.oom, "oom_kill "), forks: count(g.pidsMax, "max ")}
	if g.free != nil {
		if err := g.free.prepare(g, t, c); err != nil {
			return nil, nil, nil, err
		}
	} else if len(c.shell) > longText {
		if t.file, err = longFile(rootfs.RunDir, c.shell, u, g.single()); err != nil {
			return nil, nil, nil, err
		}
	}
	g.mu.Lock()
	switch {
	case g.halting:
		err = &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped; nothing was started"}
	case g.trees[r.ID] != nil && !(g.trees[r.ID].exited && g.trees[r.ID].alone): // of which nothing is left but its shim, for a moment
		err = &wire.Error{Code: wire.CodeExist, Text: "process " + r.ID + " exists already"}
	default:
		g.trees[r.ID] = t
	}
	g.mu.Unlock()
	if err != nil {
		t.clean()
		return nil, nil, nil, err
	}
	s, err := g.spawn(t, c)
	if err != nil {
		g.mu.Lock()
		delete(g.trees, r.ID)
		g.mu.Unlock()
		t.clean()
		return nil, nil, nil, err
	}
	if t.become != "" {
		if err := g.becomes(t, s); err != nil {
			g.killAll(func() []proc { return g.members(t) })
			s.ended = func(unix.WaitStatus, int64, bool) {}
			g.mu.Lock()
			delete(g.trees, r.ID)
			g.mu.Unlock()
			t.clean()
			return nil, nil, func() { g.watch(s) }, err
		}
	}
	s.ended = func(ws unix.WaitStatus, cpu int64, left bool) {
		t.clean()
		e := wire.Exited{ID: t.id, Code: ws.ExitStatus(), CPUNS: cpu, OOM: count(g.oom, "oom_kill ") > t.oom, PIDs: count(g.pidsMax, "max ") > t.forks}
		e.Full = ws != 0 && full()
		if g.nproc > 0 && !e.PIDs {
			met := ws != 0 && g.crowded()
			g.mu.Lock()
			e.PIDs = met || t.crowd
			g.mu.Unlock()
		}
		if ws.Signaled() {
			e.Code, e.Signal = -1, int(ws.Signal())
		}
		g.mu.Lock()
		t.exited, t.alone = true, !left && len(t.shims) == 1
		alone := t.alone
		g.mu.Unlock()
		if !alone {
			e.Leftovers = name(g.members(t))
		}
		g.event(wire.OpExited, e)
		g.mu.Lock()
		t.told = true
		g.mu.Unlock()
	}
	g.crowdSoon()
	if master != nil {
		out = append(out, master)
	}
	return wire.Started{PID: s.main}, out, func() { g.watch(s) }, nil
}

func (t *tree) clean() {
	for _, name := range []string{t.file, t.become} {
		if name != "" {
			_ = unix.Unlink(name)
		}
	}
}

func (g *guest) single() bool { return g.launch.IDs.Mode == wire.IDsSingle }

// longFile holds a long command's text, readable by its user alone.
func longFile(dir, text string, u *wire.User, single bool) (string, error) {
	name := dir + "/command-" + random()
	fd, err := unix.Open(name, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o400)
	if err != nil {
		return "", pathError(name, err)
	}
	f := os.NewFile(uintptr(fd), name)
	defer f.Close()
	_, err = f.WriteString(text)
	if err == nil && !single {
		err = unix.Fchown(fd, int(u.UID), int(u.GID))
	}
	if err != nil {
		_ = unix.Unlink(name)
		return "", pathError("the command's text", errnoIn(err))
	}
	return name, nil
}

// count reads one line's number of a cgroup's file; 0 when there is none.
func count(fd int, key string) int64 {
	if fd < 0 {
		return 0
	}
	var buf [512]byte
	n, err := unix.Pread(fd, buf[:], 0)
	if err != nil {
		return 0
	}
	for line := range strings.SplitSeq(string(buf[:n]), "\n") {
		if text, ok := strings.CutPrefix(line, key); ok {
			v, _ := strconv.ParseInt(text, 10, 64)
			return v
		}
	}
	return 0
}

// full tells whether the file system that the root is written to has next to
// nothing left, as a program leaves it that was refused more.
func full() bool {
	var st unix.Statfs_t
	if unix.Statfs("/", &st) != nil || st.Blocks == 0 {
		return false
	}
	size := int64(st.Bsize)
	return int64(st.Bavail)*size < min(1<<20, int64(st.Blocks)*size/64) || st.Files > 0 && st.Ffree == 0
}

// terminal makes a terminal of the sandbox's own, in u's hands.
func (g *guest) terminal(u *wire.User, cols, rows uint16) (*os.File, int, error) {
	fail := func(err error) (*os.File, int, error) { return nil, -1, pathError("a terminal", err) }
	name := "ptmx"
	if g.free != nil {
		name = "/dev/ptmx"
	}
	fd, err := unix.Openat(g.pts, name, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fail(err)
	}
	master := os.NewFile(uintptr(fd), "terminal")
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		_ = master.Close()
		return fail(err)
	}
	r, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		_ = master.Close()
		return fail(errno)
	}
	slave := int(r)
	_ = unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: cols, Row: rows})
	if !g.single() && (g.free == nil || g.free.uid == 0 && u.UID != 0) {
		if err := unix.Fchown(slave, int(u.UID), 5); err != nil {
			_ = master.Close()
			_ = unix.Close(slave)
			return fail(err)
		}
	}
	return master, slave, nil
}

// nestedNS is the user namespace, below the sandbox's, in which uid is the
// sandbox's only user, and gid its only group.
func (g *guest) nestedNS(uid, gid uint32) (int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if fd, ok := g.nested[[2]uint32{uid, gid}]; ok {
		return fd, nil
	}
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
	p.Must(stageUser, unix.SYS_CLOSE, uintptr(gate[1]))
	p.Must(stageUser, unix.SYS_UNSHARE, unix.CLONE_NEWUSER)
	num := func(id uint32) string { return strconv.FormatUint(uint64(id), 10) }
	for _, w := range [][2]string{{"setgroups", "deny"}, {"uid_map", num(uid) + " 0 1"}, {"gid_map", num(gid) + " 0 1"}} {
		p.Save(unix.SYS_OPENAT, atCwd, p.String("/proc/self/"+w[0]), unix.O_WRONLY|unix.O_CLOEXEC)
		p.Must(stageUser, unix.SYS_WRITE, raw.Saved, p.String(w[1]), uintptr(len(w[1])))
	}
	ready := &raw.Event{Kind: raw.Started}
	p.Must(stageUser, unix.SYS_WRITE, uintptr(report[1]), raw.Keep(p, ready), raw.EventSize)
	p.Try(unix.SYS_READ, uintptr(gate[0]), raw.Keep(p, &[8]byte{}), 1)
	pid, err := p.Start(0)
	_ = unix.Close(gate[0])
	_ = unix.Close(report[1])
	defer unix.Close(report[0])
	defer unix.Close(gate[1])
	g.children.Born()
	if err != nil {
		return -1, err
	}
	var buf [raw.EventSize]byte
	if n, err := unix.Read(report[0], buf[:]); err != nil || n != len(buf) || raw.Decode(buf[:]).Kind != raw.Started {
		return -1, &wire.Error{Code: wire.CodeUnsupported, Text: "a nested user namespace for the user's commands was refused: " +
			unix.Errno(raw.Decode(buf[:]).Value).Error() + "; raise user.max_user_namespaces, or install newuidmap (package uidmap) and give this user lines in /etc/subuid and /etc/subgid"}
	}
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/ns/user", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, pathError("user namespace", err)
	}
	g.nested[[2]uint32{uid, gid}] = fd
	return fd, nil
}
