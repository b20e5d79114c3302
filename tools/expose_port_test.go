//go:build unix

package tools_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"testing"

	"berth/internal/mcptest"
)

func TestExposePort(t *testing.T) {
	if os.Getenv("BERTH_TEST_PROVIDER") == "local" {
		t.Skip("the server of this test listens on the host, where the fake's commands run")
	}
	inside := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "from inside") }))
	defer inside.Close()
	u, err := url.Parse(inside.URL)
	if err != nil {
		t.Fatal(err)
	}
	port, err := strconv.Atoi(u.Port())
	if err != nil {
		t.Fatal(err)
	}
	s := mcptest.New(t, mcptest.Options{})
	c := s.Client(t, mcptest.HTTP)
	get := func(host, token string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", s.URL(), nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Host = host
		if token != "" {
			req.Header.Set("Berth-Preview-Token", token)
		}
		resp, err := (&http.Client{}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}

	if text := c.Refused("expose_port", args{"session_id": "s", "port": port}); !strings.Contains(text, "start_sandbox") {
		t.Errorf("without a sandbox: %s", text)
	}
	c.Must("start_sandbox", args{"session_id": "s"})
	a := c.Must("expose_port", args{"session_id": "s", "port": port}).Structured
	token, _ := a["token"].(string)
	named, err := url.Parse(a["url"].(string))
	if err != nil || token == "" || a["public"] != false || a["visit_url"] != a["url"].(string)+"/?berth_token="+token {
		t.Fatalf("answer: %v", a)
	}
	if !strings.HasSuffix(s.URL(), ":"+named.Port()) {
		t.Errorf("%s is not on the server's own listener %s", named, s.URL())
	}
	if code, _ := get(named.Host, ""); code != 401 {
		t.Errorf("without the token: %d", code)
	}
	if code, body := get(named.Host, token); code != 200 || body != "from inside" {
		t.Errorf("with the token: %d %q", code, body)
	}
	if s.Log.Contains(token) {
		t.Error("the token is in the log")
	}

	r := c.Must("get_sandbox", args{"session_id": "s"})
	ports := sandboxOf(t, r)["ports"].([]any)
	if p := ports[0].(map[string]any); len(ports) != 1 || p["url"] != a["url"] || p["plain_url"] != a["plain_url"] || strings.Contains(r.Text, token) {
		t.Errorf("get_sandbox: %s", r.Text)
	}
	if again := c.Must("expose_port", args{"session_id": "s", "port": port, "public": true}).Structured; again["url"] != a["url"] || again["token"] != nil {
		t.Errorf("public: %v", again)
	}
	if code, body := get(named.Host, ""); code != 200 || body != "from inside" {
		t.Errorf("public: %d %q", code, body)
	}

	c.Must("start_sandbox", args{"session_id": "open", "public": true})
	if b := c.Must("expose_port", args{"session_id": "open", "port": 80}).Structured; b["public"] != true || b["token"] != nil {
		t.Errorf("of a public sandbox: %v", b)
	}
	if b := c.Must("expose_port", args{"session_id": "open", "port": 80, "public": false}).Structured; b["public"] != false || b["token"] == nil {
		t.Errorf("private there: %v", b)
	}
	c.Must("destroy_sandbox", args{"session_id": "s"})
	if code, _ := get(named.Host, ""); code != 404 {
		t.Errorf("destroyed: %d", code)
	}
}
