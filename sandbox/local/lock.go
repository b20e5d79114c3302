//go:build linux

package local

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// A lock is held while one life-cycle operation changes a sandbox, by one
// berth process. Its file tells others which operation that is. The kernel lets
// go of it when the process ends, however it ends.
type lock struct {
	f    *os.File
	path string
}

// Operations, as they stand in a lock's file. They become transitional statuses.
const (
	opCreating   = "creating"
	opStarting   = "starting"
	opStopping   = "stopping"
	opArchiving  = "archiving"
	opDestroying = "destroying"
	opOther      = "changing" // short, and shown as no status
)

// acquire takes the lock at path, waiting for others until ctx ends, and writes
// op into it. A lock file may be removed by its holder: whoever then gets the
// removed file's lock must try again, hence the comparison.
func acquire(ctx context.Context, path, op string) (*lock, error) {
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		l, err := tryAcquire(path, op)
		if err == nil || !errors.Is(err, errLocked) {
			return l, err
		}
		t := time.NewTimer(wait)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, ctx.Err()
		case <-t.C:
		}
	}
}

var errLocked = errors.New("another berth process is just changing this sandbox")

func tryAcquire(path, op string) (*lock, error) {
	for {
		f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = f.Close()
			if err == unix.EWOULDBLOCK {
				return nil, errLocked
			}
			return nil, err
		}
		if !sameFile(f, path) {
			_ = f.Close()
			continue
		}
		l := &lock{f: f, path: path}
		l.mark(op)
		return l, nil
	}
}

func flock(f *os.File, how int) error {
	for {
		if err := unix.Flock(int(f.Fd()), how); err != unix.EINTR {
			return err
		}
	}
}

func sameFile(f *os.File, path string) bool {
	var a, b unix.Stat_t
	return unix.Fstat(int(f.Fd()), &a) == nil && unix.Lstat(path, &b) == nil && a.Ino == b.Ino && a.Dev == b.Dev
}

// mark says what the holder does; not precious, so not synced.
func (l *lock) mark(op string) {
	_ = l.f.Truncate(0)
	_, _ = l.f.WriteAt([]byte(op), 0)
}

// release lets go. With remove, the file goes too: its sandbox is gone.
func (l *lock) release(remove bool) {
	if remove {
		_ = os.Remove(l.path)
	} else {
		_ = l.f.Truncate(0)
	}
	_ = l.f.Close()
}

// operation tells what the lock at path is held for; empty when it is free. It
// takes the lock for a moment in shared mode, which others' attempts outlast.
func operation(path string) string {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return ""
	}
	defer f.Close()
	if flock(f, unix.LOCK_SH|unix.LOCK_NB) == nil {
		return ""
	}
	buf := make([]byte, 32)
	n, _ := f.ReadAt(buf, 0)
	if n == 0 {
		return opOther
	}
	return string(buf[:n])
}

func (s *store) lockPath(id string) string { return filepath.Join(s.dir, "locks", id) }
