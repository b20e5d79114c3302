//go:build unix

package sandbox_test

import (
	"context"
	"testing"
	"time"

	"berth/internal/compile"
	"berth/sandbox"
	"berth/sandbox/providertest"
)

// newFake is a manager over a fake provider that runs host processes.
func newFake(t *testing.T, o sandbox.Options) (*sandbox.Manager, *providertest.Fake) {
	t.Helper()
	f := providertest.NewFake(t.TempDir(), providertest.FakeOptions{LogLimit: 4 << 20})
	if o.Compiler == nil {
		o.Compiler = compile.InProcess()
	}
	m, err := sandbox.NewManager(f, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
		f.Shutdown()
	})
	return m, f
}

func ctxOf(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func ptr[T any](v T) *T { return &v }

func sh(t *testing.T, m *sandbox.Manager, command string) *sandbox.RunResult {
	t.Helper()
	res, err := m.ExecuteCommand(ctxOf(t), key, sandbox.RunRequest{Command: command})
	if err != nil {
		t.Fatalf("ExecuteCommand(%q): %v", command, err)
	}
	return res
}

func exit(res *sandbox.RunResult) int {
	if res.Process.ExitCode == nil {
		return -1
	}
	return *res.Process.ExitCode
}
