package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mark3labs/mcp-go/mcp"
	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/sandbox"
)

// broadcastBuffer is how many broadcasts wait for a client that listens
// slowly; more are dropped. Ours are rare: the tool list never changes.
const broadcastBuffer = 16

// peer is the client at the other end of a protocol session, or of one modern
// request: what it said of itself, its running calls, and what it was asked.
// As a ClientSession of the library it stands for the session's own stream,
// which carries broadcasts only. A peer is safe for concurrent use.
type peer struct {
	id     string
	lastID *atomic.Int64 // of requests to clients, unique in the server

	initialized atomic.Bool
	ended       chan struct{} // closed when the session is over

	mu         sync.Mutex
	isEnded    bool
	broadcasts chan mcp.JSONRPCNotification // made when first used: most sessions never need it
	level      mcp.LoggingLevel
	info       mcp.Implementation
	caps       mcp.ClientCapabilities
	version    string
	subscribed map[string]struct{}
	calls      map[string]*call
	pending    map[int64]chan envelope
	busy       int // calls and streams; an idle peer may be forgotten
	lastUsed   time.Time
}

func newPeer(id string, lastID *atomic.Int64) *peer {
	return &peer{
		id: id, lastID: lastID, level: mcp.LoggingLevelError,
		ended: make(chan struct{}), lastUsed: time.Now(),
	}
}

var (
	_ mcpserver.SessionWithLogging               = (*peer)(nil)
	_ mcpserver.SessionWithClientInfo            = (*peer)(nil)
	_ mcpserver.SessionWithResourceSubscriptions = (*peer)(nil)
)

// SessionID is the protocol session's id.
func (p *peer) SessionID() string { return p.id }

// Initialize is called by the library once the client has said hello.
func (p *peer) Initialize() { p.initialized.Store(true) }

// Initialized tells whether broadcasts may be sent.
func (p *peer) Initialized() bool { return p.initialized.Load() }

// NotificationChannel takes broadcasts.
func (p *peer) NotificationChannel() chan<- mcp.JSONRPCNotification { return p.broadcastChannel() }

func (p *peer) broadcastChannel() chan mcp.JSONRPCNotification {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.broadcasts == nil {
		p.broadcasts = make(chan mcp.JSONRPCNotification, broadcastBuffer)
	}
	return p.broadcasts
}

// SetLogLevel keeps what logging/setLevel asked for.
func (p *peer) SetLogLevel(l mcp.LoggingLevel) { p.mu.Lock(); p.level = l; p.mu.Unlock() }

// GetLogLevel returns it; the default is error.
func (p *peer) GetLogLevel() mcp.LoggingLevel { p.mu.Lock(); defer p.mu.Unlock(); return p.level }

// SetClientInfo keeps the client's name and version.
func (p *peer) SetClientInfo(i mcp.Implementation) { p.mu.Lock(); p.info = i; p.mu.Unlock() }

// GetClientInfo returns them.
func (p *peer) GetClientInfo() mcp.Implementation { p.mu.Lock(); defer p.mu.Unlock(); return p.info }

// SetClientCapabilities keeps what the client can do.
func (p *peer) SetClientCapabilities(c mcp.ClientCapabilities) {
	p.mu.Lock()
	p.caps = c
	p.mu.Unlock()
}

// GetClientCapabilities returns it.
func (p *peer) GetClientCapabilities() mcp.ClientCapabilities {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.caps
}

// SetProtocolVersion keeps the negotiated version.
func (p *peer) SetProtocolVersion(v string) { p.mu.Lock(); p.version = v; p.mu.Unlock() }

// ProtocolVersion returns it.
func (p *peer) ProtocolVersion() string { p.mu.Lock(); defer p.mu.Unlock(); return p.version }

// SubscribeToResource notes a subscription.
func (p *peer) SubscribeToResource(uri string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.subscribed == nil {
		p.subscribed = make(map[string]struct{})
	}
	p.subscribed[uri] = struct{}{}
}

// UnsubscribeFromResource drops it.
func (p *peer) UnsubscribeFromResource(uri string) {
	p.mu.Lock()
	delete(p.subscribed, uri)
	p.mu.Unlock()
}

// SubscribedResources lists the subscriptions.
func (p *peer) SubscribedResources() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	uris := make([]string, 0, len(p.subscribed))
	for uri := range p.subscribed {
		uris = append(uris, uri)
	}
	return uris
}

// IsSubscribedToResource tells about one.
func (p *peer) IsSubscribedToResource(uri string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.subscribed[uri]
	return ok
}

// use marks the peer busy until the returned function is called.
func (p *peer) use() func() {
	p.mu.Lock()
	p.busy++
	p.mu.Unlock()
	return sync.OnceFunc(func() {
		p.mu.Lock()
		p.busy--
		p.lastUsed = time.Now()
		p.mu.Unlock()
	})
}

// idleSince returns when the peer was last used, or now while it is.
func (p *peer) idleSince(now time.Time) time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.busy > 0 {
		return now
	}
	return p.lastUsed
}

// end closes the session's streams. Running calls are handed over.
func (p *peer) end() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.isEnded {
		return
	}
	p.isEnded = true
	close(p.ended)
	for _, c := range p.calls {
		c.cancel(errDisconnected)
	}
}

// add makes a call known to cancelCall, until the returned function is called.
func (p *peer) add(c *call) (remove func()) {
	key := idKey(c.msg.id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.calls == nil {
		p.calls = make(map[string]*call)
	}
	p.calls[key] = c
	if p.isEnded {
		c.cancel(errDisconnected)
	}
	return func() {
		p.mu.Lock()
		if p.calls[key] == c { // a client may use an id twice
			delete(p.calls, key)
		}
		p.mu.Unlock()
	}
}

// cancelCall ends a call of this peer on its client's demand. A call that is
// over, or another client's, is not found, and that is not an error.
func (p *peer) cancelCall(id json.RawMessage) {
	if len(id) == 0 {
		return
	}
	p.mu.Lock()
	c := p.calls[idKey(id)]
	p.mu.Unlock()
	if c != nil {
		c.cancel(sandbox.ErrCancelled)
	}
}

// answer hands a client's answer to whoever asked. Late ones are dropped.
func (p *peer) answer(m *message) {
	var id int64
	if json.Unmarshal(m.id, &id) != nil {
		return
	}
	p.mu.Lock()
	ch := p.pending[id]
	delete(p.pending, id)
	p.mu.Unlock()
	if ch != nil {
		ch <- m.envelope // never blocks: room for the one answer
	}
}

// ask sends the client a request by write and waits for its answer.
func (p *peer) ask(ctx context.Context, write func(any) error, method mcp.MCPMethod, params, result any) error {
	id := p.lastID.Add(1)
	ch := make(chan envelope, 1)
	p.mu.Lock()
	if p.pending == nil {
		p.pending = make(map[int64]chan envelope)
	}
	p.pending[id] = ch
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		delete(p.pending, id)
		p.mu.Unlock()
	}()
	err := write(struct {
		JSONRPC string        `json:"jsonrpc"`
		ID      int64         `json:"id"`
		Method  mcp.MCPMethod `json:"method"`
		Params  any           `json:"params,omitempty"`
	}{mcp.JSONRPC_VERSION, id, method, params})
	if err != nil {
		return fmt.Errorf("ask the client for %s: %w", method, err)
	}
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-p.ended:
		return errDisconnected
	case a := <-ch:
		if len(a.Error) > 0 {
			var e struct {
				Code    int    `json:"code"`
				Message string `json:"message"`
			}
			_ = json.Unmarshal(a.Error, &e) // a strange error is an error too
			return fmt.Errorf("the client refused %s: %.500s (code %d)", method, e.Message, e.Code)
		}
		if len(a.Result) == 0 {
			return fmt.Errorf("the client answered %s without a result", method)
		}
		return json.Unmarshal(a.Result, result)
	}
}

// errNoStream is returned when a client cannot be asked: it takes no event streams.
var errNoStream = errors.New("the client accepts no event stream")
