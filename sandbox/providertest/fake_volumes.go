//go:build unix

package providertest

import (
	"cmp"
	"context"
	"fmt"
	"slices"

	"berth/sandbox"
)

var (
	_ sandbox.VolumeLister  = (*Fake)(nil)
	_ sandbox.VolumeDeleter = (*Fake)(nil)
)

// Volumes lists the volumes that sandboxes were made with. The fake keeps
// their names; it attaches nothing.
func (f *Fake) Volumes(ctx context.Context, owner sandbox.Owner) ([]sandbox.Volume, error) {
	if err := f.usable(ctx); err != nil {
		return nil, err
	}
	infos, err := f.List(ctx, owner)
	if err != nil {
		return nil, err
	}
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	for _, i := range infos {
		if i.Key.Owner != owner {
			continue
		}
		for _, v := range i.Spec.Volumes {
			if f.store.volumes == nil {
				f.store.volumes = map[sandbox.Key]bool{}
			}
			f.store.volumes[sandbox.Key{Owner: owner, Session: sandbox.SessionID(v.Volume)}] = true
		}
	}
	var list []sandbox.Volume
	for k := range f.store.volumes {
		if k.Owner != owner {
			continue
		}
		v := sandbox.Volume{Name: string(k.Session), Created: f.store.options.Now(), Size: -1}
		for _, i := range infos {
			if slices.ContainsFunc(i.Spec.Volumes, func(m sandbox.VolumeMount) bool { return m.Volume == v.Name }) {
				v.UsedBy = append(v.UsedBy, i.Key.Session)
			}
		}
		list = append(list, v)
	}
	slices.SortFunc(list, func(a, b sandbox.Volume) int { return cmp.Compare(a.Name, b.Name) })
	return list, nil
}

// DeleteVolume forgets a name.
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
	f.store.mu.Lock()
	defer f.store.mu.Unlock()
	delete(f.store.volumes, sandbox.Key{Owner: owner, Session: sandbox.SessionID(name)})
	return nil
}
