package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type getSandboxArguments struct {
	sessionArgument
}

// sandboxAnswer is the answer of get_sandbox and stop_sandbox.
type sandboxAnswer struct {
	Sandbox sandboxInfo `json:"sandbox"`
	Notice  string      `json:"notice,omitempty"`
}

func getSandbox() tool {
	t := tool{
		name: "get_sandbox", toolset: "sandbox",
		description: "Tells the sandbox's status (pending: not made yet), settings, interpreters, network, buckets, usage, and what is enforced. Starts nothing.",
		readOnly:    true, idempotent: true, reach: anySession,
	}
	t.args, t.handle = handler(func(c *call, _ *getSandboxArguments) (*mcp.CallToolResult, error) {
		info, err := c.manager.GetSandbox(c.ctx, c.key)
		if err != nil {
			return nil, err
		}
		out := sandboxAnswer{Sandbox: c.infoOf(*info), Notice: c.noticeText(sandbox.Notice{})}
		out.Sandbox.Instructions = forAgent(*info)
		out.Sandbox.Connections, out.Sandbox.Inline = connectionsOf(c.manager.Connections()), c.manager.InlineCredentials()
		c.looked = info.Status == sandbox.StatusPending
		return recordAnswer(out)
	})
	return t
}
