//go:build linux

package monitor

import (
	"encoding/json"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// Bounds of one berth connection.
const (
	maxRequests = 4096     // not yet answered
	maxUnsent   = 64 << 20 // bytes of answers that the peer does not take
)

// peer is one berth connection.
type peer struct {
	m    *monitor
	conn *wire.Conn

	// Guarded by m.mu.
	waits  map[uint64]*waiter
	tokens map[uint64]bool // file writes begun and not ended
	closed bool

	mu       sync.Mutex
	queue    []outgoing
	unsent   int
	open     int // requests not yet answered
	onces    map[uint64]*once
	sending  bool
	dead     bool
	finished *sync.Cond
}

type outgoing struct {
	h     wire.Header
	body  any
	data  []byte
	files []*os.File
}

// listener takes over a listening socket.
func listener(fd int) (*os.File, error) {
	unix.CloseOnExec(fd)
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, os.NewSyscallError("listening socket", err)
	}
	return os.NewFile(uintptr(fd), "listener"), nil
}

func (m *monitor) accept(l *os.File) {
	raw, err := l.SyscallConn()
	if err != nil {
		return
	}
	for {
		var fd int
		var aerr error
		err := raw.Read(func(s uintptr) bool {
			fd, _, aerr = unix.Accept4(int(s), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return aerr != unix.EAGAIN
		})
		if err != nil {
			return
		}
		switch aerr {
		case nil:
			m.welcome(fd)
		case unix.EMFILE, unix.ENFILE, unix.ENOMEM, unix.ENOBUFS:
			time.Sleep(50 * time.Millisecond) // until someone lets go of descriptors
		}
	}
}

// welcome serves a new connection, if it is one of our user or root.
func (m *monitor) welcome(fd int) {
	cred, err := unix.GetsockoptUcred(fd, unix.SOL_SOCKET, unix.SO_PEERCRED)
	if err != nil || cred.Uid != uint32(os.Geteuid()) && cred.Uid != 0 {
		_ = unix.Close(fd)
		return
	}
	conn, err := wire.Socket(fd, wire.MaxFrame)
	if err != nil {
		return
	}
	p := &peer{m: m, conn: conn, waits: map[uint64]*waiter{}, tokens: map[uint64]bool{}}
	p.finished = sync.NewCond(&p.mu)
	m.mu.Lock()
	full := len(m.peers) >= maxPeers
	if !full {
		m.peers[p] = struct{}{}
	}
	m.mu.Unlock()
	if full {
		_ = conn.Close()
		return
	}
	go p.serve()
}

// serve handles the peer's requests until it goes away or sends what is no frame.
func (p *peer) serve() {
	for {
		f, err := p.conn.Recv()
		if err != nil {
			break
		}
		p.m.used()
		if f.ID == 0 || f.Op == "" {
			closeFiles(f.Files)
			break
		}
		p.mu.Lock()
		p.open++
		full := p.open > maxRequests
		p.mu.Unlock()
		if full {
			p.answer(f.ID, nil, &wire.Error{Code: wire.CodeLimit, Text: "this connection has too many requests open"})
			closeFiles(f.Files)
			continue
		}
		p.handle(f)
	}
	p.leave()
}

// leave drops all that the connection has begun.
func (p *peer) leave() {
	m := p.m
	_ = p.conn.Close()
	p.mu.Lock()
	p.drop()
	p.mu.Unlock()
	m.mu.Lock()
	p.closed = true
	delete(m.peers, p)
	for id, w := range p.waits {
		delete(w.p.waiters, w)
		w.p.waiting.Store(int32(len(w.p.waiters)))
		delete(p.waits, id)
	}
	tokens := p.tokens
	p.tokens = nil
	m.mu.Unlock()
	for t := range tokens {
		m.abort(t)
	}
	_ = p.thaw()
}

// drop forgets unsent answers; p.mu is held.
func (p *peer) drop() {
	p.dead = true
	for _, o := range p.queue {
		closeFiles(o.files)
	}
	p.queue, p.unsent = nil, 0
	p.finished.Broadcast()
}

// abort ends a write that nobody will commit.
func (m *monitor) abort(token uint64) {
	go m.guest.send(wire.OpCommit, &wire.Commit{Token: token, Abort: true}, nil, nil, func(f *wire.Frame, _ *wire.Error) {
		if f != nil {
			closeFiles(f.Files)
		}
	})
}

// answer sends an answer without waiting for the peer to take it. files are
// closed then.
func (p *peer) answer(id uint64, body any, e *wire.Error, files ...*os.File) {
	if v, ok := body.(*wire.Process); ok && v == nil {
		body = nil
	}
	o := outgoing{h: wire.Header{ID: id, Error: e}, body: body, files: files}
	if raw, ok := body.(json.RawMessage); ok {
		o.h.Body, o.body = raw, nil
	}
	p.mu.Lock()
	entry := p.onces[id]
	delete(p.onces, id)
	p.mu.Unlock()
	if entry != nil {
		p.m.onces.settle(entry, o.body, o.h.Body, e)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.open--
	if p.dead {
		closeFiles(files)
		return
	}
	p.queue = append(p.queue, o)
	p.unsent += 512 + len(o.h.Body)
	if p.unsent > maxUnsent {
		p.drop()
		_ = p.conn.Close()
		return
	}
	if !p.sending {
		p.sending = true
		go p.send()
	}
}

func (p *peer) send() {
	for {
		p.mu.Lock()
		if len(p.queue) == 0 {
			p.queue, p.sending = nil, false
			p.finished.Broadcast()
			p.mu.Unlock()
			return
		}
		o := p.queue[0]
		p.queue = p.queue[1:]
		p.unsent -= 512 + len(o.h.Body)
		p.mu.Unlock()
		err := p.conn.Send(o.h, o.body, o.data, o.files...)
		closeFiles(o.files)
		if err != nil {
			_ = p.conn.Close() // serve ends, and cleans up
		}
	}
}

// flush waits until all answers are sent, at most until late.
func (p *peer) flush(late time.Time) {
	t := time.AfterFunc(time.Until(late), func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.drop()
	})
	defer t.Stop()
	p.mu.Lock()
	for p.sending && !p.dead {
		p.finished.Wait()
	}
	p.mu.Unlock()
}
