//go:build linux

package local

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/boxbin"
	"berth/sandbox/local/wire"
)

// boxProgram is the helper program, opened once per process: the embedded one
// from a sealed memory file, which nobody can change; without it, this program
// itself, whose main hands over to package entry. embedded tells which.
var boxProgram = onceOK(func() (f *os.File, embedded bool, err error) {
	box := boxbin.Open(runtime.GOARCH)
	if box == nil {
		if !wire.StandsIn() {
			return nil, false, errors.New("the helper program box is not built in, and this program cannot stand in for it; run go generate ./sandbox/local/boxbin, or call entry.Main first of all")
		}
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
	if _, err := io.Copy(f, box); err != nil {
		_ = f.Close()
		return nil, false, fmt.Errorf("memory file for the helper program: %w", err)
	}
	seals := unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW
	// Its mode too: where root inside is this user, it could be made
	// unusable for later starts. Linux 6.3 and newer can.
	const sealExec = 0x20
	_, _ = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, sealExec)
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals|unix.F_SEAL_SEAL); err != nil {
		_ = f.Close()
		return nil, false, fmt.Errorf("seal the helper program: %w", err)
	}
	return f, true, nil
})

// helperName is the name of the embedded program's copy on disk.
var helperName = onceOK(func() (name string, size int64, err error) {
	box := boxbin.Open(runtime.GOARCH)
	if box == nil {
		return "", 0, nil
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, box); err != nil {
		return "", 0, err
	}
	return "box-" + hex.EncodeToString(sum.Sum(nil)[:12]), box.Size(), nil
})

// helper is a copy of the embedded program on disk, for the one use that a
// memory file does not fit: it cannot be mounted. Sandboxes see it read-only.
// Empty when nothing is embedded.
func (s *store) helper() (string, error) {
	name, size, err := helperName()
	if err != nil || name == "" {
		return "", err
	}
	path := s.path("bin", name)
	if fi, err := os.Lstat(path); err == nil && fi.Mode().IsRegular() && fi.Size() == size {
		return path, nil
	}
	f, err := os.CreateTemp(s.path("bin"), ".box-")
	if err != nil {
		return "", fmt.Errorf("keep the helper program: %w", err)
	}
	defer os.Remove(f.Name()) // nothing there after the rename
	_, err = io.Copy(f, boxbin.Open(runtime.GOARCH))
	if err == nil {
		err = f.Chmod(0o555)
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("keep the helper program: %w", err)
	}
	return path, nil
}

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
