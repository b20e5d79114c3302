package tools

import "github.com/mark3labs/mcp-go/mcp"

type reconnectArguments struct {
	SessionID *string `json:"session_id" schema:"required" doc:"The id of an earlier answer."`
}

func (a reconnectArguments) session() *string { return a.SessionID }

func reconnect() tool {
	t := tool{
		name: "reconnect", title: "Reconnect to a sandbox", toolset: "sandbox",
		description: "Finds the sandbox of an earlier session and gets it running; unlike start_sandbox it refuses an id that never was. " +
			"It binds nothing: pass the session_id in the calls that follow.",
		idempotent: true, reach: namedByCall,
	}
	t.args, t.handle = handler(func(c *call, _ *reconnectArguments) (*mcp.CallToolResult, error) {
		res, err := c.manager.Reconnect(c.ctx, c.key)
		if err != nil {
			return nil, err
		}
		return c.started(res)
	})
	return t
}
