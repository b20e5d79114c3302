//go:build linux

package gate

import (
	"os"
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// allowed are the system calls of a running gate: sockets that exist or are of
// IP, pipes, memory, threads and time. It opens nothing by name, and can
// neither signal nor trace other processes.
var allowed = []uint32{
	unix.SYS_READ, unix.SYS_WRITE, unix.SYS_CLOSE, unix.SYS_PIPE2, unix.SYS_SPLICE,
	unix.SYS_CONNECT, unix.SYS_BIND, unix.SYS_ACCEPT4, unix.SYS_GETSOCKNAME, unix.SYS_GETPEERNAME,
	unix.SYS_GETSOCKOPT, unix.SYS_SETSOCKOPT, unix.SYS_SHUTDOWN,
	unix.SYS_SENDMSG, unix.SYS_SENDTO, unix.SYS_RECVMSG, unix.SYS_RECVFROM,
	unix.SYS_EPOLL_CREATE1, unix.SYS_EPOLL_CTL, unix.SYS_EPOLL_PWAIT, unix.SYS_EVENTFD2,
	unix.SYS_MMAP, unix.SYS_MUNMAP, unix.SYS_MPROTECT, unix.SYS_MADVISE, unix.SYS_MINCORE, unix.SYS_BRK,
	unix.SYS_FUTEX, unix.SYS_CLONE, unix.SYS_EXIT, unix.SYS_EXIT_GROUP, unix.SYS_GETTID, unix.SYS_GETPID,
	unix.SYS_SCHED_YIELD, unix.SYS_SCHED_GETAFFINITY, unix.SYS_NANOSLEEP, unix.SYS_CLOCK_GETTIME, unix.SYS_CLOCK_NANOSLEEP,
	unix.SYS_GETTIMEOFDAY, unix.SYS_FSTAT, unix.SYS_GETRANDOM, unix.SYS_RESTART_SYSCALL, unix.SYS_SETITIMER,
	unix.SYS_RT_SIGACTION, unix.SYS_RT_SIGPROCMASK, unix.SYS_RT_SIGRETURN, unix.SYS_SIGALTSTACK,
	unix.SYS_TIMER_CREATE, unix.SYS_TIMER_SETTIME, unix.SYS_TIMER_DELETE, unix.SYS_RSEQ, unix.SYS_SET_ROBUST_LIST,
}

// controls are what fcntl may do.
var controls = []uint32{unix.F_GETFD, unix.F_SETFD, unix.F_GETFL, unix.F_SETFL, unix.F_DUPFD_CLOEXEC, unix.F_SETPIPE_SZ}

// maxData is the memory that a gate may have.
const maxData = 512 << 20

// harden takes all rights from every thread of this process. Its user has been
// changed by whoever started it, when that was root.
func harden() error {
	// Needed before files can no longer be opened: the poller, and the random
	// numbers of the runtime's maps are there once something was used.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	// Everything is bounded; should something not be, this program ends and not
	// the machine's memory.
	_ = unix.Setrlimit(unix.RLIMIT_DATA, &unix.Rlimit{Cur: maxData, Max: maxData})
	// The filter takes this, and itself, to all threads.
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return os.NewSyscallError("no_new_privs", err)
	}
	landlock()
	filter := program()
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	const setModeFilter, flagTSync = 1, 1
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, setModeFilter, flagTSync, uintptr(unsafe.Pointer(&prog)))
	runtime.KeepAlive(filter)
	if errno != 0 {
		return os.NewSyscallError("seccomp", errno)
	}
	return nil
}

// landlock closes all files, a second wall behind the filter; kernels without
// it have the filter alone, and so have threads of a berth that was built with
// cgo and stands in for the helper program.
func landlock() {
	attr := struct{ fs uint64 }{1<<13 - 1} // all rights of its first version
	fd, _, errno := unix.Syscall(unix.SYS_LANDLOCK_CREATE_RULESET, uintptr(unsafe.Pointer(&attr)), unsafe.Sizeof(attr), 0)
	if errno != 0 {
		return
	}
	defer unix.Close(int(fd))
	_, _, _ = syscall.AllThreadsSyscall6(unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0, 0) // it asks for this first
	_, _, _ = syscall.AllThreadsSyscall(unix.SYS_LANDLOCK_RESTRICT_SELF, fd, 0, 0)
}

const (
	ld    = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
	jeq   = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
	ret   = unix.BPF_RET | unix.BPF_K
	allow = 0x7fff0000
	deny  = 0x00050000 | uint32(unix.EPERM)
	noSys = 0x00050000 | uint32(unix.ENOSYS)
	kill  = 0x80000000
)

// program is the filter: the numbers above, threads but no processes, and
// sockets of IP.
func program() []unix.SockFilter {
	stmt := func(code uint16, k uint32) unix.SockFilter { return unix.SockFilter{Code: code, K: k} }
	jump := func(k uint32, yes, no uint8) unix.SockFilter {
		return unix.SockFilter{Code: jeq, K: k, Jt: yes, Jf: no}
	}
	arch := uint32(unix.AUDIT_ARCH_X86_64)
	if runtime.GOARCH == "arm64" {
		arch = unix.AUDIT_ARCH_AARCH64
	}
	p := []unix.SockFilter{
		stmt(ld, 4), jump(arch, 1, 0), stmt(ret, kill),
		stmt(ld, 0),
		// glibc, in a berth that stands in for the helper program, then takes clone.
		jump(unix.SYS_CLONE3, 0, 1), stmt(ret, noSys),
		jump(unix.SYS_SOCKET, 0, 5), stmt(ld, 16), jump(unix.AF_INET, 1, 0), jump(unix.AF_INET6, 0, 1), stmt(ret, allow), stmt(ret, deny),
		// Threads of its own get signals, no other process does: neither at once
		// nor, by fcntl, when a socket has something.
		jump(unix.SYS_TGKILL, 0, 4), stmt(ld, 16), jump(uint32(os.Getpid()), 0, 1), stmt(ret, allow), stmt(ret, deny),
	}
	p = append(p, jump(unix.SYS_FCNTL, 0, uint8(len(controls)+3)), stmt(ld, 24))
	for i, c := range controls {
		p = append(p, jump(c, uint8(len(controls)-i), 0))
	}
	p = append(p, stmt(ret, deny), stmt(ret, allow))
	for _, nr := range allowed {
		if nr == unix.SYS_CLONE { // threads alone
			p = append(p, jump(nr, 0, 4), stmt(ld, 16), stmt(unix.BPF_ALU|unix.BPF_AND|unix.BPF_K, unix.CLONE_THREAD),
				jump(0, 1, 0), stmt(ret, allow), stmt(ret, deny))
			// the last two: a thread; anything else
			p[len(p)-6].Jf = 5
			continue
		}
		p = append(p, jump(nr, 0, 1), stmt(ret, allow))
	}
	return append(p, stmt(ret, deny))
}
