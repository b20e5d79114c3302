//go:build unix

package sandbox_test

import (
	"context"
	"sync"
	"testing"
	"time"

	"berth/sandbox"
	"berth/sandbox/providertest"
)

// script is a provider of one sandbox whose status the test sets.
type script struct {
	providertest.Stub
	mu      sync.Mutex
	status  sandbox.Status // "" = never seen
	reason  string
	spawns  int
	starts  int
	creates int
	spec    sandbox.Spec
	look    func() error // before each Lookup
	spawn   func(n int) error
}

type instance struct {
	providertest.StubInstance
	s *script
}

func newScript(status sandbox.Status) *script {
	s := &script{status: status}
	inst := &instance{s: s}
	inst.InfoFunc = func(context.Context) (sandbox.Info, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return sandbox.Info{Key: key, Status: s.status, Reason: s.reason, Spec: s.spec.WithDefaults(sandbox.Spec{}), Home: "/home/agent", User: "agent"}, nil
	}
	inst.StartFunc = func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.starts++
		s.status = sandbox.StatusRunning
		return nil
	}
	inst.DestroyFunc = func(context.Context) error {
		s.set(sandbox.StatusDestroyed)
		return nil
	}
	inst.StopFunc = func(context.Context) error {
		s.set(sandbox.StatusStopped)
		return nil
	}
	inst.SpawnFunc = func(_ context.Context, c sandbox.Command) (sandbox.Process, error) {
		s.mu.Lock()
		s.spawns++
		n := s.spawns
		s.mu.Unlock()
		if s.spawn != nil {
			if err := s.spawn(n); err != nil {
				return nil, err
			}
		}
		return done{id: c.ID}, nil
	}
	s.LookupFunc = func(ctx context.Context, _ sandbox.Key) (sandbox.Instance, error) {
		if s.look != nil {
			if err := s.look(); err != nil {
				return nil, err
			}
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.status == "" {
			return nil, sandbox.ErrNotFound
		}
		return inst, nil
	}
	s.CreateFunc = func(ctx context.Context, _ sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
		time.Sleep(10 * time.Millisecond) // a window for races
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.status != "" && s.status != sandbox.StatusDestroyed {
			return nil, sandbox.ErrExists
		}
		s.creates++
		s.status, s.spec = sandbox.StatusRunning, spec
		return inst, nil
	}
	return s
}

func (s *script) set(status sandbox.Status) {
	s.mu.Lock()
	s.status = status
	s.mu.Unlock()
}

func (s *script) counts() (creates, starts, spawns int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.creates, s.starts, s.spawns
}

// done is a process that has exited with 0.
type done struct {
	sandbox.Process
	id sandbox.ProcessID
}

func (d done) ID() sandbox.ProcessID { return d.id }

func (d done) Wait(context.Context, sandbox.Cursor, bool) error { return nil }

func (d done) Info(context.Context) (sandbox.ProcessInfo, error) {
	return sandbox.ProcessInfo{ID: d.id, State: sandbox.ProcessExited, ExitCode: new(int)}, nil
}

func (d done) Read(_ context.Context, c sandbox.Cursor, _ int64) (sandbox.Output, error) {
	return sandbox.Output{Next: c}, nil
}

func managerOf(t *testing.T, p sandbox.Provider, o sandbox.Options) *sandbox.Manager {
	t.Helper()
	m, err := sandbox.NewManager(p, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Close() })
	return m
}
