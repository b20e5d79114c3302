//go:build linux

package monitor

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/logs"
)

const (
	chunkSize = 128 << 10 // one read of a pipe
	pipeSize  = 256 << 10 // of pipes that prove busy; all of a user's count
	tellAfter = 512 << 10
	chunks    = 4 // buffers in use at once
)

// chunkPool holds the buffers. Their number bounds them, however many streams
// print at once. They lie outside of the heap: so a page is taken when there is
// something to read into it, and goes back when the monitor rests.
var chunkPool = func() chan []byte {
	pool := make(chan []byte, chunks)
	for range chunks {
		pool <- nil // made when it is first used
	}
	return pool
}()

// chunk takes a buffer; it waits while all are in use.
func chunk() []byte {
	buf := <-chunkPool
	if buf == nil {
		var err error
		if buf, err = unix.Mmap(-1, 0, chunkSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
			buf = make([]byte, chunkSize)
		}
	}
	return buf
}

// restChunks gives the memory of unused buffers back.
func restChunks() {
	for range chunks {
		select {
		case buf := <-chunkPool:
			if buf != nil && unix.Madvise(buf, unix.MADV_DONTNEED) != nil {
				buf = nil // not one of Mmap's
			}
			chunkPool <- buf
		default:
			return
		}
	}
}

// stream moves what a process prints from its pipe or terminal into a log.
type stream struct {
	tty   bool
	moved func()        // called by run after moves, without locks
	total *atomic.Int64 // bytes on disk of all streams

	mu   sync.Mutex // held while bytes move, so that none is between pipe and log
	file *os.File   // nil, as raw and log are, when done
	raw  syscall.RawConn
	log  *logs.Writer
	big  bool
	done bool

	// What the log holds, to be read without mu.
	produced, oldest, end, lost, size atomic.Int64
}

func newStream(f *os.File, tty bool, log *logs.Writer, total *atomic.Int64, moved func()) (*stream, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	return &stream{file: f, raw: raw, tty: tty, log: log, total: total, moved: moved}, nil
}

// run moves bytes until the last writer is gone. Those who wait are told when
// the pipe is empty, or of much at once: a word for each chunk would cost more
// than the chunk.
func (s *stream) run() {
	file := s.file
	_ = s.raw.Read(func(fd uintptr) bool {
		told := s.produced.Load()
		for {
			state := s.move(int(fd))
			if now := s.produced.Load(); now > told && (state != moveMore || now-told >= tellAfter) {
				told = now
				s.moved()
			}
			switch state {
			case moveEnd:
				return true
			case moveEmpty:
				return false
			}
		}
	})
	s.mu.Lock()
	s.done = true
	s.log.Close()
	s.file, s.raw, s.log, s.moved = nil, nil, nil, nil // many ended streams are kept
	s.mu.Unlock()
	_ = file.Close() // waits for drain, which may wait for mu
}

// live reports whether the stream has a writer.
func (s *stream) live() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.done
}

// control calls f with the descriptor, unless the stream has ended.
func (s *stream) control(f func(fd uintptr)) error {
	s.mu.Lock()
	raw := s.raw
	s.mu.Unlock()
	if raw == nil {
		return os.ErrClosed
	}
	return raw.Control(f)
}

// drain moves what is in the pipe now, without waiting for more. A leftover
// that prints without end does not keep it.
func (s *stream) drain() {
	_ = s.control(func(fd uintptr) {
		s.mu.Lock()                          // else a chunk on its way would be counted twice
		left, at := 1<<20, s.produced.Load() // a terminal does not tell how much it holds
		if n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ); err == nil && !s.tty {
			left = n
		}
		s.mu.Unlock()
		for s.produced.Load()-at < int64(left) && s.move(int(fd)) == moveMore {
		}
	})
}

const (
	moveMore = iota
	moveEmpty
	moveEnd
)

// move takes one chunk from the pipe to the log.
func (s *stream) move(fd int) int {
	s.mu.Lock()
	if s.done {
		s.mu.Unlock()
		return moveEnd
	}
	buf := chunk()
	n, err := unix.Read(fd, buf)
	if n > 0 {
		s.log.Write(buf[:n])
		s.publish()
	}
	chunkPool <- buf
	if n >= 64<<10 && !s.big && !s.tty {
		s.big = true
		_, _ = unix.FcntlInt(uintptr(fd), unix.F_SETPIPE_SZ, pipeSize) // or go on with what there is
	}
	s.mu.Unlock()
	switch {
	case n > 0:
		return moveMore
	case err == unix.EAGAIN:
		return moveEmpty
	case err == unix.EINTR:
		return moveMore
	}
	return moveEnd // no writer is left: 0 from a pipe, EIO from a terminal
}

// publish makes the log's present state readable; s.mu is held.
func (s *stream) publish() {
	r := s.log.Range()
	s.oldest.Store(r.Oldest)
	s.lost.Store(r.Lost)
	s.produced.Store(s.log.Produced())
	s.end.Store(r.End)
	s.total.Add(r.Size - s.size.Swap(r.Size))
}

// shrink drops the oldest segment; false when there is none to drop.
func (s *stream) shrink() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.done || s.log.DropOldest() == 0 {
		return false
	}
	s.publish()
	return true
}

// forget ends the stream from our side; its files are about to be deleted.
func (s *stream) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.done {
		s.done = true
		s.log.Close()
		go s.file.Close() // by run too; waits for those who move bytes; they may wait for our caller's locks
	}
}
