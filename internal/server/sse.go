package server

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"time"

	"berth/internal/session"
	"berth/sandbox"
)

// How many messages wait for a client that reads slowly before its handlers
// have to wait, too: of all, and of those larger than largeEvent.
const (
	sseQueue   = 64
	sseLarge   = 2
	largeEvent = 64 << 10
)

// sseConn is one client of the old HTTP+SSE transport. It lives as long as
// its stream.
type sseConn struct {
	*duplex
	caller session.Caller
	queue  chan []byte
	large  chan struct{} // a place for each large message in the queue
}

// enqueue has b written by pump, some time.
func (c *sseConn) enqueue(b []byte) error {
	if len(b) > largeEvent {
		select {
		case c.large <- struct{}{}:
		case <-c.peer.ended:
			return errDisconnected
		}
	}
	select {
	case c.queue <- bytes.Clone(b):
		return nil
	case <-c.peer.ended:
		return errDisconnected
	}
}

// put writes what was queued.
func (c *sseConn) put(e *events, b []byte) error {
	if len(b) > largeEvent {
		defer func() { <-c.large }()
	}
	return e.event("message", b)
}

// serveSSE is the stream of a client of protocol version 2024-11-05.
func (s *Server) serveSSE(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) {
	if r.Method != http.MethodGet {
		w.Header().Set("Allow", http.MethodGet)
		http.Error(w, "open the stream with GET; new clients use POST /mcp", http.StatusMethodNotAllowed)
		return
	}
	release, ok := s.stream()
	if !ok {
		w.Header().Set("Retry-After", "5")
		http.Error(w, "too many open event streams", http.StatusServiceUnavailable)
		return
	}
	defer release()
	id, bound := s.ids.make(kindSSE, owner)
	c := &sseConn{caller: caller(r, owner, "sse"), queue: make(chan []byte, sseQueue), large: make(chan struct{}, sseLarge)}
	c.caller.Connection, c.caller.DefaultSession = id, bound
	p := newPeer(id, &s.lastID)
	c.duplex = newDuplex(s, p, c.enqueue)
	c.slots = s.slots
	s.mu.Lock()
	s.sse[id] = c
	s.mu.Unlock()
	if err := s.mcp.RegisterSession(s.callCtx, p); err != nil {
		s.o.Logger.Warn("protocol session gets no broadcasts", slog.Any("err", err))
	}
	defer func() {
		s.mu.Lock()
		delete(s.sse, id)
		s.mu.Unlock()
		s.mcp.UnregisterSession(context.WithoutCancel(s.callCtx), id)
		c.close()
		s.ended(owner, id)
	}()
	e := newEvents(w)
	if e.event("endpoint", []byte("/message?sessionId="+url.QueryEscape(id))) != nil {
		return
	}
	c.pump(r.Context(), e)
}

// pump writes what is queued until the client or the server ends the stream.
func (c *sseConn) pump(ctx context.Context, e *events) {
	tick := time.NewTicker(c.s.o.KeepAlive)
	defer tick.Stop()
	broadcasts := c.peer.broadcastChannel()
	for {
		var err error
		select {
		case b := <-c.queue:
			err = c.put(e, b)
		case n := <-broadcasts:
			err = e.message(n)
		case <-tick.C:
			err = e.comment()
		case <-ctx.Done():
			return
		case <-c.s.streamCtx.Done():
			for { // all handlers are done: what they wrote is here
				select {
				case b := <-c.queue:
					if c.put(e, b) != nil {
						return
					}
				default:
					return
				}
			}
		}
		if err != nil {
			return
		}
	}
}

// serveMessage takes one message of a client of the old transport; the answer
// goes to its stream.
func (s *Server) serveMessage(w http.ResponseWriter, r *http.Request, owner sandbox.Owner) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		http.Error(w, "send messages with POST", http.StatusMethodNotAllowed)
		return
	}
	id := r.URL.Query().Get("sessionId")
	if id == "" {
		http.Error(w, "sessionId is missing; use the address from the stream's endpoint event", http.StatusBadRequest)
		return
	}
	s.mu.Lock()
	c := s.sse[id]
	s.mu.Unlock()
	if _, err := s.ids.check(kindSSE, id, owner); err != nil || c == nil {
		http.Error(w, "no such stream; open a new one with GET /sse", http.StatusNotFound)
		return
	}
	raw, release, ok := s.body(w, r, owner)
	if !ok {
		return
	}
	if _, problem := parse(raw); problem != nil {
		release()
		writeJSON(w, http.StatusBadRequest, problem)
		return
	}
	who := c.caller
	if h := r.Header.Get(headerSession); h != "" {
		who.HeaderSession = h
	}
	w.WriteHeader(http.StatusAccepted)
	c.receive(who, raw, release)
}
