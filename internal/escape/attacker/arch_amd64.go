//go:build linux

package main

import (
	"os"
	"os/exec"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

const x32 = 0x40000000

var archProbes = []probe{
	filtered("x32", "the x32 system call table",
		call{name: "x32 getpid", nr: x32 | unix.SYS_GETPID, want: unix.ENOSYS},
		call{name: "x32 keyctl", nr: x32 | unix.SYS_KEYCTL, want: unix.ENOSYS},
		call{name: "x32 mount", nr: x32 | unix.SYS_MOUNT, args: [6]uintptr{bad, bad, bad}, want: unix.ENOSYS}),
	filtered("io_ports", "the machine's ports",
		call{name: "iopl", nr: unix.SYS_IOPL, args: [6]uintptr{9}},
		call{name: "ioperm", nr: unix.SYS_IOPERM, args: [6]uintptr{1 << 40, 1, 1}}),
	{name: "int80", refused: "the 32-bit system call table as a way around the filter", run: int80},
}

// syscall32 makes a system call of the 32-bit table.
func syscall32(nr, a, b, c uint32) int32

// int80 tries in a child, since the filter may answer with a signal.
func int80(t *target) escape.Finding {
	var ways []string
	for name, nr := range map[string]string{"keyctl": "288", "unshare": "310", "mount": "21", "bpf": "357", "io_uring_setup": "425", "clone3": "435", "userfaultfd": "374"} {
		cmd := exec.Command(os.Args[0], "tool", "int80", nr)
		out, err := cmd.CombinedOutput()
		if err == nil {
			continue
		}
		if ws, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
			if ws.Signal() == syscall.SIGSYS || ws.Signal() == syscall.SIGSEGV {
				continue // SIGSEGV: a kernel without the 32-bit table
			}
		}
		ways = append(ways, "32-bit "+name+": "+string(out))
	}
	return found(ways, "refused")
}
