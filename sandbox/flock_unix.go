//go:build linux || darwin

package sandbox

import (
	"errors"
	"os"
	"syscall"
)

// TryLock takes the lock of the file p, which is made when it is not there,
// against all processes of this machine. Release is nil when another holds it.
// The kernel lets go when the process ends, however it ends.
func TryLock(p string) (release func(), err error) {
	f, err := os.OpenFile(p, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	for {
		err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if !errors.Is(err, syscall.EINTR) {
			break
		}
	}
	if err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, nil
		}
		return nil, err
	}
	return func() { _ = f.Close() }, nil
}
