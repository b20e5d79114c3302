//go:build linux

package tools_test

import (
	"strings"
	"testing"

	"berth/internal/mcptest"
)

func TestSnapshots(t *testing.T) {
	t.Setenv("BERTH_TEST_PROVIDER", "local")
	c := mcptest.New(t, withSnapshots()).Client(t, mcptest.InProcess)
	c.Must("start_sandbox", args{"session_id": "s"})
	c.Must("execute_command", args{"session_id": "s", "command": "mkdir -p ~/.local/bin; printf '#!/bin/sh\\necho baked\\n' > ~/.local/bin/tool; chmod +x ~/.local/bin/tool; tool"})
	made := c.Must("create_snapshot", args{"session_id": "s", "name": "baked"}).Structured["snapshot"].(map[string]any)
	if made["name"] != "baked" || made["state"] != "active" || !strings.HasPrefix(made["digest"].(string), "sha256:") || made["size_bytes"].(float64) <= 0 || made["made_from"] != "session s" {
		t.Errorf("create_snapshot answered %v", made)
	}
	// Of processes at work too, and the sandbox's own later changes are not in it.
	c.Must("spawn_process", args{"session_id": "s", "command": "sleep 1000"})
	c.Must("execute_command", args{"session_id": "s", "command": "echo busy > ~/state"})
	c.Must("create_snapshot", args{"session_id": "s", "name": "busy"})
	c.Must("execute_command", args{"session_id": "s", "command": "rm ~/.local/bin/tool"})
	c.Must("destroy_sandbox", args{"session_id": "s"})

	box := sandboxOf(t, c.Must("start_sandbox", args{"session_id": "a", "snapshot": "baked", "image": "no.such/image"}))
	if spec := box["spec"].(map[string]any); spec["snapshot"] != "baked" || spec["image"] != nil {
		t.Errorf("spec %v", spec)
	}
	if out := c.Must("execute_command", args{"session_id": "a", "command": "tool; test ! -e ~/state; id -un; echo changed > ~/.local/bin/tool"}).Output(); out != "baked\nagent" {
		t.Errorf("in a sandbox of the snapshot: %q", out)
	}
	c.Must("start_sandbox", args{"session_id": "b", "snapshot": "busy"})
	if out := c.Must("execute_command", args{"session_id": "b", "command": "tool; cat ~/state"}).Output(); out != "baked\nbusy" {
		t.Errorf("in a sandbox of the second: %q", out)
	}
	list := c.Must("list_snapshots", args{}).Structured["snapshots"].([]any)
	if len(list) != 2 || list[0].(map[string]any)["used_by"].([]any)[0] != "a" {
		t.Errorf("list_snapshots: %v", list)
	}
	for _, bad := range []struct {
		tool string
		with args
		want string
	}{
		{"create_snapshot", args{"session_id": "a", "name": "baked"}, "name: there is a snapshot baked already"},
		{"create_snapshot", args{"session_id": "a", "name": "../x"}, "name: \"../x\" is not a snapshot's name"},
		{"create_snapshot", args{"session_id": "never", "name": "x"}, "session never has no sandbox"},
		{"create_snapshot", args{"session_id": "a", "name": "x", "dockerfile": "RUN x"}, "dockerfile: line 1: RUN comes before FROM"},
		{"start_sandbox", args{"session_id": "c", "snapshot": "none"}, "snapshot: there is no snapshot none"},
		{"delete_snapshot", args{"name": "none"}, "name: there is no snapshot none"},
		{"delete_snapshot", args{"name": "baked"}, "in use by the sandboxes of a"},
	} {
		if r := c.Call(bad.tool, bad.with); !r.IsError || !strings.Contains(r.Text, bad.want) {
			t.Errorf("%s %v: %s, want %q", bad.tool, bad.with, r.Text, bad.want)
		}
	}
	if got := c.Must("get_sandbox", args{"session_id": "c"}); sandboxOf(t, got)["status"] != "pending" {
		t.Errorf("a refused start made %s", got.Text)
	}
	c.Must("destroy_sandbox", args{"session_id": "a"})
	c.Must("delete_snapshot", args{"name": "baked"})
	if out := c.Must("execute_command", args{"session_id": "b", "command": "tool"}).Output(); out != "baked" {
		t.Errorf("after the first was deleted: %q", out)
	}
}
