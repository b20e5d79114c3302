//go:build unix

package tools_test

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/internal/golden"
	"berth/tools"
)

// TestDocsAreUpToDate generates docs/tools.md from what is published.
func TestDocsAreUpToDate(t *testing.T) {
	var b strings.Builder
	b.WriteString("# Tools\n\nGenerated from the tools' definitions by `make update`; do not edit.\n\n" +
		"Every tool takes an optional `session_id` (`reconnect` requires it). Without one, the call is for the session of the header `Berth-Session`, " +
		"of `--session`, of the connection, or for a new one, in this order; see [architecture.md](architecture.md). " +
		"An id that the server made is told in the first answer of a connection, and again when the sandbox is a new one. " +
		"A sandbox stops after 15 minutes without use, and is archived after 7 days stopped, which keeps its files; one whose id the server made is deleted after 30 days stopped, " +
		"unless `auto_delete_minutes` or the operator's settings say otherwise. `path` is absolute, relative to the default directory, or begins with `~/`.\n\n" +
		"Output is text for a reader: valid UTF-8, without escape sequences such as colours, and of a line that is written over and over with carriage returns, as progress bars are, " +
		"only the last state is shown. `read_output` with `base64` gives the exact bytes. Exit codes are the program's own, and three of berth's: 124 is a time-out; " +
		"137 is a kill, by `kill_process`, a cancelled call, a limit such as memory, or a SIGKILL from inside, and the last line says which; another signal N ends in 128 + N. " +
		"Connections that the network policy refused are named in the answer, with the rule and what would allow them.\n\n" +
		"`run_code` runs JavaScript and TypeScript as files in the working directory would be run: packages resolve from there, and local `.ts`, `.tsx`, `.jsx` and (by import) `.json` files " +
		"are compiled into the program, at most 300 files and 8 MiB, so that any node runs them; local JavaScript is left to node. `__filename`, `import.meta.url` and stack traces name the files as they are, " +
		"and the program itself `run_code.ts` or `run_code.js` in the working directory, where nothing is written. " +
		"A program that takes in such files is a module, so strict.\n\n" +
		"Answers of text tools end in a line in brackets, and carry the same facts for programs under `_meta[\"berth/result\"]`: " +
		"`exit_code` (null while running, and when it will never be known), `state`, `timed_out`, `killed`, `signal`, `duration_ms`, `process_id`, `cursor`, " +
		"`stdout_bytes`, `stderr_bytes`, `dropped_bytes`, `matched`, `cwd`, `session_id`. The file tools have `path`, `bytes`, `session_id` and what else applies there. " +
		"Answers of record tools are JSON, as structured content and as text. What a tool cannot do is an answer marked as error: a sentence per fault that names the argument, " +
		"what is allowed and what to do next.\n")
	set := map[string]string{}
	for _, name := range tools.Toolsets() {
		_, list := listed(t, tools.Options{Toolsets: []string{name}})
		for _, tool := range list {
			set[tool.Name] = name
		}
	}
	_, list := listed(t, tools.Options{Toolsets: []string{"all"}})
	for _, name := range tools.Toolsets() {
		fmt.Fprintf(&b, "\n## Toolset %s\n", name)
		if !slices.Contains(tools.DefaultToolsets(), name) {
			fmt.Fprintf(&b, "\nNot offered unless asked for: `--toolsets default,%s`.\n", name)
		}
		for _, tool := range list {
			if set[tool.Name] == name {
				describe(&b, tool)
			}
		}
	}
	golden.Check(t, filepath.Join("..", "docs", "tools.md"), []byte(b.String()))
}

// meanings are for readers of the document. What models are told is shorter,
// since every word of it is in every one of their requests; what follows a dot
// there is added, and what has no tool is for arguments that are told nothing.
var meanings = map[string]string{
	"argv":            "Instead of `command`: program and arguments, no shell.",
	"command":         "Shell text, for `bash -c` (`sh` where there is no bash).",
	"code":            "The program's text.",
	"content":         "The whole new text, UTF-8; the empty text makes an empty file.",
	"cwd":             "Where it starts: absolute, relative to the default directory, or `~/`. Default: the default directory.",
	"env":             "Environment variables, as an object of texts, over the sandbox's own.",
	"labels":          "Names and texts of your own, to find the sandbox by.",
	"max_bytes":       "How much output one answer holds; the cursor goes on behind it.",
	"open_stdin":      "Keep stdin open for `send_stdin`; otherwise the program reads its end.",
	"path":            "Absolute, relative to the default directory, or `~/`.",
	"pattern":         "An RE2 regular expression: the answer comes when the output has it. It means `wait_for` `pattern`.",
	"process_id":      "As the answer that started it, or `list_processes`, tells.",
	"cols":            "Columns of the terminal.",
	"rows":            "Rows of the terminal.",
	"status":          "Only those of this status.",
	"session_id":      "Whose sandbox; default: as above.",
	"stdin":           "Text the program reads on stdin, and then the end of it.",
	"timeout_seconds": "Then it is killed, with exit code 124; 0 is never. Default: the sandbox's, 300.",
	"user":            "Who runs it: `agent`, or `root` of the sandbox (not of the machine); in one made of an image also its users. Default: the sandbox's.",
	"wait_for":        "What ends the wait early: `output` any output, `exit` the end, `pattern` a match, `none` nothing.",
	"wait_seconds":    "How long the answer may wait; the process runs on.",

	"edit_file.edits":                    "Each has `old_text`, the exact text to find; `new_text`, which takes its place (empty: removed); and `replace_all`, true to replace every occurrence, where `old_text` otherwise must occur once.",
	"spawn_process.stdin":                "Text the program reads first; stdin then stays open with `open_stdin`.",
	"spawn_process.pattern":              "The answer comes when the output has it. It means `wait_for` `pattern`.",
	"spawn_process.tty":                  "Programs behave as at a screen: prompts, colours, line editing.",
	"read_output.pattern":                "The answer comes when the output has it. It means `wait_for` `pattern`.",
	"start_sandbox.name":                 "For lists; default: the session id.",
	"list_sandboxes.limit":               "At most so many; `next_cursor` goes on behind them.",
	"create_snapshot.name":               "What the snapshot is called.",
	"create_snapshot.steps":              "Each has exactly one of: `run`, shell text; `copy`, \"SOURCE... DESTINATION\" of `files`; `env`, an object of texts, in which $NAME stands for what is set; `workdir`; `user`.",
	"delete_snapshot.name":               "The snapshot.",
	"list_snapshots.limit":               "At most so many; `next_cursor` goes on behind them.",
	"mount_bucket.connection":            "One of those that `get_sandbox` lists; may be left out when there is one. With `limits.inline_credentials`, `credentials` may stand in its place: see [buckets.md](buckets.md#what-sessions-may-mount).",
	"mount_bucket.bucket":                "The bucket (for Azure the container); default: the connection's.",
	"mount_bucket.prefix":                "Only objects whose keys begin so, such as `reports/2024`; nothing else can be reached through it.",
	"mount_bucket.read_only":             "Nothing can be written to it.",
	"unmount_bucket.path":                "Where it is mounted.",
	"start_sandbox.mounts":               "An object: the directory, and of each `connection`, `bucket`, `prefix`, `read_only` as of `mount_bucket`. One that fails does not stop the start; its state tells why. See [buckets.md](buckets.md).",
	"start_sandbox.env":                  "Environment variables of all its commands, as an object of texts.",
	"start_sandbox.auto_delete_minutes":  "Where the server made the session id and nothing is given: 43200, 30 days.",
	"start_sandbox.auto_archive_minutes": "Archived files are packed; the next call unpacks them.",
	"start_sandbox.auto_stop_minutes":    "Processes that run keep it from stopping.",
}

// describe writes one tool's section.
func describe(b *strings.Builder, tool mcp.Tool) {
	fmt.Fprintf(b, "\n### %s\n\n%s\n\n", tool.Name, tool.Description)
	var hints []string
	for _, h := range []struct {
		on   *bool
		word string
	}{{tool.Annotations.ReadOnlyHint, "read-only"}, {tool.Annotations.DestructiveHint, "destructive"}, {tool.Annotations.IdempotentHint, "idempotent"}} {
		if h.on != nil && *h.on {
			hints = append(hints, h.word)
		}
	}
	if len(hints) > 0 {
		fmt.Fprintf(b, "Hints: %s.\n\n", strings.Join(hints, ", "))
	}
	b.WriteString("| argument | type | default | allowed | meaning |\n| --- | --- | --- | --- | --- |\n")
	var names []string
	for name := range tool.InputSchema.Properties {
		names = append(names, name)
	}
	slices.SortFunc(names, func(x, y string) int {
		rx, ry := slices.Contains(tool.InputSchema.Required, x), slices.Contains(tool.InputSchema.Required, y)
		if rx != ry {
			if rx {
				return -1
			}
			return 1
		}
		return strings.Compare(x, y)
	})
	for _, name := range names {
		p := tool.InputSchema.Properties[name].(map[string]any)
		def := ""
		if slices.Contains(tool.InputSchema.Required, name) {
			def = "required"
		} else if d, ok := p["default"]; ok {
			def = fmt.Sprint(d)
		}
		doc, _ := p["description"].(string)
		more := meanings[tool.Name+"."+name]
		if more == "" && doc == "" {
			more = meanings[name]
		}
		doc = strings.TrimSpace(doc + " " + more)
		fmt.Fprintf(b, "| `%s` | %s | %s | %s | %s |\n", name, p["type"], def, allowed(p), strings.ReplaceAll(doc, "|", "\\|"))
	}
}

func allowed(p map[string]any) string {
	if enum, ok := p["enum"].([]any); ok {
		var words []string
		for _, e := range enum {
			words = append(words, fmt.Sprint(e))
		}
		return strings.Join(words, ", ")
	}
	if inner, ok := p["properties"].(map[string]any); ok {
		return strings.Join(slices.Sorted(maps.Keys(inner)), ", ")
	}
	lo, hasLo := p["minimum"]
	hi, hasHi := p["maximum"]
	switch {
	case hasLo && hasHi:
		return fmt.Sprintf("%v to %v", lo, int64(hi.(float64)))
	case hasHi:
		return fmt.Sprintf("at most %v", int64(hi.(float64)))
	}
	if re, ok := p["pattern"]; ok {
		return fmt.Sprintf("`%v`", re)
	}
	return ""
}
