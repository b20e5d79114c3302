package daytona

import (
	"context"
	"errors"
	"path"

	"berth/sandbox"
)

// Spawn starts a process.
func (i *Instance) Spawn(ctx context.Context, c sandbox.Command) (sandbox.Process, error) {
	if err := i.claimOnce(ctx); err != nil {
		return nil, err
	}
	b := i.p.box(i.id)
	b.mu.Lock()
	f := b.facts
	b.mu.Unlock()
	if !path.IsAbs(c.Cwd) { // nobody could look inside before
		if c.Cwd = "/"; f != nil {
			c.Cwd = f.home
		}
	}
	if c.User == placeholderUser && f != nil && f.user != placeholderUser {
		c.User = f.user
	}
	return b.helper().Spawn(ctx, c)
}

// Process finds a process of a running sandbox: what ran in a stopped one can be
// read when it runs again.
func (i *Instance) Process(ctx context.Context, id sandbox.ProcessID) (sandbox.Process, error) {
	p, err := i.p.box(i.id).helper().Process(ctx, id)
	return p, i.stopped(err)
}

// Processes lists them; see Process.
func (i *Instance) Processes(ctx context.Context) ([]sandbox.ProcessInfo, error) {
	list, err := i.p.box(i.id).helper().Processes(ctx)
	return list, i.stopped(err)
}

// ForgetProcess drops what is kept of an ended process of a running sandbox.
func (i *Instance) ForgetProcess(ctx context.Context, id sandbox.ProcessID) error {
	return i.stopped(i.p.box(i.id).helper().ForgetProcess(ctx, id))
}

// stopped says what to do about processes of a sandbox that does not run.
func (i *Instance) stopped(err error) error {
	if !errors.Is(err, sandbox.ErrNotRunning) {
		return err
	}
	return &sandbox.UserError{Err: sandbox.ErrNotRunning, Text: "the sandbox is stopped, and what its processes wrote lies in it, at Daytona; start_sandbox starts it, then it can be read"}
}

// Files reaches its files.
func (i *Instance) Files() sandbox.Files { return i.p.box(i.id).helper().Files() }

// claimOnce marks a sandbox that is adopted as the session's, at its first use.
func (i *Instance) claimOnce(ctx context.Context) error {
	if !i.adopted {
		return nil
	}
	b := i.p.box(i.id)
	b.mu.Lock()
	claimed := b.claimed
	b.mu.Unlock()
	if claimed {
		return nil
	}
	if err := i.claim(ctx); err != nil {
		return err
	}
	b.mu.Lock()
	b.claimed = true
	b.mu.Unlock()
	return nil
}
