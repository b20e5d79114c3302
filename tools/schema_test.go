//go:build unix

package tools_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"
	"github.com/mark3labs/mcp-go/server"

	"berth/internal/golden"
	"berth/sandbox"
	"berth/sandbox/providertest"
	"berth/tools"
)

// maxList is what the default tools/list may cost every client, in bytes, and
// maxToday what it does with the tools there are; the rest is for those to come.
const (
	maxList  = 16 << 10
	maxToday = 15_700
)

// nowhere makes expose_port listed.
type nowhere struct{}

func (nowhere) Open(context.Context, sandbox.Port) ([]string, error) { return nil, nil }
func (nowhere) URLs(sandbox.Port) []string                           { return nil }

// listed is the tools/list answer of a server with options o.
func listed(t *testing.T, o tools.Options) (raw []byte, list []mcp.Tool) {
	t.Helper()
	m, err := sandbox.NewManager(providertest.NewFake(t.TempDir(), providertest.FakeOptions{}), sandbox.Options{})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	s := server.NewMCPServer("berth", "test")
	o.Previews = nowhere{}
	if err := tools.Register(s, m, o); err != nil {
		t.Fatal(err)
	}
	msg := s.HandleMessage(t.Context(), json.RawMessage(`{"jsonrpc":"2.0","id":1,"method":"tools/list"}`))
	raw, err = json.Marshal(msg)
	if err != nil {
		t.Fatal(err)
	}
	var answer struct {
		Result struct{ Tools []mcp.Tool }
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatal(err)
	}
	return raw, answer.Result.Tools
}

func TestListFitsItsBudget(t *testing.T) {
	raw, list := listed(t, tools.Options{})
	t.Logf("tools/list: %d bytes for %d tools", len(raw), len(list))
	if most := min(maxList, maxToday); len(raw) > most {
		t.Errorf("tools/list has %d bytes, want at most %d", len(raw), most)
	}
	if len(list) != 19 {
		t.Errorf("%d tools listed, want 19", len(list))
	}
}

func TestSchemasAreAsReviewed(t *testing.T) {
	raw, _ := listed(t, tools.Options{Toolsets: []string{"all"}})
	var answer struct {
		Result struct{ Tools []json.RawMessage }
	}
	if err := json.Unmarshal(raw, &answer); err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, tool := range answer.Result.Tools {
		var head struct{ Name string }
		if err := json.Unmarshal(tool, &head); err != nil {
			t.Fatal(err)
		}
		var pretty bytes.Buffer
		if err := json.Indent(&pretty, tool, "", "  "); err != nil {
			t.Fatal(err)
		}
		pretty.WriteByte('\n')
		golden.Check(t, filepath.Join("testdata", "schemas", head.Name+".json"), pretty.Bytes())
		names = append(names, head.Name+".json")
	}
	entries, err := os.ReadDir(filepath.Join("testdata", "schemas"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.Contains(names, e.Name()) {
			t.Errorf("%s belongs to no tool; delete it", e.Name())
		}
	}
}

// arguments are the design's, beside session_id.
var arguments = map[string]string{
	"execute_command": "argv command cwd env stdin timeout_seconds user wait_seconds",
	"run_code":        "code cwd env language stdin timeout_seconds user wait_seconds",
	"spawn_process":   "argv cols command cwd env open_stdin pattern rows stdin timeout_seconds tty user wait_for wait_seconds",
	"send_stdin":      "base64 cols end pattern process_id rows text wait_for wait_seconds",
	"read_output":     "base64 cursor max_bytes pattern process_id tail_lines wait_for wait_seconds",
	"kill_process":    "process_id signal",
	"list_processes":  "",
	"start_sandbox":   "auto_archive_minutes auto_delete_minutes auto_stop_minutes env ephemeral image labels language mounts name network_allow_domains network_allow_list network_block_all public resources snapshot timeout_seconds user volumes working_directory",
	"reconnect":       "",
	"get_sandbox":     "",
	"list_sandboxes":  "cursor labels limit status",
	"stop_sandbox":    "archive",
	"destroy_sandbox": "",
	"expose_port":     "port public",
	"list_volumes":    "",
	"delete_volume":   "volume",
	"read_file":       "base64 limit offset path",
	"write_file":      "append base64 content mode path",
	"edit_file":       "edits path",
	"fork_sandbox":    "labels new_session_id",
	"create_snapshot": "dockerfile files image name steps",
	"list_snapshots":  "cursor limit name",
	"delete_snapshot": "name",
	"mount_bucket":    "bucket connection path prefix read_only",
	"unmount_bucket":  "path",
	"set_network":     "network_allow_domains network_allow_list network_block_all",
}

func TestEveryToolIsWhole(t *testing.T) {
	_, list := listed(t, tools.Options{Toolsets: []string{"all"}})
	seen := map[string]bool{}
	for _, tool := range list {
		seen[tool.Name] = true
		want := append(strings.Fields(arguments[tool.Name]), "session_id")
		var got []string
		for name := range tool.InputSchema.Properties {
			got = append(got, name)
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%s has arguments %v, want %v", tool.Name, got, want)
		}
		if tool.InputSchema.AdditionalProperties != false {
			t.Errorf("%s allows unknown arguments", tool.Name)
		}
		a := tool.Annotations
		switch {
		case a.ReadOnlyHint == nil || a.OpenWorldHint == nil:
			t.Errorf("%s does not say whether it only reads, or reaches the world", tool.Name)
		case *a.ReadOnlyHint && (a.DestructiveHint != nil || a.IdempotentHint != nil):
			t.Errorf("%s only reads, and has hints for tools that do not", tool.Name)
		case !*a.ReadOnlyHint && a.DestructiveHint == nil:
			t.Errorf("%s does not say whether it destroys", tool.Name)
		}
		if tool.Description == "" {
			t.Errorf("%s has no description", tool.Name)
		}
		if len(tool.Description) > 1000 {
			t.Errorf("%s: description of %d bytes", tool.Name, len(tool.Description))
		}
		for name, p := range tool.InputSchema.Properties {
			kind := fmt.Sprint(p.(map[string]any)["type"])
			if (kind == "number" || kind == "integer") && !strings.ContainsAny(name, "_") &&
				!slices.Contains([]string{"limit", "offset", "cols", "rows", "port"}, name) {
				t.Errorf("%s.%s is a number without a unit in its name", tool.Name, name)
			}
		}
	}
	for name := range arguments {
		if !seen[name] {
			t.Errorf("%s is not listed", name)
		}
	}
}

func TestToolsetsAndReadOnly(t *testing.T) {
	cases := []struct {
		name string
		o    tools.Options
		want []string
	}{
		{"files", tools.Options{Toolsets: []string{"files"}}, []string{"edit_file", "read_file", "write_file"}},
		{"read_only", tools.Options{ReadOnly: true}, []string{"get_sandbox", "list_processes", "list_sandboxes", "read_file", "read_output"}},
		{"read_only_files", tools.Options{Toolsets: []string{"files"}, ReadOnly: true}, []string{"read_file"}},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			_, list := listed(t, c.o)
			var got []string
			for _, tool := range list {
				got = append(got, tool.Name)
			}
			slices.Sort(got)
			if !slices.Equal(got, c.want) {
				t.Errorf("listed %v, want %v", got, c.want)
			}
		})
	}
	if _, list := listed(t, tools.Options{Toolsets: []string{"all"}}); len(list) != len(arguments) {
		t.Errorf("all lists %d tools, want %d", len(list), len(arguments))
	}
	if err := (tools.Options{Toolsets: []string{"core", "bukkits"}}).Validate(); err == nil || !strings.Contains(err.Error(), `"bukkits" is not a toolset`) {
		t.Errorf("a wrong toolset: %v", err)
	}
	if err := (tools.Options{DefaultSession: "a b"}).Validate(); err == nil {
		t.Error("a wrong default session is taken")
	}
}
