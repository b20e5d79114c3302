package cli

import (
	"bytes"
	"fmt"
	"os"
	"strings"
)

// birthOf is the birth of a process of our namespace; its Start is empty when
// there is no such process, or only its remains are there.
func birthOf(pid int) birth {
	var b birth
	if id, err := os.ReadFile("/proc/sys/kernel/random/boot_id"); err == nil {
		b.Boot = strings.TrimSpace(string(id))
	}
	b.Namespace, _ = os.Readlink("/proc/self/ns/pid") // empty: not known
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return b
	}
	// The name, in brackets, may hold anything; the state is the first field
	// behind it, and the start time the twentieth.
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) > 19 && f[0][0] != 'Z' && f[0][0] != 'X' {
		b.Start = string(f[19])
	}
	return b
}
