package cli

import "syscall"

// machineMemory is how many bytes of memory this machine has; 0: not known.
func machineMemory() uint64 {
	var i syscall.Sysinfo_t
	if syscall.Sysinfo(&i) != nil {
		return 0
	}
	return uint64(i.Totalram) * uint64(i.Unit) //nolint:unconvert // narrower on other processors
}
