//go:build unix

package providertest

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"berth/sandbox"
)

var (
	_ sandbox.Snapshotter    = (*fakeInstance)(nil)
	_ sandbox.SnapshotKeeper = (*Fake)(nil)
)

// fakeSnapshot is a copy of a sandbox's root.
type fakeSnapshot struct {
	sandbox.SnapshotInfo
	dir     string
	account string // as a spec has it
}

// accountOf is the ordinary user of a sandbox.
func accountOf(s sandbox.Spec) string { return cmp.Or(s.Account, sandbox.DefaultAccount) }

// copyRoot copies while processes run: files may go before their turn.
func copyRoot(ctx context.Context, from, to string) error {
	cmd := exec.CommandContext(ctx, "cp", "-a", from+"/.", to)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	out, err := cmd.CombinedOutput()
	for line := range strings.Lines(string(out)) {
		if !strings.HasSuffix(line, ": No such file or directory\n") {
			return fmt.Errorf("copy: %w: %s", err, out)
		}
	}
	if _, ok := errors.AsType[*exec.ExitError](err); ok && len(out) > 0 {
		return nil
	}
	return err
}

// snapshot finds one by its name; s.mu is held.
func (s *fakeStore) snapshot(owner sandbox.Owner, name string) int {
	return slices.IndexFunc(s.snapshots, func(x fakeSnapshot) bool { return x.Owner == owner && x.Name == name })
}

// Snapshot copies the files; the fake cannot hold processes still.
func (i *fakeInstance) Snapshot(ctx context.Context, name string) (sandbox.SnapshotInfo, error) {
	if err := i.provider.usable(ctx); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	info := i.box.info()
	if info.Status == sandbox.StatusDestroyed || info.Status == sandbox.StatusDestroying {
		return sandbox.SnapshotInfo{}, sandbox.ErrNotFound
	}
	s := i.box.store
	dir, err := os.MkdirTemp(s.dir, "snapshot-")
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	err = copyRoot(ctx, i.box.root, dir)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.snapshot(i.box.key.Owner, name) >= 0 {
		err = sandbox.ErrExists
	}
	if err != nil {
		return sandbox.SnapshotInfo{}, errors.Join(err, os.RemoveAll(dir))
	}
	made := sandbox.SnapshotInfo{Owner: i.box.key.Owner, Name: name, Created: s.options.Now(), State: sandbox.SnapshotActive, From: i.box.key.Session, Image: info.Spec.Image,
		Digest: fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(dir)))}
	s.snapshots = append(s.snapshots, fakeSnapshot{made, dir, info.Spec.Account})
	return made, nil
}

// Snapshots lists owner's, or all.
func (f *Fake) Snapshots(ctx context.Context, owner sandbox.Owner) ([]sandbox.SnapshotInfo, error) {
	infos, err := f.List(ctx, owner)
	if err != nil {
		return nil, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	var list []sandbox.SnapshotInfo
	for _, x := range f.store.snapshots {
		if owner != "" && x.Owner != owner {
			continue
		}
		out := x.SnapshotInfo
		for _, i := range infos {
			if i.Key.Owner == x.Owner && i.Spec.Snapshot == x.Name {
				out.UsedBy = append(out.UsedBy, i.Key.Session)
			}
		}
		list = append(list, out)
	}
	return list, nil
}

// DeleteSnapshot removes one that no sandbox was made of.
func (f *Fake) DeleteSnapshot(ctx context.Context, owner sandbox.Owner, name string) error {
	list, err := f.Snapshots(ctx, owner)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(x sandbox.SnapshotInfo) bool { return x.Owner == owner && x.Name == name })
	switch {
	case i < 0:
		return sandbox.ErrNotFound
	case len(list[i].UsedBy) > 0:
		return &sandbox.UserError{Err: sandbox.ErrLimit, Text: fmt.Sprintf("the snapshot %s is in use by the sandboxes of %v", name, list[i].UsedBy)}
	}
	s := f.store
	s.mu.Lock()
	defer s.mu.Unlock()
	if i = s.snapshot(owner, name); i < 0 {
		return sandbox.ErrNotFound
	}
	dir := s.snapshots[i].dir
	s.snapshots = slices.Delete(s.snapshots, i, i+1)
	return os.RemoveAll(dir)
}

// fill gives a new sandbox the files that it begins with; s.mu is held.
func (s *fakeStore) fill(ctx context.Context, b *fakeBox) error {
	if name := b.spec.Snapshot; name != "" {
		i := s.snapshot(b.key.Owner, name)
		if i < 0 {
			return &sandbox.FieldError{Field: "snapshot", Problem: "there is no snapshot " + name}
		}
		if err := copyRoot(ctx, s.snapshots[i].dir, b.root); err != nil {
			return err
		}
		b.spec.Account = s.snapshots[i].account
		b.home = filepath.Join(b.root, "home", accountOf(b.spec))
	}
	for _, d := range []string{b.home, filepath.Join(b.root, "tmp"), filepath.Join(b.root, "workspace"), filepath.Join(b.root, "etc")} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	return s.attach(b)
}
