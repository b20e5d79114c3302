package tools

import (
	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type forkSandboxArguments struct {
	NewSessionID string            `json:"new_session_id" doc:"Default: a new one." schema:"bytes=63"`
	Labels       map[string]string `json:"labels" doc:"Added to the fork's." schema:"items=64;bytes=256"`
	SessionID    *string           `json:"session_id" doc:"What is forked."`
}

func (a forkSandboxArguments) session() *string { return a.SessionID }

type forkAnswer struct {
	SessionID  string      `json:"session_id"` // of the new sandbox
	ForkedFrom string      `json:"forked_from"`
	Sandbox    sandboxInfo `json:"sandbox"`
	Notice     string      `json:"notice,omitempty"`
}

func forkSandbox() tool {
	t := tool{
		name: "fork_sandbox", toolset: "snapshots",
		description: "Makes another session with a sandbox that has this one's files as they are now, its settings and labels, and none of its processes. This one goes on undisturbed. " +
			"Use the returned session_id for the new one.",
		reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *forkSandboxArguments) (*mcp.CallToolResult, error) {
		r := sandbox.ForkRequest{Labels: a.Labels}
		if a.NewSessionID != "" {
			id, err := sandbox.ParseSessionID(a.NewSessionID)
			if err != nil {
				return nil, &sandbox.FieldError{Field: "new_session_id", Problem: "not a session id", Allowed: "1 to 63 characters: a letter or digit, then letters, digits, '.', '_' or '-'"}
			}
			r.NewSession = id
		}
		res, err := c.manager.ForkSandbox(c.ctx, c.key, r)
		if err != nil {
			return nil, err
		}
		c.outcome = "forked"
		out := forkAnswer{SessionID: string(res.Info.Key.Session), ForkedFrom: string(c.key.Session), Sandbox: c.infoOf(res.Info), Notice: c.noticeText(sandbox.Notice{})}
		return recordAnswer(out)
	})
	return t
}
