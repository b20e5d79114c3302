//go:build linux

package guest

import (
	"errors"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/isolate/raw"
	"berth/sandbox/local/wire"
)

// limitPatience is how long a start waits for a limit to make room.
const limitPatience = 300 * time.Millisecond

// spawn starts c below a new shim of t, and returns when it runs. The caller
// sets ended and calls watch.
func (g *guest) spawn(t *tree, c *command) (*shim, error) {
	s, err := g.try(t, c)
	// Those that a kill has just ended count until they are reaped.
	for end := time.Now().Add(limitPatience); err != nil && wireError(err).Code == wire.CodeLimit && time.Now().Before(end); s, err = g.try(t, c) {
		time.Sleep(10 * time.Millisecond)
	}
	return s, err
}

func (g *guest) try(t *tree, c *command) (*shim, error) {
	userns := -1
	single := g.single()
	if single && c.user.UID != 0 {
		var err error
		if userns, err = g.nestedNS(c.user.UID, c.user.GID); err != nil {
			return nil, err
		}
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, pathError("", err)
	}
	_ = unix.SetNonblock(fds[0], true)
	report := os.NewFile(uintptr(fds[0]), "report")
	p := g.program(t, c, fds[1], userns)

	g.hold.RLock()
	defer g.hold.RUnlock()
	g.mu.Lock() // so that nobody takes the shim for a stray
	if g.halting {
		g.mu.Unlock()
		_ = report.Close()
		_ = unix.Close(fds[1])
		return nil, &wire.Error{Code: wire.CodeStopping, Text: "the sandbox is being stopped; nothing was started"}
	}
	child, err := g.startShim(p)
	s := &shim{tree: t, report: report, dead: make(chan unix.WaitStatus, 1)}
	if err == nil {
		s.child = child
		g.shims[child.PID] = s
		t.shims[s] = true
	}
	g.mu.Unlock()
	_ = unix.Close(fds[1])
	g.children.Born()
	if err != nil {
		_ = report.Close()
		return nil, g.startError(c, raw.Event{Stage: stageFork, Value: errnoOf(err)})
	}
	e, err := g.firstReport(s)
	switch {
	case err == io.EOF:
		// Somebody killed the shim, perhaps its command, which has thus started.
		return s, nil
	case err == nil && e.Kind == raw.Started:
		child.Release()
		s.main = int(e.Value)
		return s, nil
	}
	g.mu.Lock()
	delete(t.shims, s)
	g.mu.Unlock()
	go s.discard()
	if err != nil {
		return nil, err
	}
	return nil, g.startError(c, e)
}

// startShim starts the shim in init's memory, but where a command that gives up
// its rights would open that memory to its new user.
func (g *guest) startShim(p *raw.Program) (*raw.Child, error) {
	if !g.share {
		pid, err := p.Start(0)
		return &raw.Child{PID: pid}, err
	}
	return p.StartShared(0)
}

// A start that takes this long is held up on purpose.
const startPatience = 20 * time.Second

var errHeldUp error = &wire.Error{Code: wire.CodeHeldUp, Text: "the command was held up for " + startPatience.String() +
	" before its program began, and was ended; something in the sandbox stops it, such as a file system that does not answer: look at list_processes, or stop the sandbox"}

// firstReport waits for the shim's first word; io.EOF when there is none. A
// command has its user's rights before its program runs, so that others of that
// user can stop it there: it is told to go on, and ended when that does not help.
func (g *guest) firstReport(s *shim) (raw.Event, error) {
	var buf [raw.EventSize]byte
	const step = 100 * time.Millisecond
	for end := time.Now().Add(startPatience); ; {
		_ = s.report.SetReadDeadline(time.Now().Add(step))
		n, err := s.report.Read(buf[:])
		switch {
		case n == len(buf):
			_ = s.report.SetReadDeadline(time.Time{})
			return raw.Decode(buf[:]), nil
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return raw.Event{}, io.EOF
		}
		sig := unix.SIGCONT
		if time.Now().After(end) {
			sig = unix.SIGKILL
		}
		for _, pid := range children(s.child.PID) {
			_ = unix.Kill(pid, sig)
		}
		if sig == unix.SIGKILL {
			_ = unix.Kill(s.child.PID, sig)
			_ = s.report.SetReadDeadline(time.Time{})
			return raw.Event{}, errHeldUp
		}
	}
}

// children lists the processes that pid has started, as long as it waits for them.
func children(pid int) (list []int) {
	id := strconv.Itoa(pid)
	b, _ := os.ReadFile("/proc/" + id + "/task/" + id + "/children")
	for _, f := range strings.Fields(string(b)) {
		if n, err := strconv.Atoi(f); err == nil {
			list = append(list, n)
		}
	}
	return list
}

// discard keeps a shim whose command did not start until nobody runs in its
// memory any more: the shim and its child hold the report open as long as they
// do, and the shim is gone besides.
func (s *shim) discard() {
	_, _ = io.Copy(io.Discard, s.report)
	_ = s.report.Close()
	<-s.dead
	runtime.KeepAlive(s.child)
}

func errnoOf(err error) int64 {
	if errno, ok := err.(unix.Errno); ok {
		return int64(errno)
	}
	return int64(unix.EINVAL)
}
