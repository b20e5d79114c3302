package cli

import (
	"os"
	"strconv"

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

// unblocked is the pipe that f is, opened once more, so that Go waits for it as it
// waits for a socket: a read of f itself keeps a thread, and each request has to be
// handed to another. f stays as it is, since its mode is also that of whoever else
// has it. What is no pipe is returned itself.
func unblocked(f *os.File) *os.File {
	c, err := f.SyscallConn()
	if err != nil {
		return f
	}
	again := f
	_ = c.Control(func(fd uintptr) {
		var st unix.Stat_t
		if unix.Fstat(int(fd), &st) != nil || st.Mode&unix.S_IFMT != unix.S_IFIFO {
			return
		}
		// It fails where /proc is not mounted, or the pipe is another user's.
		if o, err := os.OpenFile("/proc/self/fd/"+strconv.Itoa(int(fd)), os.O_RDONLY|unix.O_NONBLOCK, 0); err == nil {
			again = o
		}
	})
	return again
}
