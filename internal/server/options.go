package server

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"berth/internal/secret"
	"berth/internal/session"
	"berth/sandbox"
)

// MessageLimit is the largest message on stdio, either way, in bytes; SDK
// clients have the same limit.
const MessageLimit = 10 << 20

// Token is a bearer token and the owner it stands for. Exactly one of Token
// and SHA256 is set.
type Token struct {
	// Name is the owner of what the token's bearer makes.
	Name string
	// Token is the token itself.
	Token secret.Text
	// SHA256 is the token's SHA-256 in hexadecimal, for configs without secrets.
	SHA256 string
}

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

// ownerName reports whether s can name an owner. No regular expression: it
// would be compiled at every start.
func ownerName(s string) bool {
	const alnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	return s != "" && len(s) <= 63 && strings.Contains(alnum, s[:1]) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(alnum+"._@-", r) })
}

// token is a Token made ready to be compared.
type token struct {
	hash  [sha256.Size]byte
	owner sandbox.Owner
}

// prepared is Options after the checks.
type prepared struct {
	Options
	tokens  []token
	hosts   map[string]bool
	origins map[string]bool
	proxies []netip.Prefix
}

// prepare fills defaults in and reports all problems at once, each with its
// key in the configuration.
func (o Options) prepare() (*prepared, error) {
	p := &prepared{Options: o, hosts: map[string]bool{}, origins: map[string]bool{}}
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
	for i, t := range o.Tokens {
		key := fmt.Sprintf("auth.tokens[%d]", i)
		tok, err := t.prepare(key)
		if err == nil && slices.ContainsFunc(p.tokens, func(o token) bool { return o.hash == tok.hash && o.owner != tok.owner }) {
			err = &sandbox.FieldError{Field: key, Problem: "is another owner's token, too", Hint: "give each owner a token of their own"}
		}
		errs = append(errs, err)
		p.tokens = append(p.tokens, tok)
	}
	for _, h := range o.AllowedHosts {
		p.hosts[strings.ToLower(strings.TrimSuffix(h, "."))] = true
	}
	for i, s := range o.AllowedOrigins {
		origin, ok := normalOrigin(s)
		if !ok {
			errs = append(errs, &sandbox.FieldError{Field: fmt.Sprintf("allowed_origins[%d]", i), Problem: fmt.Sprintf("%q is not a web origin", s), Allowed: `scheme and host, such as "https://app.example.com"`})
			continue
		}
		p.origins[origin] = true
	}
	for i, s := range o.TrustedProxies {
		prefix, err := netip.ParsePrefix(s)
		if err != nil {
			addr, aerr := netip.ParseAddr(s)
			if aerr != nil {
				errs = append(errs, &sandbox.FieldError{Field: fmt.Sprintf("trusted_proxies[%d]", i), Problem: fmt.Sprintf("%q is neither an address nor a range", s), Allowed: `"10.0.0.5" or "10.0.0.0/8"`})
				continue
			}
			prefix = netip.PrefixFrom(addr, addr.BitLen())
		}
		p.proxies = append(p.proxies, prefix)
	}
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

func (t Token) prepare(key string) (token, error) {
	out := token{owner: sandbox.Owner(t.Name)}
	if !ownerName(t.Name) {
		return out, &sandbox.FieldError{Field: key + ".name", Problem: fmt.Sprintf("%.80q is not a name for an owner", t.Name),
			Allowed: "1 to 63 characters: a letter or digit, then letters, digits, '.', '_', '@' or '-'", Hint: "what the token's bearer makes belongs to this name"}
	}
	switch {
	case t.Token.IsZero() == (t.SHA256 == ""):
		return out, &sandbox.FieldError{Field: key, Problem: "needs exactly one of token and sha256"}
	case t.SHA256 != "":
		b, err := hex.DecodeString(t.SHA256)
		if err != nil || len(b) != sha256.Size {
			return out, &sandbox.FieldError{Field: key + ".sha256", Problem: "is not a SHA-256", Allowed: "64 hexadecimal digits", Hint: "make it with: printf %s TOKEN | sha256sum"}
		}
		copy(out.hash[:], b)
	default:
		out.hash = sha256.Sum256([]byte(t.Token.Reveal()))
	}
	return out, nil
}

// normalOrigin returns an origin as browsers write it.
func normalOrigin(s string) (string, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return "", false
	}
	return strings.ToLower(u.Scheme + "://" + u.Host), true
}
