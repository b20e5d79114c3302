//go:build linux

package monitor

import (
	"os"
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
	last    byte // the last byte queued
	end     bool // nothing more is accepted
	closed  bool
	feeding bool
}

// write queues all of p, or nothing, and then the end.
func (s *stdin) write(p []byte, end bool) *wire.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.end || s.closed:
		return &wire.Error{Code: wire.CodeStdinClosed, Text: "stdin is closed"}
	case len(s.queue) > 0 && len(s.queue)+len(p) > stdinBacklog:
		return &wire.Error{Code: wire.CodeLimit, Text: "the process does not read its stdin, and 1 MiB is waiting; nothing of this was written: read its output, then send again"}
	}
	s.queue = append(s.queue, p...)
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

func (s *stdin) open() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.end && !s.closed
}
