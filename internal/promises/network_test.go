//go:build linux

package promises_test

import (
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
	says(t, r.Text, "no name", "the name example.org was refused 2 times: network_block_all; allowed by network_allow_domains example.org",
		"refused 203.0.113.9:80: network_block_all; allowed by network_allow_list 203.0.113.9/32", "Connection refused")
	if r := b.call("execute_command", args{"command": "true"}); strings.Contains(r.Text, "network:") {
		t.Errorf("another command is told of it: %s", r.Text)
	}
	says(t, b.call("get_sandbox", nil).Text, `"destination":"203.0.113.9:80"`, `"process_id"`, "blocked")
}

func TestPromise41Lists(t *testing.T) {
	t.Parallel()
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
