package daytonaapi

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"berth/sandbox"
)

// Previews makes exposed ports reachable. It serves requests to host names of
// its own.
type Previews interface {
	http.Handler
	// Match tells whether requests to that host (with its port) are its.
	Match(host string) bool
	// Open makes a port reachable and returns its addresses; the last is the
	// one that most programs can use.
	Open(ctx context.Context, p sandbox.Port) ([]string, error)
	// Sign makes an address that needs no token for a while; label ends it.
	Sign(ctx context.Context, p sandbox.Port, valid time.Duration) (url, label string, err error)
	// Revoke ends a signed address; false when there is none.
	Revoke(p sandbox.Port, label string) (bool, error)
}

// expose exposes the port that the path names, of a running sandbox or not.
func (s *Server) expose(c *call, key sandbox.Key) (sandbox.Port, error) {
	n, err := strconv.Atoi(c.r.PathValue("port"))
	if err != nil || n < 1 || n > 65535 {
		return sandbox.Port{}, refuse(http.StatusBadRequest, "%.20q is no port; allowed: 1 to 65535", c.r.PathValue("port"))
	}
	if err := s.made(c.ctx(), key); err != nil {
		return sandbox.Port{}, err
	}
	if s.o.Previews == nil {
		return sandbox.Port{}, refuse(http.StatusNotImplemented, "previews are not there on this server")
	}
	res, err := s.m.ExposePort(c.ctx(), key, sandbox.PortRequest{Port: n, Asleep: true})
	if err != nil {
		return sandbox.Port{}, err
	}
	return res.Port, nil
}

type previewBody struct {
	SandboxID string `json:"sandboxId"`
	Port      int    `json:"port,omitempty"`
	URL       string `json:"url"`
	Token     string `json:"token"`
}

func (s *Server) previewURL(c *call, key sandbox.Key) (any, error) {
	p, err := s.expose(c, key)
	if err != nil {
		return nil, err
	}
	urls, err := s.o.Previews.Open(c.ctx(), p)
	if err != nil {
		return nil, err
	}
	return previewBody{SandboxID: string(key.Session), URL: urls[len(urls)-1], Token: p.Token}, nil
}

func (s *Server) signedPreviewURL(c *call, key sandbox.Key) (any, error) {
	seconds, err := number(c.r.URL.Query(), "expiresInSeconds", 60, 1, 86400)
	if err != nil {
		return nil, err
	}
	p, err := s.expose(c, key)
	if err != nil {
		return nil, err
	}
	url, label, err := s.o.Previews.Sign(c.ctx(), p, time.Duration(seconds)*time.Second)
	if err != nil {
		return nil, err
	}
	return previewBody{SandboxID: string(key.Session), Port: int(p.Number), URL: url, Token: label}, nil
}

func (s *Server) expirePreviewURL(c *call, key sandbox.Key) (any, error) {
	p, err := s.expose(c, key)
	if err != nil {
		return nil, err
	}
	there, err := s.o.Previews.Revoke(p, c.r.PathValue("token"))
	if err == nil && !there {
		err = refuse(http.StatusNotFound, "there is no signed preview URL of that token for this port")
	}
	return nil, err
}
