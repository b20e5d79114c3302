//go:build linux

package isolate

import (
	"os"
	"path/filepath"
	"strconv"

	"berth/sandbox/local/wire"
)

// place is where a controller's limit is set.
type place struct {
	dir string
	v2  bool
}

// Limit sets other limits while the sandbox runs: those of memory, in bytes, and of
// processors, in thousandths; 0 leaves one as it is. Where one is not held by a
// cgroup, or more memory is in use than is to be allowed, nothing is changed. Its
// errors are *wire.Error.
func (s *Sandbox) Limit(memory, cpuMilli int64) error {
	c := s.cgroups
	for _, l := range []struct {
		controller, name string
		asked            bool
	}{{"memory", wire.LimitMemory, memory > 0}, {"cpu", wire.LimitCPU, cpuMilli > 0}} {
		if _, ok := c.at[l.controller]; l.asked && (!ok || c.have[l.controller] == "") {
			why := c.reason
			if l.controller == "cpu" && c.limits.CPUMilli == 0 {
				why = "it was started without one"
			}
			return &wire.Error{Code: wire.CodeUnsupported, Text: l.name + ": this sandbox's limit cannot be changed while it runs, since no cgroup holds it: " + why}
		}
	}
	if memory > 0 {
		if used := readNumber(c.mem, ""); used > memory {
			return &wire.Error{Code: wire.CodeUnsupported, Text: wire.LimitMemory + ": the sandbox uses " + strconv.FormatInt(used>>20, 10) + " MiB now; end something in it, or allow more"}
		}
		if err := c.at["memory"].memory(memory); err != nil {
			return &wire.Error{Code: wire.CodeInternal, Text: "set the memory limit: " + cause(err)}
		}
	}
	if cpuMilli > 0 {
		if err := c.at["cpu"].cpu(cpuMilli); err != nil {
			return &wire.Error{Code: wire.CodeInternal, Text: "set the limit on processors: " + cause(err)}
		}
	}
	return nil
}

func (p place) set(file string, value int64) error {
	return os.WriteFile(filepath.Join(p.dir, file), []byte(strconv.FormatInt(value, 10)), 0)
}

// memory allows so many bytes.
func (p place) memory(limit int64) error {
	if p.v2 {
		_ = p.set("memory.swap.max", 0) // absent without swap
		return p.set("memory.max", limit)
	}
	const swap, plain = "memory.memsw.limit_in_bytes", "memory.limit_in_bytes" // the first, absent without swap accounting, is never less
	if err := p.set(plain, limit); err != nil {
		_ = p.set(swap, limit)
		return p.set(plain, limit)
	}
	_ = p.set(swap, limit)
	return nil
}

// cpu allows so many thousandths of a processor.
func (p place) cpu(milli int64) error {
	const period = 100_000
	quota := max(milli*period/1000, 1000)
	if p.v2 {
		return os.WriteFile(filepath.Join(p.dir, "cpu.max"), []byte(strconv.FormatInt(quota, 10)+" "+strconv.Itoa(period)), 0)
	}
	if err := p.set("cpu.cfs_period_us", period); err != nil {
		return err
	}
	return p.set("cpu.cfs_quota_us", quota)
}
