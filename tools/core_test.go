//go:build unix

package tools_test

import (
	"encoding/base64"
	"fmt"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/internal/mcptest"
	"berth/internal/session"
)

// fact reads one fact of "berth/result".
func fact[T any](t *testing.T, r *mcptest.Result, name string) T {
	t.Helper()
	v, ok := r.Facts[name].(T)
	if !ok {
		t.Fatalf("fact %s is %v (%T); answer: %s", name, r.Facts[name], r.Facts[name], r.Text)
	}
	return v
}

// matches compares text with a regular expression that must fit it whole.
func matches(t *testing.T, what, text, pattern string) {
	t.Helper()
	if !regexp.MustCompile(`(?s)\A` + pattern + `\z`).MatchString(text) {
		t.Errorf("%s is %q, want %s", what, text, pattern)
	}
}

func TestExecuteCommandAnswers(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	cases := []struct {
		name string
		args args
		text string
		code any
	}{
		{"output", args{"command": "echo hello"}, `hello\n(\[created.*\]\n)?\[exit 0 in [0-9.]+ s\]`, 0.0},
		{"both_streams", args{"command": "echo out; echo err >&2; exit 3"}, `out\n\[stderr\]\nerr\n\[exit 3 in .*\]`, 3.0},
		{"no_newline", args{"command": "printf x"}, `x\n\[exit 0 in .*\]`, 0.0},
		{"nothing", args{"command": "true"}, `\[exit 0 in .*\]`, 0.0},
		{"argv", args{"argv": []any{"printf", "%s|", "a b", "$HOME"}}, `a b\|\$HOME\|\n\[exit 0 in .*\]`, 0.0},
		{"stdin", args{"command": "cat", "stdin": "in\n"}, `in\n\[exit 0 in .*\]`, 0.0},
		{"no_stdin", args{"command": "cat"}, `\[exit 0 in .*\]`, 0.0},
		{"env", args{"command": "echo $A-$B-${HOME:+home}", "env": args{"A": "1", "B": nil}}, `1--home\n\[exit 0 in .*\]`, 0.0},
		{"elsewhere", args{"command": "true", "cwd": "/tmp"}, `\[exit 0 in [^,]*, in .*/tmp\]`, 0.0},
		{"time_out", args{"command": "echo early; sleep 60", "timeout_seconds": 0.3}, `early\n\[timed out after 0\.[34] s, killed, exit 124\]`, 124.0},
		{"signal", args{"command": "kill -SEGV $$"}, `\[ended by SIGSEGV, exit 139\]`, 139.0},
		{"handed_over", args{"command": "echo early; sleep 60", "wait_seconds": 0.2}, `early\n\[still running: process_id p-\S+, cursor \S+; read_output continues\]`, nil},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			tc.args["session_id"] = "s"
			r := c.Must("execute_command", tc.args)
			matches(t, "the answer", r.Text, tc.text)
			if r.Facts["exit_code"] != tc.code {
				t.Errorf("exit_code is %v, want %v", r.Facts["exit_code"], tc.code)
			}
			if fact[string](t, r, "session_id") != "s" || fact[string](t, r, "cwd") == "" || fact[string](t, r, "cursor") == "" {
				t.Errorf("facts: %v", r.Facts)
			}
			if r.Structured != nil {
				t.Errorf("a text tool has structured content: %v", r.Structured)
			}
		})
	}
}

func TestLongOutputIsCutAndCanBeRead(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	r := c.Must("execute_command", args{"session_id": "s", "command": "seq 1 20000"})
	if len(r.Text) > 31_000 {
		t.Errorf("the answer has %d bytes", len(r.Text))
	}
	m := regexp.MustCompile(`\n(\d+)\n\[(\d+) bytes cut; read_output with process_id (\S+) and cursor (\S+) shows them\]\n(\d+)\n`).FindStringSubmatch(r.Text)
	if m == nil {
		t.Fatalf("no mark of the cut: %s", r.Text[:min(len(r.Text), 300)])
	}
	var last, next int
	_, _ = fmt.Sscan(m[1], &last)
	_, _ = fmt.Sscan(m[5], &next)
	rest := c.Must("read_output", args{"session_id": "s", "process_id": m[3], "cursor": m[4], "max_bytes": 1 << 20, "wait_for": "none"})
	if want := fmt.Sprintf("%d\n", last+1); !strings.HasPrefix(rest.Text, want) {
		t.Errorf("the cut part begins %q, want %q", rest.Text[:20], want)
	}
	if !strings.Contains(rest.Text, fmt.Sprintf("\n%d\n", next)) {
		t.Errorf("the cut part does not reach %d", next)
	}
}

func TestRunCode(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	for language, code := range map[string]string{"python": "print(6*7)", "bash": "echo $((6*7))"} {
		r := c.Must("run_code", args{"session_id": "s", "language": language, "code": code})
		if r.Output() != "42" {
			t.Errorf("%s gave %q", language, r.Text)
		}
	}
}

func TestBackgroundProcess(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	r := c.Must("spawn_process", args{"session_id": "s", "command": `echo ready; while read l; do echo "got $l"; done; echo bye; exit 4`, "wait_for": "pattern", "pattern": "rea.y", "wait_seconds": 10})
	matches(t, "spawn", r.Text, `ready\n(\[.*\]\n)?\[running, the pattern was found; process_id p-\S+, cursor \S+\]`)
	id := fact[string](t, r, "process_id")
	at := args{"session_id": "s", "process_id": id}
	if r.Facts["exit_code"] != nil || r.Facts["matched"] != true {
		t.Errorf("facts: %v", r.Facts)
	}

	r = c.Must("send_stdin", with(at, "text", "one\n"))
	matches(t, "send_stdin", r.Text, `got one\n\[running; process_id \S+, cursor \S+\]`)
	cursor := fact[string](t, r, "cursor")
	r = c.Must("send_stdin", with(with(at, "text", "two"), "wait_seconds", 0))
	if !strings.Contains(r.Text, "newline") {
		t.Errorf("text without a newline is not remarked: %q", r.Text)
	}
	r = c.Must("send_stdin", with(with(at, "base64", base64.StdEncoding.EncodeToString([]byte("!\n"))), "end", true))
	if !strings.Contains(r.Text, "got two!") {
		t.Errorf("base64: %q", r.Text)
	}
	r = c.Must("read_output", with(with(with(at, "cursor", cursor), "wait_for", "exit"), "wait_seconds", 10))
	matches(t, "read_output", r.Text, `got two!\nbye\n\[exit 4 in .* s; process_id \S+, cursor \S+\]`)
	if r.Facts["exit_code"] != 4.0 {
		t.Errorf("exit_code %v", r.Facts["exit_code"])
	}
	r = c.Must("read_output", with(with(at, "tail_lines", 1), "wait_for", "none"))
	if r.Output() != "bye" {
		t.Errorf("the last line: %q", r.Text)
	}
	r = c.Must("read_output", with(with(at, "base64", true), "wait_for", "none"))
	want := base64.StdEncoding.EncodeToString([]byte("ready\ngot one\ngot two!\nbye\n"))
	matches(t, "base64", r.Text, `\[stdout: 27 bytes as base64\]\n`+regexp.QuoteMeta(want)+`\n\[exit 4 .*\]`)

	text := c.Refused("send_stdin", with(at, "text", "late\n"))
	if !strings.Contains(text, "exit") || !strings.Contains(text, "4") {
		t.Errorf("after the exit: %s", text)
	}
	r = c.Must("kill_process", at)
	if !strings.Contains(r.Text, "had already ended: exit 4") {
		t.Errorf("kill of an ended one: %s", r.Text)
	}
	list := c.Must("list_processes", args{"session_id": "s"})
	rows := list.Structured["processes"].([]any)
	if len(rows) != 1 || rows[0].(map[string]any)["exit_code"] != 4.0 || !strings.HasPrefix(list.Text, "{") {
		t.Errorf("list: %s", list.Text)
	}
}

func TestKillProcess(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	for _, tc := range []struct{ name, command, signal, word string }{
		{"usual", "sleep 100 & sleep 100", "", "SIGTERM"},
		{"stubborn", "trap '' TERM; sleep 100 & wait; wait", "", "SIGKILL"},
		{"kill", "sleep 100", "KILL", "SIGKILL"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := c.Must("spawn_process", args{"session_id": "s", "command": "echo up; " + tc.command, "wait_seconds": 5})
			a := args{"session_id": "s", "process_id": fact[string](t, r, "process_id")}
			if tc.signal != "" {
				a["signal"] = tc.signal
			}
			r = c.Must("kill_process", a)
			matches(t, "the answer", r.Text, `(?:up\n)?\[killed by `+tc.word+`.*exit 137; process_id \S+, cursor \S+\]`)
			if r.Facts["exit_code"] != 137.0 || r.Facts["killed"] != true || r.Facts["signal"] != tc.word {
				t.Errorf("facts: %v", r.Facts)
			}
		})
	}
}

func TestLeftoversAreNamed(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	start := time.Now()
	r := c.Must("execute_command", args{"session_id": "s", "command": "sleep 77 & until grep -q '^sleep' /proc/$!/cmdline; do :; done; echo done"})
	if time.Since(start) > 20*time.Second {
		t.Error("the command was waited for until its leftovers ended")
	}
	matches(t, "the answer", r.Text, `done\n\[.*left running under process_id p-\S+: \d+ sleep 77\]\n\[exit 0 in .*\]`)
}

func TestParallelCommandsOverlap(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	c.Must("execute_command", args{"session_id": "s", "command": "mkfifo a b"})
	// Each of the two ends only when the other runs.
	var wg sync.WaitGroup
	for _, command := range []string{"echo x > a; cat b", "cat a; echo y > b"} {
		wg.Go(func() {
			r := c.Call("execute_command", args{"session_id": "s", "command": command, "timeout_seconds": 30})
			if r.Facts["exit_code"] != 0.0 {
				t.Errorf("%s: %s", command, r.Text)
			}
		})
	}
	wg.Wait()
}

func TestFirstCallsOfOneSessionMakeOneSandbox(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	var wg sync.WaitGroup
	created := make(chan bool, 20)
	for i := range 20 {
		c := s.Client(t, []mcptest.Transport{mcptest.InProcess, mcptest.HTTP}[i%2])
		wg.Go(func() {
			r := c.Call("execute_command", args{"session_id": "one", "command": "echo x >> count"})
			if r.IsError {
				t.Error(r.Text)
			}
			created <- true
		})
	}
	wg.Wait()
	c := s.Client(t, mcptest.InProcess)
	if n := len(c.Must("list_sandboxes", nil).Structured["sandboxes"].([]any)); n != 1 {
		t.Errorf("%d sandboxes", n)
	}
	if r := c.Must("execute_command", args{"session_id": "one", "command": "wc -l < count"}); r.Output() != "20" {
		t.Errorf("%s commands ran, want 20", r.Output())
	}
}

func TestEventsTellEachCall(t *testing.T) {
	s := mcptest.New(t, mcptest.Options{})
	c := s.Client(t, mcptest.InProcess)
	c.Must("execute_command", args{"session_id": "s", "command": "echo 12345; exit 3"})
	c.Refused("read_file", args{"session_id": "s", "path": "absent"})
	c.Refused("read_file", args{"session_id": "elsewhere", "path": "absent"})
	events, err := s.Manager.Events(session.With(t.Context(), session.Caller{}), keyOf("s"))
	if err != nil || len(events) != 2 {
		t.Fatalf("%d events: %+v, %v", len(events), events, err)
	}
	if e := events[0]; e.Tool != "execute_command" || e.Outcome != "exit 3" || e.Bytes != 6 || e.Args["command"] != "echo 12345; exit 3" {
		t.Errorf("event %+v", e)
	}
	if e := events[1]; e.Tool != "read_file" || e.Outcome != "error" || !strings.Contains(e.Error, "absent") {
		t.Errorf("event %+v", e)
	}
	if events, err := s.Manager.Events(t.Context(), keyOf("elsewhere")); err == nil && len(events) > 0 {
		t.Errorf("a sandbox that never was has events: %v", events)
	}
}

func TestNoNetworkIsSaid(t *testing.T) {
	c := mcptest.New(t, mcptest.Options{}).Client(t, mcptest.InProcess)
	const said = "[the network policy refused nothing: this machine may itself have no network]"
	for command, want := range map[string]int{
		"echo \"curl: (6) Could not resolve host: example.com\" >&2; exit 6":                                              1,
		"echo \"E: Temporary failure resolving 'deb.debian.org'\"; echo \"W: Temporary failure resolving 'x'\"; exit 100": 1,
		"echo npm error network request to x failed, reason: getaddrinfo EAI_AGAIN registry.npmjs.org >&2; exit 1":        1,
		"echo all is well": 0,
	} {
		if r := c.Must("execute_command", args{"command": command, "session_id": "s"}); strings.Count(r.Text, "no network") != want || want == 1 && !strings.Contains(r.Text, "no network]\n[exit") {
			t.Errorf("%s: %s; want %q %d times", command, r.Text, said, want)
		}
	}
}
