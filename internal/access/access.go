// Package access decides who may call over HTTP, for every HTTP server that
// berth has: bearer tokens and the owners they stand for, and the checks of Host
// and Origin that keep hostile web pages out.
package access

import (
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"berth/internal/secret"
	"berth/sandbox"
)

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

// Options of New. The zero value works: one owner, loopback only.
type Options struct {
	// Tokens are who may call. None means everybody who reaches the listener,
	// as the local owner.
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
}

// Rules are Options made ready to be applied. They never change, and are safe
// for concurrent use.
type Rules struct {
	insecure bool
	tokens   []token
	hosts    map[string]bool
	origins  map[string]bool
	proxies  []netip.Prefix
}

// token is a Token made ready to be compared.
type token struct {
	hash  [sha256.Size]byte
	owner sandbox.Owner
}

// New checks o. Its error joins a *sandbox.FieldError for every fault, each
// with its key in the configuration.
func New(o Options) (*Rules, error) {
	r := &Rules{insecure: o.Insecure, hosts: map[string]bool{}, origins: map[string]bool{}}
	var errs []error
	for i, t := range o.Tokens {
		key := fmt.Sprintf("auth.tokens[%d]", i)
		tok, err := t.prepare(key)
		if err == nil && slices.ContainsFunc(r.tokens, func(o token) bool { return o.hash == tok.hash && o.owner != tok.owner }) {
			err = &sandbox.FieldError{Field: key, Problem: "is another owner's token, too", Hint: "give each owner a token of their own"}
		}
		errs = append(errs, err)
		r.tokens = append(r.tokens, tok)
	}
	for _, h := range o.AllowedHosts {
		r.hosts[strings.ToLower(strings.TrimSuffix(h, "."))] = true
	}
	for i, s := range o.AllowedOrigins {
		origin, ok := normalOrigin(s)
		if !ok {
			errs = append(errs, &sandbox.FieldError{Field: fmt.Sprintf("allowed_origins[%d]", i), Problem: fmt.Sprintf("%q is not a web origin", s), Allowed: `scheme and host, such as "https://app.example.com"`})
			continue
		}
		r.origins[origin] = true
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
		r.proxies = append(r.proxies, prefix)
	}
	return r, errors.Join(errs...)
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

// ownerName reports whether s can name an owner. No regular expression: it
// would be compiled at every start.
func ownerName(s string) bool {
	const alnum = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	return s != "" && len(s) <= 63 && strings.Contains(alnum, s[:1]) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !strings.ContainsRune(alnum+"._@-", r) })
}

// normalOrigin returns an origin as browsers write it.
func normalOrigin(s string) (string, bool) {
	u, err := url.Parse(s)
	if err != nil || u.Scheme == "" || u.Host == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
		return "", false
	}
	return strings.ToLower(u.Scheme + "://" + u.Host), true
}

// CheckListen reports whether a listener at addr may be served: loopback and
// unix sockets always, others only with tokens or when declared insecure. field
// is the key of the configuration that names the address.
func (r *Rules) CheckListen(field string, addr net.Addr) error {
	tcp, ok := addr.(*net.TCPAddr)
	if !ok || tcp.IP.IsLoopback() || len(r.tokens) > 0 || r.insecure {
		return nil
	}
	return &sandbox.FieldError{
		Field: field, Problem: fmt.Sprintf("%s can be reached from other machines, and no token is set", addr),
		Allowed: "a loopback address, such as 127.0.0.1:8080", Hint: "set auth.tokens or BERTH_TOKEN, or say --insecure when the network itself keeps strangers out",
	}
}

// Owner finds the request's owner by its bearer token: ok when it may call;
// sent tells that it brought some token. It compares with every token, so that
// the time tells nothing.
func (r *Rules) Owner(req *http.Request) (owner sandbox.Owner, sent, ok bool) {
	if len(r.tokens) == 0 {
		return sandbox.LocalOwner, false, true
	}
	headers := req.Header.Values("Authorization")
	if len(headers) != 1 {
		return "", len(headers) > 0, false
	}
	scheme, value, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", true, false
	}
	hash := sha256.Sum256([]byte(strings.TrimSpace(value)))
	for _, t := range r.tokens {
		if subtle.ConstantTimeCompare(hash[:], t.hash[:]) == 1 {
			owner, ok = t.owner, true
		}
	}
	return owner, true, ok
}
