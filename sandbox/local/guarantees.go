//go:build linux

package local

import (
	"fmt"
	"strconv"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// guarantees tells what holds in a sandbox; v is nil for one that is not made
// yet, or one that never ran. What the helper reported counts; before its first
// report, what is only known then is said so.
func (p *Provider) guarantees(v *view, spec specRecord) []sandbox.Guarantee {
	ids, why := p.idMode()
	var ready *wire.Ready
	if v != nil && v.rec != nil {
		ids, why = v.rec.IDs, ""
		if v.mon.Version != 0 {
			ready = &v.mon.Ready
		}
	}
	l := p.limits(spec)
	g := []sandbox.Guarantee{
		{Name: "filesystem", State: sandbox.Enforced, Detail: "own root; of the host only its system directories are visible, and changes to them stay inside"},
		userIDs(ids, why),
	}
	held := func(name string, h func(*wire.Ready) wire.Held, what string) {
		if ready == nil {
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.Soft, Detail: join(what, "how well it holds is known once a sandbox runs")})
			return
		}
		r := h(ready)
		state := sandbox.Enforcement(r.State)
		if state != sandbox.Enforced && state != sandbox.Soft {
			state = sandbox.NotEnforced
		}
		g = append(g, sandbox.Guarantee{Name: name, State: state, Detail: join(what, r.Detail)})
	}
	held("network", func(r *wire.Ready) wire.Held { return r.Network }, "")
	held("seccomp", func(r *wire.Ready) wire.Held { return r.Seccomp }, "")
	held("process_trees", func(r *wire.Ready) wire.Held { return r.Tree }, "")
	limit := func(name string, h func(*wire.Ready) wire.Held, n int64, what string) {
		if n == 0 {
			g = append(g, sandbox.Guarantee{Name: name, State: sandbox.NotEnforced, Detail: "no limit is set"})
			return
		}
		held(name, h, what)
	}
	limit("memory_limit", func(r *wire.Ready) wire.Held { return r.Memory }, l.Memory, size(l.Memory))
	limit("pids_limit", func(r *wire.Ready) wire.Held { return r.PIDs }, l.PIDs, strconv.FormatInt(l.PIDs, 10)+" processes and threads")
	limit("cpu_limit", func(r *wire.Ready) wire.Held { return r.CPU }, l.CPUMilli, strconv.FormatFloat(float64(l.CPUMilli)/1000, 'f', -1, 64)+" cores")
	if l.Disk == 0 {
		return append(g, sandbox.Guarantee{Name: "disk_limit", State: sandbox.NotEnforced, Detail: "no limit is set: files may fill the disk of this machine"})
	}
	limit("disk_limit", func(r *wire.Ready) wire.Held { return r.Disk }, l.Disk, size(l.Disk))
	return g
}

func userIDs(ids wire.IDs, why string) sandbox.Guarantee {
	g := sandbox.Guarantee{Name: "user_ids", State: sandbox.Enforced}
	switch ids.Mode {
	case wire.IDsRange:
		g.Detail = "root inside is a user outside who owns nothing; a range of its own for this sandbox"
		if !ids.IDMapped {
			g.State, g.Detail = sandbox.Soft, "root inside is a user outside who owns nothing; all sandboxes share one range, since a file system here cannot be id-mapped"
		}
	case wire.IDsSub:
		g.State, g.Detail = sandbox.Soft, "root inside is the user who runs berth, without rights outside; other users are from /etc/subuid, shared by all sandboxes of that user"
	default:
		g.State, g.Detail = sandbox.Soft, "everyone inside is the user who runs berth"
		if why != "" {
			g.Detail += ", since " + why
		}
	}
	return g
}

func join(a, b string) string {
	switch {
	case a == "":
		return b
	case b == "":
		return a
	}
	return a + ", " + b
}

func size(n int64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
	default:
		return fmt.Sprintf("%d MiB", n>>20)
	}
}
