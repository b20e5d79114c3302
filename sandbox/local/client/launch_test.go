//go:build linux

package client

import (
	"os"
	"testing"
)

// TestBoxCommandAmongManyFiles starts programs while the files that they are
// given have the highest descriptors of all, but for the program's, and there is
// room below.
func TestBoxCommandAmongManyFiles(t *testing.T) {
	box, err := os.Open("/bin/true")
	if err != nil {
		t.Fatal(err)
	}
	defer box.Close()
	var open []*os.File
	defer func() { closeFiles(open) }()
	for range 100 {
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		open = append(open, null)
	}
	room, null := open[:8], open[99]
	cmd, program, err := boxCommand(box, []*os.File{null})
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	closeFiles(room)
	open = open[8:]
	cmd.Stdin, cmd.Stdout, cmd.Stderr = null, null, null
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
}
