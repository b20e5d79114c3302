package daytona

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// failed tells that a snapshot came to nothing: its name is in use all the same.
func failed(s *api.Snapshot) bool {
	return s.State == api.SnapshotError || s.State == api.SnapshotFailed
}

// Snapshots lists what owner may start from: the owner's own snapshots and, of
// the account, everybody's.
func (p *Provider) Snapshots(ctx context.Context, owner sandbox.Owner) ([]sandbox.SnapshotInfo, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	list, err := at.Snapshots(ctx)
	if err != nil {
		return nil, p.fail("list the snapshots", err)
	}
	used, err := p.users(ctx, owner)
	if err != nil {
		return nil, err
	}
	own := map[string]bool{}
	var out []sandbox.SnapshotInfo
	for _, s := range list {
		if name, mine, _ := p.ownName(owner, s.Name); mine {
			own[name] = true
		}
	}
	for _, s := range list {
		name, mine, seen := p.ownName(owner, s.Name)
		if !seen || !mine && own[name] || failed(&s) || s.State == api.SnapshotRemoving || strings.HasPrefix(s.Name, passing) {
			continue
		}
		info := snapshotInfo(owner, name, &s)
		info.From, info.UsedBy = used.sessions[s.SourceID], used.snapshots[name]
		out = append(out, info)
	}
	slices.SortFunc(out, func(a, b sandbox.SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

func snapshotInfo(owner sandbox.Owner, name string, s *api.Snapshot) sandbox.SnapshotInfo {
	info := sandbox.SnapshotInfo{Owner: owner, Name: name, Created: s.Created, State: sandbox.SnapshotActive, Image: s.Image, Digest: cmp.Or(s.Ref, "id:"+s.ID)}
	if s.State != api.SnapshotActive && s.State != api.SnapshotInactive {
		info.State = sandbox.SnapshotBuilding
	}
	if s.Size != nil {
		info.Size = int64(*s.Size * 1e9)
	}
	if s.Build != nil {
		info.Built = true
		if first, _, _ := strings.Cut(withoutMark(s.Build.Dockerfile), "\n"); strings.HasPrefix(first, "FROM ") {
			info.Image = strings.TrimPrefix(first, "FROM ")
		}
		if d := markOf(s.Build.Dockerfile); d != "" {
			info.Digest = d
		}
	}
	return info
}

// usableSnapshot finds what owner calls name, and wakes it when the platform put
// it aside.
func (p *Provider) usableSnapshot(ctx context.Context, owner sandbox.Owner, name string) (*api.Snapshot, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	s, err := p.snapshot(ctx, owner, name)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil, &sandbox.FieldError{Field: "snapshot", Problem: fmt.Sprintf("there is no snapshot %s", name), Hint: "list_snapshots shows those there are, create_snapshot makes one"}
	}
	if err != nil {
		return nil, err
	}
	end := p.now().Add(p.o.Times.Create)
	for wait := p.o.Times.Look / 8; s.State != api.SnapshotActive; wait = min(2*wait, p.o.Times.Look) {
		switch {
		case failed(s):
			return nil, &sandbox.FieldError{Field: "snapshot", Problem: fmt.Sprintf("snapshot %s is broken at Daytona: %s", name, cmp.Or(s.Reason, string(s.State))), Hint: "delete_snapshot removes it"}
		case s.State == api.SnapshotInactive:
			if err := at.ActivateSnapshot(ctx, s.ID); err != nil {
				return nil, p.fail("activate snapshot "+name, err)
			}
		case p.now().After(end):
			return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf("snapshot %s is still %s at Daytona; make the same call again later", name, s.State)}
		}
		sandbox.Report(ctx, sandbox.Progress{Text: fmt.Sprintf("Daytona: snapshot %s is %s", name, s.State)})
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
		id := s.ID
		if s, err = at.Snapshot(ctx, id); err != nil {
			return nil, p.fail("look at snapshot "+name, err)
		}
	}
	return s, nil
}

// snapshot finds what owner calls name: the owner's own, or else the account's.
func (p *Provider) snapshot(ctx context.Context, owner sandbox.Owner, name string) (*api.Snapshot, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	tries := []string{p.prefixOf(owner) + name, name}
	if tries[0] == name || tenant.MatchString(name) {
		tries = tries[:1]
	}
	for _, full := range tries {
		s, err := at.Snapshot(ctx, full)
		if _, _, seen := p.ownName(owner, full); err == nil && seen && s.State != api.SnapshotRemoving {
			return s, nil
		}
		if err != nil && !errors.Is(err, api.ErrNotFound) {
			return nil, p.fail("look for snapshot "+name, err)
		}
	}
	return nil, sandbox.ErrNotFound
}

// Snapshot keeps its files under a name.
func (i *Instance) Snapshot(ctx context.Context, name string) (sandbox.SnapshotInfo, error) {
	full := i.p.prefixOf(i.key.Owner) + name
	if err := i.p.vacate(ctx, full); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	s, err := i.snapshotAs(ctx, full)
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	info := snapshotInfo(i.key.Owner, name, s)
	info.From = i.key.Session
	return info, nil
}

// vacate makes sure that a name of a snapshot is free: ErrExists, unless what has
// it came to nothing.
func (p *Provider) vacate(ctx context.Context, full string) error {
	at, err := p.at()
	if err != nil {
		return err
	}
	s, err := at.Snapshot(ctx, full)
	switch {
	case errors.Is(err, api.ErrNotFound):
		return nil
	case err != nil:
		return p.fail("look for the snapshot", err)
	case failed(s):
		return p.remove(ctx, s)
	case s.State == api.SnapshotRemoving:
		return p.removed(ctx, full)
	}
	return sandbox.ErrExists
}

// remove deletes a snapshot and waits until its name is free.
func (p *Provider) remove(ctx context.Context, s *api.Snapshot) error {
	at, err := p.at()
	if err != nil {
		return err
	}
	if err := at.DeleteSnapshot(ctx, s.ID); err != nil && !errors.Is(err, api.ErrNotFound) {
		return p.fail("delete the snapshot", err)
	}
	return p.removed(ctx, s.Name)
}

func (p *Provider) removed(ctx context.Context, full string) error {
	at, err := p.at()
	if err != nil {
		return err
	}
	end := p.now().Add(p.o.Times.Change)
	for wait := p.o.Times.Look / 8; ; wait = min(2*wait, p.o.Times.Look) {
		switch _, err := at.Snapshot(ctx, full); {
		case errors.Is(err, api.ErrNotFound):
			return nil
		case err != nil:
			return p.fail("look at the snapshot", err)
		case p.now().After(end):
			return &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona has not deleted the snapshot yet; list_snapshots shows when it is gone"}
		}
		if err := pause(ctx, wait); err != nil {
			return err
		}
	}
}

// snapshotAs has the platform make a snapshot of the sandbox. Whether one came
// about is told by its name alone: a failure leaves no trace but that.
func (i *Instance) snapshotAs(ctx context.Context, full string) (*api.Snapshot, error) {
	at, err := i.p.at()
	if err != nil {
		return nil, err
	}
	end := i.p.now().Add(i.p.o.Times.Build)
	asked := false
	var settledAt int // looks in which the sandbox was at rest and no snapshot there
	for wait := i.p.o.Times.Look / 8; ; wait = min(2*wait, i.p.o.Times.Look) {
		sb, err := i.look(ctx)
		if err != nil {
			return nil, err
		}
		if !asked && settled(sb.State) {
			switch err := at.SnapshotOf(ctx, i.id, full); {
			case err == nil, errors.Is(err, api.ErrMaybeDone):
				asked = true
			case errors.Is(err, api.ErrConflict): // the name, or a change in progress
				if verr := i.p.vacate(ctx, full); verr != nil {
					return nil, verr
				}
			default:
				return nil, i.p.fail("make the snapshot", err)
			}
		}
		if asked {
			s, err := at.Snapshot(ctx, full)
			switch {
			case err == nil && s.State == api.SnapshotActive:
				return s, nil
			case err == nil && failed(s):
				_ = i.p.remove(context.WithoutCancel(ctx), s) // the next attempt removes it else
				return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona could not make the snapshot: " + cmp.Or(s.Reason, string(s.State))}
			case err == nil:
				settledAt = 0
			case !errors.Is(err, api.ErrNotFound):
				return nil, i.p.fail("look for the snapshot", err)
			case settled(sb.State):
				if settledAt++; settledAt > 10 {
					return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona made no snapshot of the sandbox and gives no reason; make the same call again"}
				}
			}
		}
		if i.p.now().After(end) {
			return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf("Daytona has not finished the snapshot yet (the sandbox is %s); list_snapshots shows it when it is there", sb.State)}
		}
		sandbox.Report(ctx, sandbox.Progress{Text: "Daytona: the sandbox is " + string(sb.State)})
		if err := pause(ctx, wait); err != nil {
			return nil, err
		}
	}
}

// DeleteSnapshot removes an owner's snapshot that no sandbox was made of.
func (p *Provider) DeleteSnapshot(ctx context.Context, owner sandbox.Owner, name string) error {
	at, err := p.at()
	if err != nil {
		return err
	}
	if p.prefixOf(owner) == "" && tenant.MatchString(name) {
		return sandbox.ErrNotFound // another's
	}
	s, err := at.Snapshot(ctx, p.prefixOf(owner)+name)
	switch {
	case errors.Is(err, api.ErrNotFound):
		return sandbox.ErrNotFound
	case err != nil:
		return p.fail("look for snapshot "+name, err)
	case s.General:
		return &sandbox.UserError{Text: fmt.Sprintf("snapshot %s is Daytona's own and cannot be deleted", name)}
	}
	used, err := p.users(ctx, owner)
	if err != nil {
		return err
	}
	if list := used.snapshots[name]; len(list) > 0 {
		return &sandbox.UserError{Err: sandbox.ErrLimit, Text: fmt.Sprintf("the sandboxes of sessions %s were made of snapshot %s; destroy_sandbox them first", join(list), name)}
	}
	return p.remove(ctx, s)
}

// passing is how the names of snapshots begin that are there for a moment only,
// on the way to a fork.
const passing = "berth-fork-"

// Fork makes another sandbox of its files: by the platform where the sandbox'
// class can be forked, else by way of a snapshot, which is removed again.
func (i *Instance) Fork(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	at, err := i.p.at()
	if err != nil {
		return nil, err
	}
	from, err := i.look(ctx)
	if err != nil {
		return nil, err
	}
	switch _, err := i.p.find(ctx, key); {
	case err == nil:
		return nil, sandbox.ErrExists
	case !errors.Is(err, sandbox.ErrNotFound):
		return nil, err
	}
	made := strings.ToLower(rand.Text())
	n, err := i.p.plan(ctx, key, withoutSource(spec), made)
	if err != nil {
		return nil, err
	}
	labels, err := i.p.labels(key, spec, made, false)
	if err == nil {
		err = putAdded(labels, added(from.Labels))
	}
	if err != nil {
		return nil, err
	}
	n.Labels = labels
	sb, err := i.forkAs(ctx, key, n.Name)
	switch {
	case err == nil:
		return i.p.forked(ctx, key, sb, spec, labels)
	case errors.Is(err, api.ErrMaybeDone):
		if sb, err = at.Sandbox(context.WithoutCancel(ctx), n.Name); err == nil {
			return i.p.forked(ctx, key, sb, spec, labels)
		}
		return nil, i.p.fail("fork the sandbox", err)
	case errors.Is(err, sandbox.ErrExists):
		return nil, sandbox.ErrExists
	case !cannotFork(err):
		return nil, i.p.fail("fork the sandbox", err)
	}
	temp := passing + strings.ToLower(rand.Text())[:16]
	s, err := i.snapshotAs(ctx, temp)
	if err != nil {
		return nil, err
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), i.p.o.Times.Change)
		defer cancel()
		_ = i.p.remove(ctx, s) // Sweep finds what is left
	}()
	n.Snapshot, n.Build, n.CPU, n.Memory, n.Disk = temp, nil, 0, 0, 0
	return i.p.make(ctx, key, withoutSource(spec), n, made)
}

// forkAs has the platform fork the sandbox, once nothing else changes it: another
// fork, say. ErrExists when the key has a sandbox meanwhile.
func (i *Instance) forkAs(ctx context.Context, key sandbox.Key, name string) (*api.Sandbox, error) {
	at, err := i.p.at()
	if err != nil {
		return nil, err
	}
	end := i.p.now().Add(i.p.o.Times.Change)
	for wait := i.p.o.Times.Look / 8; ; wait = min(2*wait, i.p.o.Times.Look) {
		sb, err := at.Fork(ctx, i.id, name)
		if !errors.Is(err, api.ErrConflict) || i.p.now().After(end) {
			return sb, err
		}
		switch _, ferr := i.p.find(ctx, key); {
		case ferr == nil:
			return nil, sandbox.ErrExists
		case !errors.Is(ferr, sandbox.ErrNotFound):
			return nil, ferr
		}
		if perr := pause(ctx, wait); perr != nil {
			return nil, err
		}
	}
}

// withoutSource is spec without what its files come from.
func withoutSource(spec sandbox.Spec) sandbox.Spec {
	spec = spec.Clone()
	spec.Image, spec.Snapshot = "", ""
	return spec
}

// cannotFork tells that the platform does not fork sandboxes of this class, or
// none at all.
func cannotFork(err error) bool {
	var e *api.Error
	if !errors.As(err, &e) {
		return false
	}
	switch e.Status {
	case 400, 404, 405, 422, 501:
		return true
	}
	return false
}

// forked waits for a fork that the platform made, and makes it the key's.
func (p *Provider) forked(ctx context.Context, key sandbox.Key, sb *api.Sandbox, spec sandbox.Spec, labels map[string]string) (sandbox.Instance, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	p.note(sb.ID)
	i := p.instance(key, sb)
	if err := at.SetLabels(ctx, sb.ID, labels); err != nil {
		return nil, p.undo(ctx, i, p.fail("keep the session's settings", err))
	}
	if sb, err = p.await(ctx, i, withoutSource(spec)); err != nil {
		return nil, err
	}
	if err := i.Update(ctx, spec); err != nil {
		return nil, p.undo(ctx, i, err)
	}
	if err := i.settle(ctx, sb); err != nil {
		return nil, p.undo(ctx, i, err)
	}
	p.learn(ctx, sb)
	i.fresh = nil
	return i, nil
}
