//go:build linux

package escape_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
)

// TestGreedyNeighbour lets one sandbox multiply its processes, take all memory,
// fill its disk and flood the network with connections at the same time. Ten
// others answer every time meanwhile, and it itself does when that is over. How
// fast they answer is a row of the benchmark.
func TestGreedyNeighbour(t *testing.T) {
	root := os.Geteuid() == 0
	o := local.Options{Dir: filepath.Join(shared.dir, "greedy"), Limits: local.Limits{PIDs: 256}, BestEffort: !root}
	m := newManager(t, o)
	limits := sandbox.Resources{CPU: 1, Memory: 512 << 20, Disk: 1 << 30}
	spec := sandbox.Spec{Resources: limits}
	full := "disk limit 1 GiB reached"
	if !root {
		// In memory, which is not for as much.
		ephemeral := true
		spec.Ephemeral, spec.Resources.Disk, full = &ephemeral, 128<<20, "disk limit 128 MiB reached"
	}
	greedy := newBoxOf(t, m, spec)
	var others []*box
	for range 10 {
		others = append(others, newBox(t, m))
	}
	disk, _ := greedy.spawn(t, "agent", "go", "sh", "-c", "echo go; exec head -c 10G /dev/zero > /tmp/full")
	flood, _ := greedy.spawn(t, "agent", "go", "sh", "-c", "echo go; exec "+attackerPath+" tool connections")
	hog, _ := greedy.spawn(t, "agent", "go", "sh", "-c", "echo go; while :; do "+attackerPath+" tool memory; done")
	bomb, _ := greedy.spawn(t, "agent", "go", "sh", "-c", "echo go; exec "+attackerPath+" tool forkbomb")

	var answers atomic.Int64
	var all sync.WaitGroup
	const rounds = 10
	for _, b := range others {
		all.Go(func() {
			for range rounds {
				r, err := m.ExecuteCommand(t.Context(), b.key, sandbox.RunRequest{Command: "echo here > ~/f && cat ~/f", Cwd: "/"})
				if err == nil && r.Stdout.Head == "here\n" && !r.Notice.Started && r.Notice.Replaced == "" && r.Notice.Revived == "" {
					answers.Add(1)
				} else {
					t.Errorf("a neighbour answered %+v, %v", r, err)
				}
				time.Sleep(100 * time.Millisecond) // spread over what the others do
			}
		})
	}
	all.Wait()
	if n := answers.Load(); n != rounds*int64(len(others)) {
		t.Errorf("%d answers of ten neighbours, want %d", n, rounds*len(others))
	}
	p, err := m.Process(t.Context(), greedy.key, disk)
	must(t, err)
	must(t, p.Wait(t.Context(), sandbox.Cursor{}, true))
	info, err := p.Info(t.Context())
	must(t, err)
	if info.ExitCode == nil || *info.ExitCode == 0 || !strings.Contains(strings.Join(info.Struck, "\n"), full) {
		t.Errorf("the disk filler ended with %+v, want a failure and %q", info, full)
	}
	for _, id := range []sandbox.ProcessID{bomb, hog, flood} {
		_, err := m.KillProcess(t.Context(), greedy.key, sandbox.KillRequest{Process: id, Signal: "KILL"})
		must(t, err)
	}
	for range 100 { // the killed take a moment to go
		if _, err = m.ExecuteCommand(t.Context(), greedy.key, sandbox.RunRequest{Argv: []string{"true"}, Cwd: "/"}); err == nil {
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	greedy.alive(t)
}
