package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"runtime/debug"
	"sync"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/internal/session"
)

// The causes, besides sandbox.ErrCancelled, that a call's context ends with.
// Both hand running work over.
var (
	errDisconnected = errors.New("the client is gone")
	errShutdown     = errors.New("the server is shutting down")
)

// notificationBuffer is how far a handler may run ahead of its stream.
const notificationBuffer = 256

// call is one request of a client while it is worked on. It is also the
// session that the library sees in the request's context: notifications that
// the handler sends go to this request's own stream, in order, and all of
// them before the result.
type call struct {
	*peer
	msg    *message
	ctx    context.Context // the handler's parent; ended by cancel only
	cancel context.CancelCauseFunc
	write  func(any) error // to this request's stream

	missing string // a client capability that the handler could not do without

	nmu     sync.Mutex
	notes   chan mcp.JSONRPCNotification
	stop    chan struct{}
	stopped chan struct{}
	over    bool
}

var (
	_ mcpserver.SessionWithLogging     = (*call)(nil)
	_ mcpserver.SessionWithClientInfo  = (*call)(nil)
	_ mcpserver.SessionWithElicitation = (*call)(nil)
	_ mcpserver.SessionWithSampling    = (*call)(nil)
	_ mcpserver.SessionWithRoots       = (*call)(nil)
)

// newCall prepares a request of p. A modern request is a session of its own:
// nothing is kept from it, and its id is one nobody else can name.
func (s *Server) newCall(p *peer, caller session.Caller, m *message, write func(any) error) *call {
	if p == nil || m.modern() {
		p = newPeer("request-"+rand.Text(), &s.lastID)
	}
	c := &call{peer: p, msg: m, write: write}
	ctx := session.With(s.mcp.WithContext(s.callCtx, c), caller)
	c.ctx, c.cancel = context.WithCancelCause(ctx)
	return c
}

// NotificationChannel takes the handler's notifications.
func (c *call) NotificationChannel() chan<- mcp.JSONRPCNotification {
	c.nmu.Lock()
	defer c.nmu.Unlock()
	if c.notes == nil {
		c.notes = make(chan mcp.JSONRPCNotification, notificationBuffer)
		if !c.over {
			c.stop, c.stopped = make(chan struct{}), make(chan struct{})
			go c.pump()
		}
	}
	return c.notes
}

// NotificationsInOrder marks a session that writes all notifications of a
// request before its result, so that handlers need not wait for them.
func (c *call) NotificationsInOrder() {}

func (c *call) pump() {
	defer close(c.stopped)
	for {
		select {
		case n := <-c.notes:
			_ = c.write(n) // a client that is gone is noticed where its stream is read
		case <-c.stop:
			return
		}
	}
}

// drain writes what the handler sent and is not written yet. What is sent
// after it is dropped: a result ends its request.
func (c *call) drain() {
	c.nmu.Lock()
	defer c.nmu.Unlock()
	c.over = true
	if c.stop == nil {
		return
	}
	close(c.stop)
	<-c.stopped
	c.stop = nil
	for {
		select {
		case n := <-c.notes:
			_ = c.write(n)
		default:
			return
		}
	}
}

// RequestElicitation asks the user, on the request's own stream.
func (c *call) RequestElicitation(ctx context.Context, r mcp.ElicitationRequest) (*mcp.ElicitationResult, error) {
	var result mcp.ElicitationResult
	return &result, c.ask(ctx, c.write, mcp.MethodElicitationCreate, r.Params, &result)
}

// RequestSampling asks the client's model.
func (c *call) RequestSampling(ctx context.Context, r mcp.CreateMessageRequest) (*mcp.CreateMessageResult, error) {
	var result mcp.CreateMessageResult
	if err := c.ask(ctx, c.write, mcp.MethodSamplingCreateMessage, r.CreateMessageParams, &result); err != nil {
		return nil, err
	}
	content, err := mcp.ParseSamplingContent(result.Content)
	if err != nil {
		return nil, fmt.Errorf("the client's sampling answer: %w", err)
	}
	result.Content = content
	return &result, nil
}

// ListRoots asks for the client's folders.
func (c *call) ListRoots(ctx context.Context, _ mcp.ListRootsRequest) (*mcp.ListRootsResult, error) {
	var result mcp.ListRootsResult
	return &result, c.ask(ctx, c.write, mcp.MethodListRoots, nil, &result)
}

// listener is the session of a modern subscriptions/listen request.
type listener struct {
	*call
	fmu    sync.Mutex
	filter mcp.SubscriptionFilter
}

var _ mcpserver.SessionWithSubscriptionFilter = (*listener)(nil)

// SetSubscriptionFilter keeps what the client wants to hear.
func (l *listener) SetSubscriptionFilter(f mcp.SubscriptionFilter) {
	l.fmu.Lock()
	l.filter = f
	l.fmu.Unlock()
}

// SubscriptionFilter returns it; nothing else is ever sent.
func (l *listener) SubscriptionFilter() (mcp.SubscriptionFilter, bool) {
	l.fmu.Lock()
	defer l.fmu.Unlock()
	return l.filter, true
}

// run works on the request and returns its answer; all notifications of the
// handler have been written by then.
func (s *Server) run(c *call) (answer any) {
	remove := c.add(c)
	release := c.use()
	defer func() {
		if r := recover(); r != nil {
			s.o.Logger.Error("panic while a request was handled", slog.String("method", c.msg.method), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
			answer = rpcError(c.msg.id, mcp.INTERNAL_ERROR, "internal error")
		}
		c.drain()
		remove()
		release()
		c.cancel(context.Canceled)
	}()
	ctx := c.ctx
	if c.msg.modern() && c.msg.method == string(mcp.MethodSubscriptionsListen) {
		l := s.listen(c)
		if err := s.mcp.RegisterSession(ctx, l); err != nil {
			return rpcError(c.msg.id, mcp.INTERNAL_ERROR, "internal error")
		}
		// Before the drain, so that nothing is sent once it is through.
		defer s.mcp.UnregisterSession(context.WithoutCancel(ctx), l.SessionID())
		ctx = s.mcp.WithContext(ctx, l)
	}
	response := s.mcp.HandleMessage(ctx, c.msg.raw)
	if _, failed := response.(mcp.JSONRPCError); failed && c.missing != "" {
		e := rpcError(c.msg.id, mcp.MISSING_REQUIRED_CLIENT_CAPABILITY, mcp.MissingRequiredClientCapabilityError{Capability: c.missing}.Error())
		e.Error.Data = map[string]any{"requiredCapabilities": map[string]any{c.missing: struct{}{}}}
		return *e
	}
	if response != nil {
		return response
	}
	return rpcError(c.msg.id, mcp.INVALID_REQUEST, "the request has both a method and a result")
}

// listen makes every message on the request's stream carry the request's id.
func (s *Server) listen(c *call) *listener {
	id, write := requestID(c.msg.id).Value(), c.write
	c.write = func(v any) error {
		if n, ok := v.(mcp.JSONRPCNotification); ok {
			meta := make(map[string]any, len(n.Params.Meta)+1)
			maps.Copy(meta, n.Params.Meta) // shared with the other listeners
			meta[mcp.MetaKeySubscriptionID] = id
			n.Params.Meta = meta
			v = n
		}
		return write(v)
	}
	return &listener{call: c}
}

// notify handles a notification of p that is not notifications/cancelled.
func (s *Server) notify(p *peer, caller session.Caller, m *message) {
	c := s.newCall(p, caller, m, func(any) error { return nil })
	defer c.cancel(context.Canceled)
	defer func() {
		if r := recover(); r != nil {
			s.o.Logger.Error("panic while a notification was handled", slog.String("method", m.method), slog.Any("panic", r), slog.String("stack", string(debug.Stack())))
		}
		c.drain()
	}()
	_ = s.mcp.HandleMessage(c.ctx, m.raw)
}

// capability lets a handler answer with the protocol's own error when the
// client lacks a capability; the library would answer "internal error".
func capability(next mcpserver.ToolHandlerFunc) mcpserver.ToolHandlerFunc {
	return func(ctx context.Context, r mcp.CallToolRequest) (*mcp.CallToolResult, error) {
		result, err := next(ctx, r)
		var missing mcp.MissingRequiredClientCapabilityError
		if c, ok := mcpserver.ClientSessionFromContext(ctx).(*call); ok && errors.As(err, &missing) {
			c.missing = missing.Capability // read after the handler has returned
		}
		return result, err
	}
}
