package tools

import (
	"strconv"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type readOutputArguments struct {
	processArgument
	Cursor      *string  `json:"cursor" doc:"Of an earlier answer: what came after. Default: all, or the newest of too much." schema:"bytes=128"`
	TailLines   *int     `json:"tail_lines" doc:"Instead of cursor." schema:"min=1;max=100000"`
	WaitFor     string   `json:"wait_for" doc:"Exit ends any wait." schema:"enum=none|output|exit|pattern;default=output"`
	Pattern     string   `json:"pattern" doc:"RE2, from the cursor on." schema:"bytes=4096"`
	WaitSeconds *float64 `json:"wait_seconds" schema:"min=0;max=50;default=5"`
	MaxBytes    *int64   `json:"max_bytes" schema:"min=16;max=1048576;default=30000"`
	Base64      bool     `json:"base64" doc:"Exact bytes."`
	sessionArgument
}

func readOutput() tool {
	t := tool{
		name: "read_output", toolset: "core",
		description: "Reads a process's output, running or ended, from a cursor on; waits when there is none. The last line tells the state and the next cursor. Starts nothing.",
		readOnly:    true, idempotent: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *readOutputArguments) (*mcp.CallToolResult, error) {
		r := sandbox.ReadRequest{Process: sandbox.ProcessID(a.ProcessID), Raw: a.Base64, Wait: duration(a.WaitSeconds), OnOutput: c.progress.output()}
		if a.Cursor != nil && a.TailLines != nil {
			return nil, &sandbox.FieldError{Field: "tail_lines", Problem: "given together with cursor", Allowed: "one of them"}
		}
		if a.Cursor != nil {
			if *a.Cursor == "" {
				return nil, &sandbox.FieldError{Field: "cursor", Problem: "empty", Hint: "pass a cursor of an earlier answer, or leave it out"}
			}
			r.Cursor = *a.Cursor
		}
		if a.TailLines != nil {
			r.TailLines = *a.TailLines
		}
		if a.MaxBytes != nil {
			r.MaxBytes = *a.MaxBytes
		}
		var err error
		if r.WaitFor, r.Pattern, err = waitFor(a.WaitFor, a.Pattern); err != nil {
			return nil, err
		}
		res, err := c.manager.ReadOutput(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		return c.process(res, state), nil
	})
	return t
}

func sprint(n int) string { return strconv.Itoa(n) }
