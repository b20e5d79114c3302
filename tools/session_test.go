//go:build unix

package tools_test

import (
	"strings"
	"testing"

	"berth/internal/mcptest"
	"berth/tools"
)

func sessionOf(t *testing.T, r *mcptest.Result) string {
	t.Helper()
	return fact[string](t, r, "session_id")
}

func TestConnectionHasOneDefaultSession(t *testing.T) {
	for _, how := range []mcptest.Transport{mcptest.InProcess, mcptest.Stdio, mcptest.SSE, mcptest.HTTP} {
		t.Run(string(how), func(t *testing.T) {
			s := mcptest.New(t, mcptest.Options{})
			c := s.Client(t, how)
			first := c.Must("execute_command", args{"command": "echo x > f"})
			id := sessionOf(t, first)
			for _, want := range []string{"created a new sandbox", "session_id " + id + " was made by the server", "pass it in later calls", "7 days", "30"} {
				if !strings.Contains(first.Text, want) {
					t.Errorf("the first answer lacks %q: %s", want, first.Text)
				}
			}
			if lines := strings.Split(first.Text, "\n"); len(lines) < 2 || !strings.HasPrefix(lines[len(lines)-2], "[") {
				t.Errorf("the notice is not the line before the last: %s", first.Text)
			}
			second := c.Must("execute_command", args{"command": "cat f"})
			if sessionOf(t, second) != id || second.Output() != "x" || strings.Contains(second.Text, "session_id") {
				t.Errorf("the second call: %s", second.Text)
			}
			named := c.Must("execute_command", args{"command": "cat f", "session_id": id})
			if strings.Contains(named.Text, "made by the server") {
				t.Errorf("a named session is announced: %s", named.Text)
			}
			c.Must("destroy_sandbox", nil)
			if again := c.Must("execute_command", args{"command": "true"}); !strings.Contains(again.Text, "session_id "+id+" was made by the server") {
				t.Errorf("a fresh sandbox's session is not announced: %s", again.Text)
			}
			if other := s.Client(t, how); sessionOf(t, other.Must("execute_command", args{"command": "true"})) == id {
				t.Error("another connection has the same session")
			}

			c.Must("execute_command", args{"command": "true", "session_id": "mine"})
			text := c.Refused("execute_command", args{"command": "touch changed"})
			for _, want := range []string{"session_id", id, "mine", "list_sandboxes"} {
				if !strings.Contains(text, want) {
					t.Errorf("the refusal lacks %q: %s", want, text)
				}
			}
			c.Must("list_sandboxes", nil)
		})
	}
}

func TestServerMadeSandboxesAreDeleted(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	id := sessionOf(t, c.Must("execute_command", args{"command": "true"}))
	made := sandboxOf(t, c.Must("get_sandbox", args{"session_id": id}))["spec"].(map[string]any)
	if made["auto_delete_minutes"] != 43200.0 || made["auto_archive_minutes"] != 10080.0 {
		t.Errorf("spec of a server-made session: %v", made)
	}
	c.Must("start_sandbox", args{"session_id": "mine"})
	mine := sandboxOf(t, c.Must("get_sandbox", args{"session_id": "mine"}))["spec"].(map[string]any)
	if mine["auto_delete_minutes"] != -1.0 {
		t.Errorf("spec of a named session: %v", mine)
	}
}

func TestStartSandboxWithoutIDMakesANewOne(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.HTTP)
	one := sandboxOf(t, c.Must("start_sandbox", nil))["session_id"].(string)
	if got := sessionOf(t, c.Must("execute_command", args{"command": "true"})); got != one {
		t.Errorf("the call after start_sandbox went to %s, want %s", got, one)
	}
	two := c.Must("start_sandbox", args{"name": "second"})
	if id := sandboxOf(t, two)["session_id"].(string); id == one || two.Structured["outcome"] != "created" || !strings.Contains(two.Text, "made by the server") {
		t.Errorf("a second start: %s", two.Text)
	}
	if text := c.Refused("execute_command", args{"command": "true"}); !strings.Contains(text, one) {
		t.Errorf("after two sandboxes: %s", text)
	}
}

func TestReconnectBindsNothing(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	s.Client(t, mcptest.HTTP).Must("start_sandbox", args{"session_id": "old"})
	c := s.Client(t, mcptest.HTTP)
	c.Must("reconnect", args{"session_id": "old"})
	if got := sessionOf(t, c.Must("execute_command", args{"command": "true"})); got == "old" {
		t.Error("a call without session_id went to the reconnected sandbox")
	}
	if text := c.Refused("reconnect", nil); !strings.Contains(text, "session_id: missing") {
		t.Errorf("reconnect without an id: %s", text)
	}
}

func TestModernRequestsStandAlone(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	c := s.Client(t, mcptest.Modern)
	one, two := c.Must("execute_command", args{"command": "true"}), c.Must("execute_command", args{"command": "true"})
	if sessionOf(t, one) == sessionOf(t, two) {
		t.Error("two modern requests share a session that nobody named")
	}
	if !strings.Contains(one.Text, "session_id "+sessionOf(t, one)+" was made by the server") {
		t.Errorf("the id is not told: %s", one.Text)
	}
	for _, tool := range []string{"read_file", "write_file", "edit_file", "list_processes", "read_output", "kill_process", "send_stdin", "stop_sandbox", "destroy_sandbox"} {
		if text := c.Refused(tool, without(valid("p-x")[tool], "session_id")); !strings.Contains(text, "session_id: missing") {
			t.Errorf("%s without a session: %s", tool, text)
		}
	}
	if box := sandboxOf(t, c.Must("get_sandbox", nil)); box["status"] != "pending" {
		t.Errorf("get_sandbox without a session: %v", box)
	}
	if n := len(c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any)); n != 2 {
		t.Errorf("%d sandboxes, want 2", n)
	}
}

func TestHeaderAndOperatorsSession(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{Tools: tools.Options{DefaultSession: "operators"}})
	for _, how := range []mcptest.Transport{mcptest.SSE, mcptest.HTTP, mcptest.Modern} {
		t.Run(string(how), func(t *testing.T) {
			head := s.Client(t, how, mcptest.Headers{"Berth-Session": "head"})
			r := head.Must("execute_command", args{"command": "true"})
			if sessionOf(t, r) != "head" || strings.Contains(r.Text, "made by the server") {
				t.Errorf("with a header: %s", r.Text)
			}
			if got := sessionOf(t, head.Must("execute_command", args{"command": "true", "session_id": "arg"})); got != "arg" {
				t.Errorf("argument against header: %s", got)
			}
			if got := sessionOf(t, head.Must("execute_command", args{"command": "true"})); got != "head" {
				t.Errorf("the header after two sessions: %s", got)
			}
			plain := s.Client(t, how)
			if got := sessionOf(t, plain.Must("execute_command", args{"command": "true"})); got != "operators" {
				t.Errorf("without a header: %s", got)
			}
			bad := s.Client(t, how, mcptest.Headers{"Berth-Session": "a b"})
			if text := bad.Refused("execute_command", args{"command": "true"}); !strings.Contains(text, "Berth-Session") {
				t.Errorf("a bad header: %s", text)
			}
		})
	}
}

func TestLookingMakesNothing(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	for _, how := range mcptest.Transports() {
		c := s.Client(t, how)
		c.Must("get_sandbox", nil)
		c.Must("list_sandboxes", nil)
		c.Call("list_processes", nil)
		c.Call("read_output", args{"process_id": "p-x"})
	}
	infos, err := s.Provider.List(t.Context(), "")
	if err != nil || len(infos) != 0 {
		t.Errorf("looking made %v, %v", infos, err)
	}
}
