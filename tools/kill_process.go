package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type killProcessArguments struct {
	processArgument
	Signal string `json:"signal" doc:"Default: TERM, then KILL after 2 s." schema:"enum=TERM|KILL|INT|HUP|QUIT|USR1|USR2|STOP|CONT|WINCH|ABRT"`
	sessionArgument
}

func killProcess() tool {
	t := tool{
		name: "kill_process", toolset: "core",
		description: "Signals a process and all its children; returns the last output, exit code and signal. One that has ended is no error.",
		destructive: true, idempotent: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *killProcessArguments) (*mcp.CallToolResult, error) {
		res, err := c.manager.KillProcess(c.ctx, c.key, sandbox.KillRequest{Process: sandbox.ProcessID(a.ProcessID), Signal: a.Signal})
		if err != nil {
			return nil, err
		}
		return c.process(res, state), nil
	})
	return t
}
