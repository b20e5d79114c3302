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
	// From is the session whose files it holds, Image what its sandbox was made of.
	From  SessionID
	Image string
	// Digest identifies the content, "sha256:…"; Size is the bytes of its
	// files beside the default root or image.
	Digest string
	Size   int64
	// UsedBy are the sessions whose sandboxes were made of it.
	UsedBy []SessionID
}

var snapshotName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$`)

func (f *faults) snapshot(field, name string) {
	if !snapshotName.MatchString(name) {
		f.add(field, fmt.Sprintf("%.80q is not a snapshot's name", name), "1 to 63 characters: a letter or digit, then letters, digits, '.', '_' or '-'", "")
	}
}

// CreateSnapshot keeps the files of the key's sandbox, running or stopped, as
// they are at one moment, under a name to start others from. The sandbox goes
// on undisturbed.
func (m *Manager) CreateSnapshot(ctx context.Context, key Key, name string) (*SnapshotInfo, error) {
	ctx = withDeadline(ctx)
	var f faults
	f.snapshot("name", name)
	if err := f.err(); err != nil {
		return nil, err
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
			made, err = inst.(Snapshotter).Snapshot(ctx, name)
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

// ListSnapshots lists owner's snapshots by name, at most limit (0 = 50, at most
// 200), those after the name cursor.
func (m *Manager) ListSnapshots(ctx context.Context, owner Owner, limit int, cursor string) (*SnapshotList, error) {
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
	slices.SortFunc(all, func(a, b SnapshotInfo) int { return strings.Compare(a.Name, b.Name) })
	res := &SnapshotList{}
	for _, s := range all {
		if s.Name <= cursor {
			continue
		}
		if len(res.Snapshots) == limit {
			res.Next = res.Snapshots[limit-1].Name
			break
		}
		res.Snapshots = append(res.Snapshots, s)
	}
	return res, nil
}

// DeleteSnapshot removes a snapshot that no sandbox was made of.
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
