package providertest

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"berth/sandbox"
)

// testBuilds: SnapshotBuilder and BuildLogKeeper.
func testBuilds(t *testing.T, s *suite) {
	if !s.can(t, Builds) {
		return
	}
	maker := s.p.(sandbox.SnapshotBuilder)
	run := func(script string) sandbox.BuildStep {
		return sandbox.BuildStep{Kind: sandbox.StepRun, Script: script, Text: "RUN " + script}
	}
	base := sandbox.Build{Image: s.h.Spec.Image, Files: map[string]sandbox.BuildFile{"dir/file": sandbox.TextFile("given\n")}, Steps: []sandbox.BuildStep{
		run("echo one; echo two"),
		{Kind: sandbox.StepEnv, Text: "ENV A=1", Vars: []sandbox.BuildVar{{Name: "A", Value: `"$B one"`}}},
		{Kind: sandbox.StepWorkDir, Text: "WORKDIR /tmp/w", Word: "/tmp/w"},
		{Kind: sandbox.StepCopy, Text: "COPY dir .", Copy: sandbox.BuildCopy{From: []string{"dir"}, To: "."}},
		run("cat file; pwd; echo made > made"),
	}}
	with := func(more ...sandbox.BuildStep) sandbox.Build {
		b := base
		b.Steps = append(slices.Clone(b.Steps), more...)
		return b
	}
	const owner sandbox.Owner = "suite"
	build := func(t *testing.T, name string, b sandbox.Build) (sandbox.SnapshotInfo, []string, error) {
		t.Helper()
		var log []string
		ctx := sandbox.WithProgress(s.ctx(t), func(p sandbox.Progress) {
			if p.Log {
				log = append(log, p.Text)
			}
		})
		info, err := maker.BuildSnapshot(ctx, owner, name, b, s.spec(nil))
		return info, log, err
	}
	empty := func(t *testing.T) {
		t.Helper()
		if list, err := s.p.List(s.ctx(t), owner); err != nil || len(list) > 0 {
			t.Errorf("List after a build = %v, %v, want none", list, err)
		}
	}

	t.Run("made", func(t *testing.T) {
		info, log, err := build(t, "built", base)
		if err != nil {
			t.Fatalf("BuildSnapshot: %v\n%s", err, strings.Join(log, "\n"))
		}
		if info.Owner != owner || info.Name != "built" || info.State != sandbox.SnapshotActive || !info.Built || info.Digest == "" || info.Created.IsZero() {
			t.Errorf("BuildSnapshot = %+v", info)
		}
		at := 0
		for _, want := range []string{"one", "two", "given", "/tmp/w"} {
			i := slices.Index(log[at:], want)
			if i < 0 {
				t.Fatalf("the log lacks %q, or has it too early: %q", want, log)
			}
			at += i
		}
		empty(t)
		b := s.makeWith(t, func(spec *sandbox.Spec) { spec.Snapshot, spec.Image = "built", "" })
		if got := b.must("cat /tmp/w/made /tmp/w/file; echo \"[$A]\""); got != "made\ngiven\n[ one]\n" {
			t.Errorf("in a sandbox of it: %q", got)
		}
		if k, ok := s.p.(sandbox.BuildLogKeeper); ok {
			if text, err := k.BuildLog(s.ctx(t), owner, "built", 1<<20); err != nil || !strings.Contains(text, "given\n") {
				t.Errorf("BuildLog = %q, %v", text, err)
			}
			if _, err := k.BuildLog(s.ctx(t), owner, "never", 100); !errors.Is(err, sandbox.ErrNotFound) {
				t.Errorf("BuildLog of none = %v, want ErrNotFound", err)
			}
		}
		if again, _, err := build(t, "built", base); err != nil || again.Digest != info.Digest {
			t.Errorf("the same again = %+v, %v", again, err)
		}
		if _, _, err := build(t, "built", with(run("true"))); !errors.Is(err, sandbox.ErrExists) {
			t.Errorf("another build of the name = %v, want ErrExists", err)
		}
	})
	t.Run("failing", func(t *testing.T) {
		_, log, err := build(t, "failed", with(run("echo why; exit 9")))
		var failed *sandbox.BuildError
		if !errors.As(err, &failed) || !errors.Is(err, sandbox.ErrBuildFailed) {
			t.Fatalf("BuildSnapshot of a failing step = %v", err)
		}
		if failed.Step != 6 || failed.Steps != 6 || failed.ExitCode == nil || *failed.ExitCode != 9 || !strings.Contains(failed.Log, "why") || !slices.Contains(log, "why") {
			t.Errorf("it failed as %+v", failed)
		}
		list, err := s.p.(sandbox.SnapshotKeeper).Snapshots(s.ctx(t), owner)
		if err != nil || slices.ContainsFunc(list, func(i sandbox.SnapshotInfo) bool { return i.Name == "failed" }) {
			t.Errorf("Snapshots after a failure = %v, %v", list, err)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(s.ctx(t))
		defer cancel()
		ctx = sandbox.WithProgress(ctx, func(p sandbox.Progress) {
			if p.Text == "begun" {
				cancel()
			}
		})
		if _, err := maker.BuildSnapshot(ctx, owner, "cancelled", with(run("echo begun; sleep 1000")), s.spec(nil)); !errors.Is(err, context.Canceled) {
			t.Errorf("BuildSnapshot that was cancelled = %v", err)
		}
	})
}
