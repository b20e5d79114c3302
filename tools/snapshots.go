package tools

import (
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

// snapshotRow is one snapshot.
type snapshotRow struct {
	Name    string   `json:"name"`
	State   string   `json:"state"`
	Digest  string   `json:"digest"`
	Size    int64    `json:"size_bytes"`
	From    string   `json:"made_from"`
	Image   string   `json:"image,omitempty"`
	Created string   `json:"created"`
	UsedBy  []string `json:"used_by,omitempty"`

	Labels map[string]string `json:"labels,omitempty"`
}

func snapshotOf(s sandbox.SnapshotInfo) snapshotRow {
	row := snapshotRow{Name: s.Name, State: string(s.State), Digest: s.Digest, Size: s.Size, From: "session " + string(s.From), Image: s.Image, Created: s.Created.UTC().Format(time.RFC3339), Labels: s.Labels}
	switch {
	case s.Built:
		row.From = "a build"
	case s.From == "":
		row.From = "an import"
	}
	for _, u := range s.UsedBy {
		row.UsedBy = append(row.UsedBy, string(u))
	}
	return row
}

type listSnapshotsArguments struct {
	Limit     *int    `json:"limit" schema:"min=1;max=200;default=50"`
	Cursor    string  `json:"cursor" doc:"The last next_cursor." schema:"bytes=63"`
	Name      string  `json:"name" doc:"Only this one, with the end of its build's log." schema:"bytes=63"`
	SessionID *string `json:"session_id" doc:"Only those made from this one."`
}

func (a listSnapshotsArguments) session() *string { return a.SessionID }

type snapshotList struct {
	Snapshots  []snapshotRow `json:"snapshots"`
	NextCursor string        `json:"next_cursor,omitempty"`
	Log        string        `json:"log,omitempty"`
}

func listSnapshots() tool {
	t := tool{
		name: "list_snapshots", toolset: "snapshots",
		description: "Lists your snapshots by name: state (active, building), size, what they were made from, and which sessions use them.",
		readOnly:    true, idempotent: true, reach: noSession,
	}
	t.args, t.handle = handler(func(c *call, a *listSnapshotsArguments) (*mcp.CallToolResult, error) {
		r := sandbox.SnapshotListRequest{From: c.key.Session, Name: a.Name, Cursor: a.Cursor}
		if a.Limit != nil {
			r.Limit = *a.Limit
		}
		list, err := c.manager.ListSnapshots(c.ctx, c.key.Owner, r)
		if err != nil {
			return nil, err
		}
		out := snapshotList{Snapshots: []snapshotRow{}, NextCursor: list.Next}
		for _, s := range list.Snapshots {
			out.Snapshots = append(out.Snapshots, snapshotOf(s))
			out.Log = s.Log
		}
		return recordAnswer(out)
	})
	return t
}

type deleteSnapshotArguments struct {
	Name      string  `json:"name" schema:"required;bytes=63"`
	SessionID *string `json:"session_id" doc:"No effect: snapshots are no session's."`
}

func (a deleteSnapshotArguments) session() *string { return a.SessionID }

type deletedAnswer struct {
	Name   string `json:"name"`
	Result string `json:"result"`
}

func deleteSnapshot() tool {
	t := tool{
		name: "delete_snapshot", toolset: "snapshots",
		description: "Deletes a snapshot, or stops its build. Refused, with the sessions named, while sandboxes made of it are there.",
		destructive: true, reach: noSession,
	}
	t.args, t.handle = handler(func(c *call, a *deleteSnapshotArguments) (*mcp.CallToolResult, error) {
		if err := c.manager.DeleteSnapshot(c.ctx, c.key.Owner, a.Name); err != nil {
			return nil, err
		}
		c.outcome = "deleted"
		return recordAnswer(deletedAnswer{Name: a.Name, Result: "deleted"})
	})
	return t
}
