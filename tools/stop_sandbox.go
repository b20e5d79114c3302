package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type stopSandboxArguments struct {
	Archive bool `json:"archive" doc:"Also pack its files."`
	sessionArgument
}

func stopSandbox() tool {
	t := tool{
		name: "stop_sandbox", toolset: "sandbox",
		description: "Ends all processes and stops the sandbox; files stay, and the next command starts it again. An ephemeral one is deleted.",
		destructive: true, idempotent: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *stopSandboxArguments) (*mcp.CallToolResult, error) {
		info, err := c.manager.StopSandbox(c.ctx, c.key, a.Archive)
		if err != nil {
			return nil, err
		}
		c.outcome = string(info.Status)
		return recordAnswer(sandboxAnswer{Sandbox: c.infoOf(*info), Notice: c.noticeText(sandbox.Notice{})})
	})
	return t
}
