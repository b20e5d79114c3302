package providertest

import (
	"context"

	"berth/sandbox"
)

// Stub is a provider that answers what its fields say, to inject failures. A
// nil field passes the call on to Next, and fails with ErrUnsupported when that
// is nil too. A field that is set may call Next itself.
type Stub struct {
	Next sandbox.Provider

	NameFunc     func() string
	CreateFunc   func(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error)
	LookupFunc   func(ctx context.Context, key sandbox.Key) (sandbox.Instance, error)
	ListFunc     func(ctx context.Context, owner sandbox.Owner) ([]sandbox.Info, error)
	DescribeFunc func(ctx context.Context, spec sandbox.Spec) (sandbox.Info, error)
	CloseFunc    func() error
}

var _ sandbox.Provider = (*Stub)(nil)

// Name calls NameFunc.
func (s *Stub) Name() string {
	switch {
	case s.NameFunc != nil:
		return s.NameFunc()
	case s.Next != nil:
		return s.Next.Name()
	}
	return "stub"
}

// Create calls CreateFunc.
func (s *Stub) Create(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	switch {
	case s.CreateFunc != nil:
		return s.CreateFunc(ctx, key, spec)
	case s.Next != nil:
		return s.Next.Create(ctx, key, spec)
	}
	return nil, sandbox.ErrUnsupported
}

// Lookup calls LookupFunc.
func (s *Stub) Lookup(ctx context.Context, key sandbox.Key) (sandbox.Instance, error) {
	switch {
	case s.LookupFunc != nil:
		return s.LookupFunc(ctx, key)
	case s.Next != nil:
		return s.Next.Lookup(ctx, key)
	}
	return nil, sandbox.ErrUnsupported
}

// List calls ListFunc; without one and without Next there are no sandboxes.
func (s *Stub) List(ctx context.Context, owner sandbox.Owner) ([]sandbox.Info, error) {
	switch {
	case s.ListFunc != nil:
		return s.ListFunc(ctx, owner)
	case s.Next != nil:
		return s.Next.List(ctx, owner)
	}
	return nil, nil
}

// Describe calls DescribeFunc.
func (s *Stub) Describe(ctx context.Context, spec sandbox.Spec) (sandbox.Info, error) {
	switch {
	case s.DescribeFunc != nil:
		return s.DescribeFunc(ctx, spec)
	case s.Next != nil:
		return s.Next.Describe(ctx, spec)
	}
	return sandbox.Info{Status: sandbox.StatusPending, Spec: spec}, nil
}

// Close calls CloseFunc.
func (s *Stub) Close() error {
	switch {
	case s.CloseFunc != nil:
		return s.CloseFunc()
	case s.Next != nil:
		return s.Next.Close()
	}
	return nil
}

// StubInstance is an instance that answers what its fields say; a nil field
// passes the call on to Next as in Stub. It has no optional abilities; a test
// that needs one embeds it in a type that has.
type StubInstance struct {
	Next sandbox.Instance

	InfoFunc      func(ctx context.Context) (sandbox.Info, error)
	StartFunc     func(ctx context.Context) error
	StopFunc      func(ctx context.Context) error
	DestroyFunc   func(ctx context.Context) error
	SpawnFunc     func(ctx context.Context, c sandbox.Command) (sandbox.Process, error)
	ProcessFunc   func(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error)
	ProcessesFunc func(ctx context.Context) ([]sandbox.ProcessInfo, error)
	FilesFunc     func() sandbox.Files
}

var _ sandbox.Instance = (*StubInstance)(nil)

// Info calls InfoFunc.
func (s *StubInstance) Info(ctx context.Context) (sandbox.Info, error) {
	switch {
	case s.InfoFunc != nil:
		return s.InfoFunc(ctx)
	case s.Next != nil:
		return s.Next.Info(ctx)
	}
	return sandbox.Info{}, sandbox.ErrUnsupported
}

// Start calls StartFunc.
func (s *StubInstance) Start(ctx context.Context) error {
	switch {
	case s.StartFunc != nil:
		return s.StartFunc(ctx)
	case s.Next != nil:
		return s.Next.Start(ctx)
	}
	return sandbox.ErrUnsupported
}

// Stop calls StopFunc.
func (s *StubInstance) Stop(ctx context.Context) error {
	switch {
	case s.StopFunc != nil:
		return s.StopFunc(ctx)
	case s.Next != nil:
		return s.Next.Stop(ctx)
	}
	return sandbox.ErrUnsupported
}

// Destroy calls DestroyFunc.
func (s *StubInstance) Destroy(ctx context.Context) error {
	switch {
	case s.DestroyFunc != nil:
		return s.DestroyFunc(ctx)
	case s.Next != nil:
		return s.Next.Destroy(ctx)
	}
	return sandbox.ErrUnsupported
}

// Spawn calls SpawnFunc.
func (s *StubInstance) Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	switch {
	case s.SpawnFunc != nil:
		return s.SpawnFunc(ctx, c)
	case s.Next != nil:
		return s.Next.Spawn(ctx, c)
	}
	return nil, sandbox.ErrUnsupported
}

// Process calls ProcessFunc.
func (s *StubInstance) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	switch {
	case s.ProcessFunc != nil:
		return s.ProcessFunc(ctx, id)
	case s.Next != nil:
		return s.Next.Process(ctx, id)
	}
	return nil, sandbox.ErrNoProcess
}

// Processes calls ProcessesFunc; without one and without Next there are none.
func (s *StubInstance) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	switch {
	case s.ProcessesFunc != nil:
		return s.ProcessesFunc(ctx)
	case s.Next != nil:
		return s.Next.Processes(ctx)
	}
	return nil, nil
}

// Files calls FilesFunc; nil without one and without Next.
func (s *StubInstance) Files() sandbox.Files {
	switch {
	case s.FilesFunc != nil:
		return s.FilesFunc()
	case s.Next != nil:
		return s.Next.Files()
	}
	return nil
}
