package tools

import (
	"encoding/base64"
	"fmt"
	"strings"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// pathArgument names a file.
type pathArgument struct {
	Path string `json:"path" doc:"Absolute, relative to the default directory, or ~/." schema:"required;notempty;bytes=4096"`
}

type readFileArguments struct {
	pathArgument
	Offset *int `json:"offset" doc:"First line." schema:"min=1;max=2147483647;default=1"`
	Limit  *int `json:"limit" doc:"Lines; default: 30 KB." schema:"min=1;max=100000"`
	Base64 bool `json:"base64" doc:"Exact bytes."`
	sessionArgument
}

// fileResult is "berth/result" of the file tools.
type fileResult struct {
	Path      string `json:"path"`
	Bytes     int64  `json:"bytes"` // the file's size, or those written
	MIME      string `json:"mime,omitempty"`
	Lines     *int   `json:"lines,omitempty"` // in the whole file; absent when not counted
	Truncated bool   `json:"truncated,omitempty"`
	Created   bool   `json:"created,omitempty"`
	Count     int    `json:"replacements,omitempty"`
	SessionID string `json:"session_id"`
}

func readFile() tool {
	t := tool{
		name: "read_file", toolset: "files",
		description: "Reads a text file, whole or by lines; the last line tells which of how many. Images come as images, other binary files only as base64. Makes no sandbox.",
		readOnly:    true, idempotent: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *readFileArguments) (*mcp.CallToolResult, error) {
		r := sandbox.ReadFileRequest{Path: a.Path, Raw: a.Base64}
		if a.Base64 && (a.Offset != nil || a.Limit != nil) {
			return nil, &sandbox.FieldError{Field: "base64", Problem: "given together with offset or limit, which count lines of text", Allowed: "one of them", Hint: "read a part with execute_command: tail -c +N FILE | head -c M | base64"}
		}
		if a.Offset != nil {
			r.Offset = *a.Offset
		}
		if a.Limit != nil {
			r.Limit = *a.Limit
		}
		f, err := c.manager.ReadFile(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		return c.fileAnswer(f, a.Base64), nil
	})
	return t
}

// fileAnswer shows a file's content: an image as image, bytes as base64, text as it is;
// then a line of notices, and one that tells what was shown.
func (c *call) fileAnswer(f *sandbox.FileContent, asBase64 bool) *mcp.CallToolResult {
	var b textBuilder
	var content []mcp.Content
	about := fmt.Sprintf("%s, %s", oneLine(f.File.Path), counted(f.File.Size, "byte"))
	switch {
	case asBase64:
		b.WriteString(base64.StdEncoding.EncodeToString(f.Data))
		b.WriteString("\n")
		about += ", base64 of " + f.MIME
	case strings.HasPrefix(f.MIME, "image/"):
		content = append(content, mcp.NewImageContent(base64.StdEncoding.EncodeToString(f.Data), f.MIME))
		about += ", " + f.MIME
	default:
		line(&b, string(f.Data))
		about += ", " + linesShown(f)
	}
	if f.Truncated && asBase64 {
		about += fmt.Sprintf(", only the first %d bytes", len(f.Data))
	}
	if l := c.noticeLine(f.Notice); l != "" {
		b.WriteString(l + "\n")
	}
	b.WriteString("[" + about + "]")
	res := &mcp.CallToolResult{Content: append([]mcp.Content{b.content()}, content...)}
	facts := fileResult{Path: f.File.Path, Bytes: f.File.Size, MIME: f.MIME, Truncated: f.Truncated, SessionID: string(c.key.Session)}
	if f.Lines >= 0 && !asBase64 && len(content) == 0 {
		facts.Lines = &f.Lines
	}
	setResult(res, facts)
	c.bytes = int64(len(f.Data))
	return res
}

// counted is "1 byte", "2 bytes".
func counted(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	return fmt.Sprintf("%d %ss", n, thing)
}

// linesShown says which lines of how many were returned, and how to go on.
func linesShown(f *sandbox.FileContent) string {
	total := "lines not counted"
	if f.Lines >= 0 {
		total = counted(int64(f.Lines), "line")
	}
	switch {
	case f.Last < f.First || f.Last == 0:
		return total
	case f.First <= 1 && f.Last == f.Lines && !f.Truncated:
		return total
	case f.Lines >= 0 && f.Last >= f.Lines && !f.Truncated:
		return fmt.Sprintf("lines %d to %d of %d", f.First, f.Last, f.Lines)
	case f.Lines >= 0:
		return fmt.Sprintf("lines %d to %d of %d; offset %d continues", f.First, f.Last, f.Lines, f.Last+1)
	}
	return fmt.Sprintf("lines %d to %d; offset %d continues", f.First, f.Last, f.Last+1)
}
