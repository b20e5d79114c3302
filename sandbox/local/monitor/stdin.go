//go:build linux

package monitor

import (
	"os"
	"strconv"
	"sync"

	"berth/sandbox/local/wire"
)

// stdinBacklog is how many bytes may wait for a process that does not read.
const stdinBacklog = 1 << 20

// stdin is the queue of bytes for a process. A goroutine feeds them only while
// there are some.
type stdin struct {
	file *os.File
	tty  bool

	mu      sync.Mutex
	queue   []byte
	taken   int64 // bytes ever queued
	last    byte  // the last byte queued
	end     bool  // nothing more is accepted
	closed  bool
	feeding bool
}

// write queues all of p, or nothing, and then the end. at, when given, is how
// much must have been queued before.
func (s *stdin) write(p []byte, end bool, at *int64) *wire.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case at != nil && *at != s.taken:
		return &wire.Error{Code: wire.CodeStdinMoved, Text: "stdin has taken another number of bytes meanwhile", Path: strconv.FormatInt(s.taken, 10)}
	case s.end || s.closed:
		return &wire.Error{Code: wire.CodeStdinClosed, Text: "stdin is closed"}
	case len(s.queue) > 0 && len(s.queue)+len(p) > stdinBacklog:
		return &wire.Error{Code: wire.CodeLimit, Text: "the process does not read its stdin, and 1 MiB is waiting; nothing of this was written: read its output, then send again"}
	}
	s.queue = append(s.queue, p...)
	s.taken += int64(len(p))
	if len(p) > 0 {
		s.last = p[len(p)-1]
	}
	if end {
		s.end = true
		if s.tty { // the terminal's end of file; a part of a line takes one more
			if s.last != 0 && s.last != '\n' {
				s.queue = append(s.queue, 4)
			}
			s.queue = append(s.queue, 4)
		}
	}
	if !s.feeding && (len(s.queue) > 0 || s.end) {
		s.feeding = true
		go s.feed()
	}
	return nil
}

func (s *stdin) feed() {
	for {
		s.mu.Lock()
		if s.closed || len(s.queue) == 0 {
			s.feeding = false
			if s.end && !s.closed {
				s.shut()
			}
			s.queue = nil
			s.mu.Unlock()
			return
		}
		p := s.queue[:min(len(s.queue), 64<<10)]
		s.mu.Unlock()
		n, err := s.file.Write(p) // waits for room in the pipe
		s.mu.Lock()
		s.queue = s.queue[n:]
		if err != nil {
			s.shut() // nobody will ever read
		}
		s.mu.Unlock()
	}
}

// shut closes our end; s.mu is held. A terminal is closed with its output.
func (s *stdin) shut() {
	if s.closed {
		return
	}
	s.closed, s.end = true, true
	if !s.tty {
		_ = s.file.Close()
	}
}

func (s *stdin) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.shut()
	if !s.feeding {
		s.queue = nil
	}
}

// counts tells whether stdin is open, and how many bytes it has taken.
func (s *stdin) counts() (open bool, taken int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.end && !s.closed, s.taken
}
