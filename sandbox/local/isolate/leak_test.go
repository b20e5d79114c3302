//go:build linux

package isolate_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/sandbox/local/isolate"
	"berth/sandbox/local/wire"
)

// host is what sandboxes could leave behind.
type host struct {
	mounts, fds, cgroups, children int
}

func look(t *testing.T, dir string) host {
	t.Helper()
	var h host
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	h.mounts = strings.Count(string(b), dir)
	fds, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	h.fds = len(fds)
	found, _ := filepath.Glob("/sys/fs/cgroup/*/berth/" + isolate.CgroupName(dir))
	nested, _ := filepath.Glob("/sys/fs/cgroup/*/*/*/berth/" + isolate.CgroupName(dir))
	h.cgroups = len(found) + len(nested)
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, f := range tasks {
		b, _ := os.ReadFile(f)
		h.children += len(strings.Fields(string(b)))
	}
	return h
}

// Sandboxes come and go, some with commands still running, and leave nothing.
func TestNothingIsLeft(t *testing.T) {
	cycles := 200
	if testing.Short() {
		cycles = 20
	}
	for _, mode := range modes(t) {
		t.Run(mode, func(t *testing.T) {
			l := launch(t, mode)
			l.Limits = wire.Limits{PIDs: 100, Memory: 1 << 30, CPUMilli: 2000}
			var before host
			for i := range cycles {
				b := start(t, l)
				if i == 0 {
					before = look(t, l.Dir)
				}
				if i%4 == 0 {
					if _, err := b.spawn(wire.StartProcess{Shell: "sleep 1012 & sleep 1013"}); err != nil {
						t.Fatal(err)
					}
				} else if i%4 == 1 {
					if out, _ := b.sh("agent", "echo hi"); out != "hi\n" {
						t.Fatalf("cycle %d: %q", i, out)
					}
				}
				if err := b.Close(); err != nil {
					t.Fatalf("cycle %d: %v", i, err)
				}
			}
			after := look(t, l.Dir)
			if after.mounts != 0 || after.cgroups != 0 || after.children >= before.children && before.children > 0 || after.fds > before.fds+8 {
				t.Errorf("after %d cycles: %+v, with one running: %+v", cycles, after, before)
			}
		})
	}
}

// A sandbox whose monitor was killed leaves cgroups; they can be removed by name.
func TestRemoveStale(t *testing.T) {
	l := launch(t, modes(t)[0])
	l.Limits.PIDs = 100
	b := start(t, l)
	if look(t, l.Dir).cgroups == 0 {
		if os.Geteuid() == 0 {
			t.Fatal("no cgroup was made")
		}
		t.Skip("an ordinary user has no cgroups here; run as root, or with a delegated cgroup")
	}
	if _, err := b.spawn(wire.StartProcess{Shell: "sleep 1014"}); err != nil {
		t.Fatal(err)
	}
	if err := isolate.RemoveStale([]string{"", "..", "../x", isolate.CgroupName(l.Dir)}); err != nil {
		t.Fatal(err)
	}
	if n := look(t, l.Dir).cgroups; n != 0 {
		t.Errorf("%d cgroups are left", n)
	}
}

func BenchmarkStart(b *testing.B) {
	for _, mode := range modes(b) {
		b.Run(mode, func(b *testing.B) {
			l := launch(b, mode)
			l.Limits = wire.Limits{PIDs: 1000, Memory: 1 << 30, CPUMilli: 2000}
			for b.Loop() {
				s, err := isolate.Start(l)
				if err != nil {
					b.Fatal(err)
				}
				b.StopTimer()
				_ = s.Close()
				b.StartTimer()
			}
		})
	}
}

func BenchmarkTrue(b *testing.B) {
	for _, mode := range modes(b) {
		b.Run(mode, func(b *testing.B) {
			l := launch(b, mode)
			l.Limits = wire.Limits{PIDs: 1000, Memory: 1 << 30, CPUMilli: 2000}
			x := start(b, l)
			for b.Loop() {
				p, err := x.spawn(wire.StartProcess{Argv: []string{"true"}})
				if err != nil {
					b.Fatal(err)
				}
				p.wait()
				p.stdin.Close()
			}
		})
	}
}
