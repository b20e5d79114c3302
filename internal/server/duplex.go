package server

import (
	"errors"
	"sync"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/session"
)

// A connection works on maxRunning tool calls at once and keeps maxQueued more
// waiting; other requests take no time and are refused later still, so that a
// ping is answered while tool calls are not.
const (
	maxRunning = 100
	maxQueued  = 1000
	maxOthers  = 1000
)

// errTooLarge is returned by a send for a message over the transport's limit.
var errTooLarge = errors.New("the message is too large")

// duplex is a connection that carries messages both ways: stdio, or an SSE
// stream with its message endpoint.
type duplex struct {
	s    *Server
	peer *peer
	send func([]byte) error // one whole message, which it does not keep; safe for concurrent use
	run  chan struct{}      // a slot for each running tool call
	// slots are the server's, for those of all connections; nil: they do not count.
	slots chan struct{}

	mu       sync.Mutex
	inFlight int
}

func newDuplex(s *Server, p *peer, send func([]byte) error) *duplex {
	return &duplex{s: s, peer: p, send: send, run: make(chan struct{}, maxRunning)}
}

// write sends any message.
func (d *duplex) write(v any) error { return encode(v, d.send) }

// reply sends an answer, or says why it cannot be sent.
func (d *duplex) reply(m *message, v any) {
	err := d.write(v)
	if err == nil || errors.Is(err, errDisconnected) {
		return
	}
	text := "the answer cannot be written as JSON"
	if errors.Is(err, errTooLarge) {
		text = "the answer is larger than 10 MiB; ask for less at a time"
	}
	_ = d.write(rpcError(m.id, mcp.INTERNAL_ERROR, text)) // gone clients are noticed where they are read
}

// receive takes one message and returns soon; requests are worked on in
// goroutines. caller is who sent this very message. release is called when raw
// is needed no more.
func (d *duplex) receive(caller session.Caller, raw []byte, release func()) {
	m, problem := parse(raw)
	if problem == nil && m.isRequest() {
		d.request(caller, m, release)
		return
	}
	defer release()
	if problem != nil {
		_ = d.write(problem)
		return
	}
	switch {
	case m.isAnswer():
		d.peer.answer(m)
	case m.method == string(mcp.MethodNotificationCancelled):
		d.peer.cancelCall(m.cancelled())
	default:
		d.s.notify(d.peer, caller, m)
	}
}

func (d *duplex) request(caller session.Caller, m *message, release func()) {
	done, open := d.s.calls.begin()
	if !open {
		release()
		d.reply(m, rpcError(m.id, mcp.INTERNAL_ERROR, "the server is shutting down; connect again and repeat the request, which has not started"))
		return
	}
	d.mu.Lock()
	limit := maxRunning + maxQueued
	if m.method != string(mcp.MethodToolsCall) {
		limit += maxOthers
	}
	full := d.inFlight >= limit
	if !full {
		d.inFlight++
	}
	d.mu.Unlock()
	if full {
		release()
		done()
		d.reply(m, busy(m))
		return
	}
	c := d.s.newCall(d.peer, caller, m, d.write)
	remove := d.peer.add(c) // known while it queues, and under the connection even when modern
	go func() {
		defer func() {
			remove()
			d.mu.Lock()
			d.inFlight--
			d.mu.Unlock()
			release()
			done()
		}()
		if m.method == string(mcp.MethodToolsCall) {
			select {
			case d.run <- struct{}{}:
				defer func() { <-d.run }()
				if d.slots == nil {
					break
				}
				select {
				case d.slots <- struct{}{}:
					defer func() { <-d.slots }()
				default:
					d.reply(m, busy(m))
					return
				}
			case <-c.ctx.Done():
				// Cancelled or shut down before it started.
				d.reply(m, rpcError(m.id, mcp.INTERNAL_ERROR, "the call was ended before it started"))
				return
			}
		}
		d.reply(m, d.s.run(c))
	}()
}

// close hands running calls over.
func (d *duplex) close() { d.peer.end() }
