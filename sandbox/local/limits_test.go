//go:build linux

package local_test

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
	"berth/sandbox/local/disk"
	"berth/sandbox/local/journal"
)

// guarantee finds what in tells of one guarantee.
func guarantee(t *testing.T, in sandbox.Instance, name string) sandbox.Guarantee {
	t.Helper()
	info, err := in.Info(t.Context())
	must(t, err)
	for _, g := range info.Guarantees {
		if g.Name == name {
			return g
		}
	}
	t.Fatalf("no guarantee %s in %+v", name, info.Guarantees)
	return sandbox.Guarantee{}
}

// What is asked for holds and is told, or the sandbox is refused, naming the
// field and the way out; with best effort it is made all the same.
func TestAskedLimits(t *testing.T) {
	asked := sandbox.Spec{Resources: sandbox.Resources{CPU: 0.5, Memory: 256 << 20}}
	p := provider(t, local.Options{Dir: stateDir(t), Limits: local.Limits{PIDs: 200}})
	in, err := p.Create(t.Context(), testKey, asked)
	if os.Geteuid() != 0 && err != nil {
		for _, want := range []string{"resources.cpu: ", "resources.memory_gib: ", "best_effort"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the refusal does not say %q: %v", want, err)
			}
		}
		if _, err := p.Lookup(t.Context(), testKey); err == nil {
			t.Error("the refused sandbox is there")
		}
		p = provider(t, local.Options{Dir: stateDir(t), Limits: local.Limits{PIDs: 200}, BestEffort: true})
		in, err = p.Create(t.Context(), testKey, asked)
		must(t, err)
		for _, name := range []string{"memory_limit", "cpu_limit"} {
			if g := guarantee(t, in, name); g.State == sandbox.Enforced {
				t.Errorf("%s is %s (%s), and was refused before", name, g.State, g.Detail)
			}
		}
		return
	}
	must(t, err)
	for name, want := range map[string]string{"memory_limit": "256 MiB", "cpu_limit": "0.5 cores", "pids_limit": "200 processes"} {
		if g := guarantee(t, in, name); g.State != sandbox.Enforced || !strings.Contains(g.Detail, want) {
			t.Errorf("%s is %s: %s; want enforced, %s", name, g.State, g.Detail, want)
		}
	}
	info, err := in.Info(t.Context())
	must(t, err)
	if info.Spec.Resources != asked.Resources {
		t.Errorf("resources in force %+v, want %+v", info.Spec.Resources, asked.Resources)
	}
}

// ran runs shell text and returns what is known of the process afterwards.
func ran(t *testing.T, in sandbox.Instance, user, shell string) sandbox.ProcessInfo {
	t.Helper()
	p, err := in.Spawn(t.Context(), sandbox.Command{ID: sandbox.NewProcessID(), Shell: shell, Display: shell, Cwd: "/", User: user, Timeout: time.Minute})
	must(t, err)
	must(t, p.Wait(t.Context(), sandbox.Cursor{}, true))
	info, err := p.Info(t.Context())
	must(t, err)
	return info
}

// The limit that struck is named: as the reason of a kill, or beside the exit.
func TestStruckLimits(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs cgroups: run as root")
	}
	p := provider(t, local.Options{Dir: stateDir(t), Limits: local.Limits{PIDs: 64}})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Resources: sandbox.Resources{Memory: 64 << 20}})
	must(t, err)
	const hog = "tail -n 1 /dev/zero" // looks for the line's end in memory
	if i := ran(t, in, "agent", "exec "+hog); i.Reason != "memory limit 64 MiB" || *i.ExitCode != 137 {
		t.Errorf("a hog: %+v; want killed by the memory limit", i)
	}
	if i := ran(t, in, "agent", hog+"; exit 3"); *i.ExitCode != 3 || len(i.Struck) != 1 || !strings.Contains(i.Struck[0], "memory limit 64 MiB reached") {
		t.Errorf("a hog's parent: %+v; want exit 3 and the limit named", i)
	}
	if i := ran(t, in, "agent", "for i in $(seq 100); do sleep 2 & done"); len(i.Struck) != 1 || !strings.Contains(i.Struck[0], "process limit 64 reached") {
		t.Errorf("too many processes: %+v; want the limit named", i)
	}
	if i := ran(t, in, "agent", "true; exit 4"); len(i.Struck) != 0 {
		t.Errorf("nothing struck: %+v", i)
	}
}

// loops lists the loop devices that show files below dir.
func loops(t *testing.T, dir string) (all []string) {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	must(t, err)
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), dir) {
			all = append(all, f)
		}
	}
	return all
}

// A disk limit is exact, survives everything that a sandbox's files survive,
// and leaves nothing.
func TestDiskLimit(t *testing.T) {
	if err := disk.Available(); err != nil {
		t.Skip("needs loop devices: ", err)
	}
	dir := stateDir(t)
	p := provider(t, local.Options{Dir: dir})
	spec := sandbox.Spec{Resources: sandbox.Resources{Disk: 128 << 20}}
	in, err := p.Create(t.Context(), testKey, spec)
	must(t, err)
	if g := guarantee(t, in, "disk_limit"); g.State != sandbox.Enforced {
		t.Errorf("%+v, want enforced", g)
	}
	wantRun(t, in, "agent", "echo kept > /home/agent/kept; sudo sh -c 'echo x > /usr/share/kept; chown 5:6 /usr/share/kept'", "")
	fill := ran(t, in, "agent", "head -c 1G /dev/zero > /tmp/full")
	if *fill.ExitCode == 0 || len(fill.Struck) != 1 || !strings.HasPrefix(fill.Struck[0], "disk limit 128 MiB reached") {
		t.Errorf("filling up: %+v; want a failure and the limit named", fill)
	}
	wantRun(t, in, "agent", "rm /tmp/full; head -c 20M /dev/zero > /home/agent/zeros", "")
	info, err := in.Info(t.Context())
	must(t, err)
	if u := info.Usage.Disk; u < 20<<20 || u > 60<<20 {
		t.Errorf("%d bytes used, want some more than 20 MiB", u)
	}
	kept := func(after string) {
		t.Helper()
		if out, code := run(t, in, "root", "cat /home/agent/kept; stat -c %u:%g /usr/share/kept; stat -c %s /home/agent/zeros"); code != 0 || out != "kept\n5:6\n20971520" {
			t.Errorf("after %s: %d, %q", after, code, out)
		}
	}
	must(t, in.Stop(t.Context()))
	must(t, in.Start(t.Context()))
	kept("stop and start")
	killEverything(t, in)
	must(t, in.Start(t.Context()))
	kept("kill -9 of monitor and init")
	if n := len(loops(t, dir)); n != 1 {
		t.Errorf("%d loop devices while it runs, want 1", n)
	}
	must(t, in.Stop(t.Context()))
	must(t, in.(sandbox.Archiver).Archive(t.Context()))
	if _, err := os.Stat(filepath.Join(in.(*local.Instance).Dir(), disk.Image)); !os.IsNotExist(err) {
		t.Errorf("the archived sandbox's image is there: %v", err)
	}
	must(t, in.Start(t.Context()))
	kept("archive and restore")
	must(t, in.Destroy(t.Context()))
	for end := time.Now().Add(5 * time.Second); len(loops(t, dir)) > 0; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("left: %v", loops(t, dir))
		}
	}
	if b, err := os.ReadFile("/proc/self/mountinfo"); err != nil || strings.Contains(string(b), dir) {
		t.Errorf("mounts below %s are left (%v)", dir, err)
	}
}

// killEverything ends the monitor and init of in as a full machine might.
func killEverything(t *testing.T, in sandbox.Instance) {
	t.Helper()
	r, err := journal.ReadRecord(in.(*local.Instance).Dir())
	must(t, err)
	for _, pid := range []int{r.MonitorPID, r.Ready.InitPID} {
		must(t, syscall.Kill(pid, syscall.SIGKILL))
	}
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		info, err := in.Info(t.Context())
		must(t, err)
		if info.Status != sandbox.StatusRunning {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("after the kill it is %s", info.Status)
		}
	}
}

// Without loop devices a sandbox that is deleted on its stop has its limit in
// memory, and it is as exact.
func TestDiskLimitInMemory(t *testing.T) {
	if disk.Available() == nil {
		t.Skip("loop devices are used here; run as an ordinary user")
	}
	p := provider(t, local.Options{Dir: stateDir(t)})
	ephemeral := true
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Ephemeral: &ephemeral, Resources: sandbox.Resources{Disk: 64 << 20}})
	must(t, err)
	if g := guarantee(t, in, "disk_limit"); g.State != sandbox.Enforced {
		t.Errorf("%+v, want enforced", g)
	}
	fill := ran(t, in, "agent", "head -c 1G /dev/zero > /home/agent/full")
	if *fill.ExitCode == 0 || len(fill.Struck) != 1 || !strings.HasPrefix(fill.Struck[0], "disk limit 64 MiB reached") {
		t.Errorf("filling up: %+v; want a failure and the limit named", fill)
	}
	must(t, in.Stop(t.Context()))
}

// What nothing holds is looked at, when the operator allows that: beyond a limit
// something is killed, and the limit named.
func TestSoftLimits(t *testing.T) {
	if os.Geteuid() == 0 {
		t.Skip("all limits are enforced for root; run as an ordinary user")
	}
	p := provider(t, local.Options{Dir: stateDir(t), BestEffort: true})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{Resources: sandbox.Resources{CPU: 1, Memory: 256 << 20, Disk: 64 << 20}})
	must(t, err)
	if g := guarantee(t, in, "disk_limit"); g.State != sandbox.Soft {
		t.Errorf("%+v, want soft", g)
	}
	if i := ran(t, in, "agent", "head -c 100M /dev/zero > /home/agent/full; sleep 30"); i.Reason != "disk limit 64 MiB" {
		t.Errorf("a full disk: %+v; want killed by the disk limit", i)
	}
	wantRun(t, in, "agent", "rm /home/agent/full; sleep 5", "")
	if g := guarantee(t, in, "memory_limit"); g.State == sandbox.Soft {
		hog := "python3 -c 'import time; x = bytearray(150 << 20); time.sleep(30)'"
		if i := ran(t, in, "agent", hog+" & "+hog); i.Reason != "memory limit 256 MiB" {
			t.Errorf("two hogs: %+v; want killed by the memory limit", i)
		}
	}
	if g := guarantee(t, in, "cpu_limit"); g.State == sandbox.Soft {
		wantRun(t, in, "agent", "nproc", "1")
	}
}
