package server_test

import (
	"net/http"
	"strings"
	"testing"

	"berth/internal/secret"
	"berth/internal/server"
)

// shown stands for exposed ports.
type shown struct{}

func (shown) Match(host string) bool { return strings.HasPrefix(host, "3000-label.") }
func (shown) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Shown", r.Host)
	w.WriteHeader(http.StatusTeapot)
}

// TestPreviewsAreApart: their host leads to them whatever is asked for, also
// what would be MCP's, and no other host does; MCP's checks stay as they are.
func TestPreviewsAreApart(t *testing.T) {
	r := newHTTP(t, server.Options{Previews: shown{}, Tokens: []server.Token{{Name: "a", Token: secret.New("0123456789abcdef")}}, AllowedHosts: []string{"*"}})
	for _, path := range []string{"/", "/mcp", "/sse", "/healthz", "/metrics", "/../mcp"} {
		if code, _ := r.status("GET", path, "", header{"Host": "3000-label.localhost"}); code != http.StatusTeapot {
			t.Errorf("%s of a port: got %d", path, code)
		}
		if code, _ := r.status("GET", path, "", header{"Host": "3000-label.localhost", "Authorization": "Bearer 0123456789abcdef"}); code != http.StatusTeapot {
			t.Errorf("%s of a port, with MCP's token: got %d", path, code)
		}
	}
	for _, host := range []string{"localhost", "127.0.0.1", "berth.example.com"} {
		if code, _ := r.status("POST", "/mcp", initialize, header{"Host": host}); code != http.StatusUnauthorized {
			t.Errorf("MCP at %s without a token: got %d, want 401", host, code)
		}
		if code, _ := r.status("POST", "/mcp", initialize, header{"Host": host, "X-Forwarded-Host": "3000-label.localhost"}); code != http.StatusUnauthorized {
			t.Errorf("an untrusted X-Forwarded-Host at %s: got %d, want 401", host, code)
		}
	}
	// A page of a port is a foreign origin for MCP, with the token or without.
	for _, origin := range []string{"http://3000-label.localhost", "http://3000-label.localhost:80", "http://127.0.0.1:1"} {
		if code, _ := r.status("POST", "/mcp", initialize, header{"Host": "localhost", "Origin": origin, "Authorization": "Bearer 0123456789abcdef"}); code != http.StatusForbidden {
			t.Errorf("MCP from a page at %s: got %d, want 403", origin, code)
		}
	}
	proxied := newHTTP(t, server.Options{Previews: shown{}, TrustedProxies: []string{"127.0.0.1"}})
	if code, _ := proxied.status("GET", "/", "", header{"Host": "inner", "X-Forwarded-Host": "3000-label.localhost"}); code != http.StatusTeapot {
		t.Errorf("behind a trusted proxy: got %d", code)
	}
}
