package tools

import "github.com/mark3labs/mcp-go/mcp"

type reconnectArguments struct {
	SessionID *string `json:"session_id" schema:"required"`
}

func (a reconnectArguments) session() *string { return a.SessionID }

func reconnect() tool {
	t := tool{
		name: "reconnect", toolset: "sandbox",
		description: "Finds the sandbox of an earlier session and gets it running; an id that never was is refused. It binds nothing: pass the session_id in later calls.",
		idempotent:  true, reach: namedByCall,
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
