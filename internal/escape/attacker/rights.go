//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

// allowedCaps are the 14 that Docker leaves to root.
const allowedCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FOWNER | 1<<unix.CAP_FSETID | 1<<unix.CAP_KILL |
	1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_NET_RAW |
	1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_MKNOD | 1<<unix.CAP_AUDIT_WRITE | 1<<unix.CAP_SETFCAP

var rightsProbes = []probe{
	{name: "leaked_descriptors", refused: "descriptors of berth in a command", run: leakedDescriptors},
	{name: "environment", refused: "berth's environment in a command", run: environment},
	{name: "capabilities", refused: "capabilities above Docker's 14, and any for the user", run: capabilities},
	{name: "no_new_privileges", refused: "a command without no_new_privs and the filter", run: noNewPrivileges},
	{name: "raise_capabilities", refused: "capset, ambient and securebits tricks", run: raiseCapabilities},
	{name: "setuid_files", refused: "setuid programs that give root", run: setuidFiles},
	{name: "own_setuid_file", refused: "a setuid program that root inside makes", user: "root", run: ownSetuidFile},
	{name: "raise_limits", refused: "raising a hard resource limit", run: raiseLimits},
	{name: "raise_priority", refused: "real-time or negative-nice scheduling, and safety from the memory killer", run: raisePriority},
	{name: "core_dumps", refused: "core dumps, which the host's handler would run on", run: coreDumps},
	{name: "prctl", refused: "taking the filter or no_new_privs off", run: prctls},
	{name: "user_ids", refused: "ids outside of the map", run: userIDs},
}

// openDescriptors lists what is open beyond 0, 1 and 2.
func openDescriptors() []string {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return []string{err.Error()}
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return []string{err.Error()}
	}
	var open []string
	for _, n := range names {
		fd, _ := strconv.Atoi(n)
		to := link(fd)
		// The runtime's own poller, and the directory being read.
		if fd <= 2 || fd == int(dir.Fd()) || to == "anon_inode:[eventpoll]" || to == "anon_inode:[eventfd]" {
			continue
		}
		open = append(open, n+" -> "+to)
	}
	return open
}

func leakedDescriptors(t *target) escape.Finding {
	ways := append([]string(nil), t.leaked...)
	for fd := range 3 {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			continue
		}
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFIFO:
		case unix.S_IFCHR:
			if major := unix.Major(st.Rdev); major != 136 && !(major == 1 && unix.Minor(st.Rdev) == 3) {
				ways = append(ways, fmt.Sprintf("%d is device %d:%d", fd, major, unix.Minor(st.Rdev)))
			}
			if p := link(fd); !strings.HasPrefix(p, "/dev/") {
				ways = append(ways, fmt.Sprintf("%d is %s", fd, p))
			}
		default:
			// A file or socket of the host could be reopened or passed on.
			ways = append(ways, fmt.Sprintf("%d is neither pipe, terminal nor /dev/null: %s, mode %o", fd, link(fd), st.Mode))
		}
	}
	return found(ways, "only 0, 1 and 2, pipes, terminals or /dev/null")
}

func environment(t *target) escape.Finding {
	var ways []string
	for _, e := range os.Environ() {
		name, value, _ := strings.Cut(e, "=")
		if strings.Contains(value, escape.Canary) || strings.HasPrefix(name, "BERTH_") || strings.HasPrefix(name, "AWS_") {
			ways = append(ways, e)
		}
	}
	for _, pid := range pids() {
		if b, err := os.ReadFile("/proc/" + pid + "/environ"); err == nil && strings.Contains(string(b), escape.Canary) {
			ways = append(ways, "/proc/"+pid+"/environ")
		}
		if b, err := os.ReadFile("/proc/" + pid + "/cmdline"); err == nil && strings.Contains(string(b), escape.Canary) {
			ways = append(ways, "/proc/"+pid+"/cmdline")
		}
	}
	return found(ways, "%d variables, none of berth's", len(os.Environ()))
}

// status reads a line of /proc/self/status.
func status(key string) string {
	b, err := os.ReadFile("/proc/thread-self/status")
	if err != nil {
		b, _ = os.ReadFile("/proc/self/status")
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return ""
}

func capabilities(t *target) escape.Finding {
	var ways []string
	for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
		v, err := strconv.ParseUint(status(set), 16, 64)
		if err != nil {
			return broken("%s: %v", set, err)
		}
		if v&^allowedCaps != 0 {
			ways = append(ways, fmt.Sprintf("%s %x, more than %x", set, v, uint64(allowedCaps)))
		}
		if t.user != "root" && set != "CapBnd" && v != 0 {
			ways = append(ways, fmt.Sprintf("%s of the user is %x", set, v))
		}
	}
	return found(ways, "effective %s, bounding %s", status("CapEff"), status("CapBnd"))
}

func noNewPrivileges(t *target) escape.Finding {
	var ways []string
	if v := status("NoNewPrivs"); v != "1" {
		ways = append(ways, "NoNewPrivs is "+v)
	}
	if v := status("Seccomp"); v != "2" {
		ways = append(ways, "Seccomp is "+v)
	}
	return found(ways, "both set")
}

func raiseCapabilities(t *target) escape.Finding {
	var ways []string
	h := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var now [2]unix.CapUserData
	if err := unix.Capget(&h, &now[0]); err != nil {
		return broken("capget: %v", err)
	}
	for _, c := range []uint{unix.CAP_SYS_ADMIN, unix.CAP_SYS_PTRACE, unix.CAP_NET_ADMIN, unix.CAP_DAC_READ_SEARCH} {
		more := now
		more[c/32].Permitted |= 1 << (c % 32)
		more[c/32].Effective |= 1 << (c % 32)
		if err := unix.Capset(&h, &more[0]); err == nil {
			ways = append(ways, fmt.Sprintf("capset gave capability %d", c))
		}
		more = now
		more[c/32].Inheritable |= 1 << (c % 32)
		if err := unix.Capset(&h, &more[0]); err == nil {
			ways = append(ways, fmt.Sprintf("capset made capability %d inheritable", c))
		}
		if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uintptr(c), 0, 0); err == nil {
			ways = append(ways, fmt.Sprintf("capability %d became ambient", c))
		}
	}
	return found(ways, "refused")
}

func setuidFiles(t *target) escape.Finding {
	var ways []string
	count := 0
	for _, dir := range []string{"/usr/bin", "/usr/sbin", "/usr/lib", "/usr/libexec", "/bin", "/sbin", "/opt", "/run/berth"} {
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return nil
			}
			fi, err := d.Info()
			if err != nil || fi.Mode()&(os.ModeSetuid|os.ModeSetgid) == 0 {
				return nil
			}
			count++
			var fs unix.Statfs_t
			if err := unix.Statfs(path, &fs); err == nil && fs.Flags&unix.ST_NOSUID == 0 {
				ways = append(ways, path+" is setuid on a mount without nosuid")
			}
			return nil
		})
	}
	if t.user != "root" {
		for _, try := range [][]string{{"su", "-c", "id -u", "root"}, {"mount", "-t", "tmpfs", "x", "/mnt"}, {"newgrp", "root"}} {
			path, err := exec.LookPath(try[0])
			if err != nil {
				continue
			}
			cmd := exec.Command(path, try[1:]...)
			out, err := cmd.CombinedOutput()
			if err == nil && (strings.TrimSpace(string(out)) == "0" || try[0] == "mount") {
				ways = append(ways, strings.Join(try, " ")+": "+string(out))
			}
		}
	}
	return found(ways, "%d setuid files, all on nosuid mounts", count)
}

// allCapabilities is a file's attribute that gives whoever runs it everything.
var allCapabilities = []byte{1, 0, 0, 2, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0}

// asCaller is what "tool whoami" says when the agent runs it and gains nothing.
const asCaller = "uid 1000 effective 1000 capabilities 0000000000000000"

func ownSetuidFile(t *target) escape.Finding {
	if t.IDs == "single" {
		// The one id can lend its file to nobody else.
		return impossible("a single id is mapped: there is nobody to lend root's rights to")
	}
	self, err := os.ReadFile(os.Args[0])
	if err != nil {
		return broken("%v", err)
	}
	var ways []string
	for _, dir := range append([]string{"/tmp", "/home/agent", "/var/tmp", "/usr/local/bin", "/dev/shm"}, t.Writable...) {
		path := filepath.Join(dir, "setuid-"+strconv.Itoa(os.Getpid()))
		if err := os.WriteFile(path, self, 0o755); err != nil {
			continue
		}
		defer os.Remove(path)
		if err := os.Chmod(path, 0o755|os.ModeSetuid|os.ModeSetgid); err != nil {
			continue
		}
		// File capabilities beside: effective, all.
		_ = unix.Setxattr(path, "security.capability", allCapabilities, 0)
		cmd := exec.Command(path, "tool", "whoami")
		cmd.Dir = "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 1000, Gid: 1000, NoSetGroups: true}}
		out, err := cmd.CombinedOutput()
		if err != nil {
			continue
		}
		if s := strings.TrimSpace(string(out)); s != asCaller {
			ways = append(ways, path+" ran as "+s)
		}
	}
	return found(ways, "it ran as the caller everywhere")
}

func raiseLimits(t *target) escape.Finding {
	var ways []string
	tried := 0
	for name, r := range map[string]int{"NPROC": unix.RLIMIT_NPROC, "NOFILE": unix.RLIMIT_NOFILE, "CORE": unix.RLIMIT_CORE, "MEMLOCK": unix.RLIMIT_MEMLOCK,
		"NICE": unix.RLIMIT_NICE, "RTPRIO": unix.RLIMIT_RTPRIO, "MSGQUEUE": unix.RLIMIT_MSGQUEUE, "SIGPENDING": unix.RLIMIT_SIGPENDING, "AS": unix.RLIMIT_AS} {
		var now unix.Rlimit
		// Prlimit, since syscall.Setrlimit keeps a note of NOFILE.
		if err := unix.Prlimit(0, r, nil, &now); err != nil || now.Max == unix.RLIM_INFINITY {
			continue
		}
		tried++
		more := unix.Rlimit{Cur: now.Max, Max: now.Max + 1}
		if err := unix.Prlimit(0, r, &more, nil); err == nil {
			ways = append(ways, fmt.Sprintf("RLIMIT_%s raised from %d", name, now.Max))
		}
	}
	if tried == 0 {
		return escaped("no limit is set at all")
	}
	return found(ways, "%d limits cannot be raised", tried)
}

func raisePriority(t *target) escape.Finding {
	var ways []string
	if err := unix.Setpriority(unix.PRIO_PROCESS, 0, -5); err == nil {
		ways = append(ways, "nice -5")
	}
	param := int32(1)
	if _, _, e := syscall.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, 1 /* SCHED_FIFO */, uintptr(unsafe.Pointer(&param))); e == 0 {
		ways = append(ways, "real-time scheduling")
	}
	if _, _, e := syscall.RawSyscall(unix.SYS_IOPRIO_SET, 1, 0, 1<<13); e == 0 {
		ways = append(ways, "real-time disk priority")
	}
	for _, v := range []string{"-1", "-1000"} {
		for _, file := range []string{"/proc/self/oom_score_adj", "/proc/1/oom_score_adj", "/proc/1/task/1/oom_score_adj"} {
			if err := os.WriteFile(file, []byte(v), 0); err == nil {
				ways = append(ways, v+" in "+file)
			}
		}
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE); err == nil {
		var lim unix.Rlimit
		if unix.Prlimit(0, unix.RLIMIT_MEMLOCK, nil, &lim) == nil && lim.Max == unix.RLIM_INFINITY {
			ways = append(ways, "locked memory without limit")
		}
	}
	return found(ways, "refused")
}

func coreDumps(t *target) escape.Finding {
	var now unix.Rlimit
	if err := unix.Prlimit(0, unix.RLIMIT_CORE, nil, &now); err != nil {
		return broken("%v", err)
	}
	if now.Max > 1 {
		return escaped("the hard limit of core dumps is %d", now.Max)
	}
	return held("hard limit %d", now.Max)
}

func prctls(t *target) escape.Finding {
	var ways []string
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 0, 0, 0, 0); err == nil {
		ways = append(ways, "no_new_privs was taken off")
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, 0, 0, 0, 0); err == nil {
		ways = append(ways, "the filter was taken off")
	}
	if err := unix.Prctl(unix.PR_SET_SECUREBITS, 1, 0, 0, 0); err == nil && t.user != "root" {
		ways = append(ways, "securebits were set by the user")
	}
	if err := unix.Prctl(unix.PR_SET_MM, unix.PR_SET_MM_EXE_FILE, 0, 0, 0); err == nil {
		ways = append(ways, "PR_SET_MM")
	}
	// A permissive filter on top does not weaken the one below.
	program := []unix.SockFilter{{Code: 0x06, K: 0x7fff0000}}
	prog := unix.SockFprog{Len: 1, Filter: &program[0]}
	_, _, _ = syscall.RawSyscall(unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&prog)))
	if _, e := (call{nr: unix.SYS_KEYCTL, args: [6]uintptr{unix.KEYCTL_GET_KEYRING_ID, ^uintptr(2)}}).try(); e != unix.EPERM {
		ways = append(ways, "a filter on top let keyctl through")
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 2, 0, 0, 0); err == nil {
		ways = append(ways, "PR_SET_DUMPABLE 2")
	}
	return found(ways, "refused")
}

func userIDs(t *target) escape.Finding {
	var ways []string
	raw := func(nr, id uintptr) syscall.Errno {
		_, _, e := syscall.RawSyscall(nr, id, id, id)
		return e
	}
	for _, id := range []uintptr{100000, 165536, 231072, 1 << 30, 0xfffffffe} {
		if e := raw(unix.SYS_SETRESUID, id); e == 0 && unix.Getuid() == int(id) && unix.Getuid() > 70000 {
			ways = append(ways, fmt.Sprintf("became user %d", id))
		}
	}
	if t.user != "root" {
		for _, nr := range []uintptr{unix.SYS_SETRESUID, unix.SYS_SETRESGID, unix.SYS_SETUID, unix.SYS_SETREUID} {
			_ = raw(nr, 0)
		}
		if unix.Geteuid() == 0 || unix.Getegid() == 0 {
			ways = append(ways, "the user became root")
		}
		groups := [1]uint32{0}
		if _, _, e := syscall.RawSyscall(unix.SYS_SETGROUPS, 1, uintptr(unsafe.Pointer(&groups)), 0); e == 0 && t.IDs != "single" {
			ways = append(ways, "the user joined root's group")
		}
	}
	for _, file := range []string{"uid_map", "gid_map", "setgroups"} {
		if err := os.WriteFile("/proc/self/"+file, []byte("0 0 4294967295\n"), 0); err == nil {
			ways = append(ways, "wrote /proc/self/"+file)
		}
	}
	m, _ := os.ReadFile("/proc/self/uid_map")
	for line := range strings.Lines(string(m)) {
		var in, out, n uint64
		if _, err := fmt.Sscan(line, &in, &out, &n); err == nil && t.IDs == "range" && out < 65536 {
			ways = append(ways, "the map reaches ordinary ids of the host: "+line)
		}
	}
	return found(ways, "map %s", strings.Join(strings.Fields(string(m)), " "))
}
