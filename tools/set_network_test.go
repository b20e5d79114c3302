//go:build unix

package tools_test

import (
	"strings"
	"testing"

	"berth/internal/mcptest"
	"berth/tools"
)

func TestSetNetworkNamesWhatIsWrong(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{Tools: tools.Options{Toolsets: []string{"all"}}}).Client(t, mcptest.InProcess)
	c.Must("execute_command", args{"command": "true", "session_id": "s"})
	for name, row := range map[string]struct {
		args args
		want string
	}{
		"no CIDR":        {args{"network_allow_list": "1.2.3.4, example.com"}, "network_allow_list: \"example.com\" is not an address range"},
		"bits":           {args{"network_allow_list": []any{"10.0.0.1/8"}}, "did you mean 10.0.0.0/8?"},
		"text of a list": {args{"network_allow_list": `["10.0.0.0/8"]`}, "network_allow_list: 10.0.0.0/8 is the host's"},
		"half a list":    {args{"network_allow_list": `["1.2.3.4"`}, "is not an address range"},
		"octal":          {args{"network_allow_list": "010.0.0.1"}, "is not an address range"},
		"decimal":        {args{"network_allow_list": "2130706433"}, "is not an address range"},
		"mapped":         {args{"network_allow_list": "::ffff:10.0.0.1"}, "IPv4 address in IPv6 form"},
		"private":        {args{"network_allow_list": "10.0.0.0/8"}, "the operator sets this ceiling"},
		"metadata":       {args{"network_allow_list": "169.254.169.254"}, "the operator sets this ceiling"},
		"the loopback":   {args{"network_allow_list": "127.0.0.1"}, "the operator sets this ceiling"},
		"address":        {args{"network_allow_domains": []any{"9.9.9.9"}}, "network_allow_domains: \"9.9.9.9\" is not a name"},
		"star":           {args{"network_allow_domains": []any{"a.*.com"}}, "is not a name"},
	} {
		row.args["session_id"] = "s"
		r := c.Call("set_network", row.args)
		if !r.IsError || !strings.Contains(r.Text, row.want) {
			t.Errorf("%s: %s, want %q", name, r.Text, row.want)
		}
	}
}
