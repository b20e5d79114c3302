package daytona

import (
	"fmt"
	"math"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// placeholderUser is how a spec says "the usual user" where no image is given;
// here that is the one of the snapshot, whatever its name.
const placeholderUser = "agent"

// OwnUsers says that a snapshot has users of its own.
func (p *Provider) OwnUsers() {}

// statusOf is a state of the platform's in berth's words. States that berth does
// not know are on their way to somewhere; whoever waits for them gives up in time.
func statusOf(sb *api.Sandbox) sandbox.Status {
	switch sb.State {
	case api.Started:
		return sandbox.StatusRunning
	case api.Stopped, api.Paused:
		return sandbox.StatusStopped
	case api.Stopping, api.Pausing:
		return sandbox.StatusStopping
	case api.Archived:
		return sandbox.StatusArchived
	case api.Archiving:
		return sandbox.StatusArchiving
	case api.Destroying:
		return sandbox.StatusDestroying
	case api.Destroyed:
		return sandbox.StatusDestroyed
	case api.Errored, api.BuildFailed:
		return sandbox.StatusError
	case api.Resizing, api.Snapshotting, api.Forking:
		if sb.DesiredState == api.Stopped {
			return sandbox.StatusStopping
		}
	}
	return sandbox.StatusStarting
}

// settled tells that a state does not end by itself.
func settled(s api.State) bool {
	switch s {
	case api.Started, api.Stopped, api.Paused, api.Archived, api.Destroyed, api.Errored, api.BuildFailed:
		return true
	}
	return false
}

// infoOf is what the platform tells of a sandbox, in berth's words. It asks
// nobody.
func (p *Provider) infoOf(key sandbox.Key, sb *api.Sandbox) sandbox.Info {
	r, kept := readRecord(sb)
	spec := sandbox.Spec{Name: r.Name, Labels: userLabels(sb.Labels), Language: sandbox.Language(sb.Labels[languageKey]), Image: r.Image, Snapshot: r.Snapshot,
		User: r.User, WorkingDirectory: r.Cwd, Resources: sandbox.Resources{CPU: r.CPU, Memory: r.Memory, Disk: r.Disk}}
	if !kept {
		spec.Name, spec.Snapshot, spec.Image = sb.Name, sb.Snapshot, imageOf(sb)
	}
	minutes := func(n *int, usual time.Duration) *time.Duration {
		if n == nil {
			return &usual
		}
		return new(time.Duration(*n) * time.Minute)
	}
	spec.AutoStop = minutes(sb.AutoStop, sandbox.DefaultAutoStop)
	if spec.AutoArchive = minutes(sb.AutoArchive, sandbox.DefaultAutoArchive); *spec.AutoArchive == 0 {
		*spec.AutoArchive = sandbox.MaxAutoArchive
	}
	if spec.AutoDelete = minutes(sb.AutoDelete, sandbox.Never); *spec.AutoDelete < 0 {
		*spec.AutoDelete = sandbox.Never
	}
	spec.Ephemeral, spec.Public = new(*spec.AutoDelete == 0), &sb.Public
	spec.Timeout = new(sandbox.DefaultTimeout)
	if r.Timeout != nil {
		*spec.Timeout = time.Duration(*r.Timeout) * time.Second
	}
	if r.Network != nil && (r.Network.Late || kept) {
		spec.Network = new(r.Network.policy())
	} else {
		spec.Network = new(platformPolicy(sb))
	}
	if r.Volumes != nil {
		for _, v := range r.Volumes {
			spec.Volumes = append(spec.Volumes, sandbox.VolumeMount{Volume: v.Volume, Path: v.Path, Subpath: v.Subpath})
		}
	} else {
		for _, v := range sb.Volumes {
			spec.Volumes = append(spec.Volumes, sandbox.VolumeMount{Volume: v.Volume, Path: v.Path, Subpath: v.Subpath})
		}
	}
	spec.Mounts = toMounts(r.Mounts)
	info := sandbox.Info{Key: key, Mounts: wanted(sb), Name: spec.Name, Provider: Name, Status: statusOf(sb), Created: sb.Created}
	if info.Name == "" {
		info.Name = sb.Name
	}
	env, err := p.unseal(key, sb.Labels)
	if spec.Env = env; err != nil {
		info.Reason = err.Error()
	}
	switch info.Status {
	case sandbox.StatusError:
		info.Reason = sb.ErrorReason
		if info.Reason == "" {
			info.Reason = "Daytona says " + string(sb.State) + " and gives no reason"
		}
	case sandbox.StatusStopped, sandbox.StatusArchived, sandbox.StatusArchiving:
		info.Stopped = sb.Updated
		if !sb.LastActivity.IsZero() && info.Stopped.IsZero() {
			info.Stopped = sb.LastActivity
		}
		if *spec.AutoDelete > 0 && !info.Stopped.IsZero() {
			info.Expires = info.Stopped.Add(*spec.AutoDelete)
		}
	case sandbox.StatusRunning:
		if *spec.AutoStop > 0 && !sb.LastActivity.IsZero() {
			info.IdleDeadline = sb.LastActivity.Add(*spec.AutoStop)
		}
	case sandbox.StatusStarting:
		if !known[sb.State] {
			info.Reason = fmt.Sprintf("Daytona calls its state %.40q", string(sb.State))
		}
	}
	p.addFacts(&info, sb)
	info.Spec = spec
	if info.Spec.User == "" {
		info.Spec.User = info.User
	}
	if f := p.factsOf(sb.ID); f != nil && r.Image != "" && spec.WorkingDirectory == "" && f.cwd != f.home {
		info.Spec.WorkingDirectory = f.cwd // the image's
	}
	info.Guarantees = p.guarantees(spec, sb)
	return info
}

// known are the states on the way to a running sandbox, by name.
var known = map[api.State]bool{api.Creating: true, api.Restoring: true, api.Starting: true, api.PendingBuild: true, api.BuildingSnapshot: true,
	api.PullingSnapshot: true, api.Resuming: true, api.Unknown: true, api.Resizing: true, api.Snapshotting: true, api.Forking: true}

// imageOf is what a sandbox that berth did not make was made of, as far as that
// is an image.
func imageOf(sb *api.Sandbox) string {
	if sb.Build == nil {
		return ""
	}
	text := strings.TrimSpace(sb.Build.Dockerfile)
	if name, ok := strings.CutPrefix(text, "FROM "); ok && !strings.ContainsAny(name, " \n") {
		return name
	}
	return ""
}

// guarantees tells what holds; sb is nil for a sandbox that is not made yet.
func (p *Provider) guarantees(spec sandbox.Spec, sb *api.Sandbox) []sandbox.Guarantee {
	g := []sandbox.Guarantee{
		{Name: "filesystem", State: sandbox.Enforced, Detail: "a sandbox of the Daytona platform, on its machines; nothing of this machine is in it"},
		networkGuarantee(spec.Network),
		{Name: "process_trees", State: sandbox.Soft, Detail: "all processes of a command are ended with it, as far as their parents tell"},
		{Name: "idle", State: sandbox.Soft, Detail: "for the platform only calls count as use: running processes keep the sandbox awake while a berth server is there, and not without one"},
	}
	limit := func(name string, asked, has float64, text string) {
		switch {
		case sb == nil && spec.Image == "" && asked > 0:
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.NotEnforced, Detail: "the snapshot's own size will hold; with image a size can be asked for"})
		case sb == nil:
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.Enforced, Detail: "by the platform"})
		case has == 0:
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.NotEnforced, Detail: "the platform tells none"})
		case asked > 0 && asked != has:
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.NotEnforced, Detail: text + ", the snapshot's own size; resources have an effect with image alone"})
		default:
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.Enforced, Detail: text + ", by the platform"})
		}
	}
	var has api.Sandbox
	if sb != nil {
		has = *sb
	}
	limit("cpu_limit", spec.Resources.CPU, has.CPU, fmt.Sprintf("%g cores", has.CPU))
	limit("memory_limit", gib(spec.Resources.Memory), has.Memory, fmt.Sprintf("%g GiB", has.Memory))
	limit("disk_limit", gib(spec.Resources.Disk), has.Disk, fmt.Sprintf("%g GiB", has.Disk))
	return g
}

func gib(n int64) float64 { return float64(n) / (1 << 30) }

// whole is a number of minutes, rounded up.
func whole(d time.Duration) int { return int(math.Ceil(d.Minutes())) }
