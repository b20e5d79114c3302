//go:build unix

package preview_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"testing"
	"time"

	"berth/internal/preview"
	"berth/sandbox"
	"berth/sandbox/providertest"
)

// bench is a sandbox of the fake, whose ports are the host's, and a Server.
type bench struct {
	t       *testing.T
	fake    *providertest.Fake
	manager *sandbox.Manager
	ports   *preview.Server
	state   string
	key     sandbox.Key
}

func newBench(t *testing.T, public string) *bench {
	t.Helper()
	b := &bench{t: t, state: t.TempDir(), key: sandbox.Key{Owner: "local", Session: "a"}, fake: providertest.NewFake(t.TempDir(), providertest.FakeOptions{})}
	t.Cleanup(b.fake.Shutdown)
	var err error
	if b.manager, err = sandbox.NewManager(b.fake, sandbox.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.manager.Close() })
	b.ports = b.another(public)
	if _, err := b.manager.StartSandbox(t.Context(), b.key, sandbox.Spec{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// another is the server of another process over the same state.
func (b *bench) another(public string) *preview.Server {
	b.t.Helper()
	s, err := preview.New(preview.Options{Manager: b.manager, State: b.state, Public: public})
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = s.Close() })
	return s
}

func (b *bench) expose(port int, public bool) sandbox.Port {
	b.t.Helper()
	res, err := b.manager.ExposePort(b.t.Context(), b.key, sandbox.PortRequest{Port: port, Public: &public})
	if err != nil {
		b.t.Fatal(err)
	}
	return res.Port
}

// inside runs an HTTP server "inside" and exposes it.
func (b *bench) inside(public bool, h http.HandlerFunc) (p sandbox.Port, named, plain string) {
	b.t.Helper()
	s := httptest.NewServer(h)
	b.t.Cleanup(s.Close)
	p = b.expose(portOf(b.t, s.URL), public)
	urls, err := b.ports.Open(b.t.Context(), p)
	if err != nil || len(urls) != 2 {
		b.t.Fatalf("Open: %v, %v", urls, err)
	}
	return p, urls[0], urls[1]
}

func portOf(t *testing.T, u string) int {
	t.Helper()
	parsed, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(parsed.Port())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// client resolves every name to this machine, as browsers do below localhost,
// and follows no redirect.
var client = &http.Client{
	Timeout:       2 * time.Minute,
	CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	Transport: &http.Transport{DialContext: func(ctx context.Context, _, addr string) (net.Conn, error) {
		_, port, err := net.SplitHostPort(addr)
		if err != nil {
			return nil, err
		}
		return (&net.Dialer{}).DialContext(ctx, "tcp", "127.0.0.1:"+port)
	}},
}

func do(t *testing.T, method, u string, body io.Reader, header ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, u, body)
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(header); i += 2 {
		if header[i] == "Host" {
			req.Host = header[i+1]
		} else {
			req.Header.Set(header[i], header[i+1])
		}
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatalf("%s %s: %v", method, u, err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatalf("%s %s: %v", method, u, err)
	}
	return resp, string(b)
}
