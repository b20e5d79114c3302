// Package session says who makes a call and which berth session the call is
// for. internal/server puts a Caller into each request's context; package
// tools asks a Book which session a call without an argument means. The
// package knows neither MCP nor HTTP, so that both sides can import it.
package session

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"strings"

	"berth/sandbox"
)

// Caller is what a transport knows of one request. The zero Caller is a local
// one without a connection, as on modern HTTP without tokens.
type Caller struct {
	// Owner is the bearer token's name; empty means sandbox.LocalOwner.
	Owner sandbox.Owner
	// HeaderSession is the value of the HTTP header Berth-Session as it came,
	// unchecked; empty when there was none.
	HeaderSession string
	// Connection names the connection for as long as it lives: the legacy
	// protocol session's id, or an unguessable id made once by a stdio
	// process. It is empty on modern HTTP, where no two requests belong
	// together.
	Connection string
	// DefaultSession is the berth session that the transport bound to the
	// connection, for legacy protocol sessions that hold over a restart. When
	// empty, the default is derived from Connection (see Derive).
	DefaultSession sandbox.SessionID
	// Transport is "stdio", "sse" or "http", for logs and events; it may be
	// empty.
	Transport string
}

type callerKey struct{}

// With returns a context that carries c.
func With(ctx context.Context, c Caller) context.Context {
	return context.WithValue(ctx, callerKey{}, c)
}

// From returns the context's Caller, with the Owner filled in; the local
// Caller without a connection when there is none.
func From(ctx context.Context) Caller {
	c, _ := ctx.Value(callerKey{}).(Caller)
	if c.Owner == "" {
		c.Owner = sandbox.LocalOwner
	}
	return c
}

// Present reports whether a transport put a Caller into ctx.
func Present(ctx context.Context) bool {
	_, ok := ctx.Value(callerKey{}).(Caller)
	return ok
}

// Derive returns the default session id of a connection: always the same one
// for the same owner and connection, and as hard to guess as the connection's
// id. It has the form of sandbox.NewSessionID.
func Derive(owner sandbox.Owner, connection string) sandbox.SessionID {
	h := sha256.New()
	h.Write([]byte("berth default session\x00" + string(owner) + "\x00" + connection))
	enc := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(h.Sum(nil))
	return sandbox.SessionID("s-" + strings.ToLower(enc[:26]))
}
