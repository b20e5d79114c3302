package sandbox

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// SnapshotInfo describes a snapshot. Its name is its owner's: another owner's
// may be the same.
type SnapshotInfo struct {
	Owner   Owner
	Name    string
	Created time.Time
	// State is active, or building while one of this name is being built.
	State SnapshotState
	// From is the session whose files it holds, Image what its sandbox was
	// made of. Of one that was built, From is empty and Image what FROM says.
	From  SessionID
	Image string
	// Built tells that it was built, Labels are those that the build gave it.
	Built  bool
	Labels map[string]string
	// Log is the end of the build's log, for who built it or asks for it by name.
	Log string
	// Digest identifies the content, "sha256:…"; Size is the bytes of its
	// files beside the default root or image.
	Digest string
	Size   int64
	// UsedBy are the sessions whose sandboxes were made of it.
	UsedBy []SessionID
}

// SnapshotState is where a snapshot is in its life.
type SnapshotState string

// The states of snapshots.
const (
	SnapshotActive   SnapshotState = "active"
	SnapshotBuilding SnapshotState = "building"
)

// PrunedBuilds is what PruneBuilds removed.
type PrunedBuilds struct {
	Steps int
	Bytes int64
}

// SnapshotRequest of CreateSnapshot.
type SnapshotRequest struct {
	Name string
	// Build is what makes it; nil: it keeps the files of the key's sandbox.
	Build *Build
}

var snapshotName = pattern{63, regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)}

func (f *faults) snapshot(field, name string) {
	if !snapshotName.matches(name) {
		f.add(field, fmt.Sprintf("%.80q is not a snapshot's name", name), "1 to 63 characters: a letter or digit, then letters, digits, '.', '_' or '-'", "")
	}
}

// CreateSnapshot keeps the files of the key's sandbox, running or stopped, as
// they are at one moment, under a name to start others from; the sandbox goes
// on undisturbed. Or it builds a snapshot, for which only the key's owner
// counts; a build goes on without its caller, and the same call again waits on.
func (m *Manager) CreateSnapshot(ctx context.Context, key Key, r SnapshotRequest) (*SnapshotInfo, error) {
	ctx = withDeadline(ctx)
	name := r.Name
	var f faults
	f.snapshot("name", name)
	if r.Build != nil {
		f.build(r.Build)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if r.Build != nil {
		return m.buildSnapshot(ctx, key.Owner, name, *r.Build)
	}
	inst, err := m.peek(ctx, key)
	if errors.Is(err, ErrNotFound) {
		return nil, noSession(key)
	}
	if err != nil {
		return nil, err
	}
	if _, ok := inst.(Snapshotter); !ok {
		return nil, m.noSnapshots()
	}
	var made SnapshotInfo
	err = m.detached(ctx, func(ctx context.Context) error {
		back, err := m.holdBack(ctx, key)
		if err != nil {
			return err
		}
		defer back()
		inst, err := m.provider.Lookup(ctx, key)
		if err == nil {
			if made, err = inst.(Snapshotter).Snapshot(ctx, name); err == nil {
				m.restored(ctx, key, inst)
			}
		}
		return err
	})
	switch {
	case errors.Is(err, errGoesOn):
		return nil, &UserError{Err: ErrStarting, Text: "the snapshot is still being made; it goes on by itself, and list_snapshots shows it when it is there"}
	case errors.Is(err, ErrExists):
		return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("there is a snapshot %s already", name), Allowed: "a new name", Hint: "snapshots never change; delete_snapshot removes one"}
	case errors.Is(err, ErrNotFound):
		return nil, noSession(key)
	case err != nil:
		return nil, fmt.Errorf("create the snapshot: %w", err)
	}
	return &made, nil
}

func (m *Manager) noSnapshots() error {
	return &UserError{Err: ErrUnsupported, Text: "provider " + m.provider.Name() + " has no snapshots"}
}

// SnapshotList is the answer of ListSnapshots.
type SnapshotList struct {
	Snapshots []SnapshotInfo
	Next      string // "" at the end
}

// SnapshotListRequest of ListSnapshots.
type SnapshotListRequest struct {
	From   SessionID // only those made from that session's sandbox; "": all
	Name   string    // only this one, with its log; "": all
	Limit  int       // 0 = 50, at most 200
	Cursor string    // from SnapshotList.Next
}

// ListSnapshots lists owner's snapshots by name, those that are being built too.
func (m *Manager) ListSnapshots(ctx context.Context, owner Owner, r SnapshotListRequest) (*SnapshotList, error) {
	limit, cursor := r.Limit, r.Cursor
	k, ok := m.provider.(SnapshotKeeper)
	if !ok {
		return nil, m.noSnapshots()
	}
	var f faults
	if limit < 0 || limit > 200 {
		f.add("limit", fmt.Sprintf("%d does not fit", limit), "1 to 200", "")
	}
	if cursor != "" {
		f.snapshot("cursor", cursor)
	}
	if r.Name != "" {
		f.snapshot("name", r.Name)
	}
	if err := f.err(); err != nil {
		return nil, err
	}
	if limit == 0 {
		limit = 50
	}
	all, err := k.Snapshots(ctx, owner)
	if err != nil {
		return nil, fmt.Errorf("list the snapshots: %w", err)
	}
	all = m.withBuilding(owner, all)
	slices.SortFunc(all, func(a, b SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	res := &SnapshotList{}
	for _, s := range all {
		if s.Name <= cursor || r.From != "" && s.From != r.From || r.Name != "" && s.Name != r.Name {
			continue
		}
		if len(res.Snapshots) == limit {
			res.Next = res.Snapshots[limit-1].Name
			break
		}
		res.Snapshots = append(res.Snapshots, s)
	}
	if r.Name == "" {
		return res, nil
	}
	if len(res.Snapshots) == 0 {
		// The log of a failed build is all that is left of it.
		text, err := m.buildLog(ctx, owner, r.Name)
		if err != nil || text == "" {
			return res, err
		}
		return nil, &FieldError{Field: "name", Problem: fmt.Sprintf("there is no snapshot %s; the end of the log of its last build, which failed:\n%s", r.Name, text)}
	}
	res.Snapshots[0].Log, err = m.buildLog(ctx, owner, r.Name)
	return res, err
}

// DeleteSnapshot removes a snapshot that no sandbox was made of. One that is
// being built is not built on.
func (m *Manager) DeleteSnapshot(ctx context.Context, owner Owner, name string) error {
	k, ok := m.provider.(SnapshotKeeper)
	if !ok {
		return m.noSnapshots()
	}
	var f faults
	f.snapshot("name", name)
	if err := f.err(); err != nil {
		return err
	}
	if m.stopBuild(ctx, owner, name) {
		return nil
	}
	err := k.DeleteSnapshot(ctx, owner, name)
	if errors.Is(err, ErrNotFound) {
		return &FieldError{Field: "name", Problem: fmt.Sprintf("there is no snapshot %s", name), Hint: "list_snapshots shows those there are"}
	}
	return err
}

// checkSnapshot refuses a snapshot that is not there, before anything is made.
func (m *Manager) checkSnapshot(ctx context.Context, owner Owner, name string) error {
	if name == "" {
		return nil
	}
	k, ok := m.provider.(SnapshotKeeper)
	if !ok {
		return m.noSnapshots()
	}
	all, err := k.Snapshots(ctx, owner)
	if err != nil {
		return fmt.Errorf("list the snapshots: %w", err)
	}
	if !slices.ContainsFunc(all, func(s SnapshotInfo) bool { return s.Name == name }) {
		return &FieldError{Field: "snapshot", Problem: fmt.Sprintf("there is no snapshot %s", name), Hint: "list_snapshots shows those there are, create_snapshot makes one"}
	}
	return nil
}
