//go:build linux

package local_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/local"
)

// Killed anywhere, a snapshot is there and whole or not there at all, it can be
// made again, and nothing is left of it once it is deleted.
func TestServerKilledInASnapshot(t *testing.T) {
	for _, tt := range []struct {
		name, leave string
		steps       []string
	}{
		{"quiet", "", []string{"seal:intended", "seal:renamed", "seal:launched", "snapshot:shared", "snapshot:digested", "seal:renamed!", "seal:launched!", "snapshot:digested!"}},
		{"busy", "(setsid sleep 1000 >/dev/null 2>&1 &)", []string{"fork:copying", "fork:copying+1ms", "snapshot:shared", "snapshot:digested", "fork:copying+1ms!", "snapshot:shared!"}},
	} {
		for _, step := range tt.steps {
			t.Run(tt.name+"_"+stepName(step), func(t *testing.T) {
				ctx := t.Context()
				dir := stateDir(t)
				now := time.Now()
				p := provider(t, local.Options{Dir: dir}.WithNow(func() time.Time { return now }))
				var w watched
				in, err := p.Create(ctx, testKey, sandbox.Spec{})
				must(t, err)
				wantRun(t, in, "agent", "echo precious > ~/f; mkdir -p /workspace/a/b && ln ~/f ~/g;"+tt.leave, "")
				killReal(t, dir, "snapshot", step, sandbox.Spec{})
				w.note(t, dir)
				const whole = "cat ~/f && test ~/f -ef ~/g && test -d /workspace/a/b"
				must(t, in.Start(ctx))
				wantRun(t, in, "agent", whole, "precious")
				list, err := p.Snapshots(ctx, testKey.Owner)
				must(t, err)
				if len(list) == 0 {
					must(t, do(ctx, in, "snapshot"))
				}
				to, err := p.Create(ctx, forkKey, sandbox.Spec{Snapshot: "kept"})
				must(t, err)
				w.note(t, dir)
				must(t, in.Destroy(ctx))
				now = now.Add(time.Hour)
				must(t, p.Sweep(ctx))
				wantRun(t, to, "agent", whole, "precious")
				must(t, to.Destroy(ctx))
				must(t, p.DeleteSnapshot(ctx, testKey.Owner, "kept"))
				now = now.Add(time.Hour)
				must(t, p.Sweep(ctx))
				w.gone(t, dir)
			})
		}
	}
}

// What no archive holds, no snapshot has, and whoever made it is told.
func TestSnapshotOfDirectoriesTooDeep(t *testing.T) {
	ctx := t.Context()
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(ctx, testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "agent", "cd; mkdir -p $(printf d/%.0s $(seq 1000))", "")
	_, err = in.(sandbox.Snapshotter).Snapshot(ctx, "deep")
	var said *sandbox.UserError
	if !errors.As(err, &said) || !strings.Contains(err.Error(), "nested too deep") {
		t.Errorf("Snapshot of 1000 nested directories: %v; want a *UserError that says so", err)
	}
	list, err := p.Snapshots(ctx, testKey.Owner)
	if err != nil || len(list) != 0 {
		t.Errorf("Snapshots afterwards: %v, %v; want none", list, err)
	}
	wantRun(t, in, "agent", "cd; rm -r d; echo works", "works")
	_, err = in.(sandbox.Snapshotter).Snapshot(ctx, "deep")
	must(t, err)
}

// Snapshots are their owner's alone, and tell who stands on them.
func TestSnapshotsOfOwners(t *testing.T) {
	ctx := t.Context()
	p := provider(t, local.Options{Dir: stateDir(t)})
	in, err := p.Create(ctx, testKey, sandbox.Spec{})
	must(t, err)
	wantRun(t, in, "agent", "echo mine > ~/f", "")
	one, err := in.(sandbox.Snapshotter).Snapshot(ctx, "s1")
	must(t, err)
	again, err := in.(sandbox.Snapshotter).Snapshot(ctx, "s2")
	must(t, err)
	if one.Digest != again.Digest || one.Size != 5 || again.Size != 5 {
		t.Errorf("two snapshots of the same files: %+v and %+v", one, again)
	}
	other := sandbox.Key{Owner: "another", Session: "s"}
	if _, err := p.Create(ctx, other, sandbox.Spec{Snapshot: "s1"}); err == nil || !strings.Contains(err.Error(), "there is no snapshot s1") {
		t.Errorf("another owner's sandbox of the snapshot: %v", err)
	}
	if list, err := p.Snapshots(ctx, other.Owner); err != nil || len(list) != 0 {
		t.Errorf("another owner's snapshots: %v, %v", list, err)
	}
	if err := p.DeleteSnapshot(ctx, other.Owner, "s1"); err == nil {
		t.Error("another owner deleted the snapshot")
	}
	_, err = p.Create(ctx, forkKey, sandbox.Spec{Snapshot: "s1"})
	must(t, err)
	if err := p.DeleteSnapshot(ctx, testKey.Owner, "s1"); err == nil || !strings.Contains(err.Error(), "in use by the sandboxes of forked;") {
		t.Errorf("deleting a snapshot in use: %v", err)
	}
	must(t, p.DeleteSnapshot(ctx, testKey.Owner, "s2"))
}
