package sandbox

import (
	"context"
	"fmt"
	"math"
	"strconv"
)

// Resources are limits on all that a sandbox runs and writes, together. A zero
// field was not asked for; the provider's built-in limit, if any, is then best
// effort. What is asked for holds, or the sandbox is refused.
type Resources struct {
	CPU    float64 // cores, in hundredths
	Memory int64   // bytes
	Disk   int64   // bytes of files changed or made over the root
}

// Bounds of Resources.
const (
	MinCPU    = 0.01 // cores
	MaxCPU    = 4096
	MinMemory = 16 << 20 // bytes; less starts no interpreter
	MaxMemory = 1 << 50
	MinDisk   = 64 << 20 // bytes
	MaxDisk   = 1 << 50
)

func (r Resources) over(d Resources) Resources {
	if r.CPU == 0 {
		r.CPU = d.CPU
	}
	if r.Memory == 0 {
		r.Memory = d.Memory
	}
	if r.Disk == 0 {
		r.Disk = d.Disk
	}
	return r
}

// within returns r with what it asks beyond most, or not at all, taken from
// most.
func (r Resources) within(most Resources) Resources {
	r = r.over(most)
	if most.CPU > 0 {
		r.CPU = min(r.CPU, most.CPU)
	}
	if most.Memory > 0 {
		r.Memory = min(r.Memory, most.Memory)
	}
	if most.Disk > 0 {
		r.Disk = min(r.Disk, most.Disk)
	}
	return r
}

// Resources tells what a sandbox that asks for this gets: where it asks for
// nothing, what the operator gives every one.
func (m *Manager) Resources(asked Resources) Resources {
	return asked.over(m.options.Defaults.Resources).within(m.options.Limits.Resources)
}

// ResizeSandbox gives the key's sandbox, which runs, other limits (see Resizer).
func (m *Manager) ResizeSandbox(ctx context.Context, key Key, to Resources) (*Info, error) {
	ctx = withDeadline(ctx)
	if err := m.allowed(Spec{Resources: to}); err != nil {
		return nil, err
	}
	inst, _, err := m.existing(ctx, key)
	if err != nil {
		return nil, err
	}
	r, ok := inst.(Resizer)
	if !ok {
		return nil, &UserError{Err: ErrUnsupported, Text: "the provider " + m.provider.Name() + " cannot resize a sandbox; make another one"}
	}
	if err := r.Resize(ctx, to); err != nil {
		return nil, sayNoSession(err, key)
	}
	m.forget(key, nil)
	info, err := inst.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	return &info, nil
}

// ValidateSpec is Spec.Validate, as the provider's sandboxes are.
func (m *Manager) ValidateSpec(s Spec) error { return s.validate(ownUsers(m.provider)) }

// allowed checks a given spec, also against the operator's ceiling.
func (m *Manager) allowed(s Spec) error {
	if err := m.ValidateSpec(s); err != nil {
		return err
	}
	var f faults
	f.ceiling(s.Resources, m.options.Limits.Resources)
	f.networkWithin(s.Network, m.options.Limits.Network)
	return f.err()
}

func (f *faults) resources(r Resources) {
	if r.CPU != 0 && !(r.CPU >= MinCPU && r.CPU <= MaxCPU) { // not a number is wrong too
		f.add("resources.cpu", fmt.Sprintf("%v does not fit", r.CPU), "0.01 to 4096 cores", "")
	}
	if r.Memory != 0 && (r.Memory < MinMemory || r.Memory > MaxMemory) {
		f.add("resources.memory_gib", GiB(r.Memory)+" does not fit", "0.015625 GiB (16 MiB) to 1,048,576 GiB", "")
	}
	if r.Disk != 0 && (r.Disk < MinDisk || r.Disk > MaxDisk) {
		f.add("resources.disk_gib", GiB(r.Disk)+" does not fit", "0.0625 GiB (64 MiB) to 1,048,576 GiB", "")
	}
}

// ceiling names what r asks beyond most, the operator's.
func (f *faults) ceiling(r, most Resources) {
	hint := "ask for less; the operator sets this ceiling"
	if most.CPU > 0 && r.CPU > most.CPU {
		f.add("resources.cpu", cores(r.CPU)+" is more than a sandbox may have here", "at most "+cores(most.CPU), hint)
	}
	if most.Memory > 0 && r.Memory > most.Memory {
		f.add("resources.memory_gib", GiB(r.Memory)+" is more than a sandbox may have here", "at most "+GiB(most.Memory), hint)
	}
	if most.Disk > 0 && r.Disk > most.Disk {
		f.add("resources.disk_gib", GiB(r.Disk)+" is more than a sandbox may have here", "at most "+GiB(most.Disk), hint)
	}
}

// missed names the asked-for limits that do not hold in a sandbox which was
// made all the same, since the operator allows it.
func (r Resources) missed(held []Guarantee) []string {
	var out []string
	for _, g := range held {
		var asked string
		switch {
		case g.State == Enforced:
			continue
		case g.Name == "cpu_limit" && r.CPU > 0:
			asked = "resources.cpu"
		case g.Name == "memory_limit" && r.Memory > 0:
			asked = "resources.memory_gib"
		case g.Name == "disk_limit" && r.Disk > 0:
			asked = "resources.disk_gib"
		default:
			continue
		}
		out = append(out, fmt.Sprintf("%s is %s here: %s", asked, g.State, g.Detail))
	}
	return out
}

func cores(n float64) string {
	if n == 1 {
		return "1 core"
	}
	return strconv.FormatFloat(n, 'f', -1, 64) + " cores"
}

// FromGiB is a number of bytes; beyond any bound where the number of GiB is.
func FromGiB(n float64) int64 {
	switch {
	case n == 0:
		return 0
	case !(n > 0):
		return -1
	}
	return int64(max(1, min(n*(1<<30), 2*MaxMemory)))
}

// GiB writes a number of bytes for people: "512 MiB", "1.5 GiB".
func GiB(n int64) string {
	if n < 0 {
		return "less than nothing"
	}
	if n < 1<<30 {
		return strconv.FormatInt(n>>20, 10) + " MiB"
	}
	return strconv.FormatFloat(math.Round(float64(n)/(1<<30)*100)/100, 'f', -1, 64) + " GiB"
}
