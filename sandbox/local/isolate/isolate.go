//go:build linux

// Package isolate builds a sandbox on this machine: namespaces, id maps, the
// root of layers and binds, and cgroups. It starts init (package guest) as
// PID 1 inside and hands the connection to it to the caller, the sandbox's
// monitor.
package isolate

import "berth/sandbox/local/wire"

// Sandbox is a running sandbox. Its methods may be called concurrently.
type Sandbox struct {
	// Conn leads to init: OpStart, OpSignal, OpTree, OpHalt and the file ops
	// go in, OpExited and OpGone come out. The caller alone receives on it.
	// What comes out was written beside hostile programs.
	Conn *wire.Conn
	// Ready is what holds in this sandbox.
	Ready wire.Ready
	// PID of init, as seen outside.
	PID int
}

// Start builds the sandbox of l and returns when commands can run in it. Its
// errors are *wire.Error; the text says what is missing and how to get it, and
// then nothing is left behind.
func Start(l *wire.Launch) (*Sandbox, error) {
	return nil, &wire.Error{Code: wire.CodeUnsupported, Text: "isolation is not built in yet"}
}

// Wait returns when init is gone, and with it every process inside. An error
// tells that init ended by a fault of its own.
func (s *Sandbox) Wait() error { return nil }

// Usage of all commands together; -1 where not known. IdleSince is not set.
func (s *Sandbox) Usage() wire.Usage {
	return wire.Usage{CPUNS: -1, Memory: -1, Processes: -1}
}

// Close, after Wait, removes what the sandbox has outside: cgroups and mounts.
// It may be repeated.
func (s *Sandbox) Close() error { return nil }

// CgroupName is the name of the cgroups of the sandbox with state directory
// dir, below "berth" in each hierarchy.
func CgroupName(dir string) string { return dir }

// RemoveStale removes the cgroups of those names (see CgroupName), left by
// monitors that were killed. Processes still in them are killed.
func RemoveStale(names []string) error { return nil }
