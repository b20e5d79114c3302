package tools

import (
	"github.com/mark3labs/mcp-go/mcp"
)

type listVolumesArguments struct {
	sessionArgument
}

type volumeRow struct {
	Volume  string   `json:"volume"`
	Created string   `json:"created,omitempty"`
	Bytes   *int64   `json:"bytes,omitempty"` // absent when not known
	UsedBy  []string `json:"used_by,omitempty"`
}

type volumeList struct {
	Volumes []volumeRow `json:"volumes"`
}

func listVolumes() tool {
	t := tool{
		name: "list_volumes", toolset: "volumes",
		description: "Lists the volumes there are, their size, and the sandboxes that have them attached. start_sandbox makes them at first use.",
		readOnly:    true, idempotent: true, reach: noSession,
	}
	t.args, t.handle = handler(func(c *call, _ *listVolumesArguments) (*mcp.CallToolResult, error) {
		list, err := c.manager.ListVolumes(c.ctx, c.key.Owner)
		if err != nil {
			return nil, err
		}
		out := volumeList{Volumes: []volumeRow{}}
		for _, v := range list {
			row := volumeRow{Volume: v.Name, Created: stamp(v.Created)}
			if v.Size >= 0 {
				row.Bytes = &v.Size
			}
			for _, id := range v.UsedBy {
				row.UsedBy = append(row.UsedBy, string(id))
			}
			out.Volumes = append(out.Volumes, row)
		}
		return recordAnswer(out)
	})
	return t
}

type deleteVolumeArguments struct {
	Volume string `json:"volume" schema:"required;bytes=63"`
	sessionArgument
}

type deletedVolume struct {
	Volume string `json:"volume"`
	Result string `json:"result"`
}

func deleteVolume() tool {
	t := tool{
		name: "delete_volume", toolset: "volumes",
		description: "Deletes a volume with all files in it, for ever. Refused while a sandbox has it attached, also a stopped one.",
		destructive: true, reach: noSession,
	}
	t.args, t.handle = handler(func(c *call, a *deleteVolumeArguments) (*mcp.CallToolResult, error) {
		if err := c.manager.DeleteVolume(c.ctx, c.key.Owner, a.Volume); err != nil {
			return nil, err
		}
		c.outcome = "deleted"
		return recordAnswer(deletedVolume{Volume: a.Volume, Result: "deleted with all files in it"})
	})
	return t
}
