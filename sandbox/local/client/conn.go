//go:build linux

// Package client is berth's side of a sandbox's monitor: it starts monitors,
// speaks to them, and reads what they leave behind.
//
// A Conn may be used by any number of goroutines at once. Reading output asks
// no monitor: it is read straight from the sandbox's state directory.
package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox"
	"berth/sandbox/local/journal"
	"berth/sandbox/local/terms"
	"berth/sandbox/local/wire"
)

// Conn is a connection to the monitor of one sandbox. When it breaks while
// that monitor lives it is made anew; when the monitor has gone, every call
// fails at once with ErrGone.
type Conn struct {
	dir   string
	hello wire.Hello // whom we speak to

	mu     sync.Mutex
	link   *link
	closed bool
}

// link is one socket, with the requests that wait on it.
type link struct {
	conn *wire.Conn
	done chan struct{} // closed when it is broken

	mu    sync.Mutex
	next  uint64
	calls map[uint64]chan *wire.Frame
	dead  bool
}

// errBroken tells that the socket ended before the answer came.
var errBroken = errors.New("the connection to the monitor broke")

// Alive reads dir's record and reports whether its monitor lives. The record
// is nil when there never was one.
func Alive(dir string) (*wire.Record, bool, error) {
	r, err := journal.ReadRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return r, journal.Alive(r), nil
}

// Dial connects to the monitor of the sandbox with state directory dir. It
// fails with ErrGone when there is none, or when it is just ending.
func Dial(ctx context.Context, dir string) (*Conn, error) {
	c := &Conn{dir: dir}
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.link = l
	return c, nil
}

func (c *Conn) dial(ctx context.Context) (*link, error) {
	r, alive, err := Alive(c.dir)
	if err != nil {
		return nil, err
	}
	if !alive || r.Stopped != 0 || c.hello.PID != 0 && (r.MonitorPID != c.hello.PID || r.Boot != c.hello.Boot || r.Started != c.hello.Started) {
		return nil, ErrGone
	}
	fd, err := connect(c.dir)
	if err != nil {
		if errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOENT) {
			return nil, ErrGone // it has just ended, or not begun yet
		}
		return nil, err
	}
	conn, err := wire.Socket(fd, 0)
	if err != nil {
		return nil, err
	}
	l := &link{conn: conn, done: make(chan struct{}), calls: map[uint64]chan *wire.Frame{}}
	go l.read()
	var h wire.Hello
	if _, err := l.call(ctx, wire.OpHello, wire.Hello{Version: wire.Version}, nil, &h); err != nil {
		l.close()
		if errors.Is(err, errBroken) {
			return nil, ErrGone
		}
		return nil, err
	}
	if h.PID != r.MonitorPID || h.Boot != r.Boot {
		l.close()
		return nil, ErrGone // the socket of another one
	}
	c.hello = h
	c.hello.Started = r.Started
	return l, nil
}

// connect dials the monitor's socket, also when its path is longer than a
// socket address can be.
func connect(dir string) (int, error) {
	d, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer unix.Close(d)
	for {
		fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return 0, os.NewSyscallError("socket", err)
		}
		// Blocking: a full backlog makes it wait for the monitor's accept.
		tv := unix.Timeval{Sec: 5}
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &tv)
		err = unix.Connect(fd, &unix.SockaddrUnix{Name: socketPath(d)})
		if err == nil {
			return fd, nil
		}
		_ = unix.Close(fd)
		if err != unix.EINTR {
			return 0, os.NewSyscallError("connect", err)
		}
	}
}

func socketPath(dirFD int) string {
	return "/proc/self/fd/" + strconv.Itoa(dirFD) + "/" + journal.SocketName
}

func (l *link) read() {
	for {
		f, err := l.conn.Recv()
		if err != nil {
			break
		}
		l.mu.Lock()
		ch := l.calls[f.ID]
		delete(l.calls, f.ID)
		l.mu.Unlock()
		if ch == nil {
			closeFiles(f.Files)
			continue
		}
		ch <- f
	}
	_ = l.conn.Close()
	l.mu.Lock()
	l.dead = true
	l.mu.Unlock()
	close(l.done)
}

func (l *link) close() { _ = l.conn.Close(); <-l.done }

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

// call sends one request and decodes its answer into out. Whoever gets the
// frame owns its files. When ctx ends first, a late answer is dropped, and a wait
// is ended at the monitor too.
func (l *link) call(ctx context.Context, op string, body any, data []byte, out any, files ...*os.File) (*wire.Frame, error) {
	if body == nil {
		body = struct{}{}
	}
	ch := make(chan *wire.Frame, 1)
	l.mu.Lock()
	if l.dead {
		l.mu.Unlock()
		return nil, errBroken
	}
	l.next++
	id := l.next
	l.calls[id] = ch
	l.mu.Unlock()
	err := l.conn.Send(wire.Header{ID: id, Op: op, Aside: sandbox.IsAside(ctx)}, body, data, files...)
	if err != nil {
		if l.drop(id) == nil {
			closeFiles((<-ch).Files)
		}
		var errno unix.Errno
		if errors.As(err, &errno) || errors.Is(err, os.ErrClosed) {
			_ = l.conn.Close()
			return nil, errBroken
		}
		return nil, err
	}
	var f *wire.Frame
	select {
	case f = <-ch:
	case <-l.done:
		select {
		case f = <-ch: // it came just before the end
		default:
			return nil, errBroken
		}
	case <-ctx.Done():
		if l.drop(id) == nil {
			closeFiles((<-ch).Files)
		} else if op == wire.OpWait {
			l.cancel(id)
		}
		return nil, ctx.Err()
	}
	if f.Error != nil {
		closeFiles(f.Files)
		return nil, terms.Error(f.Error)
	}
	if out != nil {
		if err := json.Unmarshal(f.Body, out); err != nil {
			closeFiles(f.Files)
			return nil, fmt.Errorf("the monitor's answer to %s cannot be understood: %w", op, err)
		}
	}
	return f, nil
}

// drop forgets a request; nil when its answer is on its way to the channel.
func (l *link) drop(id uint64) chan *wire.Frame {
	l.mu.Lock()
	defer l.mu.Unlock()
	ch := l.calls[id]
	delete(l.calls, id)
	return ch
}

// cancel ends a wait at the monitor, so that it keeps nothing for us. Nobody
// listens to either answer.
func (l *link) cancel(request uint64) {
	l.mu.Lock()
	l.next++
	id := l.next
	l.mu.Unlock()
	_ = l.conn.Send(wire.Header{ID: id, Op: wire.OpCancel}, wire.Cancel{Request: request}, nil)
}

// current is the link in use, made anew when it is broken and the monitor lives.
func (c *Conn) current(ctx context.Context) (*link, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, sandbox.ErrClosed
	}
	select {
	case <-c.link.done:
	default:
		return c.link, nil
	}
	l, err := c.dial(ctx)
	if err != nil {
		return nil, err
	}
	c.link = l
	return l, nil
}

// call is for requests that may be sent twice: it sends again on a new
// connection when the old one broke.
func (c *Conn) call(ctx context.Context, op string, body, out any) (*wire.Frame, error) {
	for range 3 {
		l, err := c.current(ctx)
		if err != nil {
			return nil, err
		}
		f, err := l.call(ctx, op, body, nil, out)
		if !errors.Is(err, errBroken) {
			return f, err
		}
		if err := settle(ctx, l); err != nil {
			return nil, err
		}
	}
	return nil, ErrGone
}

// settle waits until a broken link's reader has ended too.
func settle(ctx context.Context, l *link) error {
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// once is for requests that must not be sent twice.
func (c *Conn) once(ctx context.Context, op string, body any, data []byte, out any, files ...*os.File) (*wire.Frame, error) {
	l, err := c.current(ctx)
	if err != nil {
		return nil, err
	}
	f, err := l.call(ctx, op, body, data, out, files...)
	if errors.Is(err, errBroken) {
		if _, alive, aerr := Alive(c.dir); aerr == nil && !alive {
			return nil, ErrGone
		}
	}
	return f, err
}

// Close ends the connection; pending calls fail. The sandbox runs on.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.link.close()
	return nil
}

// Done is closed when the present connection breaks, which is when the monitor
// ends; a later call may make a new one.
func (c *Conn) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.link.done
}

// Hello tells whom the connection leads to.
func (c *Conn) Hello() wire.Hello { return c.hello }

// Usage of the whole sandbox.
func (c *Conn) Usage(ctx context.Context) (wire.Usage, error) {
	var u wire.Usage
	_, err := c.call(ctx, wire.OpUsage, nil, &u)
	return u, err
}

// Configure sets the intervals that the monitor enforces, and counts as activity.
func (c *Conn) Configure(ctx context.Context, i wire.Intervals) error {
	_, err := c.call(ctx, wire.OpConfigure, i, nil)
	return err
}

// Limit sets other limits for what runs.
func (c *Conn) Limit(ctx context.Context, to wire.LimitChange) error {
	_, err := c.call(ctx, wire.OpLimit, to, nil)
	return err
}

// Network sets the policy, unless set is nil, and tells what holds and what was refused.
func (c *Conn) Network(ctx context.Context, set *wire.Network) (wire.NetworkState, error) {
	var s wire.NetworkState
	_, err := c.call(ctx, wire.OpNetwork, wire.NetworkChange{Set: set}, &s)
	return s, err
}

// Refusals puts what a monitor tells into the domain's terms.
func Refusals(list []wire.Refusal) []sandbox.Refusal { return terms.Refusals(list) }

// Touch counts as activity.
func (c *Conn) Touch(ctx context.Context) error {
	_, err := c.call(ctx, wire.OpTouch, nil, nil)
	return err
}

// Stop ends everything inside and returns when the monitor has recorded its
// end and is gone. When ctx ends first, the stop goes on.
func (c *Conn) Stop(ctx context.Context, reason string) error {
	_, err := c.call(ctx, wire.OpStop, wire.Stop{Reason: reason}, nil)
	if err != nil && !errors.Is(err, ErrGone) {
		return err
	}
	return waitDead(ctx, c.dir)
}

// MakeWay ends the sandbox as Stop does, unless something runs in it: then it
// does nothing and answers busy. What is deleted on a stop is kept.
func (c *Conn) MakeWay(ctx context.Context) (busy bool, err error) {
	var w wire.MadeWay
	_, err = c.once(ctx, wire.OpMakeWay, nil, nil, &w)
	if err != nil && !errors.Is(err, ErrGone) || w.Busy {
		return w.Busy, err
	}
	return false, waitDead(ctx, c.dir)
}

// Freeze makes everything inside stand still until Thaw or Close, for at most
// a minute. Use a connection of its own, so that the end of this process ends
// the freeze.
func (c *Conn) Freeze(ctx context.Context) error {
	_, err := c.once(ctx, wire.OpFreeze, nil, nil, nil)
	return err
}

// Thaw ends the freeze; an error means that it had ended before, and that files
// may have changed meanwhile.
func (c *Conn) Thaw(ctx context.Context) error {
	_, err := c.once(ctx, wire.OpThaw, nil, nil, nil)
	return err
}

// waitDead returns when dir has no live monitor.
func waitDead(ctx context.Context, dir string) error {
	for pause := 200 * time.Microsecond; ; pause = min(2*pause, 20*time.Millisecond) {
		_, alive, err := Alive(dir)
		if err != nil || !alive {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
