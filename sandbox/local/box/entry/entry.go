//go:build linux

// Package entry is what the helper program box does, for every program that
// can stand in for it: berth itself, when box is not built in, and tests.
package entry

import (
	"os"
	"path/filepath"
	"strings"

	"berth/sandbox/local/box/resident"
	"berth/sandbox/local/gate"
	"berth/sandbox/local/guest"
	"berth/sandbox/local/monitor"
	"berth/sandbox/local/wire"
)

// Main runs the part that args, a program's os.Args, name, and then ends the
// program. It returns false when they name none.
func Main(args []string) bool {
	wire.StandIn()
	if len(args) == 0 {
		return false
	}
	switch filepath.Base(args[0]) {
	case "sudo":
		os.Exit(guest.Sudo(args[1:]))
	case "fusermount3", "fusermount":
		os.Exit(guest.Fusermount(args[1:]))
	}
	if len(args) < 2 {
		return false
	}
	switch args[1] {
	case "monitor":
		if args[0] != "box" {
			return false // a berth's own argument
		}
		monitor.Main()
	case "gate":
		if args[0] != "box" {
			return false
		}
		os.Exit(gate.Main())
	case "resident", "call", "as", "signal", "nothing":
		if !strings.HasPrefix(filepath.Base(args[0]), "box") {
			return false // as above; as a resident, box has a name of its own
		}
		os.Exit(inside(args[1], args[2:]))
	case "bucket":
		if args[0] != "box" {
			return false
		}
		os.Exit(bucket(args[2:]))
	case "settle":
		if args[0] != "box" {
			return false // as above
		}
		os.Exit(settle(args[2:]))
	case "init":
		if os.Getpid() != 1 {
			return false
		}
		guest.Main()
		os.Exit(0)
	}
	return false
}

// inside are the parts of box in a foreign sandbox.
func inside(part string, args []string) int {
	switch part {
	case "resident":
		return resident.Main(args)
	case "call":
		return resident.Call()
	case "as":
		return guest.BecomeMain(args)
	case "signal":
		return guest.SignalMain(args)
	}
	return 0 // nothing: whoever runs it learns that it can be run
}
