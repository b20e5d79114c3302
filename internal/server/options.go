package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"berth/internal/access"
	"berth/internal/session"
	"berth/sandbox"
)

// MessageLimit is the largest message on stdio, either way, in bytes; SDK
// clients have the same limit.
const MessageLimit = 10 << 20

// Token is a bearer token and the owner it stands for.
type Token = access.Token

// Options of a Server. The zero value works: one owner, loopback only.
type Options struct {
	Logger  *slog.Logger // nil discards
	Version string       // shown by /healthz and /metrics

	// Key signs protocol session ids, at least 32 bytes. Servers that share it
	// accept each other's ids. Nil makes one, and ids end with the process.
	Key []byte
	// EndedDir remembers ended protocol sessions for the servers that share
	// it: one empty file each, removed after SessionMaxAge. Empty keeps them
	// in memory. The directory is made when first needed.
	EndedDir string

	// Tokens are who may call over HTTP. None means everybody who reaches the
	// listener, as the local owner.
	Tokens []Token
	// Insecure allows a listener that is not loopback without Tokens.
	Insecure bool
	// AllowedHosts are the host names (no port) that requests may be addressed
	// to, besides localhost and IP addresses. "*" allows every name.
	AllowedHosts []string
	// AllowedOrigins are the web origins, such as "https://app.example.com",
	// that may call from a browser, besides the server's own.
	AllowedOrigins []string
	// TrustedProxies are addresses and CIDR ranges whose X-Forwarded-Host and
	// X-Forwarded-Proto are believed.
	TrustedProxies []string

	MaxBody       int64         // bytes of a request; 0 = 16 MiB
	MaxHeld       int64         // bytes of all requests read or worked on over HTTP, half of it for one owner; 0 = 128 MiB, or 8 * MaxBody
	MaxConcurrent int           // requests worked on at once over HTTP; 0 = 1000
	MaxStreams    int           // open event streams; 0 = 4096
	SessionIdle   time.Duration // an idle protocol session's state is dropped, its id stays good; 0 = 1 h
	SessionMaxAge time.Duration // a protocol session id is refused after; 0 = 90 days
	KeepAlive     time.Duration // between comments on quiet event streams; 0 = 15 s

	// Ended is called with each connection that has ended for good, so that
	// what is known of it can be dropped; of it only the owner and the
	// connection are set. Nil is not called.
	Ended func(session.Caller)

	// Previews serves the requests whose host it matches, in place of
	// everything here; their checks are its own. Nil: there is none.
	Previews Previews

	// Health reports whether the provider is reachable, for /healthz. It gets
	// 2 seconds. Nil means yes.
	Health func(context.Context) error
	// WatchParent ends ServeStdio when the process that started this one dies,
	// even when another process holds stdin open.
	WatchParent bool
}

// Previews serves requests to host names of its own.
type Previews interface {
	http.Handler
	// Match tells whether requests to that host (with its port) are its.
	Match(host string) bool
}

// prepared is Options after the checks.
type prepared struct {
	Options
	access *access.Rules
}

// prepare fills defaults in and reports all problems at once, each with its
// key in the configuration.
func (o Options) prepare() (*prepared, error) {
	p := &prepared{Options: o}
	var errs []error
	if p.Logger == nil {
		p.Logger = slog.New(slog.DiscardHandler)
	}
	switch {
	case len(p.Key) == 0:
		p.Key = make([]byte, 32)
		_, _ = rand.Read(p.Key) // never fails, see crypto/rand
	case len(p.Key) < 32:
		errs = append(errs, &sandbox.FieldError{Field: "key", Problem: fmt.Sprintf("has %d bytes", len(p.Key)), Allowed: "32 bytes or more"})
	}
	rules, err := access.New(access.Options{Tokens: o.Tokens, Insecure: o.Insecure, AllowedHosts: o.AllowedHosts, AllowedOrigins: o.AllowedOrigins, TrustedProxies: o.TrustedProxies})
	p.access, errs = rules, append(errs, err)
	setDefault(&p.MaxBody, 16<<20)
	setDefault(&p.MaxHeld, max(128<<20, 8*p.MaxBody))
	setDefault(&p.MaxConcurrent, 1000)
	setDefault(&p.MaxStreams, 4096)
	setDefault(&p.SessionIdle, time.Hour)
	setDefault(&p.SessionMaxAge, 90*24*time.Hour)
	setDefault(&p.KeepAlive, 15*time.Second)
	return p, errors.Join(errs...)
}

func setDefault[T int | int64 | time.Duration](v *T, d T) {
	if *v <= 0 {
		*v = d
	}
}
