package tools

import (
	"encoding/base64"
	"regexp"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// maxStdin bounds one send_stdin, in bytes.
const maxStdin = 1 << 20

type sendStdinArguments struct {
	processArgument
	Text        *string  `json:"text" doc:"Sent exactly." schema:"bytes=1048576;nul"`
	Base64      *string  `json:"base64" doc:"Instead of text." schema:"bytes=1398104"`
	End         bool     `json:"end" doc:"Close stdin after it."`
	Cols        *int     `json:"cols" doc:"Resize the terminal." schema:"min=1;max=1000"`
	Rows        *int     `json:"rows" schema:"min=1;max=1000"`
	WaitFor     string   `json:"wait_for" schema:"enum=none|output|exit|pattern;default=output"`
	Pattern     string   `json:"pattern" schema:"bytes=4096"`
	WaitSeconds *float64 `json:"wait_seconds" schema:"min=0;max=50;default=2"`
	sessionArgument
}

func sendStdin() tool {
	t := tool{
		name: "send_stdin", toolset: "core",
		description: "Writes to a process of spawn_process; returns the output that follows and the next cursor: one call is one step of a REPL. End a line with \\n.",
		destructive: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *sendStdinArguments) (*mcp.CallToolResult, error) {
		r := sandbox.StdinRequest{Process: sandbox.ProcessID(a.ProcessID), End: a.End, Wait: duration(a.WaitSeconds)}
		var err error
		if r.WaitFor, r.Pattern, err = waitFor(a.WaitFor, a.Pattern); err != nil {
			return nil, err
		}
		if r.Data, err = textOrBase64("text", a.Text, a.Base64, maxStdin); err != nil {
			return nil, err
		}
		if (a.Cols == nil) != (a.Rows == nil) {
			return nil, &sandbox.FieldError{Field: "cols", Problem: "cols and rows go together", Hint: "give both, or none"}
		}
		if a.Cols != nil {
			r.Resize = windowSize(a.Cols, a.Rows)
		}
		if a.Text == nil && a.Base64 == nil && !a.End && r.Resize == nil {
			return nil, &sandbox.FieldError{Field: "text", Problem: "missing", Hint: "give text or base64, end true to close stdin, or cols and rows to resize; read_output only reads"}
		}
		res, err := c.manager.SendStdin(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		return c.process(res, state), nil
	})
	return t
}

// processArgument names a process.
type processArgument struct {
	ProcessID string `json:"process_id" schema:"required;notempty;bytes=128"`
}

// textOrBase64 is content given as text, under the argument name, or as base64, at
// most max bytes. With neither it is nil.
func textOrBase64(name string, text, encoded *string, max int) ([]byte, error) {
	switch {
	case text != nil && encoded != nil:
		return nil, &sandbox.FieldError{Field: "base64", Problem: "given together with " + name, Allowed: "one of them"}
	case text != nil:
		return []byte(*text), nil
	case encoded == nil:
		return nil, nil
	}
	clean := strings.NewReplacer("\n", "", "\r", "").Replace(*encoded)
	data, err := base64.StdEncoding.DecodeString(clean)
	if err != nil {
		return nil, &sandbox.FieldError{Field: "base64", Problem: "not valid base64", Allowed: "standard base64 (A-Z a-z 0-9 + /) with its padding"}
	}
	if len(data) > max {
		return nil, &sandbox.FieldError{Field: "base64", Problem: sprint(len(data)) + " bytes long", Allowed: "at most " + sprint(max) + " bytes", Hint: "send it in parts"}
	}
	return data, nil
}

// checkPattern refuses what Manager could not compile either, before anything
// is started or sent.
func checkPattern(pattern string) error {
	if _, err := regexp.Compile(pattern); err != nil {
		return &sandbox.FieldError{Field: "pattern", Problem: "not a regular expression: " + strings.TrimPrefix(err.Error(), "error parsing regexp: "), Allowed: "RE2 syntax; no look-around or back-references"}
	}
	return nil
}
