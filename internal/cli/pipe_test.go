//go:build linux

package cli

import (
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A pipe is read by way of another descriptor, whose end is the pipe's, and keeps
// its mode; a file is read itself.
func TestUnblocked(t *testing.T) {
	var fds [2]int
	if err := syscall.Pipe(fds[:]); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	again := unblocked(r)
	if again == r {
		t.Fatal("the pipe was not opened once more")
	}
	defer again.Close()
	if mode, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || mode&unix.O_NONBLOCK != 0 {
		t.Errorf("the pipe's own mode is %#x, %v; want it to block", mode, err)
	}
	if _, err := w.WriteString("hello"); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if b, err := io.ReadAll(again); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}

	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if unblocked(f) != f {
		t.Error("a file was opened once more")
	}
}
