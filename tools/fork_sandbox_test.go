//go:build unix

package tools_test

import (
	"strings"
	"testing"

	"berth/internal/mcptest"
	"berth/tools"
)

func withSnapshots() mcptest.Options {
	return mcptest.Options{Tools: tools.Options{Toolsets: []string{"all"}}}
}

func TestForkSandbox(t *testing.T) {
	c := mcptest.New(t, withSnapshots()).Client(t, mcptest.InProcess)
	c.Must("start_sandbox", args{"session_id": "s", "labels": args{"team": "a", "role": "first"}, "env": args{"A": "1"}, "language": "python", "auto_stop_minutes": 5})
	c.Must("execute_command", args{"session_id": "s", "command": "echo kept > f"})
	r := c.Must("fork_sandbox", args{"session_id": "s", "labels": args{"role": "second"}})
	made, _ := r.Structured["session_id"].(string)
	box := sandboxOf(t, r)
	labels := box["labels"].(map[string]any)
	spec := box["spec"].(map[string]any)
	if made == "" || made == "s" || box["session_id"] != made || r.Structured["forked_from"] != "s" || box["status"] != "running" ||
		labels["team"] != "a" || labels["role"] != "second" || spec["language"] != "python" || spec["auto_stop_minutes"] != 5.0 || box["name"] != made {
		t.Errorf("fork_sandbox answered %s", r.Text)
	}
	if out := c.Must("execute_command", args{"session_id": made, "command": "cat f; echo $A; echo fork > f"}).Output(); out != "kept\n1" {
		t.Errorf("in the fork: %q", out)
	}
	// The source's next call tells of nothing that has happened.
	if r := c.Must("execute_command", args{"session_id": "s", "command": "cat f"}); r.Output() != "kept" || strings.Contains(r.Text, "revived") || strings.Contains(r.Text, "started") {
		t.Errorf("in the source: %q", r.Text)
	}
	c.Must("stop_sandbox", args{"session_id": "s"})
	c.Must("fork_sandbox", args{"session_id": "s", "new_session_id": "named"})
	if out := c.Must("execute_command", args{"session_id": "named", "command": "cat f"}).Output(); out != "kept" {
		t.Errorf("in the fork of a stopped one: %q", out)
	}
	for _, bad := range []struct {
		with args
		want string
	}{
		{args{"session_id": "s", "new_session_id": "named"}, "new_session_id: session named has a sandbox already"},
		{args{"session_id": "s", "new_session_id": "s"}, "new_session_id: s is the session that is forked"},
		{args{"session_id": "s", "new_session_id": "../x"}, "new_session_id: not a session id"},
		{args{"session_id": "never"}, "session never has no sandbox"},
		{args{"session_id": "s", "labels": args{"!": "x"}}, "labels"},
		{args{"session_id": "s", "name": "x"}, "name"},
	} {
		if r := c.Call("fork_sandbox", bad.with); !r.IsError || !strings.Contains(r.Text, bad.want) {
			t.Errorf("fork_sandbox %v: %s, want %q", bad.with, r.Text, bad.want)
		}
	}
}
