package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// Bounds and defaults of a terminal's size.
const (
	defaultCols = 80
	defaultRows = 24
)

type spawnProcessArguments struct {
	Command *string  `json:"command" schema:"bytes=1048576"`
	Argv    []string `json:"argv" schema:"minitems=1;items=4096;bytes=131071"`
	runArguments
	OpenStdin      *bool    `json:"open_stdin" schema:"default=true"`
	TTY            bool     `json:"tty" doc:"A terminal; stderr joins stdout."`
	Cols           *int     `json:"cols" schema:"min=1;max=1000;default=80"`
	Rows           *int     `json:"rows" schema:"min=1;max=1000;default=24"`
	WaitFor        string   `json:"wait_for" schema:"enum=none|output|exit|pattern;default=output"`
	Pattern        string   `json:"pattern" doc:"RE2, such as 'listening on'." schema:"bytes=4096"`
	WaitSeconds    *float64 `json:"wait_seconds" schema:"min=0;max=50;default=0"`
	TimeoutSeconds *float64 `json:"timeout_seconds" doc:"Default: never." schema:"min=0;max=86400"`
	sessionArgument
}

func spawnProcess() tool {
	t := tool{
		name: "spawn_process", toolset: "core",
		description: "Starts a server, REPL or long job; returns its process_id, the output so far and a cursor. wait_for with wait_seconds shows a failed start at once. " +
			"It outlives connection and server, and keeps the sandbox from stopping. The rest is as in execute_command.",
		destructive: true, reach: mayCreate, bare: []string{"cwd", "env", "user", "stdin"},
	}
	t.args, t.handle = handler(func(c *call, a *spawnProcessArguments) (*mcp.CallToolResult, error) {
		r := sandbox.SpawnRequest{RunRequest: a.request(c), OpenStdin: a.OpenStdin == nil || *a.OpenStdin}
		if err := commandOrArgv(&r.RunRequest, a.Command, a.Argv); err != nil {
			return nil, err
		}
		var err error
		if r.WaitFor, r.Pattern, err = waitFor(a.WaitFor, a.Pattern); err != nil {
			return nil, err
		}
		if !a.TTY && (a.Cols != nil || a.Rows != nil) {
			return nil, &sandbox.FieldError{Field: "cols", Problem: "a size without a terminal", Hint: "give tty true, or leave out cols and rows"}
		}
		if a.TTY {
			r.TTY = windowSize(a.Cols, a.Rows)
		}
		r.Timeout, r.Wait = duration(a.TimeoutSeconds), duration(a.WaitSeconds)
		res, err := c.manager.SpawnProcess(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		return c.process(res, state), nil
	})
	return t
}

// windowSize of a terminal; what is not given has its default.
func windowSize(cols, rows *int) *sandbox.WindowSize {
	w := sandbox.WindowSize{Cols: defaultCols, Rows: defaultRows}
	if cols != nil {
		w.Cols = uint16(*cols)
	}
	if rows != nil {
		w.Rows = uint16(*rows)
	}
	return &w
}

// waitFor checks that a pattern is given exactly when one is waited for. A
// pattern alone means wait_for pattern.
func waitFor(what, pattern string) (sandbox.WaitFor, string, error) {
	switch {
	case what == "" && pattern != "":
		what = string(sandbox.WaitPattern)
	case what == string(sandbox.WaitPattern) && pattern == "":
		return "", "", &sandbox.FieldError{Field: "pattern", Problem: "missing", Hint: "wait_for pattern needs one: a regular expression (RE2)"}
	case what != string(sandbox.WaitPattern) && pattern != "":
		return "", "", &sandbox.FieldError{Field: "pattern", Problem: "given with wait_for " + what, Hint: "give wait_for pattern, or leave the pattern out"}
	}
	if err := checkPattern(pattern); err != nil {
		return "", "", err
	}
	return sandbox.WaitFor(what), pattern, nil
}
