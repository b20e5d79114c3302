//go:build linux

package promises_test

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"berth/internal/driver"
)

// says checks an answer's text.
func says(t *testing.T, text string, want ...string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("%s\nwant %q", text, w)
		}
	}
}

func TestPromise40BlockAll(t *testing.T) {
	t.Parallel()
	b := newSite(t).dial(t, driver.Stdio)
	says(t, b.call("start_sandbox", args{"network_block_all": true}).Text, "blocked")
	r := b.call("execute_command", args{"command": "getent hosts example.org || echo no name; exec 3<>/dev/tcp/203.0.113.9/80; cat <&3; (echo >/dev/tcp/127.0.0.1/1) 2>&1 | grep -o 'Connection refused'"})
	says(t, r.Text, "no name", "Connection refused")
	if atDaytona { // the platform does not tell what it refuses
		says(t, r.Text, "Connection reset by peer")
		says(t, b.call("get_sandbox", nil).Text, "blocked")
		return
	}
	says(t, r.Text, "the name example.org was refused 2 times: network_block_all; allowed by network_allow_domains example.org",
		"refused 203.0.113.9:80: network_block_all; allowed by network_allow_list 203.0.113.9/32")
	if r := b.call("execute_command", args{"command": "true"}); strings.Contains(r.Text, "network:") {
		t.Errorf("another command is told of it: %s", r.Text)
	}
	says(t, b.call("get_sandbox", nil).Text, `"destination":"203.0.113.9:80"`, `"process_id"`, "blocked")
}

// At Daytona: which of two servers of the test is reached, and that lists which the
// platform would not hold to are refused.
func listsAtDaytona(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "reached") }))
	defer srv.Close()
	b := opened(t, newSite(t)).dial(t, driver.Stdio)
	get := "curl -s -m 20 " + inside(srv) + " || echo closed; exec 3<>/dev/tcp/198.51.100.9/80; cat <&3 2>/dev/null || echo; echo closed"
	for policy, want := range map[string]string{"127.0.0.1": "reached\nclosed", "203.0.113.0/24": "closed\n\nclosed"} {
		b := b.other()
		says(t, b.call("start_sandbox", args{"network_allow_list": policy}).Text, "only "+policy)
		b.want(get, want)
		b.call("stop_sandbox", nil)
		b.want(get, want) // it outlives a stop
		b.call("set_network", args{"network_allow_list": "127.0.0.1"})
		b.want(get, "reached\nclosed")
	}
	says(t, b.refused("start_sandbox", args{"network_allow_list": "10.0.0.0/8,example.com"}), "network_allow_list", "example.com")
	says(t, b.refused("start_sandbox", args{"network_allow_domains": []any{"*.example.com"}}), "network_allow_domains", "network_allow_list")
	says(t, b.refused("start_sandbox", args{"network_allow_list": "::/0"}), "network_allow_list", "IPv4")
	says(t, b.refused("start_sandbox", args{"network_allow_list": "192.168.0.1"}), "the operator sets this ceiling")
}

func TestPromise41Lists(t *testing.T) {
	t.Parallel()
	if atDaytona {
		listsAtDaytona(t)
		return
	}
	b := newSite(t).dial(t, driver.Stdio)
	const get = "exec 3<>/dev/tcp/%/80; cat <&3"
	try := func(host string) string {
		return b.call("execute_command", args{"command": strings.ReplaceAll(get, "%", host)}).Text
	}
	b.call("start_sandbox", nil)
	says(t, try("169.254.169.254"), "refused 169.254.169.254:80: link-local and metadata addresses are closed")
	says(t, b.refused("start_sandbox", args{"network_allow_list": "10.0.0.0/8,example.com"}), "network_allow_list", "example.com")
	says(t, b.refused("start_sandbox", args{"network_allow_list": "127.0.0.1"}), "the operator sets this ceiling")
	// Live: with block-all the list is what stays open.
	says(t, b.call("start_sandbox", args{"network_block_all": true, "network_allow_list": "203.0.113.0/24", "network_allow_domains": []any{"*.example.com"}}).Text, "only 203.0.113.0/24, *.example.com")
	if text := try("203.0.113.9"); strings.Contains(text, "network: refused") {
		t.Errorf("a listed address: %s", text)
	}
	says(t, try("198.51.100.9"), "refused 198.51.100.9:80: not in network_allow_list")
	says(t, b.call("execute_command", args{"command": "getent hosts www.example.org"}).Text, "the name www.example.org was refused 2 times: not in network_allow_domains")
	b.call("stop_sandbox", nil)
	says(t, try("198.51.100.9"), "refused 198.51.100.9:80: not in network_allow_list") // it outlives a stop
}
