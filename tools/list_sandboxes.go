package tools

import (
	"errors"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type listSandboxesArguments struct {
	Labels    map[string]string `json:"labels" doc:"All of these." schema:"items=64;bytes=256"`
	Status    string            `json:"status" schema:"enum=starting|running|stopping|stopped|archiving|archived|destroying|error"`
	Limit     *int              `json:"limit" schema:"min=1;max=200;default=50"`
	Cursor    string            `json:"cursor" doc:"The last next_cursor." schema:"bytes=1024"`
	SessionID *string           `json:"session_id" doc:"Only this one."`
}

func (a listSandboxesArguments) session() *string { return a.SessionID }

type sandboxList struct {
	Sandboxes  []sandboxRow `json:"sandboxes"`
	NextCursor string       `json:"next_cursor,omitempty"`
}

func listSandboxes() tool {
	t := tool{
		name: "list_sandboxes", toolset: "sandbox",
		description: "Lists your sandboxes, oldest first, also of earlier connections. Starts nothing.",
		readOnly:    true, idempotent: true, reach: noSession,
	}
	t.args, t.handle = handler(func(c *call, a *listSandboxesArguments) (*mcp.CallToolResult, error) {
		out := sandboxList{Sandboxes: []sandboxRow{}}
		if c.key.Session != "" {
			info, err := c.manager.GetSandbox(c.ctx, c.key)
			switch {
			case errors.Is(err, sandbox.ErrNotFound):
			case err != nil:
				return nil, err
			case info.Status != sandbox.StatusPending && info.Status != sandbox.StatusDestroyed && a.fits(*info):
				out.Sandboxes = append(out.Sandboxes, rowOf(*info))
			}
			return recordAnswer(out)
		}
		r := sandbox.ListRequest{Labels: a.Labels, Status: sandbox.Status(a.Status), Cursor: a.Cursor}
		if a.Limit != nil {
			r.Limit = *a.Limit
		}
		list, err := c.manager.ListSandboxes(c.ctx, c.key.Owner, r)
		if err != nil {
			return nil, err
		}
		for _, i := range list.Sandboxes {
			out.Sandboxes = append(out.Sandboxes, rowOf(i))
		}
		out.NextCursor = list.Next
		return recordAnswer(out)
	})
	return t
}

// fits applies the filters to one sandbox.
func (a *listSandboxesArguments) fits(i sandbox.Info) bool {
	for k, v := range a.Labels {
		if got, ok := i.Spec.Labels[k]; !ok || got != v {
			return false
		}
	}
	return a.Status == "" || a.Status == string(i.Status)
}
