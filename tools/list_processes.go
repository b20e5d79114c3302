package tools

import (
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type listProcessesArguments struct {
	sessionArgument
}

type processRow struct {
	ProcessID   string   `json:"process_id"`
	Command     string   `json:"command"`
	State       string   `json:"state"`
	ExitCode    *int     `json:"exit_code"` // null while running, and when it will never be known
	Signal      string   `json:"signal,omitempty"`
	TimedOut    bool     `json:"timed_out,omitempty"`
	Killed      bool     `json:"killed,omitempty"`
	Reason      string   `json:"reason,omitempty"`
	Started     string   `json:"started"`
	Ended       string   `json:"ended,omitempty"`
	Cwd         string   `json:"cwd"`
	User        string   `json:"user"`
	TTY         bool     `json:"tty,omitempty"`
	StdinOpen   bool     `json:"stdin_open,omitempty"`
	CPUSeconds  *float64 `json:"cpu_seconds,omitempty"` // absent when not known
	MemoryBytes *int64   `json:"memory_bytes,omitempty"`
	Processes   int      `json:"processes,omitempty"`
	OutputBytes int64    `json:"output_bytes"`
	Limits      []string `json:"limits,omitempty"`
	Leftovers   []string `json:"leftovers,omitempty"`
}

type processList struct {
	SessionID string       `json:"session_id"`
	Processes []processRow `json:"processes"`
	Notice    string       `json:"notice,omitempty"`
}

func listProcesses() tool {
	t := tool{
		name: "list_processes", toolset: "core",
		description: "Lists the sandbox's processes, also ended ones, oldest first. Starts nothing.",
		readOnly:    true, idempotent: true, reach: mustExist,
	}
	t.args, t.handle = handler(func(c *call, _ *listProcessesArguments) (*mcp.CallToolResult, error) {
		list, err := c.manager.ListProcesses(c.ctx, c.key)
		if err != nil {
			return nil, err
		}
		out := processList{SessionID: string(c.key.Session), Processes: []processRow{}, Notice: c.noticeText(sandbox.Notice{})}
		for _, p := range list {
			out.Processes = append(out.Processes, processRowOf(p))
		}
		return recordAnswer(out)
	})
	return t
}

func processRowOf(p sandbox.ProcessInfo) processRow {
	row := processRow{
		ProcessID: string(p.ID), Command: p.Command, State: string(p.State), ExitCode: p.ExitCode, Signal: p.Signal,
		TimedOut: p.TimedOut, Killed: p.Killed, Reason: p.Reason, Started: stamp(p.Started), Ended: stamp(p.Ended),
		Cwd: p.Cwd, User: p.User, TTY: p.TTY, StdinOpen: p.StdinOpen,
		OutputBytes: p.Produced.Stdout + p.Produced.Stderr, Leftovers: p.Leftovers,
		Processes: p.Processes, Limits: p.Struck,
	}
	if p.CPU >= 0 {
		s := p.CPU.Seconds()
		row.CPUSeconds = &s
	}
	if p.Memory >= 0 && p.State == sandbox.ProcessRunning {
		row.MemoryBytes = &p.Memory
	}
	return row
}

// stamp is a time for the wire, "" for none.
func stamp(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format(time.RFC3339)
}
