//go:build unix

package tools_test

import (
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/mcptest"
	"berth/tools"
)

// TestEveryTransport runs one scenario over all of them.
func TestEveryTransport(t *testing.T) {
	for _, how := range mcptest.Transports() {
		t.Run(string(how), func(t *testing.T) {
			t.Parallel()
			s := mcptest.New(t, mcptest.Options{Tools: tools.Options{Toolsets: []string{"all"}}})
			c := s.Client(t, how)
			list, err := c.ListTools(t.Context(), mcp.ListToolsRequest{})
			if err != nil || len(list.Tools) != len(arguments) {
				t.Fatalf("%d tools, %v", len(list.Tools), err)
			}
			at := func(more args) args {
				more["session_id"] = "s"
				return more
			}
			c.Must("start_sandbox", at(args{"language": "python"}))
			if out := c.Must("run_code", at(args{"code": "import os; print('Hello, world!', os.getcwd() == os.path.expanduser('~'))"})).Output(); out != "Hello, world! True" {
				t.Errorf("hello: %q", out)
			}
			c.Must("write_file", at(args{"path": "f", "content": "a ü 😀\n"}))
			if out := c.Must("execute_command", at(args{"command": "cat f"})).Output(); out != "a ü 😀" {
				t.Errorf("the file: %q", out)
			}
			p := fact[string](t, c.Must("spawn_process", at(args{"command": "cat"})), "process_id")
			if out := c.Must("send_stdin", at(args{"process_id": p, "text": "echo\n"})).Output(); out != "echo" {
				t.Errorf("stdin: %q", out)
			}
			if r := c.Must("kill_process", at(args{"process_id": p})); r.Facts["exit_code"] != 137.0 {
				t.Errorf("kill: %s", r.Text)
			}
			if text := c.Refused("execute_command", at(args{"command": "x", "timeout": 1})); !strings.Contains(text, "did you mean timeout_seconds?") {
				t.Errorf("a bad argument: %s", text)
			}
			other := s.Client(t, how)
			if out := other.Must("execute_command", at(args{"command": "cat f"})).Output(); out != "a ü 😀" {
				t.Errorf("another client of the session: %q", out)
			}
			c.Must("destroy_sandbox", at(args{}))
			if _, err := c.Try(t.Context(), "no_such_tool", args{}, nil); err == nil {
				t.Error("an unknown tool is no protocol error")
			}
		})
	}
}

func TestInstructions(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	info, err := s.Manager.GetSandbox(t.Context(), keyOf("x"))
	if err != nil {
		t.Fatal(err)
	}
	for name, o := range map[string]tools.Options{"usual": {}, "operators_session": {DefaultSession: "mine"}} {
		text := tools.Instructions(*info, o)
		if len(text) > 2000 {
			t.Errorf("%s: %d bytes", name, len(text))
		}
		for _, want := range []string{info.Home, "session_id", "the internet", "run_code has", "python", "300 s", "15 idle minutes"} {
			if !strings.Contains(text, want) {
				t.Errorf("%s: the instructions lack %q: %s", name, want, text)
			}
		}
		if strings.Contains(text, "session x") || strings.HasSuffix(text, "…") {
			t.Errorf("%s: %s", name, text)
		}
	}
}
