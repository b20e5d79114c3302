//go:build unix

package sandbox_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"berth/sandbox"
	"berth/sandbox/providertest"
)

// slowBuilder builds as long as its file says.
type slowBuilder struct {
	*providertest.Fake

	mu    sync.Mutex
	began int
	specs []sandbox.Spec
	done  map[string]sandbox.SnapshotInfo
}

func (b *slowBuilder) BuildSnapshot(ctx context.Context, owner sandbox.Owner, name string, build sandbox.Build, spec sandbox.Spec) (sandbox.SnapshotInfo, error) {
	b.mu.Lock()
	b.began++
	b.specs = append(b.specs, spec)
	if b.done == nil {
		b.done = map[string]sandbox.SnapshotInfo{}
	}
	was, there := b.done[name]
	b.mu.Unlock()
	if there && was.Digest != build.Digest() {
		return was, sandbox.ErrExists
	} else if there {
		return was, nil
	}
	for i, s := range build.Steps {
		sandbox.Report(ctx, sandbox.Progress{Log: true, Text: fmt.Sprintf("[%d/%d] %s", i+1, len(build.Steps), s.Script)})
		if s.Script == "fail" {
			code := 3
			return sandbox.SnapshotInfo{}, &sandbox.BuildError{Step: i + 1, Steps: len(build.Steps), Text: s.Text, ExitCode: &code, Problem: "exited with 3", Log: "the log\n"}
		}
		d, err := time.ParseDuration(s.Script)
		if err != nil {
			return sandbox.SnapshotInfo{}, err
		}
		select {
		case <-time.After(d):
		case <-ctx.Done():
			return sandbox.SnapshotInfo{}, context.Cause(ctx)
		}
	}
	info := sandbox.SnapshotInfo{Owner: owner, Name: name, State: sandbox.SnapshotActive, Digest: build.Digest(), Built: true}
	b.mu.Lock()
	b.done[name] = info
	b.mu.Unlock()
	return info, nil
}

func (b *slowBuilder) Snapshots(context.Context, sandbox.Owner) ([]sandbox.SnapshotInfo, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var list []sandbox.SnapshotInfo
	for _, i := range b.done {
		list = append(list, i)
	}
	return list, nil
}

func (b *slowBuilder) DeleteSnapshot(context.Context, sandbox.Owner, string) error {
	return sandbox.ErrNotFound
}

func runs(scripts ...string) *sandbox.Build {
	b := &sandbox.Build{}
	for _, s := range scripts {
		b.Steps = append(b.Steps, sandbox.BuildStep{Kind: sandbox.StepRun, Script: s, Text: "RUN " + s})
	}
	return b
}

func withBuilder(t *testing.T, o sandbox.Options) (*sandbox.Manager, *slowBuilder) {
	t.Helper()
	b := &slowBuilder{Fake: providertest.NewFake(t.TempDir(), providertest.FakeOptions{})}
	m, err := sandbox.NewManager(b, o)
	if err != nil {
		t.Fatal(err)
	}
	return m, b
}

// A build goes on without its caller; the same call again waits on, hears what
// it missed, and is told how it ended.
func TestBuildIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, b := withBuilder(t, sandbox.Options{})
		defer m.Close()
		request := sandbox.SnapshotRequest{Name: "x", Build: runs("20s", "10s", "15s", "30s")}
		var heard []string
		ctx := sandbox.WithProgress(t.Context(), func(p sandbox.Progress) { heard = append(heard, p.Text) })
		_, err := m.CreateSnapshot(ctx, key, request)
		if !errors.Is(err, sandbox.ErrStarting) || !strings.Contains(err.Error(), "[4/4] 30s") || !strings.Contains(err.Error(), "the same call again waits on") {
			t.Fatalf("a build of 75 s: %v", err)
		}
		list, err := m.ListSnapshots(t.Context(), key.Owner, sandbox.SnapshotListRequest{})
		if err != nil || len(list.Snapshots) != 1 || list.Snapshots[0].State != sandbox.SnapshotBuilding {
			t.Errorf("list while it is built: %+v, %v", list, err)
		}
		other := sandbox.SnapshotRequest{Name: "x", Build: runs("1s")}
		if _, err := m.CreateSnapshot(ctx, key, other); err == nil || !strings.Contains(err.Error(), "is being built in another way") {
			t.Errorf("another build of the name meanwhile: %v", err)
		}
		// Two at once, one of which leaves.
		gone, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := m.CreateSnapshot(gone, key, request); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("a caller that left: %v", err)
			}
		})
		info, err := m.CreateSnapshot(ctx, key, request)
		wg.Wait()
		if err != nil || !info.Built || b.began != 1 {
			t.Errorf("waited on: %+v, %v after %d builds", info, err, b.began)
		}
		if got := strings.Join(heard, ","); got != "[1/4] 20s,[2/4] 10s,[3/4] 15s,[4/4] 30s" {
			t.Errorf("heard %s", got)
		}
		if info, err = m.CreateSnapshot(ctx, key, request); err != nil || info.Name != "x" {
			t.Errorf("the same once more: %+v, %v", info, err)
		}
		if _, err := m.CreateSnapshot(ctx, key, other); err == nil || !strings.Contains(err.Error(), "made otherwise") {
			t.Errorf("another build of the name: %v", err)
		}
	})
}

// A failure that nobody waited for is told to who asks next, once.
func TestBuildFailureIsKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, b := withBuilder(t, sandbox.Options{})
		defer m.Close()
		request := sandbox.SnapshotRequest{Name: "x", Build: runs("60s", "fail")}
		if _, err := m.CreateSnapshot(t.Context(), key, request); !errors.Is(err, sandbox.ErrStarting) {
			t.Fatalf("a build of 60 s: %v", err)
		}
		time.Sleep(30 * time.Second)
		list, err := m.ListSnapshots(t.Context(), key.Owner, sandbox.SnapshotListRequest{})
		if err != nil || len(list.Snapshots) != 0 {
			t.Errorf("after a failure: %+v, %v", list, err)
		}
		var failed *sandbox.BuildError
		if _, err := m.CreateSnapshot(t.Context(), key, request); !errors.As(err, &failed) || failed.Step != 2 || *failed.ExitCode != 3 || b.began != 1 {
			t.Errorf("asked again: %v after %d builds", err, b.began)
		}
		if _, err := m.CreateSnapshot(t.Context(), key, request); !errors.Is(err, sandbox.ErrStarting) || b.began != 2 {
			t.Errorf("once more: %v after %d builds", err, b.began)
		}
		// Stopped by deleting it.
		if err := m.DeleteSnapshot(t.Context(), key.Owner, "x"); err != nil {
			t.Errorf("stop: %v", err)
		}
		if err := m.DeleteSnapshot(t.Context(), key.Owner, "x"); err == nil {
			t.Error("stopped twice")
		}
	})
}

// Steps run within the operator's limits, and without what is the operator's.
func TestBuildSpec(t *testing.T) {
	m, b := withBuilder(t, sandbox.Options{
		Defaults: sandbox.Spec{Env: map[string]string{"SECRET": "x"}, Volumes: []sandbox.VolumeMount{{Volume: "v", Path: "/v"}}, Resources: sandbox.Resources{CPU: 1}},
		Limits:   sandbox.Limits{Resources: sandbox.Resources{CPU: 2, Memory: 1 << 30}},
	})
	defer m.Close()
	if _, err := m.CreateSnapshot(t.Context(), key, sandbox.SnapshotRequest{Name: "x", Build: runs("1ms")}); err != nil {
		t.Fatal(err)
	}
	if s := b.specs[0]; s.Resources != (sandbox.Resources{CPU: 1, Memory: 1 << 30}) || len(s.Env) > 0 || len(s.Volumes) > 0 {
		t.Errorf("spec = %+v", s)
	}
	full, _ := withBuilder(t, sandbox.Options{Limits: sandbox.Limits{MaxSandboxes: 1}})
	defer full.Close()
	if _, err := full.StartSandbox(t.Context(), key, sandbox.Spec{}); err != nil {
		t.Fatal(err)
	}
	if _, err := full.CreateSnapshot(t.Context(), key, sandbox.SnapshotRequest{Name: "x", Build: runs("1ms")}); !errors.Is(err, sandbox.ErrLimit) {
		t.Errorf("beyond the limit of sandboxes: %v", err)
	}
	if _, err := full.DestroySandbox(t.Context(), key); err != nil {
		t.Fatal(err)
	}
	if _, err := full.CreateSnapshot(t.Context(), key, sandbox.SnapshotRequest{Name: "a/b", Build: &sandbox.Build{Image: "x", Snapshot: "y", Files: map[string]sandbox.BuildFile{"/x": sandbox.TextFile("")}}}); err == nil || strings.Count(err.Error(), "\n") != 2 {
		t.Errorf("three faults: %v", err)
	}
	none, _ := newFake(t, sandbox.Options{})
	if _, err := none.CreateSnapshot(t.Context(), key, sandbox.SnapshotRequest{Name: "x", Build: runs("1ms")}); !errors.Is(err, sandbox.ErrUnsupported) {
		t.Errorf("a provider that builds nothing: %v", err)
	}
}

// A session that names an image or a snapshot gets that, whatever is usual.
func TestDefaultSnapshot(t *testing.T) {
	usual := sandbox.Spec{Image: "usual", Snapshot: "kept", User: "root"}
	for _, tt := range []struct {
		given           sandbox.Spec
		image, snapshot string
	}{
		{sandbox.Spec{}, "", "kept"}, {sandbox.Spec{Image: "other"}, "other", ""}, {sandbox.Spec{Snapshot: "mine"}, "", "mine"}, {sandbox.Spec{Image: "other", Snapshot: "mine"}, "", "mine"},
	} {
		if got := tt.given.WithDefaults(usual); got.Image != tt.image || got.Snapshot != tt.snapshot {
			t.Errorf("%+v over the usual: image %q, snapshot %q, want %q, %q", tt.given, got.Image, got.Snapshot, tt.image, tt.snapshot)
		}
	}
}
