//go:build linux

package monitor

import (
	"testing"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/journal"
	"berth/sandbox/local/wire"
)

// running is a monitor with processes of which nobody has told how they are.
func running(t *testing.T, ids ...string) *monitor {
	t.Helper()
	m := newMonitor(&wire.Launch{Dir: t.TempDir(), Limits: wire.Limits{Memory: 100 << 20, Disk: 1 << 20}, Disk: &wire.Disk{Kind: wire.DiskSoft}})
	m.guest = &guest{gone: true}
	for _, id := range ids {
		p := &proc{info: wire.Process{ID: id, State: journal.Running}}
		m.procs[id] = p
		m.order = append(m.order, p)
	}
	return m
}

// Beyond the memory limit the largest process is killed, and no other.
func TestMemoryLook(t *testing.T) {
	m := running(t, "small", "large")
	sizes := map[string]int64{"small": 30 << 20, "large": 60 << 20}
	check := m.memoryLook(func(id string) int64 { return sizes[id] })
	check()
	if p := m.procs["large"]; p.killSignal != 0 {
		t.Fatalf("killed within the limit: %q", p.killReason)
	}
	sizes["large"] = 90 << 20
	check()
	if p := m.procs["large"]; p.killSignal != unix.SIGKILL || p.killReason != "memory limit 100 MiB" {
		t.Errorf("beyond the limit: signal %v, reason %q", p.killSignal, p.killReason)
	}
	if p := m.procs["small"]; p.killSignal != 0 {
		t.Error("the small one was killed too")
	}
}

// Beyond the disk limit processes are killed while it grows, not while somebody
// tidies up.
func TestDiskLook(t *testing.T) {
	m := running(t, "writer")
	var used int64
	check := m.diskLook(func() int64 { return used })
	for _, step := range []struct {
		used int64
		kill bool
	}{{1 << 20, false}, {2 << 20, true}, {2 << 20, false}, {1<<20 + 1, false}, {3 << 20, true}, {1 << 10, false}} {
		p := m.procs["writer"]
		p.killSignal = 0
		used = step.used
		check()
		if got := p.killSignal == unix.SIGKILL; got != step.kill {
			t.Errorf("at %d bytes: killed %t, want %t", step.used, got, step.kill)
		}
	}
}
