//go:build linux

package monitor

import (
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// Sandbox is what the monitor needs of a started sandbox; package isolate
// makes real ones.
type Sandbox interface {
	// Conn leads to init.
	Conn() *wire.Conn
	Ready() wire.Ready
	// Gate are the sockets for the egress gate, in the order of package gate/inside;
	// none without a gate. The monitor closes them.
	Gate() []*os.File
	// Kill ends init, and with it everything inside, at once.
	Kill()
	// Wait returns when init is gone.
	Wait() error
	Usage() wire.Usage
	// Close removes what the sandbox has outside.
	Close() error
}

// maxGuestCalls bounds requests that init has not answered.
const maxGuestCalls = 8192

// guest is the connection to init. What comes from it is hostile.
type guest struct {
	conn *wire.Conn

	mu    sync.Mutex
	next  uint64
	calls map[uint64]func(*wire.Frame, *wire.Error)
	gone  bool
}

var errGone = &wire.Error{Code: wire.CodeStopping, Text: "the sandbox has ended"}

// send asks init. done is called once, by the goroutine that reads from init,
// so that it runs before any later event is looked at; or by this one when
// there is no init. It owns the frame's files.
func (g *guest) send(op string, body any, data []byte, files []*os.File, done func(*wire.Frame, *wire.Error)) {
	g.mu.Lock()
	if g.gone {
		g.mu.Unlock()
		done(nil, errGone)
		return
	}
	if len(g.calls) >= maxGuestCalls {
		g.mu.Unlock()
		done(nil, &wire.Error{Code: wire.CodeLimit, Text: "the sandbox has too many requests waiting; try again when some are done"})
		return
	}
	g.next++
	id := g.next
	g.calls[id] = done
	g.mu.Unlock()
	if err := g.conn.Send(wire.Header{ID: id, Op: op}, body, data, files...); err != nil {
		e := &wire.Error{Code: wire.CodeInvalid, Text: "the request cannot be sent: " + err.Error()}
		if _, ok := err.(unix.Errno); ok {
			e = errGone
		}
		if done := g.take(id); done != nil {
			done(nil, e)
		}
	}
}

func (g *guest) take(id uint64) func(*wire.Frame, *wire.Error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	done := g.calls[id]
	delete(g.calls, id)
	return done
}

// call asks init and waits for the answer, at most for limit.
func (g *guest) call(op string, body any, limit time.Duration) (*wire.Frame, *wire.Error) {
	f, e := g.callFiles(op, body, limit)
	if f != nil {
		closeFiles(f.Files)
	}
	return f, e
}

// callFiles is call for an answer whose files the caller takes.
func (g *guest) callFiles(op string, body any, limit time.Duration) (*wire.Frame, *wire.Error) {
	type answer struct {
		f *wire.Frame
		e *wire.Error
	}
	ch := make(chan answer, 1)
	go g.send(op, body, nil, nil, func(f *wire.Frame, e *wire.Error) { ch <- answer{f, e} })
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case a := <-ch:
		return a.f, a.e
	case <-t.C:
		go func() {
			if a := <-ch; a.f != nil {
				closeFiles(a.f.Files)
			}
		}()
		return nil, &wire.Error{Code: wire.CodeInternal, Text: "the sandbox does not answer"}
	}
}

// read hands out answers and events until init is gone.
func (g *guest) read(event func(*wire.Frame)) {
	for {
		f, err := g.conn.Recv()
		if err != nil {
			break
		}
		if f.Op != "" || f.ID == 0 {
			closeFiles(f.Files)
			event(f)
			continue
		}
		done := g.take(f.ID)
		if done == nil { // not asked, or asked no more
			closeFiles(f.Files)
			continue
		}
		if f.Error != nil {
			closeFiles(f.Files)
			done(nil, clean(f.Error))
			continue
		}
		done(f, nil)
	}
	_ = g.conn.Close()
	g.mu.Lock()
	g.gone = true
	calls := g.calls
	g.calls = nil
	g.mu.Unlock()
	for _, done := range calls {
		done(nil, errGone)
	}
}

// clean bounds an error that init sent.
func clean(e *wire.Error) *wire.Error {
	return &wire.Error{Code: cut(e.Code, 32), Text: cut(e.Text, 4096), Path: cut(e.Path, 4096)}
}

func closeFiles(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
