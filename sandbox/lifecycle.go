package sandbox

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// StartSandbox makes the session's sandbox run, whatever its state, and creates
// it when the session was never seen. What spec gives and a sandbox that was
// there does not have is applied when it can be, else told as drift.
func (m *Manager) StartSandbox(ctx context.Context, key Key, spec Spec) (*StartResult, error) {
	ctx = withDeadline(ctx)
	spec = spec.Clone()
	if err := errors.Join(m.allowed(spec), m.checkImage(spec), m.completeMounts(ctx, &spec)); err != nil {
		return nil, err
	}
	b, err := m.surely(ctx, key, create, spec)
	if err != nil {
		return nil, sayNoSession(err, key)
	}
	res := &StartResult{Outcome: b.outcome, Info: b.info, Notice: b.notice}
	if e := spec.Ephemeral; e != nil && *e && spec.AutoDelete != nil && *spec.AutoDelete != 0 {
		res.Notice.Warnings = append(res.Notice.Warnings, "auto_delete_minutes has no effect: an ephemeral sandbox is deleted when it stops")
	}
	if err := m.converge(ctx, key, b, spec, res); err != nil {
		return nil, err
	}
	if b.outcome == Connected {
		m.remountNow(ctx, key, b, res)
	}
	return m.fresh(ctx, key, b, res)
}

// Reconnect is StartSandbox for a session that exists or existed; one never
// seen is ErrNotFound.
func (m *Manager) Reconnect(ctx context.Context, key Key) (*StartResult, error) {
	ctx = withDeadline(ctx)
	b, err := m.surely(ctx, key, freshIfGone, Spec{})
	if err != nil {
		return nil, sayNoSession(err, key)
	}
	res := &StartResult{Outcome: b.outcome, Info: b.info, Notice: b.notice}
	if b.outcome == Connected {
		m.remountNow(ctx, key, b, res)
	}
	return m.fresh(ctx, key, b, res)
}

// fresh reads the state anew for an answer that shows it.
func (m *Manager) fresh(ctx context.Context, key Key, b *box, res *StartResult) (*StartResult, error) {
	info, err := b.inst.Info(ctx)
	if err != nil {
		m.forget(key, b)
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	res.Info = info
	m.refresh(key, b, info)
	return res, nil
}

// converge applies what spec gives to a sandbox that may have been there.
func (m *Manager) converge(ctx context.Context, key Key, b *box, spec Spec, res *StartResult) error {
	want := spec.updated(b.info.Spec, m.options.Defaults)
	asked := want
	if spec.Ephemeral != nil {
		asked.Ephemeral = spec.Ephemeral
	}
	asked.Resources = spec.Resources.over(want.Resources)
	if spec.Snapshot != "" {
		asked.Snapshot = spec.Snapshot
	} else if spec.Image != "" {
		asked.Image = spec.Image
	}
	if len(drift(want, b.info.Spec)) > 0 {
		if u, ok := b.inst.(Updater); ok {
			if err := m.unwanted(ctx, key, b, want); err != nil {
				return err
			}
			if err := u.Update(ctx, want); err != nil {
				return fmt.Errorf("apply the spec: %w", err)
			}
			info, err := b.inst.Info(ctx)
			if err != nil {
				return fmt.Errorf("read the sandbox: %w", err)
			}
			b.info = info
			m.mu.Lock()
			if is := m.boxes[key]; is != nil && is.inst == b.inst {
				m.boxes[key] = &box{inst: b.inst, info: info, outcome: is.outcome, seen: is.seen}
			}
			m.mu.Unlock()
		}
	}
	res.Info, res.Notice.Drift = b.info, drift(asked, b.info.Spec)
	return nil
}

// GetSandbox tells what is known and starts nothing. A session never seen has
// StatusPending, with the spec that would be used.
func (m *Manager) GetSandbox(ctx context.Context, key Key) (*Info, error) {
	ctx = withDeadline(ctx)
	inst, err := m.peek(ctx, key)
	if err == nil {
		var info Info
		if info, err = inst.Info(ctx); err == nil {
			return &info, nil
		}
	}
	if !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	spec := m.options.Defaults.Clone()
	if serverMade(ctx) && spec.AutoDelete == nil {
		spec.AutoDelete = ptr(ServerMadeAutoDelete)
	}
	spec = spec.WithDefaults(Spec{})
	spec.Resources = spec.Resources.within(m.options.Limits.Resources)
	spec.Network = networkOf(spec.Network, m.options.Limits.Network)
	spec.Name = string(key.Session)
	info, err := m.provider.Describe(ctx, spec)
	if err != nil {
		return nil, fmt.Errorf("describe a new sandbox: %w", err)
	}
	info.Key, info.Status, info.Spec, info.Mounts = key, StatusPending, spec, pendingMounts(spec)
	if info.Name == "" {
		info.Name = spec.Name
	}
	m.mu.Lock()
	if m.flights[key] != nil {
		info.Status = StatusStarting
	}
	m.mu.Unlock()
	return &info, nil
}

// ListSandboxes lists owner's sandboxes, oldest first; an empty owner lists
// all owners'. It starts nothing.
func (m *Manager) ListSandboxes(ctx context.Context, owner Owner, r ListRequest) (*ListResult, error) {
	var f faults
	f.labels(r.Labels)
	switch r.Status {
	case "", StatusPending, StatusStarting, StatusRunning, StatusStopping, StatusStopped, StatusArchiving,
		StatusArchived, StatusDestroying, StatusDestroyed, StatusError:
	default:
		f.add("status", fmt.Sprintf("there is no status %.40q", r.Status),
			"starting, running, stopping, stopped, archiving, archived, destroying, error", "")
	}
	if r.Limit < 0 || r.Limit > 200 {
		f.add("limit", fmt.Sprintf("%d does not fit", r.Limit), "1 to 200", "")
	}
	after, err := parseListCursor(r.Cursor)
	if err != nil {
		f = append(f, err)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if r.Limit == 0 {
		r.Limit = 50
	}
	infos, err := m.provider.List(ctx, owner)
	if err != nil {
		return nil, fmt.Errorf("list the sandboxes: %w", err)
	}
	res := &ListResult{}
	for _, i := range infos {
		if after != nil && compareInfo(i, *after) <= 0 || r.Status != "" && i.Status != r.Status || !hasLabels(i.Spec.Labels, r.Labels) {
			continue
		}
		if len(res.Sandboxes) == r.Limit {
			res.Next = listCursor(res.Sandboxes[r.Limit-1])
			break
		}
		res.Sandboxes = append(res.Sandboxes, i)
	}
	return res, nil
}

func hasLabels(have, want map[string]string) bool {
	for k, v := range want {
		if h, ok := have[k]; !ok || h != v {
			return false
		}
	}
	return true
}

func compareInfo(a, b Info) int {
	if c := a.Created.Compare(b.Created); c != 0 {
		return c
	}
	if c := strings.Compare(string(a.Key.Owner), string(b.Key.Owner)); c != 0 {
		return c
	}
	return strings.Compare(string(a.Key.Session), string(b.Key.Session))
}

// A list's cursor names the last sandbox shown, so that it holds when others
// come and go.
func listCursor(i Info) string {
	return base64.RawURLEncoding.EncodeToString([]byte(i.Created.UTC().Format(time.RFC3339Nano) + " " + string(i.Key.Session) + " " + string(i.Key.Owner)))
}

func parseListCursor(s string) (*Info, error) {
	if s == "" {
		return nil, nil
	}
	fault := &FieldError{Field: "cursor", Problem: fmt.Sprintf("%.40q is not from an earlier answer", s), Hint: "leave it out to begin anew"}
	raw, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, fault
	}
	parts := strings.SplitN(string(raw), " ", 3)
	if len(parts) != 3 {
		return nil, fault
	}
	at, err := time.Parse(time.RFC3339Nano, parts[0])
	if err != nil {
		return nil, fault
	}
	return &Info{Created: at, Key: Key{Session: SessionID(parts[1]), Owner: Owner(parts[2])}}, nil
}

// StopSandbox stops the sandbox and, if asked, archives it. Stopping one that
// is stopped does nothing. Work that takes longer than a call goes on; the
// status then tells it.
func (m *Manager) StopSandbox(ctx context.Context, key Key, archive bool) (*Info, error) {
	ctx = withDeadline(ctx)
	if err := m.landed(ctx, key); err != nil {
		return nil, err
	}
	inst, err := m.peek(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, noSession(key)
	}
	if err != nil {
		return nil, err
	}
	if info, err := inst.Info(ctx); err == nil && info.Status == StatusDestroyed {
		return &info, nil
	}
	packer, can := inst.(Archiver)
	if archive && !can {
		return nil, &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("the provider %s does not archive; leave archive out to stop the sandbox", m.provider.Name())}
	}
	m.forget(key, nil)
	err = m.detached(ctx, func(ctx context.Context) error {
		if err := inst.Stop(ctx); err != nil {
			return fmt.Errorf("stop the sandbox: %w", err)
		}
		if !archive {
			return nil
		}
		if info, err := inst.Info(ctx); err != nil || info.Status == StatusDestroyed {
			return err
		}
		if err := packer.Archive(ctx); err != nil {
			return fmt.Errorf("archive the sandbox: %w", err)
		}
		return nil
	})
	m.forget(key, nil)
	if err != nil && !errors.Is(err, errGoesOn) && !errors.Is(err, ErrNotFound) {
		return nil, err
	}
	info, ierr := inst.Info(ctx)
	if errors.Is(ierr, ErrNotFound) { // ephemeral, without a tombstone
		return &Info{Key: key, Status: StatusDestroyed}, nil
	}
	if ierr != nil {
		return nil, fmt.Errorf("read the sandbox: %w", ierr)
	}
	return &info, nil
}

// DestroySandbox deletes the sandbox, and says truly whether it could. It can
// be repeated; nothing there is no error.
func (m *Manager) DestroySandbox(ctx context.Context, key Key) (*DestroyResult, error) {
	ctx = withDeadline(ctx)
	if err := m.landed(ctx, key); err != nil {
		return nil, err
	}
	m.forget(key, nil)
	inst, err := m.peek(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return &DestroyResult{Freed: -1}, nil
	}
	if err != nil {
		return nil, err
	}
	res := &DestroyResult{Existed: true, Freed: -1, Status: StatusError}
	if info, err := inst.Info(ctx); err == nil {
		res.Status = info.Status
		if info.Usage != nil && info.Usage.Disk >= 0 {
			res.Freed = info.Usage.Disk
		}
	}
	if res.Status == StatusDestroyed {
		// Again all the same: an earlier attempt may have left something.
		res.Existed, res.Freed = false, -1
	}
	err = m.detached(ctx, inst.Destroy)
	m.forget(key, nil)
	if err == nil {
		m.mu.Lock()
		delete(m.inline, key)
		m.mu.Unlock()
	}
	switch {
	case errors.Is(err, errGoesOn):
		return nil, &UserError{Err: ErrStarting, Text: "the sandbox is still being destroyed; it goes on by itself, and the same call again waits on"}
	case err != nil && !errors.Is(err, ErrNotFound):
		return nil, fmt.Errorf("destroy the sandbox: %w", err)
	}
	return res, nil
}

var errGoesOn = errors.New("goes on by itself")

// detached runs work that a leaving caller does not end, and waits for it until
// the call must answer; then errGoesOn.
func (m *Manager) detached(ctx context.Context, work func(context.Context) error) error {
	m.mu.Lock()
	if m.closed {
		m.mu.Unlock()
		return ErrClosed
	}
	done := make(chan error, 1)
	m.wg.Go(func() { done <- work(m.ctx) })
	m.mu.Unlock()
	t := time.NewTimer(time.Until(callDeadline(ctx)))
	defer t.Stop()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return errGoesOn
	}
}

// landed waits for a start in progress, so that what follows acts on its
// sandbox and not beside it.
func (m *Manager) landed(ctx context.Context, key Key) error {
	m.mu.Lock()
	f := m.flights[key]
	m.mu.Unlock()
	if f == nil {
		return nil
	}
	t := time.NewTimer(time.Until(callDeadline(ctx)))
	defer t.Stop()
	select {
	case <-f.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return &UserError{Err: ErrStarting, Text: "the sandbox is still being started; try again"}
	}
}

func sayNoSession(err error, key Key) error {
	if errors.Is(err, errNeverSeen) {
		return noSession(key)
	}
	return err
}

// interpreters names what run_code can run there.
func interpreters(info Info) string {
	var names []string
	for l := range info.Runtimes {
		names = append(names, string(l))
	}
	slices.Sort(names)
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}
