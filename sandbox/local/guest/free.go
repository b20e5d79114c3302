//go:build linux

package guest

import (
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/wire"
)

// Free is what a guest in a foreign sandbox knows of it. Such a guest has no
// walls to keep: its commands have the rights that its own user has, and may get
// others where the sandbox lets them.
type Free struct {
	Program string // box, by its whole path
	Dir     string // a private directory
	Umask   int    // of commands
}

type free struct {
	Free
	uid, gid uint32
	groups   []uint32
	sudo     chan *sudoRight // holds the one; empty while somebody asks
}

// sudoRight is what is known of the right to become root by sudo.
type sudoRight struct {
	has    bool
	reason string
	asked  time.Time
}

const (
	sudoAskAgain = 5 * time.Second // after a refusal
	sudoWait     = 10 * time.Second
)

// OpenFree readies a guest in a foreign sandbox. The launch says who its user is,
// and the base environment. serve serves the monitor on conn until conn ends.
func OpenFree(conn *wire.Conn, l *wire.Launch, o Free) (serve func(), err error) {
	g := newGuest(conn)
	g.launch = *l
	g.free = &free{Free: o, uid: uint32(os.Geteuid()), gid: uint32(os.Getegid()), sudo: make(chan *sudoRight, 1)}
	g.free.sudo <- &sudoRight{}
	groups, err := unix.Getgroups()
	if err != nil {
		return nil, os.NewSyscallError("getgroups", err)
	}
	for _, n := range groups {
		g.free.groups = append(g.free.groups, uint32(n))
	}
	g.run, g.pidsMax, g.oom, g.pts = -1, openFirst("/sys/fs/cgroup/pids.events"), openFirst("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"), -1
	if g.self, err = unix.Open("/proc/self/fd", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return nil, &os.PathError{Op: "open", Path: "/proc/self/fd", Err: err}
	}
	if g.null, err = os.Open("/dev/null"); err != nil {
		return nil, err
	}
	dumpable, err := os.ReadFile("/proc/sys/fs/suid_dumpable")
	g.share = err == nil && strings.TrimSpace(string(dumpable)) != "1"
	// Orphans of a shim that somebody kills come here, and are ended.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return nil, os.NewSyscallError("prctl", err)
	}
	if g.children, err = raw.NewReaper(); err != nil {
		return nil, err
	}
	go g.reap()
	g.endFormer()
	return func() {
		for {
			f, err := conn.Recv()
			if err != nil {
				return // the monitor is gone
			}
			go g.serve(f)
		}
	}, nil
}

func openFirst(names ...string) int {
	for _, name := range names {
		if fd, err := unix.Open(name, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
			return fd
		}
	}
	return -1
}

// FreeLimits are those that the sandbox's own cgroup has, where they can be seen.
func FreeLimits() wire.Limits {
	read := func(names ...string) int64 {
		for _, name := range names {
			if n, err := strconv.ParseInt(strings.TrimSpace(slurp(name)), 10, 64); err == nil && n > 0 && n < 1<<50 {
				return n
			}
		}
		return 0
	}
	return wire.Limits{
		Memory: read("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"),
		PIDs:   read("/sys/fs/cgroup/pids.max", "/sys/fs/cgroup/pids/pids.max"),
	}
}

// endFormer ends what a resident that was killed has left: its shims are there
// still, with all that runs below them, and nobody will ever know of it.
func (g *guest) endFormer() {
	own := strings.Join(os.Args, "\x00") + "\x00"
	var shims []proc
	for pid, p := range processes() {
		if pid != g.pid && !p.dead() && cmdline(pid, len(own)) == own {
			shims = append(shims, p)
		}
	}
	if len(shims) == 0 {
		return
	}
	roots := map[int]bool{}
	for _, p := range shims {
		roots[p.pid] = true
	}
	g.killAll(func() []proc { return below(processes(), roots) })
	g.send(shims, unix.SIGKILL)
}

// cmdline reads a process's arguments, one byte more than most at most.
func cmdline(pid, most int) string {
	fd, err := unix.Open("/proc/"+strconv.Itoa(pid)+"/cmdline", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return ""
	}
	defer unix.Close(fd)
	buf := make([]byte, most+1)
	n, err := unix.Read(fd, buf)
	if err != nil || n <= 0 {
		return ""
	}
	return string(buf[:n])
}

func (f *free) same(u *wire.User) bool { return u.UID == f.uid && u.GID == f.gid }

// prepare sees to a long text, and to a user that only sudo leads to.
func (f *free) prepare(g *guest, t *tree, c *command) (err error) {
	if !f.same(c.user) && f.uid != 0 {
		return f.viaSudo(g, t, c)
	}
	if len(c.shell) <= longText {
		return nil
	}
	if f.same(c.user) {
		t.file, err = longFile(f.Dir, c.shell, c.user, true)
		return err
	}
	for _, dir := range []string{"/tmp", "/var/tmp"} {
		if t.file, err = longFile(dir, c.shell, c.user, false); err == nil {
			return nil
		}
	}
	return err
}

// program makes a command its user's.
func (f *free) program(p *raw.Program, c *command) {
	p.Try(unix.SYS_UMASK, uintptr(f.Umask))
	var lim unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &lim) == nil {
		// Go has raised our own to the hard limit.
		p.Try(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, raw.Keep(p, &unix.Rlimit{Cur: min(65536, lim.Max), Max: lim.Max}), 0)
	}
	if !f.same(c.user) {
		groups := append([]uint32{c.user.GID}, c.user.Groups...)
		p.Must(stageUser, unix.SYS_SETGROUPS, uintptr(min(len(groups), 65)), raw.Keep(p, (*[65]uint32)(padGroups(groups))))
		gid, uid := uintptr(c.user.GID), uintptr(c.user.UID)
		p.Must(stageUser, unix.SYS_SETRESGID, gid, gid, gid)
		p.Must(stageUser, unix.SYS_SETRESUID, uid, uid, uid)
		p.Must(stageGuard, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	}
	p.Must(stageCwd, unix.SYS_CHDIR, p.String(c.cwd))
}

// helper runs a short program of ours and returns what it printed.
func (g *guest) helper(argv []string) (string, error) {
	program := argv[0]
	for _, file := range candidates(argv[0], g.launch.Env["PATH"]+":"+defaultPath) {
		if unix.Access(file, unix.X_OK) == nil {
			program = file
			break
		}
	}
	r, w, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer r.Close()
	ended := make(chan unix.WaitStatus, 1)
	g.mu.Lock()
	pid, err := syscall.ForkExec(program, argv, &syscall.ProcAttr{Dir: "/", Files: []uintptr{g.null.Fd(), w.Fd(), w.Fd()},
		Env: []string{"PATH=" + defaultPath, "LC_ALL=C"}, Sys: &syscall.SysProcAttr{Setsid: true}})
	if err == nil {
		if g.helpers == nil {
			g.helpers = map[int]chan unix.WaitStatus{}
		}
		g.helpers[pid] = ended
	}
	g.mu.Unlock()
	_ = w.Close()
	if err != nil {
		return "", err
	}
	g.children.Born()
	_ = r.SetReadDeadline(time.Now().Add(sudoWait))
	out, _ := io.ReadAll(io.LimitReader(r, 4096))
	t := time.NewTimer(sudoWait)
	defer t.Stop()
	select {
	case ws := <-ended:
		if ws != 0 {
			return string(out), errors.New("exit status " + strconv.Itoa(ws.ExitStatus()))
		}
		return string(out), nil
	case <-t.C:
		_ = unix.Kill(pid, unix.SIGKILL)
		return string(out), errors.New("it does not end")
	}
}

// maySudo asks, at most now and then, whether sudo makes us root unasked.
func (g *guest) maySudo() *sudoRight {
	r := <-g.free.sudo
	if !r.has && time.Since(r.asked) > sudoAskAgain {
		out, err := g.helper([]string{"sudo", "-n", "--", g.free.Program, "nothing"})
		r = &sudoRight{has: err == nil, asked: time.Now()}
		if err != nil {
			line, _, _ := strings.Cut(strings.TrimSpace(out), "\n")
			if r.reason = strings.ToValidUTF8(line, "?"); r.reason == "" {
				r.reason = err.Error()
			}
		}
	}
	g.free.sudo <- r
	return r
}

// sendAsRoot signals processes that are another user's, and tells how many it
// has reached.
func (g *guest) sendAsRoot(list []proc, sig unix.Signal) (count int) {
	if g.free.uid == 0 || !g.maySudo().has {
		return 0
	}
	for part := range slices.Chunk(list, 1000) {
		argv := []string{"sudo", "-n", "--", g.free.Program, "signal", strconv.Itoa(int(sig))}
		for _, p := range part {
			argv = append(argv, strconv.Itoa(p.pid)+":"+strconv.FormatUint(p.start, 10))
		}
		if out, err := g.helper(argv); err == nil {
			n, _ := strconv.Atoi(strings.TrimSpace(out))
			count += n
		}
	}
	return count
}

// SignalMain is `box signal SIGNAL PID:START...`, which is run by sudo. It prints
// how many it has reached.
func SignalMain(args []string) int {
	if len(args) == 0 {
		return 2
	}
	sig, err := strconv.Atoi(args[0])
	if err != nil || sig < 1 || sig > 64 {
		return 2
	}
	count := 0
	for _, a := range args[1:] {
		pid, start, _ := strings.Cut(a, ":")
		n, nerr := strconv.Atoi(pid)
		at, serr := strconv.ParseUint(start, 10, 64)
		if nerr != nil || serr != nil || n <= 1 {
			return 2
		}
		if send(proc{pid: n, start: at}, unix.Signal(sig)) == nil {
			count++
		}
	}
	_, _ = os.Stdout.WriteString(strconv.Itoa(count) + "\n")
	return 0
}
