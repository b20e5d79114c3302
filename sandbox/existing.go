package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Status tells the status of the key's sandbox and starts nothing; ErrNotFound
// when there is none, StatusDestroyed while its tombstone is kept. That one runs
// is believed for a second, so asking before each call costs next to nothing.
func (m *Manager) Status(ctx context.Context, key Key) (Status, error) {
	m.mu.Lock()
	if b := m.boxes[key]; b != nil && time.Since(b.seen) < recheck {
		m.mu.Unlock()
		return StatusRunning, nil
	}
	m.mu.Unlock()
	inst, err := m.peek(ctx, key)
	if err != nil {
		return "", err
	}
	info, err := glance(ctx, inst)
	if err != nil {
		return "", fmt.Errorf("read the sandbox: %w", err)
	}
	return info.Status, nil
}

// WakeSandbox brings the key's sandbox to running: one that is stopped or
// archived is started, one in StatusError is recovered if that can be. Unlike
// StartSandbox and Reconnect it never makes a sandbox: ErrNotFound when there
// is none, ErrUnavailable when it is broken for good.
func (m *Manager) WakeSandbox(ctx context.Context, key Key) (*StartResult, error) {
	ctx = withDeadline(ctx)
	b, err := m.ready(ctx, key, startOnly, Spec{})
	if err != nil {
		return nil, sayNoSession(err, key)
	}
	return m.fresh(ctx, key, b, &StartResult{Outcome: b.outcome, Info: b.info, Notice: b.notice})
}

// UpdateSandbox applies what spec gives, and can be changed (see Updater), to
// the key's sandbox, running or not, and tells its state after that. Given maps
// replace those in force; a given Public holds for the ports that are exposed,
// too. It starts and makes nothing.
func (m *Manager) UpdateSandbox(ctx context.Context, key Key, spec Spec) (*Info, error) {
	ctx = withDeadline(ctx)
	if err := m.allowed(spec); err != nil {
		return nil, err
	}
	if err := m.landed(ctx, key); err != nil {
		return nil, err
	}
	inst, info, err := m.existing(ctx, key)
	if err != nil {
		return nil, err
	}
	u, ok := inst.(Updater)
	if !ok {
		return nil, &UserError{Err: ErrUnsupported, Text: "the provider " + m.provider.Name() + " cannot change a sandbox that is there"}
	}
	if want := spec.updated(info.Spec, m.options.Defaults); len(drift(want, info.Spec)) > 0 {
		if err := u.Update(ctx, want); err != nil {
			return nil, sayNoSession(err, key)
		}
	}
	if k, ok := inst.(PortKeeper); ok && spec.Public != nil {
		for _, p := range info.Ports {
			if p.Public == *spec.Public {
				continue
			}
			p.Public = *spec.Public
			if _, err := k.KeepPort(ctx, p); err != nil {
				return nil, fmt.Errorf("change who may use port %d: %w", p.Number, err)
			}
		}
	}
	m.forget(key, nil)
	if info, err = inst.Info(ctx); err != nil {
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	return &info, nil
}

// glance reads the present state but for what only an answer about the sandbox
// itself shows.
func glance(ctx context.Context, inst Instance) (Info, error) {
	if g, ok := inst.(Glancer); ok {
		return g.Glance(ctx)
	}
	return inst.Info(ctx)
}

// TouchSandbox counts as use of a running sandbox, as every call of a tool
// does. ErrNotRunning when it does not run.
func (m *Manager) TouchSandbox(ctx context.Context, key Key) error {
	inst, _, err := m.existing(ctx, key)
	if err != nil {
		return err
	}
	t, ok := inst.(Toucher)
	if !ok {
		return nil // nothing counts its idle time
	}
	return t.Touch(ctx)
}

// existing finds a sandbox that was not destroyed, and glances at it.
func (m *Manager) existing(ctx context.Context, key Key) (Instance, Info, error) {
	inst, err := m.peek(ctx, key)
	var info Info
	if err == nil {
		if info, err = glance(ctx, inst); err != nil {
			err = fmt.Errorf("read the sandbox: %w", err)
		}
	}
	if errors.Is(err, ErrNotFound) || err == nil && info.Status == StatusDestroyed {
		return nil, info, noSession(key)
	}
	return inst, info, err
}
