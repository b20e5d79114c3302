//go:build linux

package local_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/client"
	"berth/sandbox/local/disk"
	"berth/sandbox/local/isolate"
)

// born is a process of this machine for good, since pids are given away again.
type born struct {
	pid   string
	start string // clock ticks since boot
}

// alive reads the processes of the machine, by parent, but for those that ended
// and whose parent has not noticed.
func alive() (byParent map[string][]born, all map[born]bool) {
	byParent, all = map[string][]born{}, map[born]bool{}
	files, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
		if len(fields) < 20 || fields[0] == "Z" {
			continue
		}
		p := born{filepath.Base(filepath.Dir(f)), fields[19]}
		byParent[fields[1]] = append(byParent[fields[1]], p)
		all[p] = true
	}
	return byParent, all
}

// watched collects what sandboxes of one state directory have outside of it.
type watched struct {
	processes map[born]bool
	cgroups   map[string]bool
}

// note notes the monitors that serve dir now, and everything inside.
func (w *watched) note(t *testing.T, dir string) {
	t.Helper()
	if w.processes == nil {
		w.processes, w.cgroups = map[born]bool{}, map[string]bool{}
	}
	byParent, all := alive()
	var family []born
	for p := range all {
		// One that has only just begun is in no record yet, but has its log open.
		if cmd, err := os.ReadFile("/proc/" + p.pid + "/cmdline"); err == nil && strings.HasPrefix(string(cmd), "box\x00") && mentions(p.pid, dir) {
			family = append(family, p)
		}
	}
	entries, err := os.ReadDir(filepath.Join(dir, "sandboxes"))
	must(t, err)
	for _, e := range entries {
		sub := filepath.Join(dir, "sandboxes", e.Name())
		w.cgroups[isolate.CgroupName(sub)] = true
		if r, ok, err := client.Alive(sub); err == nil && ok {
			for p := range all {
				if p.pid == strconv.Itoa(r.MonitorPID) {
					family = append(family, p)
				}
			}
		}
	}
	for i := 0; i < len(family); i++ {
		w.processes[family[i]] = true
		family = append(family, byParent[family[i].pid]...)
	}
}

// mentions tells whether a process has something of dir open.
func mentions(pid, dir string) bool {
	links, _ := filepath.Glob("/proc/" + pid + "/fd/*")
	for _, l := range append(links, "/proc/"+pid+"/cwd") {
		if to, err := os.Readlink(l); err == nil && strings.HasPrefix(to, dir+"/") {
			return true
		}
	}
	return false
}

// gone fails the test for what is left of all that was noted.
func (w *watched) gone(t *testing.T, dir string) {
	t.Helper()
	nothingLeft(t, dir)
	var left []string
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left = nil
		_, all := alive()
		for p := range w.processes {
			if all[p] {
				cmd, _ := os.ReadFile("/proc/" + p.pid + "/cmdline")
				left = append(left, "process "+p.pid+" "+strconv.Quote(string(cmd)))
			}
		}
		for name := range w.cgroups {
			for _, pattern := range []string{"/sys/fs/cgroup/berth/", "/sys/fs/cgroup/*/berth/", "/sys/fs/cgroup/*/*/berth/", "/sys/fs/cgroup/*/*/*/berth/"} {
				found, _ := filepath.Glob(pattern + name + "*")
				left = append(left, found...)
			}
		}
		mounts, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		for line := range strings.Lines(string(mounts)) {
			if strings.Contains(line, dir) {
				left = append(left, "mount "+line)
			}
		}
		left = append(left, loops(t, dir)...)
		if len(left) == 0 || time.Now().After(end) {
			break
		}
	}
	for _, l := range left {
		t.Errorf("left behind: %s", l)
	}
}

// As TestKilledAtEveryStep, with real monitors and commands running inside. A
// step with a time is a kill that much later, wherever the operation is by then.
func TestServerKilledWithRealMonitors(t *testing.T) { killWithRealMonitors(t, sandbox.Spec{}) }

// The same for a sandbox whose files are on a file system of its own.
func TestServerKilledWithDiskLimit(t *testing.T) {
	if err := disk.Available(); err != nil {
		t.Skip("needs loop devices: ", err)
	}
	killWithRealMonitors(t, diskSpec)
}

var diskSpec = sandbox.Spec{Resources: sandbox.Resources{Disk: 256 << 20}}

func killWithRealMonitors(t *testing.T, spec sandbox.Spec) {
	tests := []struct {
		op    string
		steps []string
		from  []string // brings a running sandbox where op begins; nil: there is none
	}{
		{"create", []string{"create:prepared", "create:written", "create:exists", "create:exists+1ms", "create:exists+3ms", "create:exists+6ms", "create:exists+9ms", "create:exists+12ms", "create:exists+16ms", "create:launched"}, nil},
		{"stop", []string{"stop:begin", "stop:begin+1ms", "stop:begin+5ms", "stop:halted"}, []string{}},
		{"start", []string{"start:prepared", "start:prepared+3ms", "start:prepared+10ms"}, []string{"stop"}},
		{"archive", []string{"archive:packed", "archive:renamed", "archive:recorded", "archive:freeing"}, []string{"stop"}},
		{"start", []string{"restore:unpacked", "restore:renamed", "restore:recorded", "start:prepared+5ms"}, []string{"stop", "archive"}},
		{"destroy", []string{"destroy:begin", "destroy:begin+1ms", "destroy:begin+4ms", "destroy:killed", "destroy:remembered", "destroy:renamed"}, []string{}},
	}
	for _, tt := range tests {
		for _, step := range tt.steps {
			t.Run(strings.ReplaceAll(tt.op+"_"+step, ":", "_"), func(t *testing.T) {
				ctx := t.Context()
				dir := stateDir(t)
				p := provider(t, local.Options{Dir: dir})
				var w watched
				if tt.from != nil {
					in, err := p.Create(ctx, testKey, spec)
					must(t, err)
					wantRun(t, in, "agent", "echo precious > ~/f; mkdir -p /workspace/a/b && ln ~/f ~/g; (setsid sleep 1000 >/dev/null 2>&1 &)", "")
					w.note(t, dir)
					if len(w.processes) < 3 { // monitor, init, sleep
						t.Fatalf("of a running sandbox only %d processes are found", len(w.processes))
					}
					for _, op := range tt.from {
						must(t, do(ctx, in, op))
					}
				}
				killReal(t, dir, tt.op, step, spec)
				if !strings.HasSuffix(step, "6ms") { // some at once, while a monitor is on its way
					w.note(t, dir)
					must(t, p.Sweep(ctx))
					w.note(t, dir)
				}

				in, err := p.Lookup(ctx, testKey)
				if errors.Is(err, sandbox.ErrNotFound) && tt.op == "create" {
					in, err = p.Create(ctx, testKey, spec)
				}
				must(t, err)
				if got := status(t, in); got == sandbox.StatusError || got == sandbox.StatusDestroyed && tt.op != "destroy" {
					t.Fatalf("status after a kill at %s = %q", step, got)
				}
				switch tt.op {
				case "create":
				case "archive":
					must(t, in.Stop(ctx))
					must(t, do(ctx, in, tt.op))
				default:
					must(t, do(ctx, in, tt.op))
				}
				w.note(t, dir)
				if tt.op != "destroy" {
					must(t, in.Start(ctx))
					w.note(t, dir)
					if tt.from != nil {
						wantRun(t, in, "agent", "cat ~/f && test ~/f -ef ~/g && test -d /workspace/a/b", "precious")
					}
					wantRun(t, in, "agent", "echo works", "works")
					w.note(t, dir)
					must(t, in.Destroy(ctx))
				}
				must(t, p.Sweep(ctx))
				w.gone(t, dir)
			})
		}
	}
}

// killReal runs op, with real monitors, in a process that dies at step; with a
// time in step, op may have ended before.
func killReal(t *testing.T, dir, op, step string, spec sandbox.Spec) {
	t.Helper()
	cmd := operation(t, dir, op, step)
	cmd.Env = append(cmd.Env, "BERTH_TEST_ENGINE=real")
	if spec.Resources.Disk > 0 {
		cmd.Env = append(cmd.Env, "BERTH_TEST_DISK=yes")
	}
	out, err := cmd.CombinedOutput()
	if cmd.ProcessState.Exited() && (err != nil || !strings.Contains(step, "+")) {
		t.Fatalf("%s was not killed at %s: %v, %s", op, step, err, out)
	}
}

// Of several servers that create, stop, start and destroy one sandbox at the
// same time, none is told nonsense, and nothing is left.
func TestRacingServersWithRealMonitors(t *testing.T) {
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir})
	var w watched
	race := func(ops ...string) (codes []int) {
		var wg sync.WaitGroup
		codes = make([]int, len(ops))
		for i, op := range ops {
			cmd := operation(t, dir, op, "")
			cmd.Env = append(cmd.Env, "BERTH_TEST_ENGINE=real")
			wg.Go(func() {
				out, err := cmd.CombinedOutput()
				if codes[i] = cmd.ProcessState.ExitCode(); codes[i] != 0 && codes[i] != 17 {
					t.Errorf("%s: %v, %s", op, err, out)
				}
			})
		}
		wg.Wait()
		w.note(t, dir)
		return codes
	}
	for range 3 {
		codes := race("create", "create", "create", "create", "create", "create")
		sort.Ints(codes)
		if codes[0] != 0 || codes[1] != 17 {
			t.Errorf("exit codes of racing creates = %v, want one 0 and else 17 (ErrExists)", codes)
		}
		in, err := p.Lookup(t.Context(), testKey)
		must(t, err)
		wantRun(t, in, "agent", "echo kept > ~/f", "")
		race("stop", "start", "stop", "start", "sweep", "start")
		must(t, in.Start(t.Context()))
		wantRun(t, in, "agent", "cat ~/f", "kept")
		w.note(t, dir)
		race("destroy", "destroy", "sweep", "destroy")
		must(t, p.Sweep(t.Context()))
		w.gone(t, dir)
	}
}
