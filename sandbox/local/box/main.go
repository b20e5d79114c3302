//go:build linux

// Box is the helper program of berth's local sandboxes: the monitor outside, init
// inside, and the sudo of its commands.
package main

import (
	"os"

	"berth/sandbox/local/box/entry"
)

func main() {
	if !entry.Main(os.Args) {
		_, _ = os.Stderr.WriteString("box is a part of berth and does nothing by itself\n")
		os.Exit(2)
	}
}
