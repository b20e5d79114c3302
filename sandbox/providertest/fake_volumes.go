//go:build unix

package providertest

import (
	"cmp"
	"context"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/sandbox"
)

var (
	_ sandbox.VolumeLister  = (*Fake)(nil)
	_ sandbox.VolumeDeleter = (*Fake)(nil)
)

// fakeVolume is a directory beside the sandboxes' roots.
type fakeVolume struct {
	owner   sandbox.Owner
	name    string
	dir     string
	created time.Time
}

// attach makes the volumes of b's spec, and a link to each where it is attached.
// Nothing is ever read-only. s.mu is held.
func (s *fakeStore) attach(b *fakeBox) error {
	for _, m := range b.spec.Volumes {
		i := slices.IndexFunc(s.volumes, func(v fakeVolume) bool { return v.owner == b.key.Owner && v.name == m.Volume })
		if i < 0 {
			i = len(s.volumes)
			dir := filepath.Join(s.dir, "volume-"+hex.EncodeToString([]byte(b.key.Owner))+"-"+m.Volume)
			s.volumes = append(s.volumes, fakeVolume{b.key.Owner, m.Volume, dir, s.options.Now()})
		}
		dir, at := filepath.Join(s.volumes[i].dir, m.Subpath), b.host(m.Path)
		for _, d := range []string{dir, filepath.Dir(at)} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		_ = os.Remove(at) // what a copy has brought along
		if err := os.Symlink(dir, at); err != nil {
			return err
		}
	}
	return nil
}

// Volumes lists owner's volumes.
func (f *Fake) Volumes(ctx context.Context, owner sandbox.Owner) ([]sandbox.Volume, error) {
	infos, err := f.List(ctx, owner)
	if err != nil {
		return nil, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	var list []sandbox.Volume
	for _, v := range f.store.volumes {
		if owner != "" && v.owner != owner {
			continue
		}
		out := sandbox.Volume{Owner: v.owner, Name: v.name, Created: v.created, Size: -1}
		for _, i := range infos {
			if i.Key.Owner == v.owner && slices.ContainsFunc(i.Spec.Volumes, func(m sandbox.VolumeMount) bool { return m.Volume == v.name }) {
				out.UsedBy = append(out.UsedBy, i.Key.Session)
			}
		}
		list = append(list, out)
	}
	slices.SortFunc(list, func(a, b sandbox.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// DeleteVolume removes a volume that no sandbox has.
func (f *Fake) DeleteVolume(ctx context.Context, owner sandbox.Owner, name string) error {
	list, err := f.Volumes(ctx, owner)
	if err != nil {
		return err
	}
	i := slices.IndexFunc(list, func(v sandbox.Volume) bool { return v.Name == name })
	switch {
	case i < 0:
		return sandbox.ErrNotFound
	case len(list[i].UsedBy) > 0:
		return &sandbox.UserError{Err: sandbox.ErrLimit, Text: fmt.Sprintf("the volume %s is attached to %v", name, list[i].UsedBy)}
	}
	s := f.store
	s.mu.Lock()
	defer s.mu.Unlock()
	i = slices.IndexFunc(s.volumes, func(v fakeVolume) bool { return v.owner == owner && v.name == name })
	if i < 0 {
		return sandbox.ErrNotFound
	}
	dir := s.volumes[i].dir
	s.volumes = slices.Delete(s.volumes, i, i+1)
	return os.RemoveAll(dir)
}
