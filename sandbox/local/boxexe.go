//go:build linux

package local

import (
	"fmt"
	"os"
	"runtime"
	"sync"

	"berth/sandbox/local/boxbin"
	"golang.org/x/sys/unix"
)

// boxProgram is the helper program, opened once per process: the embedded one
// from a sealed memory file, which nobody can change; without it, this program
// itself, whose main hands over to package entry. embedded tells which.
var boxProgram = onceOK(func() (f *os.File, embedded bool, err error) {
	b := boxbin.Bytes(runtime.GOARCH)
	if b == nil {
		f, err = os.Open("/proc/self/exe")
		return f, false, err
	}
	fd, err := unix.MemfdCreate("box", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING|unix.MFD_EXEC)
	if err == unix.EINVAL { // before Linux 6.3 all are executable
		fd, err = unix.MemfdCreate("box", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	}
	if err != nil {
		return nil, false, fmt.Errorf("memory file for the helper program: %w", err)
	}
	f = os.NewFile(uintptr(fd), "box")
	if _, err := f.Write(b); err != nil {
		_ = f.Close()
		return nil, false, fmt.Errorf("memory file for the helper program: %w", err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		_ = f.Close()
		return nil, false, fmt.Errorf("seal the helper program: %w", err)
	}
	return f, true, nil
})

// onceOK remembers a success, and tries again after a failure.
func onceOK[T, U any](f func() (T, U, error)) func() (T, U, error) {
	var mu sync.Mutex
	var done bool
	var t T
	var u U
	return func() (T, U, error) {
		mu.Lock()
		defer mu.Unlock()
		if done {
			return t, u, nil
		}
		var err error
		t, u, err = f()
		done = err == nil
		return t, u, err
	}
}
