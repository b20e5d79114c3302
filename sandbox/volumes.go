package sandbox

import (
	"context"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strings"
	"time"
)

// subpath tells whether s can name a directory below another.
func subpath(s string) bool {
	long := slices.ContainsFunc(strings.Split(s, "/"), func(name string) bool { return len(name) > 255 })
	return plainPath(s) && !path.IsAbs(s) && path.Clean(s) == s && s != "." && s != ".." && !strings.HasPrefix(s, "../") && !long
}

// MaxVolumes bounds what one sandbox has attached.
const MaxVolumes = 32

// VolumeMount attaches a volume, a named directory that outlives sandboxes, to
// a place inside. The volume is made at its first use; it is its owner's.
type VolumeMount struct {
	Volume string // [a-z0-9][a-z0-9-]{0,62}
	Path   string // absolute
	// Subpath is a directory in the volume, made when it is missing; "": all.
	Subpath  string
	ReadOnly bool
}

// Volume is a named directory of an owner.
type Volume struct {
	Owner   Owner
	Name    string
	Created time.Time
	Size    int64 // bytes; negative: not known
	// UsedBy are the sandboxes that have it attached, running or not.
	UsedBy []SessionID
}

var volumeName = pattern{63, regexp.MustCompile(`^[a-z0-9][a-z0-9-]*$`)}

// systemPlaces make the sandbox; nothing is attached over them.
var systemPlaces = []string{"/", "/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc", "/tmp", "/var", "/run", "/root", "/home", "/boot"}

// systemTrees neither, nor anything in them.
var systemTrees = []string{"/proc", "/sys", "/dev", "/run/berth"}

func (f *faults) volumes(list []VolumeMount) {
	if len(list) > MaxVolumes {
		f.add("volumes", fmt.Sprintf("there are %d", len(list)), fmt.Sprintf("at most %d", MaxVolumes), "")
		return
	}
	for i, v := range list {
		key := fmt.Sprintf("volumes[%d].", i)
		if !volumeName.matches(v.Volume) {
			f.add(key+"volume", fmt.Sprintf("%.80q is not a volume's name", v.Volume), "1 to 63 lower-case letters, digits and '-', the first a letter or digit", "")
		}
		f.place(key+"path", v.Path)
		if s := v.Subpath; s != "" && !subpath(s) {
			f.add(key+"subpath", fmt.Sprintf("%.80q is not a path in the volume", s), "a relative path without '.' and '..', of names of at most 255 bytes, such as data/raw", "")
		}
		for j, o := range list[:i] {
			if overlap(v.Path, o.Path) {
				f.add(key+"path", fmt.Sprintf("%.80q and volumes[%d].path %.80q lie in each other", v.Path, j, o.Path), "places apart", "")
				break
			}
		}
	}
}

// overlap tells whether one of two absolute paths is the other or lies in it.
func overlap(a, b string) bool {
	a, b = path.Clean(a), path.Clean(b)
	return a == b || strings.HasPrefix(a, b+"/") || strings.HasPrefix(b, a+"/")
}

// place checks where something can be attached.
func (f *faults) place(key, at string) {
	p := path.Clean(at)
	switch {
	case !path.IsAbs(at) || !plainPath(at):
		f.add(key, fmt.Sprintf("%.80q cannot be a place inside", at), "an absolute path of at most 4,096 bytes, such as /data", "")
		return
	}
	for _, s := range systemPlaces {
		if p == s {
			f.add(key, p+" belongs to the system", "a directory of its own, such as /data", "")
			return
		}
	}
	for _, s := range systemTrees {
		if p == s || strings.HasPrefix(p, s+"/") {
			f.add(key, p+" belongs to the system: nothing is attached in "+s, "a directory of its own, such as /data", "")
			return
		}
	}
}

// HasVolumes tells whether the provider has volumes at all.
func (m *Manager) HasVolumes() bool {
	_, lists := m.provider.(VolumeLister)
	_, deletes := m.provider.(VolumeDeleter)
	return lists && deletes
}

// ListVolumes lists an owner's volumes by name.
func (m *Manager) ListVolumes(ctx context.Context, owner Owner) ([]Volume, error) {
	l, can := m.provider.(VolumeLister)
	if !can {
		return nil, m.noVolumes()
	}
	list, err := l.Volumes(ctx, owner)
	if err != nil {
		return nil, fmt.Errorf("list the volumes: %w", err)
	}
	return list, nil
}

// DeleteVolume deletes a volume with all that is in it, unless a sandbox has it
// attached.
func (m *Manager) DeleteVolume(ctx context.Context, owner Owner, name string) error {
	ctx = withDeadline(ctx)
	if !volumeName.matches(name) {
		return &FieldError{Field: "volume", Problem: fmt.Sprintf("%.80q is not a volume's name", name), Allowed: "1 to 63 lower-case letters, digits and '-', the first a letter or digit"}
	}
	d, can := m.provider.(VolumeDeleter)
	if !can {
		return m.noVolumes()
	}
	err := m.detached(ctx, func(ctx context.Context) error { return d.DeleteVolume(ctx, owner, name) })
	switch {
	case errors.Is(err, errGoesOn):
		return &UserError{Err: ErrStarting, Text: "the volume is still being deleted; it goes on by itself"}
	case errors.Is(err, ErrNotFound):
		return &UserError{Err: ErrNotFound, Text: fmt.Sprintf("there is no volume %s; list_volumes shows those there are", name)}
	}
	return err
}

func (m *Manager) noVolumes() error {
	return &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("the provider %s has no volumes", m.provider.Name())}
}
