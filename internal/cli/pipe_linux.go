package cli

import (
	"os"

	"golang.org/x/sys/unix"
)

// widen lets a pipe hold a megabyte, so that a large answer goes through it in
// a few pieces instead of sixteen and more. It is no matter when it cannot.
func widen(f any) {
	if file, ok := f.(*os.File); ok {
		if c, err := file.SyscallConn(); err == nil {
			_ = c.Control(func(fd uintptr) { _, _ = unix.FcntlInt(fd, unix.F_SETPIPE_SZ, 1<<20) })
		}
	}
}
