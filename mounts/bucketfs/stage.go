//go:build linux

package bucketfs

import (
	"errors"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stage holds the whole content of a file that is being written: a little of it
// in memory, more in an unnamed file.
type stage struct {
	f *FS
	// Guarded by the node's mu.
	dirty bool
	// old: the object has changed since; new opens do not see the stage.
	old bool

	mu   sync.RWMutex // guards what follows
	mem  []byte
	file *os.File
	size int64
	// upload is what is already on its way; guarded by the node's write lock.
	upload *upload
	// tried are the ids of writes into the bucket that may have arrived;
	// guarded by the node's write lock.
	tried []string
	// end is where the last write ended; guarded by the node's write lock.
	end int64
}

// memMax is up to where a file is staged in memory.
const memMax = 64 << 10

func (f *FS) newStage() *stage { return &stage{f: f} }

// roomWait is how long one who needs room waits for it: the kernel tells that a
// file is no longer open after its close has returned, and only then is what was
// staged of it given back.
const roomWait = time.Second

// grow accounts for a new size and refuses what is over the bound.
func (s *stage) grow(size int64) error {
	limit := s.f.o.View.StagingBytes
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		if total := s.f.staged.Add(size - s.size); limit <= 0 || total <= limit || size <= s.size {
			s.size = size
			return nil
		}
		s.f.staged.Add(s.size - size)
		if size > limit || time.Since(began) >= roomWait {
			return syscall.ENOSPC
		}
	}
}

// spill moves the content into a file; mu is held.
func (s *stage) spill() error {
	if s.file != nil {
		return nil
	}
	dir := s.f.o.Staging
	if dir == "" {
		dir = os.TempDir()
	}
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	var file *os.File
	if err == nil {
		file = os.NewFile(uintptr(fd), "staged")
	} else { // not every file system has unnamed files
		if file, err = os.CreateTemp(dir, ".berth-staged-"); err != nil {
			return err
		}
		if err := os.Remove(file.Name()); err != nil {
			file.Close()
			return err
		}
	}
	if _, err := file.WriteAt(s.mem, 0); err != nil {
		file.Close()
		return err
	}
	if err := file.Truncate(s.size); err != nil {
		file.Close()
		return err
	}
	s.file, s.mem = file, nil
	return nil
}

// WriteAt is as io.WriterAt says; what lies between reads as zeros.
func (s *stage) WriteAt(p []byte, off int64) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	end := off + int64(len(p))
	before := s.size
	if end > s.size {
		if err := s.grow(end); err != nil {
			return 0, err
		}
	}
	n, err := s.write(p, off, end, before)
	if err != nil && s.size > before {
		_ = s.grow(max(before, off+int64(n)))
	}
	return n, err
}

func (s *stage) write(p []byte, off, end, before int64) (int, error) {
	if s.file == nil && end <= memMax {
		if end > int64(len(s.mem)) {
			s.mem = append(s.mem, make([]byte, end-int64(len(s.mem)))...)
		}
		return copy(s.mem[off:], p), nil
	}
	if s.file == nil {
		size := s.size
		s.size = before
		err := s.spill()
		s.size = size
		if err != nil {
			return 0, err
		}
	}
	return s.file.WriteAt(p, off)
}

// ReadAt is as io.ReaderAt says.
func (s *stage) ReadAt(p []byte, off int64) (int, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if off >= s.size {
		return 0, io.EOF
	}
	short := int64(len(p)) > s.size-off
	if short {
		p = p[:s.size-off]
	}
	var n int
	var err error
	if s.file != nil {
		n, err = s.file.ReadAt(p, off)
	} else {
		n = copy(p, s.mem[off:])
	}
	if errors.Is(err, io.EOF) && n < len(p) { // a hole at the end
		clear(p[n:])
		n, err = len(p), nil
	}
	if err == nil && short {
		err = io.EOF
	}
	return n, err
}

// truncate changes the size.
func (s *stage) truncate(size int64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	before := s.size
	if err := s.grow(size); err != nil {
		return err
	}
	err := error(nil)
	switch {
	case s.file != nil:
		err = s.file.Truncate(size)
	case size <= memMax:
		if size > int64(len(s.mem)) {
			s.mem = append(s.mem, make([]byte, size-int64(len(s.mem)))...)
		}
		s.mem = s.mem[:size]
	default:
		err = s.spill()
	}
	if err != nil {
		_ = s.grow(before)
	}
	return err
}

// longFile is from what size on a file's pages are given back while it is written.
const longFile = 64 << 20

// sent is told that a range is on its way for now. Of a long file it goes to the
// disk, and what went there before leaves the machine's memory: it is only needed
// again when it is written to or the service loses it, and pages that were just in
// use are cheaper than new ones.
func (s *stage) sent(off, length int64) {
	s.mu.RLock()
	file, long := s.file, s.size >= longFile
	s.mu.RUnlock()
	if file == nil || !long {
		return
	}
	raw, err := file.SyscallConn()
	if err != nil {
		return
	}
	// Advice: the kernel does what it can. It keeps what is not on the disk yet, so
	// the range before is asked for once more.
	_ = raw.Control(func(fd uintptr) {
		_ = unix.SyncFileRange(int(fd), off, length, unix.SYNC_FILE_RANGE_WRITE)
		before := max(0, off-4*length)
		_ = unix.Fadvise(int(fd), before, off-before, unix.FADV_DONTNEED)
	})
}

func (s *stage) length() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.size
}

// drop gives everything back.
func (s *stage) drop() {
	if s == nil {
		return
	}
	s.upload.abandon()
	s.mu.Lock()
	defer s.mu.Unlock()
	_ = s.grow(0)
	s.mem = nil
	if s.file != nil {
		s.file.Close()
		s.file = nil
	}
}
