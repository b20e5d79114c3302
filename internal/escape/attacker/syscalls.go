//go:build linux

package main

import (
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

// bad is an address that can be neither read nor written. A kernel that looks
// at a call's arguments answers EFAULT or EINVAL; a filter never looks.
const bad = 1

// call is a system call that must not get past the filter, and its refusal.
type call struct {
	name string
	nr   uintptr
	args [6]uintptr
	want syscall.Errno
}

func (c call) try() (uintptr, syscall.Errno) {
	r, _, errno := syscall.RawSyscall6(c.nr, c.args[0], c.args[1], c.args[2], c.args[3], c.args[4], c.args[5])
	return r, errno
}

// refuse tells of calls that were answered otherwise than by the filter.
func refuse(calls ...call) escape.Finding {
	var ways []string
	for _, c := range calls {
		r, errno := c.try()
		switch {
		case errno == c.want:
		case errno == 0:
			ways = append(ways, fmt.Sprintf("%s succeeded: %d", c.name, r))
		default:
			ways = append(ways, fmt.Sprintf("%s reached the kernel: %v, want %v", c.name, errno, c.want))
		}
	}
	return found(ways, "%d calls refused", len(calls))
}

func filtered(name, refused string, calls ...call) probe {
	for i := range calls {
		if calls[i].want == 0 {
			calls[i].want = unix.EPERM
		}
	}
	return probe{name: name, refused: refused, run: func(*target) escape.Finding { return refuse(calls...) }}
}

var syscallProbes = append(archProbes,
	filtered("keyrings", "keyctl, add_key, request_key",
		call{name: "keyctl", nr: unix.SYS_KEYCTL, args: [6]uintptr{unix.KEYCTL_GET_KEYRING_ID, ^uintptr(2)}},
		call{name: "add_key", nr: unix.SYS_ADD_KEY, args: [6]uintptr{bad, bad}},
		call{name: "request_key", nr: unix.SYS_REQUEST_KEY, args: [6]uintptr{bad, bad}}),
	filtered("bpf", "loading programs into the kernel", call{name: "bpf", nr: unix.SYS_BPF, args: [6]uintptr{0, bad, 8}}),
	filtered("perf", "perf_event_open", call{name: "perf_event_open", nr: unix.SYS_PERF_EVENT_OPEN, args: [6]uintptr{bad, 0, ^uintptr(0), ^uintptr(0)}}),
	filtered("io_uring", "io_uring",
		call{name: "io_uring_setup", nr: unix.SYS_IO_URING_SETUP, args: [6]uintptr{1, bad}},
		call{name: "io_uring_enter", nr: unix.SYS_IO_URING_ENTER, args: [6]uintptr{^uintptr(0)}},
		call{name: "io_uring_register", nr: unix.SYS_IO_URING_REGISTER, args: [6]uintptr{^uintptr(0)}}),
	filtered("userfaultfd", "stalling the kernel in a page fault",
		call{name: "userfaultfd", nr: unix.SYS_USERFAULTFD, args: [6]uintptr{1}},
		call{name: "userfaultfd", nr: unix.SYS_USERFAULTFD, args: [6]uintptr{0xffff}}),
	filtered("clone3", "clone3, whose flags no filter can read; ENOSYS, so that libraries fall back",
		call{name: "clone3", nr: unix.SYS_CLONE3, want: unix.ENOSYS}),
	probe{name: "open_by_handle", refused: "opening files by their number on the disk", run: openByHandle},
	probe{name: "address_families", refused: "sockets of AF_ALG and AF_VSOCK", run: families},
	filtered("unshare", "new namespaces of any kind",
		call{name: "unshare user", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWUSER}},
		call{name: "unshare mount", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWNS}},
		call{name: "unshare net", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWNET}},
		call{name: "unshare pid", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWPID}},
		call{name: "unshare ipc", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWIPC}},
		call{name: "unshare uts", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWUTS}},
		call{name: "unshare cgroup", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWCGROUP}},
		call{name: "unshare time", nr: unix.SYS_UNSHARE, args: [6]uintptr{unix.CLONE_NEWTIME}}),
	probe{name: "clone_namespaces", refused: "children in new namespaces, user namespaces above all", run: cloneNamespaces},
	filtered("setns", "entering another namespace", call{name: "setns", nr: unix.SYS_SETNS, args: [6]uintptr{^uintptr(0), 0}}),
	filtered("mount_calls", "the mount system calls, old and new",
		call{name: "mount", nr: unix.SYS_MOUNT, args: [6]uintptr{bad, bad, bad}},
		call{name: "umount2", nr: unix.SYS_UMOUNT2, args: [6]uintptr{bad}},
		call{name: "pivot_root", nr: unix.SYS_PIVOT_ROOT, args: [6]uintptr{bad, bad}},
		call{name: "open_tree", nr: unix.SYS_OPEN_TREE, args: [6]uintptr{^uintptr(99), bad}},
		call{name: "move_mount", nr: unix.SYS_MOVE_MOUNT, args: [6]uintptr{^uintptr(99), bad, ^uintptr(99), bad}},
		call{name: "fsopen", nr: unix.SYS_FSOPEN, args: [6]uintptr{bad}},
		call{name: "fsconfig", nr: unix.SYS_FSCONFIG, args: [6]uintptr{^uintptr(0)}},
		call{name: "fsmount", nr: unix.SYS_FSMOUNT, args: [6]uintptr{^uintptr(0)}},
		call{name: "fspick", nr: unix.SYS_FSPICK, args: [6]uintptr{^uintptr(99), bad}},
		call{name: "mount_setattr", nr: unix.SYS_MOUNT_SETATTR, args: [6]uintptr{^uintptr(99), bad}}),
	filtered("modules", "loading and removing kernel modules",
		call{name: "init_module", nr: unix.SYS_INIT_MODULE, args: [6]uintptr{bad, 8, bad}},
		call{name: "finit_module", nr: unix.SYS_FINIT_MODULE, args: [6]uintptr{^uintptr(0), bad}},
		call{name: "delete_module", nr: unix.SYS_DELETE_MODULE, args: [6]uintptr{bad}}),
	filtered("kexec", "starting another kernel",
		call{name: "kexec_load", nr: unix.SYS_KEXEC_LOAD, args: [6]uintptr{0, 17, bad, 0xffff}},
		call{name: "kexec_file_load", nr: unix.SYS_KEXEC_FILE_LOAD, args: [6]uintptr{^uintptr(0), ^uintptr(0), 0, 0, 0xffff}}),
	filtered("reboot", "reboot, whose magic numbers are wrong here", call{name: "reboot", nr: unix.SYS_REBOOT, args: [6]uintptr{1, 2, 3, 4}}),
	filtered("swap", "swapon and swapoff",
		call{name: "swapon", nr: unix.SYS_SWAPON, args: [6]uintptr{bad, 0xffffff}},
		call{name: "swapoff", nr: unix.SYS_SWAPOFF, args: [6]uintptr{bad}}),
	filtered("quota", "quotactl and process accounting",
		call{name: "quotactl", nr: unix.SYS_QUOTACTL, args: [6]uintptr{0xffffffff, bad}},
		call{name: "quotactl_fd", nr: unix.SYS_QUOTACTL_FD, args: [6]uintptr{^uintptr(0), 0xffffffff}},
		call{name: "acct", nr: unix.SYS_ACCT, args: [6]uintptr{bad}}),
	filtered("clock", "setting the machine's time",
		call{name: "clock_settime", nr: unix.SYS_CLOCK_SETTIME, args: [6]uintptr{0, bad}},
		call{name: "settimeofday", nr: unix.SYS_SETTIMEOFDAY, args: [6]uintptr{bad, bad}}),
	probe{name: "adjust_clock", refused: "adjtimex with a change", run: adjustClock},
	filtered("kernel_log", "reading the kernel's log", call{name: "syslog", nr: unix.SYS_SYSLOG, args: [6]uintptr{99, bad, 8}}),
	filtered("numa", "moving memory of others", call{name: "move_pages", nr: unix.SYS_MOVE_PAGES, args: [6]uintptr{1, 1, bad, bad, bad}}),
	filtered("watch", "fanotify over whole file systems", call{name: "fanotify_init", nr: unix.SYS_FANOTIFY_INIT, args: [6]uintptr{0xffffffff}}),
	filtered("hangup", "vhangup, lookup_dcookie",
		call{name: "lookup_dcookie", nr: unix.SYS_LOOKUP_DCOOKIE, args: [6]uintptr{0, bad, 8}}),
	probe{name: "personality", refused: "personalities that weaken memory protection", run: personality},
)

// handle is struct file_handle with room for the largest.
type handle struct {
	bytes uint32
	kind  int32
	data  [128]byte
}

func openByHandle(t *target) escape.Finding {
	var ways []string
	// First the root directory of the disk below, by its well-known number.
	guesses := []handle{{bytes: 8, kind: 1, data: [128]byte{2}}}
	for _, path := range []string{"/", "/usr", "/etc/passwd", "/proc/self/exe"} {
		h := handle{bytes: uint32(len(handle{}.data))}
		var mount int32
		name, _ := unix.BytePtrFromString(path)
		dir := unix.AT_FDCWD
		if _, _, e := syscall.RawSyscall6(unix.SYS_NAME_TO_HANDLE_AT, uintptr(dir), uintptr(unsafe.Pointer(name)),
			uintptr(unsafe.Pointer(&h)), uintptr(unsafe.Pointer(&mount)), unix.AT_SYMLINK_FOLLOW, 0); e == 0 {
			guesses = append(guesses, h)
		}
	}
	for _, path := range []string{"/", "/usr", "/etc", "/tmp", "/home", "/workspace"} {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_DIRECTORY, 0)
		if err != nil {
			continue
		}
		for _, h := range guesses {
			r, _, e := syscall.RawSyscall(unix.SYS_OPEN_BY_HANDLE_AT, uintptr(fd), uintptr(unsafe.Pointer(&h)), unix.O_RDONLY)
			if e == 0 {
				ways = append(ways, fmt.Sprintf("open_by_handle_at on %s opened %s", path, link(int(r))))
			} else if e != unix.EPERM {
				ways = append(ways, fmt.Sprintf("open_by_handle_at on %s reached the kernel: %v", path, e))
			}
		}
		_ = unix.Close(fd)
	}
	return found(ways, "%d handles refused", len(guesses))
}

func families(t *target) escape.Finding {
	var ways []string
	for name, family := range map[string]int{"AF_ALG": unix.AF_ALG, "AF_VSOCK": unix.AF_VSOCK} {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
			fd, err := unix.Socket(family, kind, 0)
			if err == nil {
				ways = append(ways, fmt.Sprintf("socket(%s, %d) opened", name, kind))
				_ = unix.Close(fd)
			} else if err != unix.EPERM {
				ways = append(ways, fmt.Sprintf("socket(%s, %d) reached the kernel: %v", name, kind, err))
			}
		}
		if fds, err := unix.Socketpair(family, unix.SOCK_STREAM, 0); err == nil {
			ways = append(ways, fmt.Sprintf("socketpair(%s): %v", name, fds))
		}
	}
	return found(ways, "refused")
}

func cloneNamespaces(t *target) escape.Finding {
	var ways []string
	flags := map[string]uintptr{"user": unix.CLONE_NEWUSER, "mount": unix.CLONE_NEWNS, "net": unix.CLONE_NEWNET, "pid": unix.CLONE_NEWPID,
		"ipc": unix.CLONE_NEWIPC, "uts": unix.CLONE_NEWUTS, "cgroup": unix.CLONE_NEWCGROUP, "user+mount": unix.CLONE_NEWUSER | unix.CLONE_NEWNS}
	for name, flag := range flags {
		for _, attr := range []*syscall.SysProcAttr{{Cloneflags: flag}, {Unshareflags: flag}} {
			cmd := exec.Command(os.Args[0], "list", "agent")
			cmd.SysProcAttr = attr
			if err := cmd.Run(); err == nil {
				ways = append(ways, "a child lives in a new "+name+" namespace")
			} else if strings.Contains(err.Error(), "invalid argument") {
				ways = append(ways, "clone into a new "+name+" namespace reached the kernel: "+err.Error())
			}
		}
	}
	return found(ways, "%d kinds refused", len(flags))
}

func adjustClock(t *target) escape.Finding {
	var tx unix.Timex
	if _, err := unix.Adjtimex(&tx); err != nil && err != unix.EPERM {
		return broken("adjtimex: %v", err)
	}
	// The present values again: a change that changes nothing.
	tx.Modes = 0x4000 // ADJ_TICK
	tick := tx.Tick
	if tick == 0 {
		tx.Tick = 10000
	}
	if _, err := unix.Adjtimex(&tx); err == nil {
		return escaped("adjtimex set the tick to %d", tx.Tick)
	}
	return held("refused")
}

func personality(t *target) escape.Finding {
	const readImpliesExec = 0x0400000
	var ways []string
	for _, p := range []uintptr{readImpliesExec, 0x0100000 /* MMAP_PAGE_ZERO */, 0x0010000 /* nothing defined */} {
		if _, _, e := syscall.RawSyscall(unix.SYS_PERSONALITY, p, 0, 0); e == 0 {
			ways = append(ways, fmt.Sprintf("personality(%#x) accepted", p))
		}
	}
	return found(ways, "refused")
}

func link(fd int) string {
	s, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	if err != nil {
		return err.Error()
	}
	return s
}
