//go:build unix

package tools_test

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/mcptest"
	"berth/internal/session"
)

type args = mcptest.Args

// valid are calls of every tool that pass all checks; each bad row changes one
// thing about one of them.
func valid(process string) map[string]args {
	const s = "base"
	return map[string]args{
		"execute_command": {"session_id": s, "command": "touch changed"},
		"run_code":        {"session_id": s, "code": "touch changed", "language": "bash"},
		"spawn_process":   {"session_id": s, "command": "touch changed"},
		"send_stdin":      {"session_id": s, "process_id": process, "text": "changed\n"},
		"read_output":     {"session_id": s, "process_id": process, "wait_seconds": 0},
		"kill_process":    {"session_id": s, "process_id": process},
		"list_processes":  {"session_id": s},
		"start_sandbox":   {"session_id": s, "name": "changed"},
		"reconnect":       {"session_id": s},
		"get_sandbox":     {"session_id": s},
		"list_sandboxes":  {},
		"stop_sandbox":    {"session_id": s},
		"destroy_sandbox": {"session_id": s},
		"expose_port":     {"session_id": s, "port": 3000},
		"list_volumes":    {},
		"delete_volume":   {"volume": "none"},
		"read_file":       {"session_id": s, "path": "kept"},
		"write_file":      {"session_id": s, "path": "kept", "content": "changed"},
		"mount_bucket":    {"session_id": s, "path": "/changed"}, // but that no connection is configured here
		"unmount_bucket":  {"session_id": s, "path": "/changed"},
		"edit_file":       {"session_id": s, "path": "kept", "edits": []any{args{"old_text": "kept", "new_text": "changed"}}},
	}
}

// badRow is one bad call.
type badRow struct {
	name, tool string
	args       args
	// want are words that the error's text must have.
	want []string
}

// with is a valid call with one argument changed.
func with(a args, name string, value any) args {
	out := maps.Clone(a)
	out[name] = value
	return out
}

func without(a args, name string) args {
	out := maps.Clone(a)
	delete(out, name)
	return out
}

// wrongTypes are values of every JSON type, by its name.
var wrongTypes = map[string]any{
	"string": "word", "number": 1.5, "boolean": true, "array": []any{[]any{}}, "object": args{"a": args{}}, "null": nil,
}

// tooLong are lengths just over the limits of those that take long texts.
var tooLong = map[string]int{
	"execute_command.command": 1<<20 + 1, "spawn_process.command": 1<<20 + 1, "run_code.code": 1<<20 + 1,
	"execute_command.stdin": 8<<20 + 1, "run_code.stdin": 8<<20 + 1, "spawn_process.stdin": 8<<20 + 1,
	"send_stdin.text": 1<<20 + 1, "send_stdin.base64": 1_500_000, "write_file.content": 10<<20 + 1, "write_file.base64": 14_000_001,
}

// rowsOf derives the bad calls of one argument from its published schema.
func rowsOf(tool string, ok args, name string, schema map[string]any, required bool) []badRow {
	row := func(what string, value any, want ...string) badRow {
		return badRow{name: what, tool: tool, args: with(ok, name, value), want: append([]string{name}, want...)}
	}
	kind := fmt.Sprint(schema["type"])
	var rows []badRow
	for jsonType, value := range wrongTypes {
		if jsonType == kind {
			continue
		}
		rows = append(rows, row("type_"+jsonType, value, "allowed: "))
	}
	if required {
		rows = append(rows, badRow{name: "missing", tool: tool, args: without(ok, name), want: []string{name + ": missing"}})
	}
	switch kind {
	case "string":
		if enum, isEnum := schema["enum"].([]any); isEnum {
			rows = append(rows, row("not_in_enum", "nonsense", fmt.Sprint(enum[0]), "nonsense"))
			break
		}
		size, ok := tooLong[tool+"."+name]
		if !ok {
			size = 140_000
		}
		rows = append(rows, row("too_long", strings.Repeat("x", size)))
		if !slices.Contains([]string{"text", "stdin", "content"}, name) && name != "session_id" && name != "cursor" && name != "mode" {
			rows = append(rows, row("nul", "a\x00b", "NUL"))
		}
	case "integer", "number":
		if lo, ok := schema["minimum"].(float64); ok {
			rows = append(rows, row("too_small", lo-1, "too small"))
		}
		if hi, ok := schema["maximum"].(float64); ok {
			rows = append(rows, row("too_large", hi+1, "too large"))
		}
		rows = append(rows, row("quoted", "5", "in quotes", "without quotes"), row("huge", 1e300))
		if kind == "integer" {
			rows = append(rows, row("fraction", 1.5, "whole number"))
		}
	case "boolean":
		rows = append(rows, row("quoted", "true", "in quotes", "without quotes"))
	case "array":
		rows = append(rows, row("empty", []any{}, "empty"), row("wrong_item", []any{3}))
	case "object":
		if schema["properties"] != nil {
			rows = append(rows, row("unknown_key", args{"nonsense": 3}, "nonsense", "no such argument"))
			break
		}
		rows = append(rows, row("wrong_value", args{"A": 3}), row("nul", args{"A": "a\x00b"}, "NUL"))
		if values, _ := schema["additionalProperties"].(map[string]any); values["type"] == "object" {
			rows = []badRow{row("wrong_value", args{"/a": 3}, "/a", "an object"), row("unknown_key", args{"/a": args{"nonsense": 3}}, "/a.nonsense", "no such argument"),
				row("nul", args{"/a": args{"bucket": "a\x00b"}}, "/a.bucket", "NUL"), row("null", args{"/a": nil}, "/a")}
			break
		}
		many := args{}
		for i := range 2000 {
			many[fmt.Sprint("N", i)] = "v"
		}
		rows = append(rows, row("too_many", many, "at most"))
	}
	return rows
}

// handRows are what no schema tells.
func handRows(ok map[string]args) []badRow {
	long := strings.Repeat("x", 10_000_000)
	rows := []badRow{
		{name: "command_10_MB", tool: "execute_command", args: with(ok["execute_command"], "command", long), want: []string{"command", "10000000 bytes", "write_file"}},
		{name: "command_and_argv", tool: "execute_command", args: with(ok["execute_command"], "argv", []any{"true"}), want: []string{"argv", "command"}},
		{name: "neither", tool: "execute_command", args: without(ok["execute_command"], "command"), want: []string{"command: missing", "argv"}},
		{name: "command_empty", tool: "execute_command", args: with(ok["execute_command"], "command", ""), want: []string{"command", "empty"}},
		{name: "argv_empty_program", tool: "execute_command", args: args{"session_id": "base", "argv": []any{""}}, want: []string{"argv"}},
		{name: "argv_nul", tool: "execute_command", args: args{"session_id": "base", "argv": []any{"echo", "a\x00b"}}, want: []string{"argv.1", "NUL"}},
		{name: "env_name", tool: "execute_command", args: with(ok["execute_command"], "env", args{"A-B": "x"}), want: []string{"env", "A-B"}},
		{name: "env_name_injection", tool: "execute_command", args: with(ok["execute_command"], "env", args{"A;touch changed": "x"}), want: []string{"env"}},
		{name: "cwd_missing", tool: "execute_command", args: with(ok["execute_command"], "cwd", "/no/such/place"), want: []string{"cwd", "/no/such/place"}},
		{name: "cwd_file", tool: "execute_command", args: with(ok["execute_command"], "cwd", "~/kept"), want: []string{"cwd"}},
		{name: "language_unknown", tool: "run_code", args: with(ok["run_code"], "language", "cobol"), want: []string{"language", "python", "cobol"}},
		{name: "code_empty", tool: "run_code", args: with(ok["run_code"], "code", ""), want: []string{"code", "empty"}},
		{name: "size_without_tty", tool: "spawn_process", args: with(ok["spawn_process"], "cols", 80), want: []string{"cols", "tty"}},
		{name: "bad_pattern", tool: "spawn_process", args: with(ok["spawn_process"], "pattern", "("), want: []string{"pattern", "RE2"}},
		{name: "wait_for_pattern_without", tool: "spawn_process", args: with(ok["spawn_process"], "wait_for", "pattern"), want: []string{"pattern", "missing"}},
		{name: "pattern_with_other", tool: "read_output", args: with(with(ok["read_output"], "wait_for", "exit"), "pattern", "x"), want: []string{"pattern", "wait_for"}},
		{name: "nothing_to_send", tool: "send_stdin", args: without(ok["send_stdin"], "text"), want: []string{"text", "base64", "end"}},
		{name: "text_and_base64", tool: "send_stdin", args: with(ok["send_stdin"], "base64", "YQ=="), want: []string{"base64", "text"}},
		{name: "bad_base64", tool: "send_stdin", args: with(without(ok["send_stdin"], "text"), "base64", "%%%"), want: []string{"base64"}},
		{name: "cols_alone", tool: "send_stdin", args: with(ok["send_stdin"], "cols", 80), want: []string{"cols", "rows"}},
		{name: "process_unknown", tool: "send_stdin", args: with(ok["send_stdin"], "process_id", "p-nope"), want: []string{"p-nope", "list_processes"}},
		{name: "process_unknown", tool: "read_output", args: with(ok["read_output"], "process_id", "p-nope"), want: []string{"p-nope", "list_processes"}},
		{name: "process_unknown", tool: "kill_process", args: with(ok["kill_process"], "process_id", "p-nope"), want: []string{"p-nope", "list_processes"}},
		{name: "cursor_and_tail", tool: "read_output", args: with(with(ok["read_output"], "cursor", "c0.0"), "tail_lines", 3), want: []string{"tail_lines", "cursor"}},
		{name: "cursor_nonsense", tool: "read_output", args: with(ok["read_output"], "cursor", "zzz"), want: []string{"cursor"}},
		{name: "cursor_empty", tool: "read_output", args: with(ok["read_output"], "cursor", ""), want: []string{"cursor"}},
		{name: "cursor_nonsense", tool: "list_sandboxes", args: args{"cursor": "zzz"}, want: []string{"cursor"}},
		{name: "never_seen", tool: "reconnect", args: args{"session_id": "never-seen"}, want: []string{"never-seen", "list_sandboxes", "start_sandbox"}},
		{name: "relative_working_directory", tool: "start_sandbox", args: with(ok["start_sandbox"], "working_directory", "here"), want: []string{"working_directory", "absolute"}},
		{name: "network_and_more", tool: "start_sandbox", args: args{"session_id": "base", "network_allow_list": []any{"300.1.1.1/8"}, "user": "bob", "env": args{"1A": "x"}, "volumes": []any{args{"volume": "a b", "path": "here"}}},
			want: []string{"network_allow_list", "user: ", "1A", "volumes[0].volume", "volumes[0].path"}},
		{name: "label_key", tool: "start_sandbox", args: with(ok["start_sandbox"], "labels", args{"a b": "x"}), want: []string{"labels"}},
		{name: "env_name", tool: "start_sandbox", args: with(ok["start_sandbox"], "env", args{"1A": "x"}), want: []string{"env", "1A"}},
		{name: "missing_file", tool: "read_file", args: with(ok["read_file"], "path", "nope"), want: []string{"nope"}},
		{name: "directory", tool: "read_file", args: with(ok["read_file"], "path", "~"), want: []string{"directory"}},
		{name: "fifo", tool: "read_file", args: with(ok["read_file"], "path", "pipe"), want: []string{"pipe"}},
		{name: "binary", tool: "read_file", args: with(ok["read_file"], "path", "binary"), want: []string{"base64"}},
		{name: "base64_with_lines", tool: "read_file", args: with(with(ok["read_file"], "base64", true), "offset", 2), want: []string{"base64", "offset"}},
		{name: "escaping_path", tool: "read_file", args: with(ok["read_file"], "path", "../../../../../../../../../../../../proc/self/environ"), want: nil},
		{name: "path_empty", tool: "read_file", args: with(ok["read_file"], "path", ""), want: []string{"path", "empty"}},
		{name: "no_sandbox", tool: "read_file", args: with(ok["read_file"], "session_id", "never-seen"), want: []string{"never-seen"}},
		{name: "no_sandbox", tool: "write_file", args: with(ok["write_file"], "session_id", "never-seen"), want: []string{"never-seen"}},
		{name: "to_directory", tool: "write_file", args: with(ok["write_file"], "path", "~"), want: []string{"directory"}},
		{name: "to_fifo", tool: "write_file", args: with(ok["write_file"], "path", "pipe"), want: []string{"pipe"}},
		{name: "no_content", tool: "write_file", args: without(ok["write_file"], "content"), want: []string{"content", "base64"}},
		{name: "both_contents", tool: "write_file", args: with(ok["write_file"], "base64", "YQ=="), want: []string{"base64", "content"}},
		{name: "mode", tool: "write_file", args: with(ok["write_file"], "mode", "rwx"), want: []string{"mode"}},
		{name: "mode_setuid", tool: "write_file", args: with(ok["write_file"], "mode", "4755"), want: []string{"mode"}},
		{name: "through_file", tool: "write_file", args: with(ok["write_file"], "path", "kept/x"), want: []string{"kept"}},
		{name: "resources_small", tool: "start_sandbox", args: with(ok["start_sandbox"], "resources", args{"cpu": -1, "memory_gib": 0.001, "disk_gib": 1e18}),
			want: []string{"resources.cpu", "0.01", "resources.memory_gib", "16 MiB", "resources.disk_gib", "does not fit"}},
		{name: "resources_type", tool: "start_sandbox", args: with(ok["start_sandbox"], "resources", args{"memory_gib": "2"}), want: []string{"resources.memory_gib", "in quotes"}},
		{name: "resources_unknown", tool: "start_sandbox", args: with(ok["start_sandbox"], "resources", args{"memory": 2}), want: []string{"resources.memory", "did you mean memory_gib"}},
		{name: "mount_without_connection", tool: "start_sandbox", args: with(ok["start_sandbox"], "mounts", args{"/data": args{"bucket": "bucket"}}), want: []string{"mounts./data.connection", "none is configured"}},
		{name: "mounts_in_each_other", tool: "start_sandbox", args: with(ok["start_sandbox"], "mounts", args{"/data": args{}, "/data/a": args{}}), want: []string{"mounts", "lie in each other"}},
		{name: "mount_over_the_system", tool: "start_sandbox", args: with(ok["start_sandbox"], "mounts", args{"/usr": args{}}), want: []string{"mounts", "/usr"}},
		{name: "no_connection", tool: "mount_bucket", args: ok["mount_bucket"], want: []string{"connection: none is configured", "S3_*"}},
		{name: "relative", tool: "mount_bucket", args: with(ok["mount_bucket"], "path", "data"), want: []string{"path", "absolute"}},
		{name: "escaping", tool: "mount_bucket", args: with(ok["mount_bucket"], "path", "/a/../b"), want: []string{"path", ".."}},
		{name: "credentials", tool: "mount_bucket", args: with(ok["mount_bucket"], "credentials", args{"kind": "s3"}), want: []string{"credentials: the operator does not allow"}},
		{name: "none_there", tool: "unmount_bucket", args: ok["unmount_bucket"], want: []string{"path", "/changed"}},
		{name: "no_sandbox", tool: "unmount_bucket", args: with(ok["unmount_bucket"], "session_id", "never-seen"), want: []string{"never-seen"}},
		{name: "not_found", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_text": "absent", "new_text": "x"}}), want: []string{"old_text"}},
		{name: "twice", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_text": "e", "new_text": "x"}}), want: []string{"old_text", "3 times"}},
		{name: "second_fails", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_text": "kept", "new_text": "changed"}, args{"old_text": "absent", "new_text": "x"}}), want: []string{"edits.1"}},
		{name: "very_many", tool: "edit_file", args: with(unknowns(20_000), "path", "kept"), want: []string{"N0", "no such argument", "and 19991 more"}},
		{name: "inner_unknown", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_str": "kept", "new_text": "x"}}), want: []string{"edits.0.old_str", "did you mean old_text"}},
		{name: "inner_missing", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_text": "kept"}}), want: []string{"edits.0.new_text", "missing"}},
		{name: "inner_type", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_text": 3, "new_text": "x"}}), want: []string{"edits.0.old_text"}},
		{name: "no_change", tool: "edit_file", args: with(ok["edit_file"], "edits", []any{args{"old_text": "kept", "new_text": "kept"}}), want: []string{"edits.0.new_text"}},
	}
	for _, name := range []string{"target", "isolation"} {
		rows = append(rows, badRow{name: "not_yet_" + name, tool: "start_sandbox", args: with(ok["start_sandbox"], name, "x"),
			want: []string{name + ": this version's local provider does not have"}})
	}
	for given, meant := range map[string]string{"timeout": "timeout_seconds", "cmd": "command", "workdir": "cwd", "comand": "command",
		"timeoutSeconds": "timeout_seconds", "sessionId": "session_id", "environment": "env"} {
		rows = append(rows, badRow{name: "meant_" + given, tool: "execute_command", args: with(ok["execute_command"], given, 1),
			want: []string{given, "no such argument", "did you mean " + meant + "?"}})
	}
	return rows
}

// unknowns are n arguments that no tool has.
func unknowns(n int) args {
	a := args{}
	for i := range n {
		a[fmt.Sprint("N", i)] = 1
	}
	return a
}

// checkText holds an error's text to what a model can use.
func checkText(t *testing.T, text string, want []string) {
	t.Helper()
	for _, w := range want {
		if !strings.Contains(text, w) {
			t.Errorf("the error does not say %q: %s", w, text)
		}
	}
	for _, bad := range []string{"&{", "map[", "%!", "goroutine", "panic", "0x", "internal error", "jsonschema", "interface {}"} {
		if strings.Contains(text, bad) {
			t.Errorf("the error says %q: %s", bad, text)
		}
	}
	if text == "" || len(text) > 4000 {
		t.Errorf("the error has %d bytes", len(text))
	}
}

func TestBadInputIsRefusedAndChangesNothing(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	c := s.Client(t, mcptest.InProcess)
	c.Must("execute_command", args{"session_id": "base", "command": `echo -n 'kept: e e' > kept; mkfifo pipe; printf 'a\000b\377' > binary`})
	process := c.Must("spawn_process", args{"session_id": "base", "command": "cat > got"}).Facts["process_id"].(string)
	c.Must("execute_command", args{"session_id": "base", "command": "until [ -e got ]; do sleep 0.01; done"})
	ok := valid(process)

	state := func() string {
		files := c.Must("execute_command", args{"session_id": "base", "command": "ls -la --time-style=+%s; cat kept got"}).Output()
		list := c.Must("list_sandboxes", nil).Text
		info := c.Must("get_sandbox", args{"session_id": "base"}).Structured["sandbox"].(map[string]any)
		running := 0
		for _, p := range c.Must("list_processes", args{"session_id": "base"}).Structured["processes"].([]any) {
			if p.(map[string]any)["state"] == "running" {
				running++
			}
		}
		return fmt.Sprintf("%s\n%s\n%v %v\n%d running", files, list, info["status"], info["spec"], running)
	}
	before := state()

	tools, err := c.ListTools(t.Context(), mcp.ListToolsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	rows := handRows(ok)
	for _, tool := range tools.Tools {
		base, known := ok[tool.Name]
		if !known {
			t.Errorf("no valid call of %s in this test", tool.Name)
			continue
		}
		for name, schema := range tool.InputSchema.Properties {
			for _, r := range rowsOf(tool.Name, base, name, schema.(map[string]any), slices.Contains(tool.InputSchema.Required, name)) {
				r.name = name + "_" + r.name
				rows = append(rows, r)
			}
		}
		rows = append(rows, badRow{name: "unknown", tool: tool.Name, args: with(base, "zzzz_unknown", 1), want: []string{"zzzz_unknown", "no such argument", "session_id"}})
		for i, id := range []string{"", "../x", "a b", "é", "-x", strings.Repeat("x", 64), "a\x00b", "a/b"} {
			rows = append(rows, badRow{name: fmt.Sprint("bad_session_", i), tool: tool.Name, args: with(base, "session_id", id), want: []string{"session_id"}})
		}
	}
	t.Logf("%d bad calls", len(rows))
	for _, r := range rows {
		t.Run(r.tool+"_"+r.name, func(t *testing.T) {
			res, err := c.Try(t.Context(), r.tool, r.args, nil)
			if err != nil {
				t.Fatal(err)
			}
			if !res.IsError {
				t.Fatalf("succeeded: %.300s", res.Text)
			}
			checkText(t, res.Text, r.want)
		})
	}
	if after := state(); after != before {
		t.Errorf("something changed.\nbefore:\n%s\nafter:\n%s", before, after)
	}
}

func TestBadMessages(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	ctx := session.With(t.Context(), session.Caller{Connection: "c"})
	cases := []struct{ name, arguments, want string }{
		{"list", `[]`, "an object"},
		{"text", `"x"`, "an object"},
		{"number", `3`, "an object"},
		{"invalid_utf8", "{\"command\":\"echo \xff\xfe\"}", "UTF-8"},
		{"invalid_utf8_name", "{\"comm\xff\":\"x\"}", "UTF-8"},
		{"half_surrogate", `{"command":"echo \ud800"}`, "surrogate"},
		{"low_surrogate", `{"command":"echo \udc00x"}`, "surrogate"},
		{"null_argument", `{"command":null}`, "command"},
		{"deep", `{"command":` + strings.Repeat("[", 2000) + strings.Repeat("]", 2000) + `}`, "command"},
		{"duplicate_wrong", `{"command":"true","command":3}`, "command"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			raw := `{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"execute_command","arguments":` + tc.arguments + `}}`
			out, err := json.Marshal(s.MCP.HandleMessage(ctx, json.RawMessage(raw)))
			if err != nil {
				t.Fatal(err)
			}
			var answer struct {
				Result struct {
					IsError bool
					Content []struct{ Text string }
				}
				Error *struct{ Message string }
			}
			if err := json.Unmarshal(out, &answer); err != nil {
				t.Fatal(err)
			}
			if answer.Error != nil {
				t.Fatalf("a protocol error: %s", answer.Error.Message)
			}
			if !answer.Result.IsError || !strings.Contains(answer.Result.Content[0].Text, tc.want) {
				t.Errorf("answer %s; want an error with %q", out, tc.want)
			}
		})
	}
	c := s.Client(t, mcptest.InProcess)
	if list := c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any); len(list) != 0 {
		t.Errorf("sandboxes were made: %v", list)
	}
	pair := c.Must("execute_command", args{"session_id": "x", "command": "echo 😀"})
	if pair.Output() != "😀" {
		t.Errorf("a whole surrogate pair: %q", pair.Output())
	}
}

func TestManyFaultsAreToldAtOnce(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	c := s.Client(t, mcptest.InProcess)
	text := c.Refused("start_sandbox", args{"auto_stop_minutes": -1, "language": "cobol", "mounts": "x", "ephemeral": "true", "labelz": args{}})
	checkText(t, text, []string{"auto_stop_minutes", "language", "mounts", "ephemeral", "did you mean labels?"})
	if n := strings.Count(text, "\n") + 1; n != 5 {
		t.Errorf("%d lines, want one per fault: %s", n, text)
	}
}

func TestSecretsAreInNoErrorEventOrLog(t *testing.T) {
	const secret = "hunter2-secret-value"
	s := mcptest.New(t, mcptest.Options{})
	c := s.Client(t, mcptest.InProcess)
	c.Must("execute_command", args{"session_id": "s", "command": "true", "env": args{"TOKEN": secret}, "stdin": secret})
	c.Must("start_sandbox", args{"session_id": "s", "env": args{"TOKEN": secret}})
	c.Must("write_file", args{"session_id": "s", "path": "f", "content": secret})
	c.Must("run_code", args{"session_id": "s", "language": "bash", "code": "cat", "stdin": secret})
	texts := []string{
		c.Refused("execute_command", args{"command": "true", "env": secret}),
		c.Refused("execute_command", args{"command": "true", "env": args{"A": []any{secret}}}),
		c.Refused("execute_command", args{"command": "true", "env": args{"A": "x\x00" + secret}}),
		c.Refused("execute_command", args{"command": "true", "stdin": []any{secret}}),
		c.Refused("edit_file", args{"session_id": "s", "path": "f", "edits": secret}),
		c.Refused("send_stdin", args{"session_id": "s", "process_id": "p", "base64": secret + "%"}),
		c.Must("get_sandbox", args{"session_id": "s"}).Text,
		c.Must("list_processes", args{"session_id": "s"}).Text,
		s.Log.String(),
	}
	for _, text := range texts {
		if strings.Contains(text, secret) {
			t.Errorf("the secret is in: %s", text)
		}
	}
	events, err := s.Manager.Events(t.Context(), keyOf("s"))
	if err != nil {
		t.Fatal(err)
	}
	out, err := json.Marshal(events)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(out), secret) {
		t.Errorf("the secret is in the events: %s", out)
	}
	if len(events) < 4 || !strings.Contains(string(out), "TOKEN") {
		t.Errorf("events do not tell the calls with their variables' names: %s", out)
	}
}
