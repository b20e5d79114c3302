//go:build linux

package resident

import (
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/logs"
	"berth/sandbox/local/wire"
)

// output reads what a watch is answered, straight from the logs.
func (r *caller) output(w *wire.CallWatch, p *wire.Process) error {
	if w.Most <= 0 {
		return nil
	}
	out, errs := max(p.Stdout-w.Stdout, 0), max(p.Stderr-w.Stderr, 0)
	if !w.Ends || out+errs <= w.Most {
		n, err := r.read(w.ID, logs.Stdout, w.Stdout, w.Most)
		if err == nil {
			_, err = r.read(w.ID, logs.Stderr, w.Stderr, w.Most-n)
		}
		return err
	}
	for _, s := range []struct {
		stream   logs.Stream
		from, to int64
	}{{logs.Stdout, w.Stdout, p.Stdout}, {logs.Stderr, w.Stderr, p.Stderr}} {
		share := w.Most / 2
		if s.to-s.from <= share {
			if _, err := r.read(w.ID, s.stream, s.from, share); err != nil {
				return err
			}
			continue
		}
		if _, err := r.read(w.ID, s.stream, s.from, share/5); err != nil {
			return err
		}
		if _, err := r.read(w.ID, s.stream, s.to-(share-share/5), share-share/5); err != nil {
			return err
		}
	}
	return nil
}

func (r *caller) read(id string, s logs.Stream, from, most int64) (int64, error) {
	c, err := logs.Read(r.dir+"/"+journal.OutputDir, id, s, from, most)
	if err != nil {
		return 0, failed("read output", err)
	}
	n := int64(len(c.Data))
	if n > 0 || c.Next > from {
		r.answer.Pieces = append(r.answer.Pieces, wire.CallPiece{Stderr: s == logs.Stderr, At: c.Next - n, Size: n})
		r.out = append(r.out, c.Data...)
	}
	return n, nil
}

// reach tries a TCP connection, and lets it go. A firewall may take connections
// only to reset them: one counts that is there when the time is over, or that the
// other end said something on or ended.
func (r *caller) reach() error {
	to, family := address(r.call.Reach.Address)
	if to == nil {
		return &wire.Error{Code: wire.CodeInvalid, Text: "address: an IPv4 or IPv6 address and a port"}
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil // of a family that there is not, nothing can be reached
	}
	defer unix.Close(fd)
	late := time.Now().Add(time.Duration(r.call.Reach.WaitMS) * time.Millisecond)
	switch err := unix.Connect(fd, to); {
	case err == nil:
	case err != unix.EINPROGRESS || !ready(fd, unix.POLLOUT, late):
		return nil
	}
	if code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR); err != nil || code != 0 {
		return nil
	}
	r.answer.Reached = true
	if ready(fd, unix.POLLIN, late) {
		_, err := unix.Read(fd, make([]byte, 1))
		r.answer.Reached = err == nil
	}
	return nil
}

// ready waits until there is something to do with fd, or it is late.
func ready(fd int, events int16, late time.Time) bool {
	for {
		fds := []unix.PollFd{{Fd: int32(fd), Events: events}}
		if n, err := unix.Poll(fds, int(max(0, time.Until(late).Milliseconds()))); err != unix.EINTR {
			return n > 0 && err == nil
		}
	}
}

func address(text string) (unix.Sockaddr, int) {
	at := strings.LastIndexByte(text, ':')
	if at < 0 {
		return nil, 0
	}
	port, err := strconv.ParseUint(text[at+1:], 10, 16)
	a, ok := parseAddr(strings.Trim(text[:at], "[]"))
	if err != nil || !ok {
		return nil, 0
	}
	if a.Is4() {
		return &unix.SockaddrInet4{Port: int(port), Addr: a.As4()}, unix.AF_INET
	}
	return &unix.SockaddrInet6{Port: int(port), Addr: a.As16()}, unix.AF_INET6
}
