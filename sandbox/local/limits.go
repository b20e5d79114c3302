//go:build linux

package local

import (
	"math"

	"berth/sandbox/local/wire"
)

// limits of a sandbox with that spec, and which of them must hold.
func (p *Provider) limits(s specRecord) wire.Limits {
	given := p.opts.Limits
	if s.CPU > 0 {
		given.CPUMilli = int64(math.Round(s.CPU * 1000))
	}
	if s.Memory > 0 {
		given.Memory = s.Memory
	}
	all := given.effective(usableMemory())
	l := wire.Limits{PIDs: all.PIDs, Memory: all.Memory, CPUMilli: all.CPUMilli, Disk: s.Disk}
	if p.opts.BestEffort {
		return l
	}
	for _, m := range []struct {
		asked bool
		name  string
	}{{given.CPUMilli > 0, wire.LimitCPU}, {given.Memory > 0, wire.LimitMemory}, {given.PIDs > 0, wire.LimitPIDs}, {s.Disk > 0, wire.LimitDisk}} {
		if m.asked {
			l.Must = append(l.Must, m.name)
		}
	}
	return l
}
