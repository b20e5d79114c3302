//go:build linux

package tools_test

import (
	"strings"
	"testing"
	"time"

	"berth/internal/mcptest"
)

// What an agent sees of builds, on the default root of the real provider.
func TestBuildSnapshot(t *testing.T) {
	t.Setenv("BERTH_TEST_PROVIDER", "local")
	c := mcptest.New(t, withSnapshots()).Client(t, mcptest.InProcess)
	steps := []args{{"run": "echo one; echo two; sudo touch /usr/bin/baked"}, {"env": args{"A": "1"}}, {"copy": "f g/ sub/"}, {"run": "cat sub/f sub/h"}}
	files := args{"f": "eff\n", "g/h": "aitch\n"}
	res, err := c.Try(t.Context(), "create_snapshot", args{"name": "built", "steps": steps, "files": files}, "token")
	if err != nil || res.IsError {
		t.Fatalf("create_snapshot: %v, %s", err, res.Text)
	}
	var lines []string
	for _, p := range c.Progress("token") {
		lines = append(lines, strings.Split(p.Message, "\n")...)
	}
	log := strings.Join(lines, "\n")
	at := 0
	for _, want := range []string{"[1/4] RUN echo one", "one", "two", "[2/4] ENV A=", "[3/4] COPY f g/ sub/", "[4/4] RUN cat", "eff", "aitch"} {
		i := strings.Index(log[at:], want)
		if i < 0 {
			t.Fatalf("progress lacks %q in its place:\n%s", want, log)
		}
		at += i + len(want)
	}
	row := res.Structured["snapshot"].(map[string]any)
	if row["name"] != "built" || row["state"] != "active" || row["made_from"] != "a build" || !strings.Contains(res.Structured["log"].(string), "aitch") {
		t.Errorf("create_snapshot answered %s", res.Text)
	}
	one := c.Must("list_snapshots", args{"name": "built"})
	if list := one.Structured["snapshots"].([]any); len(list) != 1 || !strings.Contains(one.Structured["log"].(string), "aitch") {
		t.Errorf("list_snapshots of one: %s", one.Text)
	}
	c.Must("start_sandbox", args{"session_id": "s", "snapshot": "built"})
	if out := c.Must("execute_command", args{"session_id": "s", "command": "cat sub/h; test -e /usr/bin/baked && echo $A"}).Output(); out != "aitch\n1" {
		t.Errorf("in a sandbox of it: %q", out)
	}
	// A step that fails, told whole; the steps before it are kept.
	text := c.Refused("create_snapshot", args{"name": "bad", "steps": append(steps[:1:1], args{"run": "echo nearly; exit 3"})})
	if !strings.HasPrefix(text, "build_failed: step 2 of 2 (RUN echo nearly; exit 3) exited with 3") || !strings.Contains(text, "[cached]") || !strings.Contains(text, "\nnearly\n") {
		t.Errorf("a failing step: %s", text)
	}
	if text := c.Refused("list_snapshots", args{"name": "bad"}); !strings.Contains(text, "nearly") {
		t.Errorf("the log of a failed build: %s", text)
	}
	c.Must("create_snapshot", args{"session_id": "s", "name": "kept"})
	if list := c.Must("list_snapshots", args{"session_id": "s", "limit": 1}); len(list.Structured["snapshots"].([]any)) != 1 || list.Structured["next_cursor"] != nil {
		t.Errorf("those of a session: %s", list.Text)
	}
	for _, bad := range []struct {
		with args
		want []string
	}{
		{args{"name": "built", "steps": steps[:1]}, []string{"name: there is a snapshot built already, made otherwise"}},
		{args{"name": "x", "dockerfile": "FROM scratch\nEXPOSE 1"}, []string{"dockerfile: line 1: scratch", "dockerfile: line 2: EXPOSE"}},
		{args{"name": "x", "dockerfile": "FROM x", "image": "y"}, []string{"dockerfile: image or steps are given too"}},
		{args{"name": "x", "files": args{"a": "b"}}, []string{"files: neither dockerfile nor steps"}},
		{args{"name": "x", "steps": []args{{"run": "a", "user": "b"}, {}}}, []string{"steps.0: 2 of its kinds", "steps.1: 0 of its kinds"}},
		{args{"name": "x", "steps": []args{{"rum": "a"}}}, []string{"did you mean run?"}},
		{args{"name": "x", "steps": []args{{"run": "a"}}, "files": args{"../a": "b"}}, []string{`files: "../a" is not a path`}},
		{args{"name": "x", "dockerfile": "FROM snapshot:none\nRUN true"}, []string{"there is no snapshot none"}},
		{args{"name": "x", "image": "docker-archive:/etc/passwd"}, []string{"operator's alone"}},
		{args{"name": "x"}, []string{"has no sandbox"}},
	} {
		text := c.Refused("create_snapshot", bad.with)
		for _, want := range bad.want {
			if !strings.Contains(text, want) {
				t.Errorf("create_snapshot %v: %s, want %q", bad.with, text, want)
			}
		}
	}
	if list := c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any); len(list) != 1 {
		t.Errorf("builds left sandboxes: %v", list)
	}
}

// Deleting a snapshot that is being built stops the build.
func TestStopABuild(t *testing.T) {
	t.Setenv("BERTH_TEST_PROVIDER", "local")
	s := mcptest.New(t, withSnapshots())
	c, other := s.Client(t, mcptest.InProcess), s.Client(t, mcptest.InProcess)
	go func() {
		for {
			list, err := other.Try(t.Context(), "list_snapshots", nil, "")
			if err != nil {
				return
			}
			if rows := list.Structured["snapshots"].([]any); len(rows) == 1 && rows[0].(map[string]any)["state"] == "building" {
				_, _ = other.Try(t.Context(), "delete_snapshot", args{"name": "slow"}, "")
				return
			}
			time.Sleep(10 * time.Millisecond)
		}
	}()
	if text := c.Refused("create_snapshot", args{"name": "slow", "steps": []args{{"run": "sleep 1000"}}}); !strings.Contains(text, "the build was stopped") {
		t.Errorf("a stopped build: %s", text)
	}
}
