package server

import (
	"errors"
	"net/http"
	"sync"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
)

// writeTime is how long one write to a client may take. A client that reads
// nothing for so long counts as gone.
const writeTime = 30 * time.Second

// events writes one HTTP answer that may become an event stream. It is safe
// for concurrent use.
type events struct {
	w    http.ResponseWriter
	rc   *http.ResponseController
	can  bool // the client takes event streams
	only bool // and nothing else

	mu      sync.Mutex
	started bool
	over    bool
	err     error
}

func newEvents(w http.ResponseWriter) *events {
	return &events{w: w, rc: http.NewResponseController(w), can: true}
}

// start sends the head of an event stream. The caller holds mu.
func (e *events) start() {
	if e.started {
		return
	}
	e.started = true
	h := e.w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back
	e.w.WriteHeader(http.StatusOK)
}

// put writes and flushes, as an event stream. The caller holds mu.
func (e *events) put(parts ...[]byte) error {
	if e.over {
		return errDisconnected
	}
	if e.err != nil {
		return e.err
	}
	_ = e.rc.SetWriteDeadline(time.Now().Add(writeTime)) // not every writer has deadlines
	e.start()
	for _, p := range parts {
		if _, err := e.w.Write(p); err != nil {
			e.err = errors.Join(errDisconnected, err)
			return e.err
		}
	}
	if err := e.rc.Flush(); err != nil {
		e.err = errors.Join(errDisconnected, err)
	}
	return e.err
}

// event writes one event of the given type.
func (e *events) event(kind string, data []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.put([]byte("event: "+kind+"\ndata: "), data, []byte("\n\n"))
}

// message writes one JSON-RPC message as an event.
func (e *events) message(v any) error {
	if !e.can {
		return errNoStream
	}
	return encode(v, func(b []byte) error { return e.event("message", b) })
}

// comment writes nothing that a client sees; it keeps proxies from closing a
// quiet stream.
func (e *events) comment() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if !e.can {
		return nil
	}
	return e.put([]byte(": keep-alive\n\n"))
}

// open starts the event stream with nothing in it yet.
func (e *events) open() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.put()
}

// answer writes the last message: as an event once the stream has begun, else
// as plain JSON with the given status and headers.
func (e *events) answer(status int, v any) error {
	sent := false
	send := func(b []byte) error {
		sent = true
		return e.last(status, b)
	}
	err := encode(v, send)
	if err != nil && !sent {
		err = encode(rpcError(nil, mcp.INTERNAL_ERROR, "the answer cannot be written as JSON"), send)
	}
	return err
}

func (e *events) last(status int, b []byte) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	defer func() { e.over = true }()
	if e.started || e.only {
		return e.put([]byte("event: message\ndata: "), b, []byte("\n\n"))
	}
	_ = e.rc.SetWriteDeadline(time.Now().Add(writeTime)) // not every writer has deadlines
	e.started = true
	e.w.Header().Set("Content-Type", "application/json")
	e.w.WriteHeader(status)
	_, err := e.w.Write(append(b, '\n'))
	return err
}
