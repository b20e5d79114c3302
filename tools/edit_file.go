package tools

import (
	"fmt"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type editArgument struct {
	OldText    string `json:"old_text" doc:"Exact; must occur once." schema:"required;notempty;bytes=1048576;nul"`
	NewText    string `json:"new_text" schema:"required;bytes=1048576;nul"`
	ReplaceAll bool   `json:"replace_all"`
}

type editFileArguments struct {
	pathArgument
	Edits []editArgument `json:"edits" doc:"In order; all or none." schema:"required;minitems=1;items=100"`
	sessionArgument
}

func editFile() tool {
	t := tool{
		name: "edit_file", toolset: "files",
		description: "Replaces exact texts in a file; returns a diff. A text found never, or several times without replace_all, is an error that shows the places, and nothing is changed.",
		destructive: true, reach: mustExist, bare: []string{"path"},
	}
	t.args, t.handle = handler(func(c *call, a *editFileArguments) (*mcp.CallToolResult, error) {
		r := sandbox.EditFileRequest{Path: a.Path}
		for i, e := range a.Edits {
			if e.OldText == e.NewText {
				return nil, &sandbox.FieldError{Field: fmt.Sprintf("edits.%d.new_text", i), Problem: "the same as old_text", Hint: "leave this edit out"}
			}
			r.Edits = append(r.Edits, sandbox.Edit{OldText: e.OldText, NewText: e.NewText, ReplaceAll: e.ReplaceAll})
		}
		e, err := c.manager.EditFile(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		noun := "replacements"
		if e.Count == 1 {
			noun = "replacement"
		}
		res := c.changed(fmt.Sprintf("%d %s in %s", e.Count, noun, oneLine(e.Path)), e.Notice,
			fileResult{Path: e.Path, Count: e.Count, SessionID: string(c.key.Session)})
		text := res.Content[0].(mcp.TextContent)
		diff := e.Diff
		if diff != "" && diff[len(diff)-1] != '\n' {
			diff += "\n"
		}
		res.Content[0] = mcp.NewTextContent(diff + text.Text)
		return res, nil
	})
	return t
}
