package server

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"time"

	mcpserver "github.com/mark3labs/mcp-go/server"

	"berth/internal/access"
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
		host, _ := s.o.access.Addressed(r)
		if !s.o.Previews.Match(host) {
			next.ServeHTTP(w, r)
			return
		}
		r.Host = host
		s.o.Previews.ServeHTTP(w, r)
	})
}

// guarded refuses what a hostile web page could send through a browser.
func (s *Server) guarded(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// An earlier request on this connection may have left a deadline.
		_ = http.NewResponseController(w).SetWriteDeadline(time.Time{})
		ok, refused := s.o.access.Guard(w, r, access.CORS{Methods: "GET, POST, DELETE", Expose: mcpserver.HeaderKeySessionID + ", WWW-Authenticate"})
		switch {
		case refused != nil:
			s.refuse(w, refused.Reason, http.StatusForbidden, refused.Text)
		case ok:
			next.ServeHTTP(w, r)
		}
	})
}

// refuse answers in plain words and counts.
func (s *Server) refuse(w http.ResponseWriter, reason string, status int, text string) {
	s.metrics.refused.WithLabelValues(reason).Inc()
	http.Error(w, text, status)
}

// authenticated finds the request's owner by its bearer token.
func (s *Server) authenticated(next func(http.ResponseWriter, *http.Request, sandbox.Owner)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		owner, sent, ok := s.o.access.Owner(r)
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
