package sandbox

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// ForkRequest of ForkSandbox.
type ForkRequest struct {
	// NewSession names the new sandbox's session; empty: an id is made.
	NewSession SessionID
	// Labels are added to those of the forked one, and replace them key by key.
	Labels map[string]string
}

// ForkResult of ForkSandbox.
type ForkResult struct {
	From Key
	Info Info // of the new sandbox
	// Made tells that the session id was made.
	Made bool
}

// ForkSandbox makes a new session whose sandbox has the files that the key's
// one has now, and its settings. The forked one, running or stopped, is not
// changed. It starts nothing but the new one.
func (m *Manager) ForkSandbox(ctx context.Context, key Key, r ForkRequest) (*ForkResult, error) {
	ctx = withDeadline(ctx)
	var f faults
	f.labels(r.Labels)
	res := &ForkResult{From: key, Made: r.NewSession == ""}
	switch {
	case res.Made:
		r.NewSession = NewSessionID()
	case r.NewSession == key.Session:
		f.add("new_session_id", fmt.Sprintf("%s is the session that is forked", key.Session), "another session's id", "leave it out to have one made")
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	to := Key{Owner: key.Owner, Session: r.NewSession}
	inst, err := m.peek(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, noSession(key)
	}
	if err != nil {
		return nil, err
	}
	if _, ok := inst.(Forker); !ok {
		return nil, &UserError{Err: ErrUnsupported, Text: "provider " + m.provider.Name() + " cannot fork sandboxes; copy what is needed with read_file and write_file"}
	}
	err = m.detached(ctx, func(ctx context.Context) error {
		back, err := m.holdBack(ctx, key)
		if err != nil {
			return err
		}
		defer back()
		res.Info, err = m.fork(ctx, key, to, r.Labels)
		return err
	})
	switch {
	case errors.Is(err, errGoesOn):
		return nil, &UserError{Err: ErrStarting, Text: fmt.Sprintf("the sandbox is still being forked; it goes on by itself, and get_sandbox of session %s shows when it is there", to.Session)}
	case errors.Is(err, ErrExists):
		return nil, &FieldError{Field: "new_session_id", Problem: fmt.Sprintf("session %s has a sandbox already", to.Session),
			Allowed: "an id without a sandbox", Hint: "leave it out to have one made, or destroy_sandbox that one first"}
	case errors.Is(err, ErrNotFound):
		return nil, noSession(key)
	case err != nil:
		return nil, fmt.Errorf("fork the sandbox: %w", err)
	}
	return res, nil
}

// fork makes the sandbox of to from key's.
func (m *Manager) fork(ctx context.Context, key, to Key, labels map[string]string) (Info, error) {
	inst, err := m.provider.Lookup(ctx, key)
	if err != nil {
		return Info{}, err
	}
	from, err := inst.Info(ctx)
	if err != nil {
		return Info{}, err
	}
	spec := from.Spec.Clone()
	spec.Labels = Spec{Labels: labels}.over(Spec{Labels: from.Spec.Labels}).Labels
	if spec.Name == "" || spec.Name == string(key.Session) {
		spec.Name = string(to.Session)
	}
	done, err := m.makeRoom(ctx, to)
	if err != nil {
		return Info{}, err
	}
	defer done()
	made, err := inst.(Forker).Fork(ctx, to, spec)
	if err != nil {
		return Info{}, err
	}
	m.inherit(key, to)
	info, err := made.Info(ctx)
	if err != nil {
		return info, err
	}
	b := &box{inst: made, info: info}
	m.remount(ctx, to, b, true)
	m.restored(ctx, key, inst)
	return b.info, nil
}

// holdBack has calls that need the key's sandbox running wait until back is
// called: it may be restarted, which is nobody's business.
func (m *Manager) holdBack(ctx context.Context, key Key) (back func(), err error) {
	f := &flight{mode: held, began: time.Now(), done: make(chan struct{}), phase: "it is being forked"}
	for {
		if err := m.landed(withDeadline(ctx), key); err != nil {
			return nil, err
		}
		m.mu.Lock()
		if m.flights[key] == nil {
			break
		}
		m.mu.Unlock()
	}
	m.flights[key] = f
	delete(m.boxes, key)
	m.mu.Unlock()
	return func() {
		m.mu.Lock()
		delete(m.flights, key)
		m.mu.Unlock()
		f.err = errNeverSeen // whoever has waited looks for himself
		close(f.done)
	}, nil
}
