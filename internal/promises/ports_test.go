//go:build linux

package promises_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"berth/internal/driver"
)

// visit asks an address of a port, through the listener's own address: not
// every resolver knows names below localhost.
func visit(t *testing.T, address, token string) (int, string) {
	t.Helper()
	scheme, host, _ := strings.Cut(address, "://")
	port := ":80"
	if i := strings.LastIndexByte(host, ':'); i >= 0 {
		port = host[i:]
	}
	req, err := http.NewRequestWithContext(t.Context(), "GET", scheme+"://127.0.0.1"+port+"/hello", nil)
	must(t, err)
	req.Host = host
	if token != "" {
		req.Header.Set(tokenHeader, token)
	}
	resp, err := (&http.Client{Timeout: 20 * time.Second}).Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

// tokenHeader is what a token is sent in.
var tokenHeader = "Berth-Preview-Token"

// until visits until the answer is the code wanted.
func until(t *testing.T, address, token string, code int) string {
	t.Helper()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		got, body := visit(t, address, token)
		if got == code {
			return body
		}
		if time.Now().After(end) {
			t.Fatalf("%s answers %d %s, want %d", address, got, body, code)
		}
	}
}

const hello = `exec node -e 'require("http").createServer((q,a)=>a.end("hello from "+q.url)).listen(8000,"127.0.0.1")'`

// At Daytona: the platform's addresses. Its ports are all public or none, and one of
// a private sandbox is made public by an address that nobody guesses.
func portsAtDaytona(t *testing.T) {
	b := newSite(t).dial(t, driver.HTTP)
	b.start(nil, "created")
	b.call("spawn_process", args{"command": hello})
	a := b.call("expose_port", args{"port": 8000})
	url, token := fmt.Sprint(a.Structured["url"]), fmt.Sprint(a.Structured["token"])
	contains(t, fmt.Sprint(a.Structured["how_to_pass_the_token"]), tokenHeader)
	if body := until(t, url, token, 200); body != "hello from /hello" {
		t.Errorf("with the token: %q", body)
	}
	for _, wrong := range []string{"", "wrong"} {
		if code, body := visit(t, url, wrong); code != 401 {
			t.Errorf("with the token %q: %d %s", wrong, code, body)
		}
	}
	open := b.call("expose_port", args{"port": 8000, "public": true}).Structured
	if open["token"] != nil || open["url"] == a.Structured["url"] {
		t.Errorf("made public: %v", open)
	}
	if code, body := visit(t, fmt.Sprint(open["url"]), ""); code != 200 || body != "hello from /hello" {
		t.Errorf("public: %d %q", code, body)
	}
	public := b.other()
	public.start(args{"public": true}, "created")
	public.call("spawn_process", args{"command": hello})
	contains(t, public.refused("expose_port", args{"port": 8000, "public": false}), "public", "start_sandbox with public false")
	until(t, fmt.Sprint(public.call("expose_port", args{"port": 8000}).Structured["url"]), "", 200)
	b.call("stop_sandbox", nil)
	if code, body := visit(t, url, token); code == 200 || code == 0 {
		t.Errorf("stopped: %d %s", code, body)
	}
	b.call("spawn_process", args{"command": hello})
	a = b.call("expose_port", args{"port": 8000})
	until(t, fmt.Sprint(a.Structured["url"]), fmt.Sprint(a.Structured["token"]), 200)
	b.call("destroy_sandbox", nil)
	if code, _ := visit(t, url, token); code != 404 && code != 0 { // or nothing listens there any more
		t.Errorf("destroyed: %d", code)
	}
}

func TestPromise49Ports(t *testing.T) {
	t.Parallel()
	if atDaytona {
		portsAtDaytona(t)
		return
	}
	for _, how := range []driver.Transport{driver.Stdio, driver.HTTP} {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			s := newSite(t)
			b := s.dial(t, how)
			b.start(nil, "created")
			a := b.call("expose_port", args{"port": 8000}).Structured
			named, plain, token := fmt.Sprint(a["url"]), fmt.Sprint(a["plain_url"]), fmt.Sprint(a["token"])
			if code, body := visit(t, named, token); code != 502 || !strings.Contains(body, "Nothing listens yet") {
				t.Errorf("before the server runs: %d %s", code, body)
			}
			b.call("spawn_process", args{"command": hello})
			if body := until(t, named, token, 200); body != "hello from /hello" {
				t.Errorf("through the name: %q", body)
			}
			if code, body := visit(t, plain, token); code != 200 || body != "hello from /hello" {
				t.Errorf("through the loopback port: %d %q", code, body)
			}
			for _, u := range []string{named, plain} {
				if code, _ := visit(t, u, ""); code != 401 {
					t.Errorf("%s without the token: %d, want 401", u, code)
				}
				if code, _ := visit(t, u, "wrong"); code != 401 {
					t.Errorf("%s with a wrong token: %d, want 401", u, code)
				}
			}
			again := b.call("expose_port", args{"port": 8000, "public": true}).Structured
			if again["url"] != a["url"] || again["token"] != nil {
				t.Errorf("made public: %v", again)
			}
			if code, _ := visit(t, named, ""); code != 200 {
				t.Errorf("public, without a token: %d", code)
			}
			contains(t, fmt.Sprint(b.sandbox()["ports"]), named)
			b.call("stop_sandbox", nil)
			if code, body := visit(t, named, ""); code != 503 || !strings.Contains(body, "stopped") {
				t.Errorf("stopped: %d %s", code, body)
			}
			b.call("spawn_process", args{"command": hello})
			until(t, named, "", 200)
			b.call("destroy_sandbox", nil)
			if code, _ := visit(t, named, ""); code != 404 {
				t.Errorf("destroyed: %d", code)
			}
		})
	}
}

// A port answers at its address again once a server runs, whoever exposed it.
func TestPromise49AfterARestart(t *testing.T) {
	notAtDaytona(t, "no server of berth's stands between a port and who calls it")
	t.Parallel()
	s := ownSite(t)
	b := s.dial(t, driver.Stdio)
	b.start(args{"public": true}, "created")
	a := b.call("expose_port", args{"port": 8000}).Structured
	b.call("spawn_process", args{"command": hello})
	for _, u := range []string{"url", "plain_url"} {
		until(t, fmt.Sprint(a[u]), "", 200)
	}
	b.Kill()
	s.dial(t, driver.Stdio)
	for _, u := range []string{"url", "plain_url"} {
		until(t, fmt.Sprint(a[u]), "", 200)
	}
}
