//go:build linux

package entry

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// A new heap is touched page by page, and each first touch is a trap: 13 µs on a
// virtual machine whose page tables the host shadows, and a starting monitor has
// hundreds. prefault asks for the heap's next bytes at once, where nearly all of them
// will be used; what is not goes back when the program first rests.
func prefault(bytes uintptr) {
	above = new([8 << 10]byte) // a span of its own, which lies above all that is in use
	start := (uintptr(unsafe.Pointer(above)) + unsafe.Sizeof(*above)) &^ 4095
	_, _, _ = unix.RawSyscall(unix.SYS_MADVISE, start, bytes, unix.MADV_POPULATE_WRITE) // before Linux 5.14 there is none
	above = nil
}

var above *[8 << 10]byte // a global, so that it is in the heap
