//go:build linux

package guest

import (
	"sort"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/guest/filter"
	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/wire"
)

// env is the base environment of u's commands.
func (g *guest) env(u *wire.User) map[string]string {
	env := make(map[string]string, len(g.launch.Env)+8)
	for k, v := range g.launch.Env {
		env[k] = v
	}
	if g.sudoDir != "" {
		if env["PATH"] == "" {
			env["PATH"] = defaultPath
		}
		env["PATH"] = g.sudoDir + ":" + env["PATH"]
	}
	env["HOME"], env["USER"], env["LOGNAME"], env["SHELL"] = u.Home, u.Name, u.Name, u.Shell
	if u.Shell == "" {
		env["SHELL"] = "/bin/sh"
	}
	return env
}

const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// candidates are the files that program may be, by PATH.
func candidates(program, list string) []string {
	if strings.Contains(program, "/") {
		return []string{program}
	}
	var out []string
	for dir := range strings.SplitSeq(list, ":") {
		if dir == "" {
			dir = "."
		}
		out = append(out, strings.TrimSuffix(dir, "/")+"/"+program) // cleaned it could be another, behind a link
		if len(out) == 256 {
			break
		}
	}
	return out
}

// FindProgram finds a program in the directories of list, or the usual ones when
// that is empty; empty when there is none.
func FindProgram(name, list string) string {
	if list == "" {
		list = defaultPath
	}
	for _, file := range candidates(name, list) {
		var st unix.Stat_t
		if unix.Stat(file, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG && unix.Access(file, unix.X_OK) == nil {
			return file
		}
	}
	return ""
}

// AT_FDCWD, as an argument.
const atCwd = ^uintptr(-unix.AT_FDCWD - 1)

// program is what shim and command do.
func (g *guest) program(t *tree, c *command, report, userns int) *raw.Program {
	p := &raw.Program{}
	p.Report(report)

	// The shim.
	zero := p.String("0")
	join := func(files []int) { // none in a resident
		for _, fd := range files {
			p.Must(stageShim, unix.SYS_WRITE, uintptr(fd), zero, 1)
		}
	}
	join(g.tasks)
	p.Must(stageShim, unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 1)
	p.Try(unix.SYS_SETSID)
	var parent func()
	if g.run >= 0 {
		parent = p.ForkInto(stageFork, g.run)
	} else {
		parent = p.Fork(stageFork)
	}

	// The command. Descriptors first: whatever lies above is closed.
	p.Must(stageShim, unix.SYS_PRCTL, unix.PR_SET_CHILD_SUBREAPER, 0)
	join(g.member)
	// So that its own cgroup is all that it sees of them. Init has no such
	// namespace where commands are born in their cgroups.
	switch {
	case g.run >= 0:
		p.Must(stageCgroup, unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	case g.free == nil:
		p.Try(unix.SYS_UNSHARE, unix.CLONE_NEWCGROUP)
	}
	if userns >= 0 {
		p.Must(stageUser, unix.SYS_SETNS, uintptr(userns), unix.CLONE_NEWUSER)
	}
	for i, fd := range []int{c.in, c.out, c.e} {
		p.Must(stageShim, unix.SYS_DUP3, uintptr(fd), uintptr(i), 0)
	}
	if report != 3 {
		p.Must(stageShim, unix.SYS_DUP3, uintptr(report), 3, unix.O_CLOEXEC)
		p.Report(3)
	}
	p.Must(stageShim, unix.SYS_CLOSE_RANGE, 4, ^uintptr(0)>>32, 0)
	p.Must(stageShim, unix.SYS_SETSID)
	if c.tty {
		p.Must(stageTTY, unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	score := []byte("500")
	p.Save(unix.SYS_OPENAT, atCwd, p.String("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC)
	p.Try(unix.SYS_WRITE, raw.Saved, p.Bytes(score), uintptr(len(score)))
	p.Try(unix.SYS_CLOSE, raw.Saved)
	if g.free != nil {
		g.free.program(p, c)
	} else {
		g.walls(p, c)
	}
	var none uint64
	p.Must(stageGuard, unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, raw.Keep(p, &none), 0, unsafe.Sizeof(none))
	g.execs(p, t, c)

	parent()
	keep := report
	if c.tty {
		// Without this the terminal would be gone, and whoever is on it hung up,
		// as soon as its programs have all closed theirs, which many do a moment
		// before they exit.
		keep = report + 1
		if c.in != keep { // dup3 refuses a descriptor that is there already
			p.Must(stageShim, unix.SYS_DUP3, uintptr(c.in), uintptr(keep), unix.O_CLOEXEC)
		}
	}
	p.Must(stageShim, unix.SYS_CLOSE_RANGE, 0, uintptr(report-1), 0)
	p.Must(stageShim, unix.SYS_CLOSE_RANGE, uintptr(keep+1), ^uintptr(0)>>32, 0)
	p.Watch()
	return p
}

// walls takes from a command what it is not to have, and makes it its user's.
func (g *guest) walls(p *raw.Program, c *command) {
	for lim, v := range map[uintptr]int64{unix.RLIMIT_NPROC: g.nproc, unix.RLIMIT_DATA: g.perProc} {
		if v > 0 {
			p.Must(stageGuard, unix.SYS_PRLIMIT64, 0, lim, raw.Keep(p, &unix.Rlimit{Cur: uint64(v), Max: uint64(v)}), 0)
		}
	}
	if g.cpus != nil {
		set := *g.cpus
		p.Must(stageGuard, unix.SYS_SCHED_SETAFFINITY, 0, unsafe.Sizeof(set), raw.Keep(p, &set))
	}
	p.Try(unix.SYS_PRLIMIT64, 0, unix.RLIMIT_NOFILE, raw.Keep(p, &unix.Rlimit{Cur: g.nofile, Max: g.nofile}), 0)
	drops := g.drops
	if g.single() && c.user.UID != 0 { // a nested user namespace begins with all there are
		drops = beyond(g.lastCap)
	}
	for _, i := range drops {
		p.Must(stageGuard, unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, i)
	}
	p.Try(unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL)
	if !g.single() {
		groups := append([]uint32{c.user.GID}, c.user.Groups...)
		p.Must(stageUser, unix.SYS_SETGROUPS, uintptr(len(groups)), raw.Keep(p, (*[65]uint32)(padGroups(groups))))
		gid, uid := uintptr(c.user.GID), uintptr(c.user.UID)
		p.Must(stageUser, unix.SYS_SETRESGID, gid, gid, gid)
		p.Must(stageUser, unix.SYS_SETRESUID, uid, uid, uid)
		p.Must(stageGuard, unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0) // fs.suid_dumpable may say otherwise
	}
	if g.probe {
		p.Probe(stageFork)
	}
	caps := &[2]unix.CapUserData{}
	if c.user.UID == 0 {
		caps[0] = unix.CapUserData{Effective: commandCaps & 0xffffffff, Permitted: commandCaps & 0xffffffff}
	}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	p.Must(stageGuard, unix.SYS_CAPSET, raw.Keep(p, header), raw.Keep(p, caps))
	p.Must(stageGuard, unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
	p.Must(stageCwd, unix.SYS_CHDIR, p.String(c.cwd))
	rules := filter.Default()
	if g.single() && c.user.UID == 0 {
		rules = filter.FakeOwner()
	}
	prog := &unix.SockFprog{Len: uint16(len(rules)), Filter: &rules[0]}
	p.Must(stageGuard, unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, 0, raw.Keep(p, prog))
}

func padGroups(groups []uint32) []uint32 {
	if len(groups) > 65 {
		groups = groups[:65]
	}
	return append(groups, make([]uint32, 65-len(groups))...)
}

// shellArgs makes a shell run text, also one that begins like an option.
func shellArgs(text string) []string {
	if strings.HasPrefix(text, "-") {
		return []string{"-c", "--", text}
	}
	return []string{"-c", text}
}

func (g *guest) execs(p *raw.Program, t *tree, c *command) {
	env := make([]string, 0, len(c.env))
	for k, v := range c.env {
		env = append(env, k+"="+v)
	}
	sort.Strings(env)
	vars := make([]uintptr, 0, len(env))
	for _, v := range env {
		vars = append(vars, p.String(v))
	}
	envp := p.List(vars)
	search := c.env["PATH"]
	if search == "" {
		search = defaultPath
	}
	try := func(program, search string, argv uintptr) {
		for _, file := range candidates(program, search) {
			p.Exec(stageExec, p.String(file), argv, envp)
		}
	}
	if c.shell == "" {
		try(c.argv[0], search, p.Strings(c.argv))
	} else {
		if words := simple(c.shell); words != nil && unshelled(c.env) {
			where := search
			if idle(words[0]) { // whatever stands on the PATH
				where = "/usr/bin:/bin"
			}
			if files := candidates(words[0], where); !g.served(c.cwd, files) {
				direct(p, words, files, vars)
			}
		}
		args := shellArgs(c.shell)
		if t.file != "" {
			args = []string{t.file}
		}
		for _, shell := range []string{"bash", "sh"} {
			// First where nearly every system has it.
			try(shell, "/usr/bin:/bin:"+search+":"+defaultPath, p.Strings(append([]string{shell}, args...)))
		}
	}
	p.Fail(stageExec)
}
