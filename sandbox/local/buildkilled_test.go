//go:build linux

package local_test

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/internal/dockerfile"
	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/client"
	"berth/sandbox/local/disk"
)

// killedBuild is what builds do that are killed.
func killedBuild() sandbox.Build {
	b, err := dockerfile.Steps("", []dockerfile.Step{
		{Run: "echo precious > ~/f; mkdir -p ~/a/b && ln ~/f ~/g; (setsid sleep 1000 >/dev/null 2>&1 &)"}, {Env: map[string]string{"A": "1"}}, {Copy: "x /home/agent/copied"}, {Run: "echo $A > ~/h"},
	}, map[string]sandbox.BuildFile{"x": sandbox.TextFile("x")})
	if err != nil {
		panic(err)
	}
	return b
}

// Killed anywhere, a build leaves nothing but finished steps, and can be
// repeated.
func TestServerKilledInABuild(t *testing.T) {
	killInBuild(t, sandbox.Spec{}, "create:prepared", "create:exists+3ms", "build:opened", "build:opened+2ms", "build:ran", "stop:begin+1ms", "seal:intended", "seal:renamed", "build:sealed", "build:remembered", "build:digested")
}

// So do builds whose files are counted on file systems of their own.
func TestServerKilledInABuildWithDiskLimit(t *testing.T) {
	if err := disk.Available(); err != nil {
		t.Skip("needs loop devices: ", err)
	}
	killInBuild(t, diskSpec, "fork:copying", "build:sealed")
}

func killInBuild(t *testing.T, spec sandbox.Spec, steps ...string) {
	for i, step := range steps {
		t.Run(strings.ReplaceAll(step, ":", "_"), func(t *testing.T) {
			ctx := t.Context()
			dir := stateDir(t)
			now := time.Now()
			p := provider(t, local.Options{Dir: dir}.WithNow(func() time.Time { return now }))
			must(t, p.Sweep(ctx)) // makes the state
			var w watched
			killReal(t, dir, "build", step, spec)
			w.note(t, dir)
			for b := range w.processes {
				if pid, err := strconv.Atoi(b.pid); err == nil && i%2 == 1 { // everything at once
					_ = syscall.Kill(pid, syscall.SIGKILL)
				}
			}
			if list, err := p.List(ctx, ""); err != nil || len(list) != 0 {
				t.Errorf("sandboxes that a killed build shows: %v, %v", list, err)
			}
			if !strings.HasSuffix(step, "remembered") { // some at once
				// What the killed one was just starting may hold its lock for a moment.
				var entries []os.DirEntry
				for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
					must(t, p.Sweep(ctx))
					var err error
					entries, err = os.ReadDir(filepath.Join(dir, "sandboxes"))
					must(t, err)
					if len(entries) == 0 || time.Now().After(end) {
						break
					}
				}
				if len(entries) != 0 {
					t.Errorf("sandboxes of a killed build after sweeps: %v", entries)
				}
			}
			_, err := p.BuildSnapshot(ctx, testKey.Owner, "built", killedBuild(), spec.WithDefaults(sandbox.Spec{}))
			must(t, err)
			in := of(t, p, "s", "built", sandbox.Spec{})
			w.note(t, dir)
			wantRun(t, in, "agent", "cat ~/f ~/h ~/copied && test ~/f -ef ~/g && test -d ~/a/b && echo $A", "precious\n1\nx1")
			must(t, in.Destroy(ctx))
			must(t, p.DeleteSnapshot(ctx, testKey.Owner, "built"))
			got, err := p.PruneBuilds(ctx, 0, false)
			must(t, err)
			if got.Steps != 3 || got.Bytes == 0 {
				t.Errorf("pruned %+v, want 3 steps", got)
			}
			now = now.Add(time.Hour)
			must(t, p.Sweep(ctx))
			w.gone(t, dir)
			if left, _ := filepath.Glob(filepath.Join(dir, "builds", "*", "*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// When the monitor of a step dies, or it and everything inside, the step is
// lost and says so; the build can be repeated.
func TestMonitorKilledInABuild(t *testing.T) {
	ctx := t.Context()
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir})
	must(t, p.Sweep(ctx))
	var w watched
	b, err := dockerfile.Steps("", []dockerfile.Step{{Run: "echo kept > ~/f"}, {Run: "test -e /workspace/go || { echo waiting; sleep 1000; }"}}, nil)
	must(t, err)
	progress := sandbox.WithProgress(ctx, func(p sandbox.Progress) {
		if p.Text != "waiting" {
			return
		}
		w.note(t, dir)
		entries, err := os.ReadDir(filepath.Join(dir, "sandboxes"))
		if err != nil || len(entries) != 1 {
			t.Errorf("sandboxes while a step runs: %v, %v", entries, err)
			return
		}
		r, _, err := client.Alive(filepath.Join(dir, "sandboxes", entries[0].Name()))
		if err != nil {
			t.Error(err)
			return
		}
		_ = syscall.Kill(r.MonitorPID, syscall.SIGKILL)
	})
	var failed *sandbox.BuildError
	if _, err := p.BuildSnapshot(progress, testKey.Owner, "x", b, sandbox.Spec{}.WithDefaults(sandbox.Spec{})); !errors.As(err, &failed) || failed.Step != 2 || failed.ExitCode != nil || !strings.Contains(err.Error(), "was lost") {
		t.Errorf("a build whose monitor was killed: %v", err)
	}
	w.ended(t)
	b.Steps = b.Steps[:1]
	_, log := built(t, p, "x", b)
	if !strings.Contains(log, "[cached]") {
		t.Errorf("the finished step is not kept:\n%s", log)
	}
	wantRun(t, of(t, p, "s", "x", sandbox.Spec{}), "agent", "cat ~/f", "kept")
}

// ended fails the test for processes that are left of all that was noted.
func (w *watched) ended(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		_, all := alive()
		n := 0
		for p := range w.processes {
			if all[p] {
				n++
			}
		}
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Errorf("%s processes of the build are left", strconv.Itoa(n))
			return
		}
	}
}
