// Package preview makes exposed ports of sandboxes reachable for browsers and
// programs: an HTTP and WebSocket proxy that dials through the Manager.
//
// A port has two addresses. One is a host name, PORT-LABEL.localhost, or
// PORT-LABEL before the name of the operator's public URL, all at one listener.
// The other is a loopback port of its own, http://127.0.0.1:M, for programs
// that do not resolve names below localhost.
//
// Each process that serves MCP runs one Server. Addresses are kept in the state
// directory and with the sandbox, so that the next process serves them again.
// Where several processes share a state directory, whichever binds an address
// serves it, for every sandbox of that directory, and another takes over when
// it ends.
package preview

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
)

// Options of New.
type Options struct {
	Manager *sandbox.Manager
	Logger  *slog.Logger // nil discards
	// State is a directory for previews.json, the addresses to use again. It
	// is made when first needed.
	State string
	// Public is the operator's URL, such as https://preview.example.com: ports
	// are then at https://PORT-LABEL.preview.example.com, which must lead to
	// the HTTP listener, and have no loopback port. Empty: this machine alone.
	Public string
}

// Server serves exposed ports. It is safe for concurrent use; the caller
// closes it.
type Server struct {
	o      Options
	log    *slog.Logger
	public *url.URL // nil: none
	proxy  *proxy
	signed signed

	// opening keeps two calls from opening the same address.
	opening sync.Mutex

	mu     sync.Mutex
	closed bool
	shared uint16               // port of the HTTP listener that hands over what Match accepts
	names  *listener            // for host names; nil: not ours
	plain  map[string]*listener // by label
	wg     sync.WaitGroup
}

type listener struct {
	port uint16
	http *http.Server
}

// New checks o. It listens nowhere yet.
func New(o Options) (*Server, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := &Server{o: o, log: o.Logger, plain: map[string]*listener{}, signed: signed{file: filepath.Join(o.State, "signed.json")}}
	if o.Public != "" {
		u, err := url.Parse(o.Public)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" || strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.User != nil {
			return nil, &sandbox.FieldError{Field: "ports.public_url", Problem: fmt.Sprintf("%.80q is not a web address", o.Public),
				Allowed: "scheme and host, such as https://preview.example.com", Hint: "ports are then at https://PORT-LABEL.preview.example.com"}
		}
		if _, err := netip.ParseAddr(u.Hostname()); err == nil {
			return nil, &sandbox.FieldError{Field: "ports.public_url", Problem: fmt.Sprintf("%.80q is an address, and names are put before it", o.Public), Allowed: "a host name"}
		}
		u.Host = strings.ToLower(u.Host)
		s.public = u
	}
	s.proxy = newProxy(o.Manager, s.log)
	return s, nil
}

// Share tells that an HTTP listener of that address hands over what Match
// accepts, so that host names need no listener of their own. One that is not
// reached by way of the loopback does not do.
func (s *Server) Share(addr net.Addr) {
	ap, err := netip.ParseAddrPort(addr.String())
	if err != nil || !ap.Addr().Unmap().IsLoopback() && !ap.Addr().IsUnspecified() {
		return
	}
	s.mu.Lock()
	s.shared = ap.Port()
	s.mu.Unlock()
}

var nameLabel = regexp.MustCompile(`^([1-9][0-9]{0,4})-([a-z2-7]{20}|[a-z2-7]{16})$`)

// parse takes a request's host apart; public tells that it was asked for by
// the operator's name.
func (s *Server) parse(host string) (port uint16, label string, public, ok bool) {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(host, "."))
	first, rest, _ := strings.Cut(host, ".")
	public = s.public != nil && rest == s.public.Hostname()
	if rest != "localhost" && !public {
		return 0, "", false, false
	}
	m := nameLabel.FindStringSubmatch(first)
	if m == nil {
		return 0, "", false, false
	}
	n, err := strconv.ParseUint(m[1], 10, 16)
	return uint16(n), m[2], public, err == nil
}

// Match tells whether requests to that host are for an exposed port.
func (s *Server) Match(host string) bool {
	_, _, _, ok := s.parse(host)
	return ok
}

// ServeHTTP serves a request whose host Match accepts.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	port, label, public, ok := s.parse(r.Host)
	if !ok {
		page(w, r, http.StatusNotFound, "No such port", "This address belongs to no exposed port.", 0)
		return
	}
	secure := r.TLS != nil || public && s.public.Scheme == "https"
	open := false
	if len(label) == signedLength {
		if label, open = s.signed.port(label); !open {
			page(w, r, http.StatusNotFound, "No such port", "This address has expired, or never was.", 0)
			return
		}
	}
	s.proxy.serve(w, r, label, port, secure, open)
}

// URLs are the addresses of p, the best first, as far as they are known. It
// opens nothing.
func (s *Server) URLs(p sandbox.Port) []string {
	name := strconv.Itoa(int(p.Number)) + "-" + p.Label
	if s.public != nil {
		return []string{s.public.Scheme + "://" + name + "." + s.public.Host}
	}
	var urls []string
	if n := s.namesPort(); n != 0 {
		urls = append(urls, "http://"+name+".localhost:"+strconv.Itoa(int(n)))
	}
	if p.Listen != 0 {
		urls = append(urls, "http://127.0.0.1:"+strconv.Itoa(int(p.Listen)))
	}
	return urls
}

func (s *Server) namesPort() uint16 {
	s.mu.Lock()
	l, shared := s.names, s.shared
	s.mu.Unlock()
	switch {
	case shared != 0:
		return shared
	case l != nil:
		return l.port
	}
	return s.kept().Port
}

// Open makes p reachable and returns its addresses.
func (s *Server) Open(ctx context.Context, p sandbox.Port) ([]string, error) {
	if s.public != nil {
		return s.URLs(p), nil
	}
	s.opening.Lock()
	defer s.opening.Unlock()
	if err := s.openNames(ctx); err != nil {
		return nil, err
	}
	listen, err := s.openPlain(ctx, p)
	if err != nil {
		return nil, err
	}
	p.Listen = listen
	return s.URLs(p), nil
}

// openNames sees that somebody serves the host names.
func (s *Server) openNames(ctx context.Context) error {
	s.mu.Lock()
	have := s.names != nil || s.shared != 0
	s.mu.Unlock()
	if have {
		return nil
	}
	k := s.kept()
	if k.Port != 0 {
		if l, err := listen(ctx, k.Port); err == nil {
			return s.serveNames(l)
		}
		if s.sibling(ctx, k.Port) {
			return nil
		}
	}
	l, err := listen(ctx, 0)
	if err != nil {
		return fmt.Errorf("listen for exposed ports: %w", err)
	}
	if err := s.serveNames(l); err != nil {
		return err
	}
	return s.keep(portOf(l))
}

func (s *Server) serveNames(l net.Listener) error {
	ours, err := s.serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if !s.probed(w, r) {
			s.ServeHTTP(w, r)
		}
	}))
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.names = ours
	s.mu.Unlock()
	return nil
}

// openPlain sees that somebody serves p at a port of the loopback.
func (s *Server) openPlain(ctx context.Context, p sandbox.Port) (uint16, error) {
	s.mu.Lock()
	have := s.plain[p.Label]
	s.mu.Unlock()
	if have != nil {
		return have.port, nil
	}
	if p.Listen != 0 {
		if l, err := listen(ctx, p.Listen); err == nil {
			return p.Listen, s.servePlain(l, p)
		}
		if s.sibling(ctx, p.Listen) {
			return p.Listen, nil
		}
	}
	l, err := listen(ctx, 0)
	if err != nil {
		return 0, fmt.Errorf("listen for the exposed port: %w", err)
	}
	if err := s.o.Manager.PortListens(ctx, p.Label, portOf(l)); err != nil {
		return 0, errors.Join(err, l.Close())
	}
	return portOf(l), s.servePlain(l, p)
}

func (s *Server) servePlain(l net.Listener, p sandbox.Port) error {
	ours, err := s.serve(l, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case s.probed(w, r):
		case !loopbackName(r.Host):
			// A name that was rebound to this machine by a web page.
			page(w, r, http.StatusForbidden, "Wrong name", "Use this address with 127.0.0.1 or localhost.", 0)
		default:
			s.proxy.serve(w, r, p.Label, p.Number, false, false)
		}
	}))
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.plain[p.Label] = ours
	s.mu.Unlock()
	return nil
}

func loopbackName(host string) bool {
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	a, err := netip.ParseAddr(strings.Trim(host, "[]"))
	return err == nil && a.Unmap().IsLoopback() || strings.EqualFold(host, "localhost")
}

func listen(ctx context.Context, port uint16) (net.Listener, error) {
	return (&net.ListenConfig{}).Listen(ctx, "tcp4", "127.0.0.1:"+strconv.Itoa(int(port)))
}

func portOf(l net.Listener) uint16 { return uint16(l.Addr().(*net.TCPAddr).Port) }

func (s *Server) serve(l net.Listener, h http.Handler) (*listener, error) {
	hs := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		ErrorLog: slog.NewLogLogger(s.log.Handler(), slog.LevelDebug)}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, errors.Join(sandbox.ErrClosed, l.Close())
	}
	s.wg.Go(func() {
		if err := hs.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			s.log.Warn("exposed ports", slog.Any("err", err))
		}
	})
	return &listener{port: portOf(l), http: hs}, nil
}

// every is how often Run looks for addresses that nobody serves.
const every = 5 * time.Second

// Run serves again what earlier processes served, takes over from others that
// end, and closes what is exposed no more, until ctx ends.
func (s *Server) Run(ctx context.Context) {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		if err := s.resume(ctx); err != nil && ctx.Err() == nil {
			s.log.WarnContext(ctx, "exposed ports", slog.Any("err", err))
		}
		select {
		case <-ctx.Done():
			return
		case <-t.C:
		}
	}
}

func (s *Server) resume(ctx context.Context) error {
	s.opening.Lock()
	defer s.opening.Unlock()
	labels, err := s.o.Manager.ExposedLabels(ctx)
	if err != nil {
		return err
	}
	s.mu.Lock()
	var ended []*listener
	for label, l := range s.plain {
		if !slices.Contains(labels, label) {
			ended = append(ended, l)
			delete(s.plain, label)
		}
	}
	names := s.names != nil || s.shared != 0
	s.mu.Unlock()
	for _, l := range ended {
		_ = l.http.Close()
	}
	if s.public != nil || len(labels) == 0 {
		return nil
	}
	if k := s.kept(); !names && k.Port != 0 {
		if l, err := listen(ctx, k.Port); err == nil { // else another serves it
			if err := s.serveNames(l); err != nil {
				return err
			}
		}
	}
	for _, label := range labels {
		s.mu.Lock()
		have := s.plain[label] != nil
		s.mu.Unlock()
		if have {
			continue
		}
		p, err := s.o.Manager.ExposedPort(ctx, label)
		if err != nil || p.Listen == 0 {
			continue // just gone, or just being opened
		}
		if l, err := listen(ctx, p.Listen); err == nil {
			if err := s.servePlain(l, p); err != nil {
				return err
			}
		}
	}
	return nil
}

// Close ends all listeners and connections. Ports stay exposed: the next
// process serves them.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	var errs []error
	if s.names != nil {
		errs = append(errs, s.names.http.Close())
	}
	for _, l := range s.plain {
		errs = append(errs, l.http.Close())
	}
	s.mu.Unlock()
	s.wg.Wait()
	s.proxy.close()
	return errors.Join(errs...)
}

// kept is previews.json: where host names are served, and a secret by which
// processes of one state directory know each other.
type kept struct {
	Port uint16 `json:"port"`
	Key  string `json:"key"`
}

func (s *Server) file() string { return filepath.Join(s.o.State, "previews.json") }

func (s *Server) kept() kept {
	var k kept
	b, err := os.ReadFile(s.file())
	if err != nil || json.Unmarshal(b, &k) != nil {
		return kept{}
	}
	return k
}

func (s *Server) keep(port uint16) error {
	if s.o.State == "" {
		return &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "no place to remember where ports are shown: berth has no state directory; set BERTH_STATE"}
	}
	k := s.kept()
	k.Port = port
	if k.Key == "" {
		k.Key = rand.Text()
	}
	b, err := json.Marshal(k)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(s.o.State, 0o700); err != nil {
		return err
	}
	tmp := s.file() + "." + rand.Text()[:8]
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, s.file()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return nil
}

// The probe by which a process learns whether a port that is taken is served
// by another one of the same state directory.
const (
	headerProbe = "Berth-Preview-Probe"
	headerProof = "Berth-Preview-Proof"
)

// proof is good for one port: else a program that has taken a port of ours could
// pass the challenge on to where one of us serves, and be believed.
func (s *Server) proof(port uint16, challenge string) string {
	k := s.kept()
	if k.Key == "" {
		return ""
	}
	mac := hmac.New(sha256.New, []byte(k.Key))
	_, _ = fmt.Fprintf(mac, "%d %s", port, challenge) // never fails
	return hex.EncodeToString(mac.Sum(nil))
}

func (s *Server) probed(w http.ResponseWriter, r *http.Request) bool {
	c := r.Header.Get(headerProbe)
	if c == "" || len(c) > 64 {
		return false
	}
	// The port that was connected to, and not what the request says.
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	if local == nil {
		return false
	}
	w.Header().Set(headerProof, s.proof(uint16(local.Port), c))
	w.WriteHeader(http.StatusNoContent)
	return true
}

func (s *Server) sibling(ctx context.Context, port uint16) bool {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	challenge := rand.Text()
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "http://127.0.0.1:"+strconv.Itoa(int(port))+"/", nil)
	if err != nil {
		return false
	}
	req.Header.Set(headerProbe, challenge)
	tr := &http.Transport{DisableKeepAlives: true} // its own: no proxy of the environment
	resp, err := tr.RoundTrip(req)
	if err != nil {
		return false
	}
	_ = resp.Body.Close()
	want := s.proof(port, challenge)
	return want != "" && hmac.Equal([]byte(resp.Header.Get(headerProof)), []byte(want))
}
