//go:build linux

package main

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
)

var processProbes = []probe{
	{name: "signals_outside", refused: "signals to processes of the host", run: signalsOutside},
	{name: "pidfd", refused: "descriptors of processes outside, and descriptors taken out of PID 1", run: pidfds},
	{name: "trace_init", refused: "tracing PID 1 and the shims, reading and writing their memory", run: traceInit},
	{name: "kill_init", refused: "ending or stopping PID 1 with SIGKILL and SIGSTOP", run: killInit},
	{name: "limit_init", refused: "lowering PID 1's resource limits", run: limitInit},
}

func signalsOutside(t *target) escape.Finding {
	var ways []string
	for _, pid := range t.PIDs {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
			continue // a process of this namespace that has the same number
		}
		for _, p := range []int{pid, -pid} {
			if err := unix.Kill(p, 0); err != unix.ESRCH {
				ways = append(ways, fmt.Sprintf("kill(%d, 0): %v", p, err))
			}
		}
		if err := unix.Tgkill(pid, pid, 0); err != unix.ESRCH {
			ways = append(ways, fmt.Sprintf("tgkill(%d): %v", pid, err))
		}
		if _, err := unix.Getpriority(unix.PRIO_PROCESS, pid); err != unix.ESRCH {
			ways = append(ways, fmt.Sprintf("getpriority(%d): %v", pid, err))
		}
		if _, err := unix.Getpgid(pid); err != unix.ESRCH {
			ways = append(ways, fmt.Sprintf("getpgid(%d): %v", pid, err))
		}
	}
	return found(ways, "%d processes unknown here", len(t.PIDs))
}

func pidfds(t *target) escape.Finding {
	var ways []string
	for _, pid := range t.PIDs {
		if _, err := os.Stat("/proc/" + strconv.Itoa(pid)); err == nil {
			continue
		}
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			ways = append(ways, fmt.Sprintf("pidfd_open(%d)", pid))
			_ = unix.Close(fd)
		}
	}
	if fd, err := unix.PidfdOpen(1, 0); err == nil {
		for n := range 64 {
			if got, err := unix.PidfdGetfd(fd, n, 0); err == nil {
				ways = append(ways, fmt.Sprintf("took descriptor %d of PID 1: %s", n, link(got)))
				_ = unix.Close(got)
			}
		}
		_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0)
		_ = unix.Close(fd)
	}
	return found(ways, "refused")
}

// ours lists PID 1 and its children, the shims, which share its memory.
func ours() []int {
	pids := []int{1}
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + e.Name() + "/stat")
		f := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(f) > 1 && f[1] == "1" {
			pids = append(pids, pid)
		}
	}
	return pids
}

func traceInit(t *target) escape.Finding {
	var ways []string
	pids := ours()
	for _, pid := range pids {
		for _, w := range trace(pid) {
			ways = append(ways, fmt.Sprintf("%s of PID %d", w, pid))
		}
	}
	if len(pids) < 2 {
		return escaped("no shim is seen, so nothing was tried on one")
	}
	return found(ways, "refused")
}

func trace(pid int) (ways []string) {
	const seize = 0x4206
	if _, _, e := syscall.RawSyscall6(unix.SYS_PTRACE, seize, uintptr(pid), 0, 0, 0, 0); e == 0 {
		ways = append(ways, "PTRACE_SEIZE")
	}
	if _, _, e := syscall.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_ATTACH, uintptr(pid), 0, 0, 0, 0); e == 0 {
		ways = append(ways, "PTRACE_ATTACH")
	}
	b := make([]byte, 8)
	local := []unix.Iovec{{Base: &b[0], Len: 8}}
	for _, at := range []uintptr{0x400000, 0x401000} {
		remote := []unix.RemoteIovec{{Base: at, Len: 8}}
		if n, err := unix.ProcessVMReadv(pid, local, remote, 0); err == nil && n > 0 {
			ways = append(ways, "read the memory")
		} else if err != unix.EPERM {
			ways = append(ways, fmt.Sprintf("process_vm_readv: %v", err))
		}
		if n, err := unix.ProcessVMWritev(pid, local, remote, 0); err == nil && n > 0 {
			ways = append(ways, "wrote the memory")
		}
	}
	if f, err := os.OpenFile(fmt.Sprintf("/proc/%d/mem", pid), os.O_RDWR, 0); err == nil {
		ways = append(ways, "opened mem")
		_ = f.Close()
	}
	if _, _, e := syscall.RawSyscall6(unix.SYS_KCMP, uintptr(pid), uintptr(os.Getpid()), 0, 0, 0, 0); e == 0 {
		ways = append(ways, "kcmp compared descriptors")
	}
	return ways
}

func killInit(t *target) escape.Finding {
	for _, s := range []syscall.Signal{unix.SIGKILL, unix.SIGSTOP} {
		_ = unix.Kill(1, s)
		_ = unix.Tgkill(1, 1, s)
	}
	time.Sleep(50 * time.Millisecond)
	b, err := os.ReadFile("/proc/1/stat")
	if err != nil {
		return escaped("PID 1 is gone: %v", err)
	}
	// "1 (name) S …"
	for i := len(b) - 1; i >= 0; i-- {
		if b[i] == ')' {
			if state := b[i+2]; state == 'T' || state == 't' || state == 'Z' || state == 'X' {
				return escaped("PID 1 is in state %c", state)
			}
			break
		}
	}
	return held("it lives on")
}

func limitInit(t *target) escape.Finding {
	var ways []string
	for name, r := range map[string]uintptr{"NOFILE": unix.RLIMIT_NOFILE, "CPU": unix.RLIMIT_CPU, "NPROC": unix.RLIMIT_NPROC, "FSIZE": unix.RLIMIT_FSIZE, "AS": unix.RLIMIT_AS} {
		var now unix.Rlimit
		if _, _, e := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 1, r, 0, uintptr(unsafe.Pointer(&now)), 0, 0); e != 0 {
			continue // what cannot be read cannot be set either
		}
		// The present values again: a change that changes nothing.
		if _, _, e := syscall.RawSyscall6(unix.SYS_PRLIMIT64, 1, r, uintptr(unsafe.Pointer(&now)), 0, 0, 0); e == 0 {
			ways = append(ways, "set PID 1's RLIMIT_"+name)
		}
	}
	return found(ways, "refused")
}
