package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type runCodeArguments struct {
	Code     string `json:"code" schema:"required;notempty;bytes=1048576"`
	Language string `json:"language" doc:"Default: the sandbox's." schema:"enum=python|javascript|typescript|bash"`
	runArguments
	TimeoutSeconds *float64 `json:"timeout_seconds" schema:"min=0;max=86400"`
	WaitSeconds    *float64 `json:"wait_seconds" schema:"min=0;max=50;default=50"`
	sessionArgument
}

func runCode() tool {
	t := tool{
		name: "run_code", toolset: "core",
		description: "Runs a program given as text, so that nothing needs quoting. Imports, also of .ts files, and packages resolve from cwd. " +
			"No state stays between calls but files. The rest is as in execute_command.",
		destructive: true, reach: mayCreate, bare: []string{"cwd", "env", "user", "stdin"},
	}
	t.args, t.handle = handler(func(c *call, a *runCodeArguments) (*mcp.CallToolResult, error) {
		r := sandbox.RunCodeRequest{RunRequest: a.request(c), Language: sandbox.Language(a.Language), Code: a.Code}
		r.Timeout, r.Wait = duration(a.TimeoutSeconds), duration(a.WaitSeconds)
		res, err := c.manager.RunCode(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		return c.process(res, ran), nil
	})
	return t
}
