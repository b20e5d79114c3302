//go:build !linux

package cli

// machineMemory is not known here.
func machineMemory() uint64 { return 0 }
