//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

var (
	_ sandbox.VolumeLister  = (*Provider)(nil)
	_ sandbox.VolumeDeleter = (*Provider)(nil)
)

// volumeRecord is a sandbox.VolumeMount in a sandbox's record.
type volumeRecord struct {
	Volume   string `json:"volume"`
	Path     string `json:"path"`
	Subpath  string `json:"subpath,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
}

func fromVolumes(list []sandbox.VolumeMount) []volumeRecord {
	var out []volumeRecord
	for _, v := range list {
		out = append(out, volumeRecord(v))
	}
	return out
}

func toVolumes(list []volumeRecord) []sandbox.VolumeMount {
	var out []sandbox.VolumeMount
	for _, v := range list {
		out = append(out, sandbox.VolumeMount(v))
	}
	return out
}

// volumeNote is volume.json, beside the directory data, which is the volume.
type volumeNote struct {
	Owner   string    `json:"owner"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	IDs     wire.IDs  `json:"ids"` // how its files' ids are written; without a Base of one sandbox
}

const (
	volumeFile = "volume.json"
	volumeData = "data"
)

// volumesOf is the directory of an owner's volumes.
func (s *store) volumesOf(owner sandbox.Owner) string {
	sum := sha256.Sum256([]byte("volumes\x00" + string(owner)))
	return s.path("volumes", strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(sum[:15])))
}

// volumeLock is held while a volume is made or deleted, and not while it is used.
func (s *store) volumeLock(owner sandbox.Owner, name string) string {
	return s.lockPath("volume." + filepath.Base(s.volumesOf(owner)) + "." + name)
}

// writtenAs are ids without what differs from sandbox to sandbox.
func writtenAs(ids wire.IDs) wire.IDs {
	if ids.IDMapped {
		ids.Base = 0
	}
	ids.Count = 0
	return ids
}

// attach says how a sandbox's volumes are mounted, and makes those there are
// not yet.
func (p *Provider) attach(ctx context.Context, s *store, r *record, others []wire.Mount) ([]wire.Mount, error) {
	var list []wire.Mount
	for i, v := range r.Spec.Volumes {
		at := filepath.Clean(v.Path)
		for _, o := range others {
			if o.Target == "/" || strings.HasPrefix(at, o.Target+"/") && o.Type == "overlay" {
				continue
			}
			if at == o.Target || strings.HasPrefix(at, o.Target+"/") || strings.HasPrefix(o.Target, at+"/") {
				return nil, &sandbox.FieldError{Field: fmt.Sprintf("volumes[%d].path", i), Problem: at + " collides with " + o.Target + ", which this machine's operator or system shows",
					Allowed: "another place, such as /data"}
			}
		}
		dir, err := s.makeVolume(ctx, sandbox.Owner(r.Owner), v.Volume, r.IDs)
		if err != nil {
			return nil, full(s, err)
		}
		list = append(list, wire.Mount{Target: at, Type: "bind", Source: dir, Sub: v.Subpath, ReadOnly: v.ReadOnly, Layer: true})
	}
	return list, nil
}

// makeVolume returns the directory of a volume, made when it is missing. Its
// root belongs to root inside, and everyone inside may write to it.
func (s *store) makeVolume(ctx context.Context, owner sandbox.Owner, name string, ids wire.IDs) (string, error) {
	dir := filepath.Join(s.volumesOf(owner), name)
	data := filepath.Join(dir, volumeData)
	l, err := acquire(ctx, s.volumeLock(owner, name), opOther)
	if err != nil {
		return "", err
	}
	defer l.release(false)
	var note volumeNote
	switch err := readJSON(filepath.Join(dir, volumeFile), &note); {
	case err == nil:
		if note.IDs != writtenAs(ids) {
			return "", refuse("the volume %s was made with user ids in %q mode, and this sandbox has them in %q mode; use it from sandboxes as it was made, or another volume", name, note.IDs.Mode, ids.Mode)
		}
		return data, nil
	case !errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("volume %s: %w", name, err)
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) { // half made by one that was killed
		return "", err
	}
	if err := os.Mkdir(data, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return "", err
	}
	if ids.Mode == wire.IDsRange && !ids.IDMapped {
		if err := os.Chown(data, int(ids.Base), int(ids.Base)); err != nil {
			return "", err
		}
	}
	if err := os.Chmod(data, 0o777); err != nil { // below the state directory, which is closed
		return "", err
	}
	note = volumeNote{Owner: string(owner), Name: name, Created: time.Now().UTC(), IDs: writtenAs(ids)}
	if err := writeJSON(filepath.Join(dir, volumeFile), &note, true); err != nil {
		return "", err
	}
	return data, syncDir(filepath.Dir(dir))
}

// users lists, by volume, the sandboxes of owner that have it attached.
func (s *store) volumeUsers(owner sandbox.Owner) (map[string][]sandbox.SessionID, error) {
	entries, err := os.ReadDir(s.path("sandboxes"))
	if err != nil {
		return nil, err
	}
	users := map[string][]sandbox.SessionID{}
	for _, e := range entries {
		r, err := readRecord(s.sandboxDir(e.Name()))
		if err != nil {
			if r, err = readCopy(s.sandboxDir(e.Name())); err != nil {
				continue // of a sandbox that cannot be started either
			}
		}
		if r.Owner != string(owner) {
			continue
		}
		for _, v := range r.Spec.Volumes {
			if id := sandbox.SessionID(r.Session); !slices.Contains(users[v.Volume], id) {
				users[v.Volume] = append(users[v.Volume], id)
			}
		}
	}
	return users, nil
}

// Volumes lists an owner's volumes; all owners' when it is empty.
func (p *Provider) Volumes(_ context.Context, owner sandbox.Owner) ([]sandbox.Volume, error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	dirs := []string{s.volumesOf(owner)}
	if owner == "" {
		if dirs, err = entriesOf(s.path("volumes")); err != nil {
			return nil, err
		}
	}
	var volumes []string
	for _, d := range dirs {
		in, err := entriesOf(d)
		if err != nil {
			return nil, err
		}
		volumes = append(volumes, in...)
	}
	users := map[sandbox.Owner]map[string][]sandbox.SessionID{}
	var list []sandbox.Volume
	late := time.Now().Add(time.Second)
	for _, dir := range volumes {
		var note volumeNote
		if readJSON(filepath.Join(dir, volumeFile), &note) != nil {
			continue // being made or deleted
		}
		of := sandbox.Owner(note.Owner)
		if users[of] == nil {
			if users[of], err = s.volumeUsers(of); err != nil {
				return nil, err
			}
		}
		v := sandbox.Volume{Owner: of, Name: note.Name, Created: note.Created, Size: -1, UsedBy: users[of][note.Name]}
		if left := time.Until(late); left > 0 {
			if n, ok := tree.Usage(filepath.Join(dir, volumeData), min(left, 200*time.Millisecond)); ok {
				v.Size = n
			}
		}
		list = append(list, v)
	}
	return list, nil
}

// entriesOf are the paths of what is in dir, none when it is not there.
func entriesOf(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	paths := make([]string, len(entries))
	for i, e := range entries {
		paths[i] = filepath.Join(dir, e.Name())
	}
	return paths, err
}

// DeleteVolume deletes a volume that no sandbox has attached.
func (p *Provider) DeleteVolume(ctx context.Context, owner sandbox.Owner, name string) error {
	s, err := p.store()
	if err != nil {
		return err
	}
	l, err := acquire(ctx, s.volumeLock(owner, name), opOther)
	if err != nil {
		return err
	}
	defer l.release(false)
	dir := filepath.Join(s.volumesOf(owner), name)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("volume %s: %w", name, sandbox.ErrNotFound)
	}
	users, err := s.volumeUsers(owner)
	if err != nil {
		return err
	}
	if by := users[name]; len(by) > 0 {
		var ids []string
		for _, id := range by {
			ids = append(ids, string(id))
		}
		return &sandbox.UserError{Err: sandbox.ErrLimit, Text: fmt.Sprintf("the volume %s is attached to %s; destroy_sandbox these first", name, strings.Join(ids, ", "))}
	}
	// Gone with the rename; killed after it, the next sweep removes the rest.
	to := s.path("trash", "volume."+strconv.FormatInt(time.Now().UnixNano(), 36))
	if err := os.Rename(dir, to); err != nil {
		return err
	}
	return errors.Join(syncDir(s.volumesOf(owner)), s.removeTree(context.WithoutCancel(ctx), to))
}
