package server

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/internal/session"
	"berth/sandbox"
)

// headerSession names the berth session of a request's calls.
const headerSession = "Berth-Session"

func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("/mcp", s.authenticated(s.serveMCP))
	mux.Handle("/sse", s.authenticated(s.serveSSE))
	mux.Handle("/message", s.authenticated(s.serveMessage))
	mux.Handle("/metrics", s.authenticated(func(w http.ResponseWriter, r *http.Request, _ sandbox.Owner) { s.metrics.handler.ServeHTTP(w, r) }))
	mux.HandleFunc("/healthz", s.serveHealth) // for probes, which have no token
	return s.divided(s.guarded(mux))
}

// divided keeps what is shown of sandboxes apart: a request is for their ports
// or for MCP by its host alone, and neither handler sees the other's.
func (s *Server) divided(next http.Handler) http.Handler {
	if s.o.Previews == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _ := s.addressed(r)
		if !s.o.Previews.Match(host) {
			next.ServeHTTP(w, r)
			return
		}
		r.Host = host
		s.o.Previews.ServeHTTP(w, r)
	})
}

// guarded refuses what a hostile web page could send through a browser:
// requests to a host name that is not ours (a rebound name), and requests of
// a foreign origin, whatever their method.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// An earlier request on this connection may have left a deadline.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		h := w.Header()
		h.Set("X-Content-Type-Options", "nosniff")
		host, scheme := s.addressed(r)
		if !s.hostAllowed(host) {
			s.refuse(w, "host", http.StatusForbidden, "requests to this host name are not accepted; add it to allowed_hosts")
			return
		}
		origins := r.Header.Values("Origin")
		if len(origins) > 0 {
			origin, ok := normalOrigin(origins[0])
			if len(origins) > 1 || !ok || origin != strings.ToLower(scheme+"://"+host) && !s.o.origins[origin] {
				s.refuse(w, "origin", http.StatusForbidden, "requests from this web origin are not accepted; add it to allowed_origins")
				return
			}
			h.Set("Access-Control-Allow-Origin", origins[0])
			h.Set("Access-Control-Expose-Headers", mcpserver.HeaderKeySessionID+", WWW-Authenticate")
			h.Add("Vary", "Origin")
			if r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
				h.Set("Access-Control-Allow-Methods", "GET, POST, DELETE")
				h.Set("Access-Control-Allow-Headers", r.Header.Get("Access-Control-Request-Headers"))
				h.Set("Access-Control-Max-Age", "600")
				w.WriteHeader(http.StatusNoContent)
				return
			}
		}
		next.ServeHTTP(w, r)
	})
}

// addressed returns the host (with its port) and scheme that the client used,
// as told by a trusted proxy if one is in between.
func (s *Server) addressed(r *http.Request) (host, scheme string) {
	host, scheme = r.Host, "http"
	if r.TLS != nil {
		scheme = "https"
	}
	if s.proxied(r) {
		if h := r.Header.Get("X-Forwarded-Host"); h != "" {
			host = lastOf(h)
		}
		if p := r.Header.Get("X-Forwarded-Proto"); p != "" {
			scheme = lastOf(p)
		}
	}
	return host, scheme
}

// lastOf returns what the nearest proxy added to a list.
func lastOf(list string) string {
	if i := strings.LastIndexByte(list, ','); i >= 0 {
		list = list[i+1:]
	}
	return strings.TrimSpace(list)
}

// proxied reports whether the request comes from a trusted proxy.
func (s *Server) proxied(r *http.Request) bool {
	if len(s.o.proxies) == 0 {
		return false
	}
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	return err == nil && slices.ContainsFunc(s.o.proxies, func(p netip.Prefix) bool { return p.Contains(ap.Addr().Unmap()) })
}

// hostAllowed accepts localhost, every IP address, and the configured names.
// Addresses are safe: what is rebound is always a name.
func (s *Server) hostAllowed(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.Trim(name, "[]"), "."))
	if _, err := netip.ParseAddr(name); err == nil || name == "localhost" {
		return true
	}
	return s.o.hosts[name] || s.o.hosts["*"] && name != ""
}

// refuse answers in plain words and counts.
func (s *Server) refuse(w http.ResponseWriter, reason string, status int, text string) {
	s.metrics.refused.WithLabelValues(reason).Inc()
	http.Error(w, text, status)
}

// authenticated finds the request's owner by its bearer token.
func (s *Server) authenticated(next func(http.ResponseWriter, *http.Request, sandbox.Owner)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		owner, sent, ok := s.owner(r)
		if !ok {
			challenge := `Bearer realm="berth"`
			text := "a bearer token is needed: Authorization: Bearer TOKEN"
			if sent {
				challenge += `, error="invalid_token"`
				text = "the bearer token is not known"
			}
			w.Header().Set("WWW-Authenticate", challenge)
			s.refuse(w, "token", http.StatusUnauthorized, text)
			return
		}
		next(w, r, owner)
	})
}

// owner compares with every token, so that the time tells nothing.
func (s *Server) owner(r *http.Request) (owner sandbox.Owner, sent, ok bool) {
	if len(s.o.tokens) == 0 {
		return sandbox.LocalOwner, false, true
	}
	headers := r.Header.Values("Authorization")
	if len(headers) != 1 {
		return "", len(headers) > 0, false
	}
	scheme, value, _ := strings.Cut(headers[0], " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return "", true, false
	}
	hash := sha256.Sum256([]byte(strings.TrimSpace(value)))
	for _, t := range s.o.tokens {
		if subtle.ConstantTimeCompare(hash[:], t.hash[:]) == 1 {
			owner, ok = t.owner, true
		}
	}
	return owner, true, ok
}

// caller says who makes the request r.
func caller(r *http.Request, owner sandbox.Owner, transport string) session.Caller {
	return session.Caller{Owner: owner, HeaderSession: r.Header.Get(headerSession), Transport: transport}
}

// health is the answer of /healthz.
type health struct {
	OK       bool   `json:"ok"`
	Version  string `json:"version,omitempty"`
	Provider struct {
		Reachable bool `json:"reachable"`
	} `json:"provider"`
}

// serveHealth answers 200 when calls can be served, else 503. The reason goes
// to the log, since anybody may ask.
func (s *Server) serveHealth(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	ctx, cancel := context.WithTimeout(r.Context(), 2*time.Second)
	defer cancel()
	h := health{OK: true, Version: s.o.Version}
	h.Provider.Reachable = true
	if s.o.Health != nil {
		if err := s.o.Health(ctx); err != nil {
			s.o.Logger.Warn("provider is not reachable", slog.Any("err", err))
			h.OK, h.Provider.Reachable = false, false
		}
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	if !h.OK {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	_ = json.NewEncoder(w).Encode(h) // a probe that is gone needs no answer
}
