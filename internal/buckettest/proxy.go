//go:build unix

package buckettest

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/mounts"
	"berth/mounts/objects"
)

// Fault is what happens to one request on its way; the zero Fault is nothing.
type Fault struct {
	// Delay passes before the request goes on.
	Delay time.Duration
	// Status is answered in the service's place, with Body.
	Status int
	Body   string
	// Cut ends the connection after CutAfter bytes of the request's body.
	Cut      bool
	CutAfter int64
	// Deaf lets the service do what it is asked for, and loses the answer.
	Deaf bool
	// Hold keeps the request from the service until the proxy heals or the
	// client gives up.
	Hold bool
}

// Proxy stands between a client and a server.
type Proxy struct {
	// Job reaches the server's bucket through the proxy.
	Job mounts.Job

	mu     sync.Mutex
	rule   func(*http.Request) Fault
	healed chan struct{}
	struck int
	token  string
}

// Proxied puts a proxy before a server until the test ends. Requests keep the
// proxy's address as their host, which signatures cover.
func (s *Server) Proxied(t testing.TB) *Proxy {
	t.Helper()
	endpoint, err := url.Parse(s.Job.Service.Endpoint)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Job: s.Job, healed: make(chan struct{})}
	back := &http.Transport{DisableCompression: true, MaxIdleConnsPerHost: 64}
	to := &httputil.ReverseProxy{
		Transport: back,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = endpoint.Scheme, endpoint.Host, r.In.Host
			p.sign(r.Out)
		},
		FlushInterval:  -1,
		ErrorHandler:   func(http.ResponseWriter, *http.Request, error) { panic(http.ErrAbortHandler) },
		ModifyResponse: func(r *http.Response) error { return lost(r.Request) },
	}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { p.pass(to, w, r) }))
	t.Cleanup(func() {
		p.Heal()
		front.CloseClientConnections()
		front.Close()
		back.CloseIdleConnections()
	})
	p.Job.Service.Endpoint = front.URL + strings.TrimSuffix(endpoint.Path, "/")
	return p
}

// Bucket opens the server's bucket through the proxy.
func (p *Proxy) Bucket(t testing.TB) objects.Bucket {
	t.Helper()
	return (&Server{Job: p.Job}).Bucket(t)
}

// Break lets rule say what happens to each request from now on. It is called
// for several at once.
func (p *Proxy) Break(rule func(*http.Request) Fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = rule
}

// Always is a rule for all requests.
func Always(f Fault) func(*http.Request) Fault { return func(*http.Request) Fault { return f } }

// Heal lets everything pass, also what is held.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.rule = nil
	close(p.healed)
	p.healed = make(chan struct{})
}

// Struck counts the requests that a fault happened to.
func (p *Proxy) Struck() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.struck
}

type deafKey struct{}

var errLost = errors.New("the answer is lost")

// lost drops the answer to a request that was marked so.
func lost(r *http.Request) error {
	if r.Context().Value(deafKey{}) != nil {
		return errLost
	}
	return nil
}

func (p *Proxy) pass(to http.Handler, w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	rule, healed := p.rule, p.healed
	p.mu.Unlock()
	var f Fault
	if rule != nil {
		f = rule(r)
	}
	if f != (Fault{}) {
		p.mu.Lock()
		p.struck++
		p.mu.Unlock()
	}
	if f.Delay > 0 {
		t := time.NewTimer(f.Delay)
		defer t.Stop()
		select {
		case <-t.C:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
	switch {
	case f.Hold:
		select {
		case <-healed:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	case f.Status != 0:
		// Else the connection cannot be used for what follows.
		_, _ = io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/xml")
		w.WriteHeader(f.Status)
		_, _ = io.WriteString(w, f.Body)
		return
	case f.Cut && f.CutAfter == 0:
		panic(http.ErrAbortHandler)
	case f.Cut:
		r.Body = &cutBody{ReadCloser: r.Body, left: f.CutAfter}
	case f.Deaf:
		r = r.WithContext(context.WithValue(r.Context(), deafKey{}, true))
	}
	to.ServeHTTP(w, r)
}

// cutBody ends in the middle.
type cutBody struct {
	io.ReadCloser
	left int64
}

func (c *cutBody) Read(b []byte) (int, error) {
	if c.left <= 0 {
		return 0, errors.New("cut")
	}
	n, err := c.ReadCloser.Read(b[:min(int64(len(b)), c.left)])
	c.left -= int64(n)
	return n, err
}

// Phase is what a request is for, whichever the service: create, part and complete
// of an upload in parts, put, copy, note, get, head, list or delete.
func Phase(r *http.Request) string {
	q := r.URL.Query()
	switch {
	case r.Method == http.MethodPost && q.Has("uploads"):
		return "create"
	case r.Method == http.MethodPost && q.Has("uploadId"), q.Get("comp") == "blocklist":
		return "complete"
	case r.Method == http.MethodPut && q.Has("partNumber"), q.Get("comp") == "block":
		return "part"
	case r.Header.Get("X-Amz-Copy-Source") != "", r.Header.Get("X-Ms-Copy-Source") != "", strings.Contains(r.URL.EscapedPath(), "/rewriteTo/"):
		return "copy"
	case r.Method == http.MethodPost && q.Has("uploadType"):
		return "put"
	case r.Method == http.MethodPatch, q.Get("comp") == "metadata":
		return "note"
	case r.Method == http.MethodGet && (q.Has("list-type") || q.Get("comp") == "list"):
		return "list"
	case r.Method == http.MethodGet && strings.HasPrefix(r.URL.Path, "/storage/v1/b/"):
		switch {
		case strings.HasSuffix(r.URL.EscapedPath(), "/o"):
			return "list"
		case q.Get("alt") != "media":
			return "head"
		}
	}
	return strings.ToLower(r.Method)
}
