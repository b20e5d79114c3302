//go:build linux

package local_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
)

const day = 24 * time.Hour

// clocked is a provider with a clock that after moves.
func clocked(t *testing.T, dir string) (p *local.Provider, after func(time.Duration)) {
	t.Helper()
	var passed time.Duration
	p = provider(t, local.Options{Dir: dir}.WithFakeEngine().WithNow(func() time.Time { return time.Now().Add(passed) }))
	return p, func(d time.Duration) {
		t.Helper()
		passed = d
		must(t, p.Sweep(t.Context()))
	}
}

func exists(t *testing.T, path string) bool {
	t.Helper()
	_, err := os.Lstat(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return err == nil
}

func TestTombstonesAreForgotten(t *testing.T) {
	dir := stateDir(t)
	p, after := clocked(t, dir)
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	must(t, in.Destroy(t.Context()))
	after(29 * day)
	if got := status(t, in); got != sandbox.StatusDestroyed {
		t.Errorf("after 29 days = %q, want destroyed", got)
	}
	after(31 * day)
	if _, err := p.Lookup(t.Context(), testKey); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("Lookup after 31 days = %v, want ErrNotFound", err)
	}

	// Whatever their age, so many are enough; the oldest go first.
	t.Cleanup(local.KeepTombstones(100))
	for i := range 103 {
		path := filepath.Join(dir, "tombstones", fmt.Sprint(i))
		must(t, os.WriteFile(path, []byte("{}"), 0o600))
		at := time.Now().Add(-time.Duration(i) * time.Minute)
		must(t, os.Chtimes(path, at, at))
	}
	after(0)
	entries, err := os.ReadDir(filepath.Join(dir, "tombstones"))
	must(t, err)
	if len(entries) != 100 || !exists(t, filepath.Join(dir, "tombstones/99")) || exists(t, filepath.Join(dir, "tombstones/100")) {
		t.Errorf("%d tombstones are kept, want the 100 youngest", len(entries))
	}
}

func TestRetiredSandboxesAreRemoved(t *testing.T) {
	dir := stateDir(t)
	p, after := clocked(t, dir)
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	put(t, in, "precious")
	must(t, in.Stop(t.Context()))
	must(t, os.WriteFile(filepath.Join(in.(*local.Instance).Dir(), "sandbox.json"), []byte("{"), 0o600))
	must(t, do(t.Context(), in, "retire"))
	kept := func() int {
		found, err := filepath.Glob(filepath.Join(dir, "retired/*/layers/root/upper/home/file"))
		must(t, err)
		return len(found)
	}
	after(29 * day)
	if kept() != 1 {
		t.Error("after 29 days the sandbox that was set aside is gone")
	}
	after(31 * day)
	if kept() != 0 {
		t.Error("after 31 days the sandbox that was set aside is still there")
	}
	nothingLeft(t, dir)
}

// Layers go when no sandbox has used them for a week: not while one that is
// stopped or archived was last started with them, nor when one was just made.
func TestUnusedLayersAreRemoved(t *testing.T) {
	dir := ownBase(t)
	p, after := clocked(t, dir)
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
	found, err := filepath.Glob(filepath.Join(dir, "base/*"))
	must(t, err)
	if len(found) != 1 {
		t.Fatalf("%d sets of layers, want 1", len(found))
	}
	present := found[0]
	former := filepath.Join(dir, "base/of-a-former-host") // before an upgrade, say
	must(t, os.MkdirAll(filepath.Join(former, "root/etc"), 0o755))
	check := func(wantPresent, wantFormer bool, when string) {
		t.Helper()
		if got := exists(t, present); got != wantPresent {
			t.Errorf("%s the present layers are there: %t, want %t", when, got, wantPresent)
		}
		if got := exists(t, former); got != wantFormer {
			t.Errorf("%s the former layers are there: %t, want %t", when, got, wantFormer)
		}
	}
	after(6 * day)
	check(true, true, "after 6 days")
	after(8 * day)
	check(true, false, "after 8 days")
	must(t, in.Stop(t.Context()))
	after(16 * day) // it is archived by then
	if got := status(t, in); got != sandbox.StatusArchived {
		t.Errorf("status after 16 days = %q, want archived", got)
	}
	check(true, false, "after 16 days")
	must(t, in.Destroy(t.Context()))
	in, err = p.Create(t.Context(), testKey, sandbox.Spec{}) // uses them on day 16
	must(t, err)
	must(t, in.Destroy(t.Context()))
	after(22 * day)
	check(true, false, "6 days after the last use")
	after(24 * day)
	check(false, false, "8 days after the last use")
	nothingLeft(t, dir)
	_, err = p.Create(t.Context(), testKey, sandbox.Spec{})
	must(t, err)
}

// Why a sandbox stopped is kept while it is stopped, archived, and gone.
func TestStopReason(t *testing.T) {
	ctx := t.Context()
	p := fake(t, stateDir(t))
	in, err := p.Create(ctx, testKey, sandbox.Spec{})
	must(t, err)
	why := func(in sandbox.Instance, status sandbox.Status, want string) {
		t.Helper()
		i, err := in.Info(ctx)
		must(t, err)
		if i.Status != status || i.StopReason != want {
			t.Errorf("Info = %q, %q; want %q, %q", i.Status, i.StopReason, status, want)
		}
	}
	why(in, sandbox.StatusRunning, "")
	local.StopIdle(t, in)
	why(in, sandbox.StatusStopped, "idle for 15 minutes")
	must(t, in.Start(ctx))
	why(in, sandbox.StatusRunning, "")
	must(t, in.Stop(ctx))
	why(in, sandbox.StatusStopped, "asked to")
	must(t, do(ctx, in, "archive"))
	why(in, sandbox.StatusArchived, "asked to")
	must(t, in.Start(ctx))
	crash(t, in, false)
	why(in, sandbox.StatusStopped, "") // Reason tells what was lost
	must(t, in.Destroy(ctx))

	in, err = p.Create(ctx, testKey, sandbox.Spec{Ephemeral: ptr(true)})
	must(t, err)
	local.StopIdle(t, in)
	must(t, p.Sweep(ctx))
	if i, err := in.Info(ctx); err != nil || i.Status != sandbox.StatusDestroyed || i.Reason != "stopped: idle for 15 minutes" {
		t.Errorf("Info of an ephemeral sandbox that was idle = %q, %q, %v", i.Status, i.Reason, err)
	}
}

// As above, by a real monitor's own clock.
func TestIdleStopSaysSo(t *testing.T) {
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(t.Context(), testKey, sandbox.Spec{AutoStop: ptr(100 * time.Millisecond)})
	must(t, err)
	for end := time.Now().Add(20 * time.Second); status(t, in) != sandbox.StatusStopped; {
		if time.Now().After(end) {
			t.Fatalf("status = %q, want stopped", status(t, in))
		}
		time.Sleep(10 * time.Millisecond)
	}
	if i, err := in.Info(t.Context()); err != nil || i.StopReason != "idle for 100 milliseconds" {
		t.Errorf("StopReason = %q, %v", i.StopReason, err)
	}
}
