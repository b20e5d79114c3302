package tools

import (
	"maps"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
)

// sandboxRow is one sandbox in a list.
type sandboxRow struct {
	SessionID string            `json:"session_id"`
	Name      string            `json:"name"`
	Status    string            `json:"status"`
	Reason    string            `json:"reason,omitempty"`
	Provider  string            `json:"provider"`
	Created   string            `json:"created,omitempty"`
	Stopped   string            `json:"stopped,omitempty"`
	Expires   string            `json:"expires,omitempty"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// sandboxInfo is all that is known of a sandbox.
type sandboxInfo struct {
	sandboxRow
	ProviderReason string            `json:"provider_reason,omitempty"`
	StopReason     string            `json:"stop_reason,omitempty"`
	StopsWhenIdle  string            `json:"stops_when_idle,omitempty"`
	Spec           sandboxSpec       `json:"spec"`
	Home           string            `json:"home,omitempty"`
	User           string            `json:"user,omitempty"`
	ImageDigest    string            `json:"image_digest,omitempty"`
	Runtimes       map[string]string `json:"runtimes,omitempty"`
	Network        string            `json:"network"`
	HostDirs       []hostDir         `json:"host_dirs,omitempty"`
	Ports          []exposedPort     `json:"ports,omitempty"`
	Mounts         []mountRow        `json:"mounts,omitempty"`
	Connections    []connectionRow   `json:"connections,omitempty"` // that it may mount, in get_sandbox
	Inline         bool              `json:"inline_credentials,omitempty"`
	Refused        []refused         `json:"refused_connections,omitempty"`
	Usage          *usage            `json:"usage,omitempty"`
	Enforced       []string          `json:"enforced,omitempty"`
	Soft           []string          `json:"soft,omitempty"`
	NotEnforced    []string          `json:"not_enforced,omitempty"`
	BaseChanged    string            `json:"base_changed,omitempty"`
	Instructions   string            `json:"instructions,omitempty"`
}

// sandboxSpec is the spec in force. Of the environment it tells the names.
type sandboxSpec struct {
	Snapshot         string        `json:"snapshot,omitempty"`
	Image            string        `json:"image,omitempty"`
	Language         string        `json:"language,omitempty"`
	EnvNames         []string      `json:"env_names,omitempty"`
	User             string        `json:"user,omitempty"`
	Ephemeral        bool          `json:"ephemeral"`
	Public           bool          `json:"public,omitempty"`
	AutoStop         *int64        `json:"auto_stop_minutes,omitempty"`
	AutoArchive      *int64        `json:"auto_archive_minutes,omitempty"`
	AutoDelete       *int64        `json:"auto_delete_minutes,omitempty"`
	Timeout          *float64      `json:"timeout_seconds,omitempty"`
	WorkingDirectory string        `json:"working_directory,omitempty"`
	Resources        *resources    `json:"resources,omitempty"`
	Volumes          []volumeMount `json:"volumes,omitempty"`
}

type hostDir struct {
	Path     string `json:"path"`
	ReadOnly bool   `json:"read_only"`
}

type usage struct {
	CPUSeconds  *float64 `json:"cpu_seconds,omitempty"`
	MemoryBytes *int64   `json:"memory_bytes,omitempty"`
	Processes   *int     `json:"processes,omitempty"`
	DiskBytes   *int64   `json:"disk_bytes,omitempty"`
}

// networkOf says what a sandbox reaches.
func networkOf(i sandbox.Info) string {
	for _, g := range i.Guarantees {
		if g.Name == "network" && g.State == sandbox.NotEnforced {
			return g.Detail
		}
	}
	switch n := i.Spec.Network; {
	case n != nil && n.Limited():
		return n.String()
	case i.Provider == "daytona": // where berth holds nothing back
		return "public: what the platform lets every sandbox reach"
	}
	return sandbox.NetworkPolicy{}.String()
}

// refused is a connection that the network policy did not let out.
type refused struct {
	Destination string `json:"destination"`
	Protocol    string `json:"protocol"`
	Rule        string `json:"rule"`
	Allow       string `json:"allow,omitempty"`
	Count       int64  `json:"count"`
	First       string `json:"first"`
	ProcessID   string `json:"process_id,omitempty"`
}

func rowOf(i sandbox.Info) sandboxRow {
	return sandboxRow{
		SessionID: string(i.Key.Session), Name: i.Name, Status: string(i.Status), Reason: i.Reason, Provider: i.Provider,
		Created: stamp(i.Created), Stopped: stamp(i.Stopped), Expires: stamp(i.Expires), Labels: i.Spec.Labels,
	}
}

// infoOf puts a sandbox into words. Host paths stay out: they are the
// operator's business.
func (c *call) infoOf(i sandbox.Info) sandboxInfo {
	out := sandboxInfo{
		sandboxRow: rowOf(i), StopReason: i.StopReason, StopsWhenIdle: stamp(i.IdleDeadline), Spec: specOf(i.Spec), Home: i.Home, User: i.User,
		ProviderReason: c.options.ProviderReason, Network: networkOf(i), BaseChanged: i.BaseChanged,
	}
	if out.SessionID == "" {
		out.SessionID = string(c.key.Session)
	}
	if out.Name == "" {
		out.Name = out.SessionID
	}
	if i.Image != nil {
		out.ImageDigest = i.Image.Digest
	}
	if len(i.Runtimes) > 0 {
		out.Runtimes = map[string]string{}
		for l, p := range i.Runtimes {
			out.Runtimes[string(l)] = p
		}
	}
	for _, d := range i.HostDirs {
		out.HostDirs = append(out.HostDirs, hostDir{Path: d.Path, ReadOnly: d.ReadOnly})
	}
	for _, p := range i.Ports {
		var urls []string
		if c.options.Previews != nil {
			urls = c.options.Previews.URLs(p)
		}
		out.Ports = append(out.Ports, exposedPortOf(p, urls))
	}
	for _, m := range i.Mounts {
		out.Mounts = append(out.Mounts, mountOf(m))
	}
	// The newest 20 are what an agent can use.
	for _, r := range i.Refused[max(0, len(i.Refused)-20):] {
		out.Refused = append(out.Refused, refused{Destination: r.Destination(), Protocol: r.Protocol, Rule: r.Rule, Allow: r.Allow,
			Count: r.Count, First: stamp(r.First), ProcessID: string(r.Process)})
	}
	if u := i.Usage; u != nil {
		out.Usage = &usage{}
		if u.CPU >= 0 {
			s := u.CPU.Seconds()
			out.Usage.CPUSeconds = &s
		}
		if u.Memory >= 0 {
			out.Usage.MemoryBytes = &u.Memory
		}
		if u.Processes >= 0 {
			out.Usage.Processes = &u.Processes
		}
		if u.Disk >= 0 {
			out.Usage.DiskBytes = &u.Disk
		}
	}
	for _, g := range i.Guarantees {
		text := g.Name
		if g.Detail != "" {
			text += ": " + g.Detail
		}
		switch g.State {
		case sandbox.Enforced:
			out.Enforced = append(out.Enforced, text)
		case sandbox.Soft:
			out.Soft = append(out.Soft, text)
		default:
			out.NotEnforced = append(out.NotEnforced, text)
		}
	}
	return out
}

func specOf(s sandbox.Spec) sandboxSpec {
	out := sandboxSpec{
		Snapshot: s.Snapshot, Image: s.Image, Language: string(s.Language), User: s.User, Ephemeral: s.Ephemeral != nil && *s.Ephemeral, Public: s.Public != nil && *s.Public,
		AutoStop: minutesOf(s.AutoStop), AutoArchive: minutesOf(s.AutoArchive), AutoDelete: minutesOf(s.AutoDelete),
		WorkingDirectory: s.WorkingDirectory, Resources: resourcesOf(s.Resources), Volumes: volumesOf(s.Volumes),
	}
	out.EnvNames = slices.Sorted(maps.Keys(s.Env))
	if s.Timeout != nil {
		t := s.Timeout.Seconds()
		out.Timeout = &t
	}
	return out
}

// minutesOf is an interval in minutes, rounded up; -1 is never.
func minutesOf(d *time.Duration) *int64 {
	if d == nil {
		return nil
	}
	m := int64((*d + time.Minute - 1) / time.Minute)
	if *d < 0 {
		m = -1
	}
	return &m
}

// noticeText is the notice of a record: the bracketed line without brackets.
func (c *call) noticeText(n sandbox.Notice, more ...string) string {
	return strings.TrimSuffix(strings.TrimPrefix(c.noticeLine(n, more...), "["), "]")
}
