//go:build linux

package logs

import (
	"strconv"
	"sync"

	"golang.org/x/sys/unix"
)

const (
	spares    = 4        // processes, or streams, that have their last words at a time
	spareSize = 16 << 10 // bytes of each
)

// Spare is room that is set aside on a disk that others may fill, for what processes
// say of it then: of a command that the full disk ended it is the reason. It is files
// with blocks and no bytes, each in a directory of its own, so that whoever needs
// one renames it, which takes no room and leaves none that somebody else could take.
type Spare struct {
	dir string

	mu   sync.Mutex
	full int // how many there are
}

// NewSpare sets room aside in dir, which has the logs. On a full disk, or where the
// file system cannot, there is less or none.
func NewSpare(dir string) *Spare {
	s := &Spare{dir: dir}
	s.Fill()
	return s
}

// Fill replaces what was taken, if there is room again. It costs nothing when none was.
func (s *Spare) Fill() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.full == spares {
		return
	}
	s.full = 0
	for i := range spares {
		var st unix.Stat_t
		if unix.Stat(s.file(i), &st) == nil || s.make(i) {
			s.full++
		}
	}
}

// No process has a name like it, see ValidID.
func (s *Spare) slot(i int) string { return s.dir + "/.spare." + strconv.Itoa(i) }
func (s *Spare) file(i int) string { return s.slot(i) + "/room" }

func (s *Spare) make(i int) bool {
	if err := unix.Mkdir(s.slot(i), 0o700); err != nil && err != unix.EEXIST {
		return false
	}
	fd, err := unix.Open(s.file(i), unix.O_WRONLY|unix.O_CREAT|unix.O_TRUNC|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	if err := unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 0, spareSize); err != nil {
		_ = unix.Unlink(s.file(i))
		return false
	}
	return true
}

// take makes a spare the file name in the process's directory dir, which it makes
// too, and opens it; -1 when there is none.
func (s *Spare) take(dir, name string) int {
	if s == nil {
		return -1
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range spares {
		var st unix.Stat_t
		if unix.Stat(s.file(i), &st) != nil {
			continue
		}
		err := unix.Rename(s.file(i), dir+"/"+name)
		if err == unix.ENOENT && unix.Rename(s.slot(i), dir) == nil {
			err = unix.Rename(dir+"/room", dir+"/"+name)
		}
		if err != nil {
			continue
		}
		s.full--
		fd, err := unix.Open(dir+"/"+name, unix.O_WRONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if err != nil {
			return -1
		}
		return fd
	}
	return -1
}
