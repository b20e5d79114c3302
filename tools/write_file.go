package tools

import (
	"fmt"
	"io/fs"
	"strconv"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// maxWrite bounds one write_file, in bytes; a transport's message holds it as
// base64.
const maxWrite = 10 << 20

type writeFileArguments struct {
	pathArgument
	Content *string `json:"content" schema:"bytes=10485760;nul"`
	Base64  *string `json:"base64" doc:"Instead of content." schema:"bytes=14000000"`
	Append  bool    `json:"append" doc:"Add at the end."`
	Mode    *string `json:"mode" doc:"Octal; default: kept, or 644." schema:"pattern=^0?[0-7]{3}$"`
	sessionArgument
}

func writeFile() tool {
	t := tool{
		name: "write_file", toolset: "files",
		description: "Writes a file at once or not at all, with missing directories. An existing one keeps mode and owner; links are followed. At most 10 MiB. Makes no sandbox.",
		destructive: true, reach: mustExist, bare: []string{"path"},
	}
	t.args, t.handle = handler(func(c *call, a *writeFileArguments) (*mcp.CallToolResult, error) {
		data, err := textOrBase64("content", a.Content, a.Base64, maxWrite)
		if err != nil {
			return nil, err
		}
		if a.Content == nil && a.Base64 == nil {
			return nil, &sandbox.FieldError{Field: "content", Problem: "missing", Hint: "give content for text or base64 for bytes; empty content makes an empty file"}
		}
		r := sandbox.WriteFileRequest{Path: a.Path, Data: data, Append: a.Append}
		if a.Mode != nil {
			bits, err := strconv.ParseUint(*a.Mode, 8, 9)
			if err != nil {
				return nil, &sandbox.FieldError{Field: "mode", Problem: show(*a.Mode) + " is no file mode", Allowed: "three octal digits, such as 644"}
			}
			mode := fs.FileMode(bits)
			r.Mode = &mode
		}
		w, err := c.manager.WriteFile(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		verb := "replaced"
		switch {
		case w.Created:
			verb = "created"
		case a.Append:
			verb = "appended to"
		}
		c.bytes = w.Bytes
		return c.changed(fmt.Sprintf("%s %s, %s written", verb, oneLine(w.Path), counted(w.Bytes, "byte")), w.Notice,
			fileResult{Path: w.Path, Bytes: w.Bytes, Created: w.Created, SessionID: string(c.key.Session)}), nil
	})
	return t
}

// changed is a file tool's answer of one bracketed line after the notices.
func (c *call) changed(text string, n sandbox.Notice, facts fileResult) *mcp.CallToolResult {
	s := "[" + text + "]"
	if l := c.noticeLine(n); l != "" {
		s = l + "\n" + s
	}
	res := mcp.NewToolResultText(s)
	setResult(res, facts)
	return res
}
