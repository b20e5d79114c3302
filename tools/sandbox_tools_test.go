//go:build unix

package tools_test

import (
	"encoding/json"
	"strings"
	"testing"

	"berth/internal/mcptest"
)

// sandboxOf is the sandbox of a record answer, whose text must be the same JSON.
func sandboxOf(t *testing.T, r *mcptest.Result) map[string]any {
	t.Helper()
	var text map[string]any
	if err := json.Unmarshal([]byte(r.Text), &text); err != nil {
		t.Fatalf("the text is not JSON: %v: %s", err, r.Text)
	}
	structured, err := json.Marshal(r.Structured)
	if err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	if string(structured) != string(again) {
		t.Errorf("the text %s is not the structured content %s", again, structured)
	}
	box, ok := r.Structured["sandbox"].(map[string]any)
	if !ok {
		t.Fatalf("no sandbox in %s", r.Text)
	}
	return box
}

func TestLifeOfASandbox(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	s := args{"session_id": "s"}

	if box := sandboxOf(t, c.Must("get_sandbox", s)); box["status"] != "pending" || box["session_id"] != "s" {
		t.Errorf("before the start: %v", box)
	}
	if list := c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any); len(list) != 0 {
		t.Errorf("get_sandbox made one: %v", list)
	}
	r := c.Must("start_sandbox", args{"session_id": "s", "name": "box", "labels": args{"team": "a"}, "language": "python", "env": args{"A": "1"},
		"auto_stop_minutes": 5, "auto_archive_minutes": 0, "auto_delete_minutes": -5, "timeout_seconds": 7, "ephemeral": false})
	if r.Structured["outcome"] != "created" {
		t.Errorf("outcome %v", r.Structured["outcome"])
	}
	box := sandboxOf(t, r)
	spec := box["spec"].(map[string]any)
	for name, want := range map[string]any{"language": "python", "auto_stop_minutes": 5.0, "auto_archive_minutes": 43200.0, "auto_delete_minutes": -1.0, "timeout_seconds": 7.0} {
		if name == "auto_archive_minutes" && spec[name] == 0.0 {
			continue // 0 is told as asked; it means the maximum
		}
		if spec[name] != want {
			t.Errorf("spec.%s is %v, want %v", name, spec[name], want)
		}
	}
	if box["name"] != "box" || box["status"] != "running" || box["network"] == "" || strings.Contains(r.Text, `"A":"1"`) {
		t.Errorf("sandbox %v", box)
	}
	if out := c.Must("execute_command", args{"session_id": "s", "command": "echo $A; echo kept > f"}).Output(); out != "1" {
		t.Errorf("the sandbox's env: %q", out)
	}
	if got := c.Must("start_sandbox", s).Structured["outcome"]; got != "connected" {
		t.Errorf("a second start: %v", got)
	}
	if list := c.Must("list_sandboxes", args{"labels": args{"team": "a"}, "status": "running", "limit": 1}).Structured["sandboxes"].([]any); len(list) != 1 {
		t.Errorf("list by label: %v", list)
	}
	if list := c.Must("list_sandboxes", args{"labels": args{"team": "b"}}).Structured["sandboxes"].([]any); len(list) != 0 {
		t.Errorf("list by another label: %v", list)
	}
	if list := c.Must("list_sandboxes", args{"session_id": "s", "labels": args{"team": "a"}}).Structured["sandboxes"].([]any); len(list) != 1 {
		t.Errorf("list of one session: %v", list)
	}
	if list := c.Must("list_sandboxes", args{"session_id": "nobody"}).Structured["sandboxes"].([]any); len(list) != 0 {
		t.Errorf("list of no session: %v", list)
	}

	if box := sandboxOf(t, c.Must("stop_sandbox", s)); box["status"] != "stopped" {
		t.Errorf("after the stop: %v", box["status"])
	}
	c.Must("list_processes", s)
	if box := sandboxOf(t, c.Must("get_sandbox", s)); box["status"] != "stopped" || box["stop_reason"] != "asked to" {
		t.Errorf("looking started it, or does not say why it stopped: %v, %v", box["status"], box["stop_reason"])
	}
	r = c.Must("reconnect", s)
	if why, ok := sandboxOf(t, r)["stop_reason"]; ok {
		t.Errorf("a running sandbox says why it stopped: %v", why)
	}
	if r.Structured["outcome"] != "connected" || sandboxOf(t, r)["status"] != "running" || !strings.Contains(r.Text, "started again") {
		t.Errorf("reconnect: %s", r.Text)
	}
	if box := sandboxOf(t, c.Must("stop_sandbox", args{"session_id": "s", "archive": true})); box["status"] != "archived" {
		t.Errorf("after archiving: %v", box["status"])
	}
	r = c.Must("execute_command", args{"session_id": "s", "command": "cat f"})
	matches(t, "a command after archiving", r.Text, `kept\n\[the sandbox was stopped and was started again\]\n\[exit 0 .*\]`)

	r = c.Must("destroy_sandbox", s)
	if r.Structured["existed"] != true || r.Structured["status_before"] != "running" {
		t.Errorf("destroy: %s", r.Text)
	}
	r = c.Must("destroy_sandbox", s)
	if r.Structured["existed"] != false {
		t.Errorf("destroy again: %s", r.Text)
	}
	if text := c.Refused("read_file", args{"session_id": "s", "path": "f"}); !strings.Contains(text, "start_sandbox") {
		t.Errorf("read_file of a destroyed one: %s", text)
	}
	r = c.Must("execute_command", args{"session_id": "s", "command": "ls"})
	matches(t, "a command after destroying", r.Text, `\[replaced the former sandbox: .*\]\n\[exit 0 .*\]`)
}

func TestDriftIsTold(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	c.Must("start_sandbox", args{"session_id": "s"})
	r := c.Must("start_sandbox", args{"session_id": "s", "ephemeral": true})
	if notice, _ := r.Structured["notice"].(string); !strings.Contains(notice, "ephemeral") {
		t.Errorf("an ask that cannot be met is not told: %s", r.Text)
	}
}

func TestEphemeralIsGoneWhenStopped(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	c.Must("start_sandbox", args{"session_id": "s", "ephemeral": true})
	if box := sandboxOf(t, c.Must("stop_sandbox", args{"session_id": "s"})); box["status"] != "destroyed" {
		t.Errorf("status %v", box["status"])
	}
	if list := c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any); len(list) != 0 {
		t.Errorf("still listed: %v", list)
	}
}

func TestListPages(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	for _, id := range []string{"a", "b", "c"} {
		c.Must("start_sandbox", args{"session_id": id})
	}
	var got []string
	a := args{"limit": 2}
	for {
		r := c.Must("list_sandboxes", a)
		for _, row := range r.Structured["sandboxes"].([]any) {
			got = append(got, row.(map[string]any)["session_id"].(string))
		}
		next, more := r.Structured["next_cursor"].(string)
		if !more {
			break
		}
		a = args{"limit": 2, "cursor": next}
	}
	if strings.Join(got, "") != "abc" {
		t.Errorf("pages gave %v", got)
	}
}
