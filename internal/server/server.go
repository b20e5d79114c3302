// Package server speaks MCP over stdio, HTTP+SSE and Streamable HTTP, to
// clients of every protocol version at once, around one MCPServer whose tools
// it does not know.
//
// The transports are our own; the library parses and dispatches messages. Each
// request has its own stream and its own session value, so notifications come
// in order and before the result, and no client hears or cancels another's.
// A handler's context ends with the cause sandbox.ErrCancelled when, and only
// when, its client asked for it; with another cause when the client is gone or
// the server shuts down, which hands running work over.
//
// The context of each request carries a session.Caller.
package server

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	mcpserver "github.com/mark3labs/mcp-go/server"
	"github.com/prometheus/client_golang/prometheus"
)

// shutdownTime is how long ServeHTTP waits for handlers that were told to hand
// their work over.
const shutdownTime = 5 * time.Second

// lastTime is for writing out what the handlers left in buffers.
const lastTime = time.Second

// Server serves one MCPServer. It is safe for concurrent use. Shutdown ends it
// and everything it started.
type Server struct {
	mcp     *mcpserver.MCPServer
	o       *prepared
	ids     *ids
	metrics *metrics
	lastID  atomic.Int64
	handler http.Handler

	callCtx    context.Context // parent of all handlers' contexts
	endCalls   context.CancelCauseFunc
	streamCtx  context.Context // ends event streams without requests
	endStreams context.CancelFunc
	calls      tracker
	slots      chan struct{} // a slot for each request over HTTP
	held       *held         // the bytes of their bodies

	mu       sync.Mutex
	sessions map[string]*peer // protocol sessions of Streamable HTTP
	sse      map[string]*sseConn
	streams  int
	http     *http.Server
	sweeper  chan struct{} // closed when the sweeper is gone; nil before it started
}

// New returns a Server around mcp, which should come from NewMCP. It starts
// nothing. The error names every bad option.
func New(mcp *mcpserver.MCPServer, o Options) (*Server, error) {
	p, err := o.prepare()
	if err != nil {
		return nil, err
	}
	s := &Server{
		mcp: mcp, o: p, ids: newIDs(p.Key, p.SessionMaxAge, p.EndedDir), metrics: newMetrics(p.Version),
		slots: make(chan struct{}, p.MaxConcurrent), sessions: make(map[string]*peer), sse: make(map[string]*sseConn),
		held: newHeld(p.MaxHeld),
	}
	s.callCtx, s.endCalls = context.WithCancelCause(context.Background())
	s.streamCtx, s.endStreams = context.WithCancel(context.Background())
	s.metrics.observe(s)
	mcp.Use(s.metrics.tool, capability)
	s.handler = s.routes()
	return s, nil
}

// Registerer takes more metrics for /metrics.
func (s *Server) Registerer() prometheus.Registerer { return s.metrics.registry }

// Handler serves /mcp, /sse, /message, /healthz and /metrics. Use ServeHTTP
// where possible: it sets the time limits of the connections, too.
func (s *Server) Handler() http.Handler { return s.handler }

// CheckListen reports whether a listener at addr may be served: loopback and
// unix sockets always, others only with tokens or when declared insecure.
func (s *Server) CheckListen(addr net.Addr) error {
	return s.o.access.CheckListen("http", addr)
}

// ServeHTTP serves l until ctx ends, then shuts the server down in order. It
// closes l. A nil error means an orderly end.
func (s *Server) ServeHTTP(ctx context.Context, l net.Listener) error {
	if err := s.CheckListen(l.Addr()); err != nil {
		return errors.Join(err, l.Close())
	}
	hs := &http.Server{
		Handler:           s.handler,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    64 << 10,
		ErrorLog:          httpLogger(s.o.Logger),
	}
	s.mu.Lock()
	if s.http != nil {
		s.mu.Unlock()
		return errors.Join(errors.New("the server serves HTTP already"), l.Close())
	}
	s.http = hs
	s.startSweeper()
	s.mu.Unlock()
	served := make(chan error, 1)
	go func() { served <- hs.Serve(l) }()
	select {
	case err := <-served:
		stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
		defer cancel()
		err = errors.Join(s.Shutdown(stop), err)
		if errors.Is(err, http.ErrServerClosed) { // somebody called Shutdown
			return nil
		}
		return err
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	err := s.Shutdown(stop)
	if e := <-served; !errors.Is(e, http.ErrServerClosed) {
		err = errors.Join(err, e)
	}
	return err
}

// Shutdown ends the server in order: it accepts nothing more, tells running
// handlers to hand their work over, waits until their answers are written,
// closes the event streams, and then the connections. When ctx ends
// first, it drops what is left and returns ctx's error. It can be repeated.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	hs := s.http
	sweeper := s.sweeper
	s.mu.Unlock()
	closed := make(chan error, 1)
	if hs != nil {
		go func() { closed <- hs.Shutdown(ctx) }() // closes the listeners at once
	} else {
		closed <- nil
	}
	idle := s.calls.close()
	s.endCalls(errShutdown)
	var err error
	select {
	case <-idle:
	case <-ctx.Done():
		err = fmt.Errorf("shutdown: calls still running: %w", ctx.Err())
	}
	s.endStreams()
	select {
	case e := <-closed:
		if e != nil {
			err = errors.Join(err, hs.Close())
		}
	case <-time.After(lastTime):
		// What is left are connections on which nothing was ever asked; the
		// library waits 5 seconds for those.
		err = errors.Join(err, hs.Close(), <-closed)
	}
	if sweeper != nil {
		<-sweeper
	}
	return err
}

// tracker counts running requests and tells when none is left.
type tracker struct {
	mu     sync.Mutex
	n      int
	closed bool
	idle   chan struct{}
}

// begin counts one more, unless the tracker is closed.
func (t *tracker) begin() (done func(), open bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return nil, false
	}
	t.n++
	return sync.OnceFunc(func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.n--
		if t.closed && t.n == 0 {
			close(t.idle)
		}
	}), true
}

// close lets nothing begin any more and returns a channel that is closed when
// all has ended.
func (t *tracker) close() <-chan struct{} {
	t.mu.Lock()
	defer t.mu.Unlock()
	if !t.closed {
		t.closed, t.idle = true, make(chan struct{})
		if t.n == 0 {
			close(t.idle)
		}
	}
	return t.idle
}
