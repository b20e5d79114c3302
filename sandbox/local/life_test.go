//go:build linux

package local_test

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"

	"github.com/google/go-cmp/cmp"
)

func TestRacingCreatesOfSeveralProcesses(t *testing.T) {
	dir := stateDir(t)
	p := fake(t, dir)
	const n = 20
	var wg sync.WaitGroup
	codes := make([]int, n)
	for i := range n {
		cmd := operation(t, dir, "create", "")
		wg.Go(func() {
			out, err := cmd.CombinedOutput()
			codes[i] = cmd.ProcessState.ExitCode()
			if codes[i] != 0 && codes[i] != 17 {
				t.Errorf("create: %v, %s", err, out)
			}
		})
	}
	wg.Wait()
	sort.Ints(codes)
	if codes[0] != 0 || codes[1] != 17 {
		t.Errorf("exit codes of %d racing creates = %v, want one 0 and else 17 (ErrExists)", n, codes)
	}
	list, err := p.List(t.Context(), "")
	must(t, err)
	if len(list) != 1 || list[0].Status != sandbox.StatusRunning {
		t.Errorf("List after the race = %+v, want one running", list)
	}
}

func TestKilledAtEveryStep(t *testing.T) {
	tests := []struct {
		op    string
		steps []string
		// from brings a running sandbox where op begins.
		from []string
		// after a kill, one of these statuses ("" = not found).
		want []sandbox.Status
	}{
		{"create", []string{"create:prepared", "create:written"}, nil, []sandbox.Status{""}},
		{"create", []string{"create:exists", "create:launched"}, nil, []sandbox.Status{sandbox.StatusStopped, sandbox.StatusRunning}},
		{"stop", []string{"stop:begin", "stop:halted"}, []string{}, []sandbox.Status{sandbox.StatusRunning, sandbox.StatusStopped}},
		{"start", []string{"start:prepared"}, []string{"stop"}, []sandbox.Status{sandbox.StatusStopped}},
		{"archive", []string{"archive:packed", "archive:verified", "archive:renamed"}, []string{"stop"}, []sandbox.Status{sandbox.StatusStopped}},
		{"archive", []string{"archive:recorded", "archive:freeing"}, []string{"stop"}, []sandbox.Status{sandbox.StatusArchived}},
		{"start", []string{"restore:unpacked", "restore:renamed"}, []string{"stop", "archive"}, []sandbox.Status{sandbox.StatusArchived}},
		{"start", []string{"restore:recorded", "start:prepared"}, []string{"stop", "archive"}, []sandbox.Status{sandbox.StatusStopped}},
		{"destroy", []string{"destroy:begin", "destroy:killed", "destroy:remembered"}, []string{}, []sandbox.Status{sandbox.StatusRunning, sandbox.StatusStopped}},
		{"destroy", []string{"destroy:renamed"}, []string{}, []sandbox.Status{sandbox.StatusDestroyed}},
	}
	for _, tt := range tests {
		for _, step := range tt.steps {
			t.Run(strings.ReplaceAll(tt.op+"_"+step, ":", "_"), func(t *testing.T) {
				ctx := t.Context()
				dir := stateDir(t)
				p := fake(t, dir)
				if tt.from != nil {
					in, err := p.Create(ctx, testKey, sandbox.Spec{})
					must(t, err)
					put(t, in, "precious")
					for _, op := range tt.from {
						must(t, do(ctx, in, op))
					}
				}
				kill(t, dir, tt.op, step)

				var got sandbox.Status
				in, err := p.Lookup(ctx, testKey)
				if err == nil {
					got = status(t, in)
				} else if !errors.Is(err, sandbox.ErrNotFound) {
					t.Fatal(err)
				}
				if !contains(tt.want, got) {
					t.Errorf("status after a kill at %s = %q, want one of %q", step, got, tt.want)
				}
				must(t, p.Sweep(ctx))
				switch tt.op {
				case "create":
					if got != "" {
						must(t, in.Start(ctx))
					} else if in, err = p.Create(ctx, testKey, sandbox.Spec{}); err != nil {
						t.Fatal(err)
					}
				default:
					must(t, do(ctx, in, tt.op))
				}
				if tt.op == "destroy" {
					if got := status(t, in); got != sandbox.StatusDestroyed {
						t.Errorf("status after the second destroy = %q", got)
					}
				} else {
					if tt.op != "create" {
						must(t, in.Start(ctx))
						if got := get(t, in); got != "precious" {
							t.Errorf("file after a kill at %s = %q", step, got)
						}
					}
					if got := status(t, in); got != sandbox.StatusRunning {
						t.Errorf("status at the end = %q, want running", got)
					}
					must(t, in.Destroy(ctx))
				}
				must(t, p.Sweep(ctx))
				nothingLeft(t, dir)
			})
		}
	}
}

func TestArchiveKeepsAndRestores(t *testing.T) {
	ctx := t.Context()
	p := fake(t, stateDir(t))
	in, err := p.Create(ctx, testKey, sandbox.Spec{})
	must(t, err)
	put(t, in, strings.Repeat("precious ", 100_000))
	if err := do(ctx, in, "archive"); err == nil {
		t.Error("Archive of a running sandbox succeeded")
	}
	must(t, in.Stop(ctx))
	before, err := in.Info(ctx)
	must(t, err)
	for range 2 { // the second does nothing
		must(t, do(ctx, in, "archive"))
	}
	info, err := in.Info(ctx)
	must(t, err)
	if info.Status != sandbox.StatusArchived || !info.Stopped.Equal(before.Stopped) {
		t.Errorf("Info after Archive = %q, stopped %v; want archived, %v", info.Status, info.Stopped, before.Stopped)
	}
	if _, err := os.Stat(filepath.Join(in.(*local.Instance).Dir(), "layers")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("layers after Archive: %v, want none", err)
	}
	must(t, in.Start(ctx))
	if got := get(t, in); len(got) != 900_000 {
		t.Errorf("file has %d bytes after a restore, want 900000", len(got))
	}
}

func TestDamagedArchiveIsAnErrorAndRetired(t *testing.T) {
	ctx := t.Context()
	dir := stateDir(t)
	p := fake(t, dir)
	in, err := p.Create(ctx, testKey, sandbox.Spec{})
	must(t, err)
	put(t, in, "precious")
	must(t, in.Stop(ctx))
	must(t, do(ctx, in, "archive"))
	archive := filepath.Join(in.(*local.Instance).Dir(), "archive.tar.zst")
	good, err := os.ReadFile(archive)
	must(t, err)
	bad := append([]byte(nil), good...)
	bad[len(bad)/2] ^= 1
	must(t, os.WriteFile(archive, bad, 0o600))

	if err := in.Start(ctx); err == nil || !strings.Contains(err.Error(), "archive is damaged") {
		t.Errorf("Start from a damaged archive = %v", err)
	}
	if got := status(t, in); got != sandbox.StatusError {
		t.Errorf("status = %q, want error", got)
	}
	if err := in.(sandbox.Recoverer).Recover(ctx); err == nil {
		t.Error("Recover of a damaged archive succeeded")
	}
	// Repaired by somebody, it recovers.
	must(t, os.WriteFile(archive, good, 0o600))
	must(t, in.(sandbox.Recoverer).Recover(ctx))
	must(t, in.Start(ctx))
	if got := get(t, in); got != "precious" {
		t.Errorf("file = %q", got)
	}
}

func TestDamagedRecord(t *testing.T) {
	ctx := t.Context()
	tests := []struct {
		name    string
		damage  func(t *testing.T, dir string)
		recover bool
	}{
		{"truncated", func(t *testing.T, dir string) { must(t, os.Truncate(filepath.Join(dir, "sandbox.json"), 10)) }, true},
		{"missing", func(t *testing.T, dir string) { must(t, os.Remove(filepath.Join(dir, "sandbox.json"))) }, true},
		{"of_the_future", func(t *testing.T, dir string) {
			must(t, os.WriteFile(filepath.Join(dir, "sandbox.json"), []byte(`{"version": 99}`), 0o600))
			must(t, os.WriteFile(filepath.Join(dir, "sandbox.json.copy"), []byte(`{"version": 99}`), 0o600))
		}, false},
		{"layers_missing", func(t *testing.T, dir string) { must(t, os.RemoveAll(filepath.Join(dir, "layers"))) }, false},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			dir := stateDir(t)
			p := fake(t, dir)
			in, err := p.Create(ctx, testKey, sandbox.Spec{Name: "kept"})
			must(t, err)
			put(t, in, "precious")
			must(t, in.Stop(ctx))
			tt.damage(t, in.(*local.Instance).Dir())
			info, err := in.Info(ctx)
			must(t, err)
			if info.Status != sandbox.StatusError || info.Reason == "" {
				t.Fatalf("Info = %q %q, want error with a reason", info.Status, info.Reason)
			}
			list, err := p.List(ctx, "")
			must(t, err)
			if len(list) != 1 || list[0].Status != sandbox.StatusError {
				t.Errorf("List = %+v, want one in error", list)
			}
			if err := in.Start(ctx); err == nil {
				t.Error("Start of a damaged sandbox succeeded")
			}
			if _, err := p.Create(ctx, testKey, sandbox.Spec{}); !errors.Is(err, sandbox.ErrExists) {
				t.Errorf("Create over a damaged sandbox = %v, want ErrExists", err)
			}
			err = in.(sandbox.Recoverer).Recover(ctx)
			if (err == nil) != tt.recover {
				t.Errorf("Recover = %v, want success %t", err, tt.recover)
			}
			if tt.recover {
				must(t, in.Start(ctx))
				if got := get(t, in); got != "precious" {
					t.Errorf("file = %q", got)
				}
				return
			}
			kept, err := in.(sandbox.Retirer).Retire(ctx, info.Reason)
			must(t, err)
			where, _, _ := strings.Cut(kept, ",")
			if _, err := os.Stat(where); err != nil {
				t.Errorf("Retire said %q: %v", kept, err)
			}
			if got := status(t, in); got != sandbox.StatusDestroyed {
				t.Errorf("status after Retire = %q, want destroyed", got)
			}
			_, err = p.Create(ctx, testKey, sandbox.Spec{})
			must(t, err)
		})
	}
}

func TestEphemeralAndDeleteOnStop(t *testing.T) {
	ctx := t.Context()
	for name, spec := range map[string]sandbox.Spec{"ephemeral": {Ephemeral: ptr(true)}, "auto_delete_0": {AutoDelete: ptr(time.Duration(0))}} {
		t.Run(name, func(t *testing.T) {
			dir := stateDir(t)
			p := fake(t, dir)
			in, err := p.Create(ctx, testKey, spec)
			must(t, err)
			must(t, in.Stop(ctx))
			if got := status(t, in); got != sandbox.StatusDestroyed {
				t.Errorf("status after Stop = %q, want destroyed", got)
			}
			must(t, in.Stop(ctx))
			nothingLeft(t, dir)
			// Stopped by its monitor while no berth ran.
			in, err = p.Create(ctx, testKey, spec)
			must(t, err)
			crash(t, in, false)
			if got := status(t, in); got != sandbox.StatusDestroyed {
				t.Errorf("status after the monitor ended = %q, want destroyed", got)
			}
			if err := in.Start(ctx); !errors.Is(err, sandbox.ErrNotFound) {
				t.Errorf("Start = %v, want ErrNotFound", err)
			}
			in, err = p.Create(ctx, testKey, spec)
			must(t, err)
			crash(t, in, false)
			in, err = p.Create(ctx, testKey, spec) // over the dead one
			must(t, err)
			must(t, in.Destroy(ctx))
			must(t, in.Destroy(ctx))
			nothingLeft(t, dir)
		})
	}
}

// crash kills the monitor; with reboot, it seems to be of another boot.
func crash(t *testing.T, in sandbox.Instance, reboot bool) {
	t.Helper()
	path := filepath.Join(in.(*local.Instance).Dir(), "monitor.json")
	b, err := os.ReadFile(path)
	must(t, err)
	var rec map[string]any
	must(t, json.Unmarshal(b, &rec))
	pid := int(rec["monitor_pid"].(float64))
	must(t, syscall.Kill(pid, syscall.SIGKILL))
	for syscall.Kill(pid, 0) == nil {
		time.Sleep(time.Millisecond)
	}
	if reboot {
		must(t, os.WriteFile(path, []byte(strings.Replace(string(b), rec["boot"].(string), "another-boot", 1)), 0o600))
	}
}

func TestCrashIsNotedOnce(t *testing.T) {
	ctx := t.Context()
	p := fake(t, stateDir(t))
	in, err := p.Create(ctx, testKey, sandbox.Spec{AutoDelete: ptr(time.Hour)})
	must(t, err)
	put(t, in, "precious")
	history, err := json.Marshal([]sandbox.ProcessInfo{{ID: "a", State: sandbox.ProcessLost, Started: time.Now()}, {ID: "b", State: sandbox.ProcessExited, Started: time.Now()}})
	must(t, err)
	must(t, os.WriteFile(filepath.Join(in.(*local.Instance).Dir(), "history.json"), history, 0o600))
	crash(t, in, true)
	first, err := in.Info(ctx)
	must(t, err)
	if first.Status != sandbox.StatusStopped || first.Reason != "the machine was restarted: 1 process was lost" {
		t.Errorf("Info = %q %q", first.Status, first.Reason)
	}
	time.Sleep(5 * time.Millisecond)
	second, err := in.Info(ctx)
	must(t, err)
	if second.Stopped.Before(first.Stopped) || time.Since(second.Stopped) > time.Minute || second.Expires.Sub(second.Stopped) != time.Hour {
		t.Errorf("stopped %v, expires %v", second.Stopped, second.Expires)
	}
	third, err := in.Info(ctx)
	must(t, err)
	if diff := cmp.Diff(second.Stopped, third.Stopped); diff != "" {
		t.Errorf("the time of the crash moves: %s", diff)
	}
	must(t, p.Sweep(ctx))
	must(t, in.Start(ctx))
	if got := get(t, in); got != "precious" {
		t.Errorf("file = %q", got)
	}
	if i, err := in.Info(ctx); err != nil || i.Reason != "" {
		t.Errorf("Info after Start = %q, %v", i.Reason, err)
	}
}

func TestSweepEnforcesIntervals(t *testing.T) {
	ctx := t.Context()
	tests := []struct {
		name string
		spec sandbox.Spec
		want sandbox.Status
	}{
		{"archive", sandbox.Spec{AutoArchive: ptr(time.Nanosecond)}, sandbox.StatusArchived},
		{"archive_0_is_the_longest", sandbox.Spec{AutoArchive: ptr(time.Duration(0))}, sandbox.StatusStopped},
		{"delete", sandbox.Spec{AutoDelete: ptr(time.Nanosecond)}, sandbox.StatusDestroyed},
		{"never", sandbox.Spec{AutoDelete: ptr(sandbox.Never)}, sandbox.StatusStopped},
		{"default", sandbox.Spec{}, sandbox.StatusStopped},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			p := fake(t, stateDir(t))
			in, err := p.Create(ctx, testKey, tt.spec)
			must(t, err)
			must(t, p.Sweep(ctx))
			if got := status(t, in); got != sandbox.StatusRunning {
				t.Errorf("status after a sweep while running = %q", got)
			}
			must(t, in.Stop(ctx))
			must(t, p.Sweep(ctx))
			if got := status(t, in); got != tt.want {
				t.Errorf("status after Sweep = %q, want %q", got, tt.want)
			}
		})
	}
}

func TestUpdateIsKept(t *testing.T) {
	ctx := t.Context()
	dir := stateDir(t)
	in, err := fake(t, dir).Create(ctx, testKey, sandbox.Spec{Name: "old", Env: map[string]string{"A": "1"}})
	must(t, err)
	want := sandbox.Spec{Name: "new", Env: map[string]string{"B": "2"}, AutoStop: ptr(time.Minute)}
	must(t, in.(sandbox.Updater).Update(ctx, want))
	again, err := fake(t, dir).Lookup(ctx, testKey)
	must(t, err)
	info, err := again.Info(ctx)
	must(t, err)
	if diff := cmp.Diff(want, info.Spec); diff != "" {
		t.Errorf("spec after Update (-want +got):\n%s", diff)
	}
}

// A policy that the gate was never told, since somebody was killed or failed
// then, is not taken to hold because the record has it.
func TestNetworkIsToldAgain(t *testing.T) {
	ctx := t.Context()
	dir := stateDir(t)
	in, err := fake(t, dir).Create(ctx, testKey, sandbox.Spec{})
	must(t, err)
	found, err := filepath.Glob(filepath.Join(dir, "sandboxes", "*", "monitor.json"))
	if err != nil || len(found) != 1 {
		t.Fatalf("monitors: %v %v", found, err)
	}
	told := filepath.Join(filepath.Dir(found[0]), "network.json")
	must(t, os.MkdirAll(filepath.Join(told, "full"), 0o700)) // it cannot be told
	block := sandbox.NetworkPolicy{BlockAll: true}
	if err := in.(sandbox.Networker).SetNetwork(ctx, block); err == nil {
		t.Fatal("SetNetwork succeeds though the gate is not told")
	}
	must(t, os.RemoveAll(told))
	must(t, in.(sandbox.Networker).SetNetwork(ctx, block))
	if b, err := os.ReadFile(told); err != nil || !strings.Contains(string(b), `"block_all": true`) {
		t.Errorf("the gate was told %q %v, want block_all", b, err)
	}
}

func TestManyCyclesLeaveNothing(t *testing.T) {
	n := 50
	if os.Getenv("BERTH_TEST_LONG") != "" {
		n = 1000
	}
	ctx := t.Context()
	dir := stateDir(t)
	p := fake(t, dir)
	before := descriptors(t)
	for range n {
		in, err := p.Create(ctx, testKey, sandbox.Spec{})
		must(t, err)
		must(t, in.Destroy(ctx))
	}
	nothingLeft(t, dir)
	if after := descriptors(t); after > before+2 {
		t.Errorf("%d descriptors before %d cycles, %d after", before, n, after)
	}
}
