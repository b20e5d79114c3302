package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type destroySandboxArguments struct {
	sessionArgument
}

type destroyAnswer struct {
	SessionID    string `json:"session_id"`
	Existed      bool   `json:"existed"`
	StatusBefore string `json:"status_before,omitempty"`
	FreedBytes   *int64 `json:"freed_bytes,omitempty"` // absent when not known
	Result       string `json:"result"`
	Notice       string `json:"notice,omitempty"`
}

func destroySandbox() tool {
	t := tool{
		name: "destroy_sandbox", toolset: "sandbox",
		description: "Deletes the sandbox with all files and processes, for ever. Nothing there is no error.",
		destructive: true, idempotent: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, _ *destroySandboxArguments) (*mcp.CallToolResult, error) {
		res, err := c.manager.DestroySandbox(c.ctx, c.key)
		if err != nil {
			return nil, err
		}
		out := destroyAnswer{SessionID: string(c.key.Session), Existed: res.Existed, Notice: c.noticeText(sandbox.Notice{})}
		if !res.Existed {
			out.Result = "there was no sandbox to destroy"
			return recordAnswer(out)
		}
		out.Result, out.StatusBefore = "destroyed: files, processes and logs are gone", string(res.Status)
		if res.Freed >= 0 {
			out.FreedBytes = &res.Freed
		}
		c.outcome = "destroyed"
		return recordAnswer(out)
	})
	return t
}
