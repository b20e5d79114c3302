package tools

import (
	"errors"
	"time"

	"github.com/mark3labs/mcp-go/mcp"

	"berth/sandbox"
)

type startSandboxArguments struct {
	Name               string            `json:"name" schema:"bytes=63"`
	Labels             map[string]string `json:"labels" schema:"items=64;bytes=256"`
	Language           string            `json:"language" doc:"Of run_code." schema:"enum=typescript|javascript|python;default=typescript"`
	Env                map[string]string `json:"env" schema:"items=1000;bytes=131071"`
	Snapshot           string            `json:"snapshot" doc:"Its name; beats image." schema:"bytes=63"`
	Image              string            `json:"image" doc:"As for docker pull; default: this machine's own system." schema:"bytes=1024"`
	User               string            `json:"user" doc:"agent or root; with image any of its own." schema:"bytes=64"`
	Ephemeral          *bool             `json:"ephemeral" doc:"Delete it when it stops."`
	Public             *bool             `json:"public" doc:"Exposed ports need no token."`
	AutoStopMinutes    *int              `json:"auto_stop_minutes" doc:"When idle; 0 = never." schema:"min=0;max=525600;default=15"`
	AutoArchiveMinutes *int              `json:"auto_archive_minutes" doc:"When stopped; 0 = 43200." schema:"min=0;max=43200;default=10080"`
	AutoDeleteMinutes  *int              `json:"auto_delete_minutes" doc:"When stopped; 0 = at once, -1 = never." schema:"max=525600;default=-1"`
	TimeoutSeconds     *float64          `json:"timeout_seconds" doc:"Of commands; 0 = none." schema:"min=0;max=86400;default=300"`
	WorkingDirectory   string            `json:"working_directory" doc:"Absolute; default: home." schema:"bytes=4096"`
	Resources          *resources        `json:"resources" doc:"Limits that must hold."`
	Volumes            []volumeMount     `json:"volumes" doc:"Directories that outlive sandboxes, made at first use; of a new sandbox only." schema:"items=32;minitems=1"`
	Mounts             mountList         `json:"mounts" doc:"Buckets as directories, by absolute path. Commands start in the first." schema:"items=16"`
	SessionID          *string           `json:"session_id" doc:"Default: the one the operator fixed, or a new one."`
	networkArguments
}

type volumeMount struct {
	Volume   string `json:"volume" schema:"required;bytes=63"`
	Path     string `json:"path" schema:"required;bytes=4096"`
	Subpath  string `json:"subpath,omitempty" schema:"bytes=4096"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

func volumesIn(list []volumeMount) []sandbox.VolumeMount {
	var out []sandbox.VolumeMount
	for _, v := range list {
		out = append(out, sandbox.VolumeMount(v))
	}
	return out
}

func volumesOf(list []sandbox.VolumeMount) []volumeMount {
	var out []volumeMount
	for _, v := range list {
		out = append(out, volumeMount(v))
	}
	return out
}

type resources struct {
	CPU       float64 `json:"cpu,omitempty"`
	MemoryGiB float64 `json:"memory_gib,omitempty"`
	DiskGiB   float64 `json:"disk_gib,omitempty"`
}

func (r *resources) spec() sandbox.Resources {
	if r == nil {
		return sandbox.Resources{}
	}
	return sandbox.Resources{CPU: r.CPU, Memory: sandbox.FromGiB(r.MemoryGiB), Disk: sandbox.FromGiB(r.DiskGiB)}
}

func resourcesOf(r sandbox.Resources) *resources {
	if r == (sandbox.Resources{}) {
		return nil
	}
	gib := func(n int64) float64 { return round(float64(n)/(1<<30), 1<<20) }
	return &resources{CPU: r.CPU, MemoryGiB: gib(r.Memory), DiskGiB: gib(r.Disk)}
}

func (a startSandboxArguments) session() *string { return a.SessionID }

// notYet are the arguments that berth knows and this version's provider lacks.
var notYet = map[string]string{
	"target":    lacks("targets; everything runs on this machine"),
	"isolation": lacks("a choice of isolation; get_sandbox shows what is enforced"),
}

func lacks(what string) string { return "this version's local provider does not have " + what }

func startSandbox(b buckets) tool {
	t := tool{
		name: "start_sandbox", toolset: "sandbox",
		description: "Makes a sandbox, or connects to the session's own and starts it when it is stopped; a destroyed one is made anew. Only for settings or several sandboxes: commands make what they need. " +
			"The session_id finds it again at any time, files intact. Returns created, connected or replaced, and what is enforced.",
		idempotent: true, reach: newSession, unavailable: notYet, enums: b.enums(),
	}
	t.args, t.handle = handler(func(c *call, a *startSandboxArguments) (*mcp.CallToolResult, error) {
		spec, err := a.spec()
		if err != nil {
			return nil, errors.Join(err, c.manager.ValidateSpec(spec)) // all that is wrong at once
		}
		res, err := c.manager.StartSandbox(c.ctx, c.key, spec)
		if err != nil {
			return nil, err
		}
		return c.started(res)
	})
	return t
}

func (a *startSandboxArguments) spec() (sandbox.Spec, error) {
	network, err := a.policy()
	return sandbox.Spec{
		Name: a.Name, Labels: a.Labels, Language: sandbox.Language(a.Language), Env: a.Env, Snapshot: a.Snapshot, Image: a.Image, User: a.User, Ephemeral: a.Ephemeral, Public: a.Public,
		AutoStop: minutes(a.AutoStopMinutes), AutoArchive: minutes(a.AutoArchiveMinutes), AutoDelete: minutes(a.AutoDeleteMinutes),
		Timeout: duration(a.TimeoutSeconds), WorkingDirectory: a.WorkingDirectory, Resources: a.Resources.spec(),
		Volumes: volumesIn(a.Volumes), Mounts: a.Mounts.mounts(), Network: network,
	}, err
}

// minutes is an interval from an argument; negative is sandbox.Never.
func minutes(n *int) *time.Duration {
	if n == nil {
		return nil
	}
	d := time.Duration(*n) * time.Minute
	if *n < 0 {
		d = sandbox.Never
	}
	return &d
}

// startAnswer is the answer of start_sandbox and reconnect.
type startAnswer struct {
	Outcome string      `json:"outcome"`
	Sandbox sandboxInfo `json:"sandbox"`
	Notice  string      `json:"notice,omitempty"`
}

func (c *call) started(r *sandbox.StartResult) (*mcp.CallToolResult, error) {
	c.outcome = string(r.Outcome)
	return recordAnswer(startAnswer{Outcome: string(r.Outcome), Sandbox: c.infoOf(r.Info), Notice: c.noticeText(r.Notice)})
}
