package tools

import (
	"github.com/mark3labs/mcp-go/mcp"
)

type unmountBucketArguments struct {
	Path string `json:"path" schema:"required;bytes=4096"`
	sessionArgument
}

type unmountAnswer struct {
	SessionID string     `json:"session_id"`
	Path      string     `json:"path"`
	Result    string     `json:"result"`
	Mounts    []mountRow `json:"mounts"` // that are left
	Notice    string     `json:"notice,omitempty"`
}

func unmountBucket() tool {
	t := tool{
		name: "unmount_bucket", toolset: "buckets",
		description: "Takes a mounted bucket away, and forgets it; its objects stay. Refused while it is in use.",
		reach:       mustExist,
	}
	t.args, t.handle = handler(func(c *call, a *unmountBucketArguments) (*mcp.CallToolResult, error) {
		res, err := c.manager.UnmountBucket(c.ctx, c.key, a.Path)
		if err != nil {
			return nil, err
		}
		out := unmountAnswer{SessionID: string(c.key.Session), Path: res.Mount.Path, Result: "unmounted; all that was written to it is in the bucket", Mounts: []mountRow{}, Notice: c.noticeText(res.Notice)}
		if res.Mount.State != "mounted" {
			out.Result = "it was not mounted, and will not be any more"
		}
		for _, m := range res.Info.Mounts {
			out.Mounts = append(out.Mounts, mountOf(m))
		}
		c.outcome = "unmounted"
		return recordAnswer(out)
	})
	return t
}
