//go:build linux

package guest

import (
	"os"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
)

// commandCaps is the bounding set of commands, and what root inside has:
// Docker's default.
const commandCaps = 1<<unix.CAP_CHOWN | 1<<unix.CAP_DAC_OVERRIDE | 1<<unix.CAP_FSETID | 1<<unix.CAP_FOWNER |
	1<<unix.CAP_MKNOD | 1<<unix.CAP_NET_RAW | 1<<unix.CAP_SETGID | 1<<unix.CAP_SETUID | 1<<unix.CAP_SETFCAP |
	1<<unix.CAP_SETPCAP | 1<<unix.CAP_NET_BIND_SERVICE | 1<<unix.CAP_SYS_CHROOT | 1<<unix.CAP_KILL | 1<<unix.CAP_AUDIT_WRITE

// beyond are the capabilities that commands never have.
func beyond(last int) (list []uintptr) {
	for i := uintptr(0); i <= uintptr(last); i++ {
		if commandCaps&(1<<i) == 0 {
			list = append(list, i)
		}
	}
	return list
}

// Bound takes from the bounding set, which init hands down to all commands, what
// these may not have, so that each need not do it: two dozen system calls. Init
// itself has its capabilities by the inheritable set then, which commands empty.
// What cannot be taken here is taken from each command.
func Bound(p *raw.Program, stage uint32) {
	full := unix.CapUserData{Effective: ^uint32(0), Permitted: ^uint32(0), Inheritable: ^uint32(0)}
	header := &unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	p.Must(stage, unix.SYS_CAPSET, raw.Keep(p, header), raw.Keep(p, &[2]unix.CapUserData{full, full}))
	for _, i := range beyond(lastCap()) {
		p.Try(unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, i)
	}
}

func lastCap() int {
	b, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	n := 0
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + int(c-'0')
	}
	if err != nil || n == 0 || n > 63 {
		return 63
	}
	return n
}
