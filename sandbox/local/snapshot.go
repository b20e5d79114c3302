//go:build linux

package local

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// snapshotRecord is snapshots/ID: sealed layers with a name. It is written once.
type snapshotRecord struct {
	Version int          `json:"version"`
	Owner   string       `json:"owner"`
	Name    string       `json:"name"`
	Created time.Time    `json:"created"`
	From    string       `json:"from"`
	Digest  string       `json:"digest"`
	Size    int64        `json:"size"`
	IDs     wire.IDs     `json:"ids"`
	MadeOn  baseName     `json:"made_on"`
	Sealed  []string     `json:"sealed"`
	Image   *imageRecord `json:"image,omitempty"`
	// ImageName is what the sandbox's spec said.
	ImageName string `json:"image_name,omitempty"`
	// Account is the ordinary user of the default root; "": the usual one.
	Account string `json:"account,omitempty"`
	// Root is what a build said of the default root; Build the digest of the
	// build, and Labels what that gave it.
	Root   *rootConfig       `json:"root,omitempty"`
	Build  string            `json:"build,omitempty"`
	Labels map[string]string `json:"labels,omitempty"`
}

func snapshotID(owner sandbox.Owner, name string) string {
	return sandboxID(sandbox.Key{Owner: owner, Session: sandbox.SessionID("snapshot " + name)}) // no session has a space
}

// snapshotLock is held while a snapshot is made, deleted, or stood on.
func snapshotLock(owner sandbox.Owner, name string) string {
	return "snapshot." + snapshotID(owner, name)
}

func (s *store) snapshotPath(owner sandbox.Owner, name string) string {
	return s.path("snapshots", snapshotID(owner, name))
}

// snapshots reads all records.
func (s *store) snapshots() ([]snapshotRecord, error) {
	entries, err := os.ReadDir(s.path("snapshots"))
	if err != nil {
		return nil, err
	}
	var out []snapshotRecord
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".new") {
			continue // never finished
		}
		var r snapshotRecord
		err := readJSON(s.path("snapshots", e.Name()), &r)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("the record of a snapshot, %s, cannot be read: %w", s.path("snapshots", e.Name()), err)
		}
		out = append(out, r)
	}
	return out, nil
}

// snapshotOrigin is what sandboxes of a snapshot stand on; the caller holds its lock.
func (s *store) snapshotOrigin(owner sandbox.Owner, name string) (*origin, error) {
	var r snapshotRecord
	err := readJSON(s.snapshotPath(owner, name), &r)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, &sandbox.FieldError{Field: "snapshot", Problem: "there is no snapshot " + name, Hint: "list_snapshots shows those there are, create_snapshot makes one"}
	}
	if err != nil {
		return nil, err
	}
	if gone := s.missingLayer(&record{Sealed: r.Sealed}); gone != "" {
		return nil, &sandbox.UserError{Text: "the snapshot " + name + " is damaged: " + gone + " is missing; delete_snapshot it and make it anew", Err: sandbox.ErrUnavailable}
	}
	s.useSealed(r.Sealed)
	return &origin{sealed: r.Sealed, ids: r.IDs, madeOn: r.MadeOn, image: r.Image, account: r.Account, root: r.Root}, nil
}

// Snapshot keeps what the sandbox is at this moment under a name.
func (in *Instance) Snapshot(ctx context.Context, name string) (sandbox.SnapshotInfo, error) {
	s := in.s
	owner := in.key.Owner
	exists := fmt.Errorf("snapshot %s: %w", name, sandbox.ErrExists)
	named, err := tryAcquire(s.lockPath(snapshotLock(owner, name)), opOther)
	if errors.Is(err, errLocked) {
		return sandbox.SnapshotInfo{}, exists
	}
	if err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	defer named.release(true)
	if _, err := os.Lstat(s.snapshotPath(owner, name)); err == nil {
		return sandbox.SnapshotInfo{}, exists
	}
	o, err := in.shareForSnapshot(ctx)
	if err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	if err := in.p.opts.step("snapshot:shared"); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	if o.dir != "" {
		if err := s.adopt(o.origin); err != nil {
			_ = treeAs(o.ids).Remove(context.WithoutCancel(ctx), o.dir)
			return sandbox.SnapshotInfo{}, full(s, err)
		}
	}
	if err := s.flatten(ctx, o.origin); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	r := snapshotRecord{Version: 1, Owner: string(owner), Name: name, Created: time.Now().UTC(), From: string(in.key.Session),
		IDs: o.ids, MadeOn: o.madeOn, Sealed: o.sealed, Image: o.image, ImageName: o.imageName, Account: o.account, Root: o.root}
	if r.Digest, r.Size, err = s.digest(ctx, &r); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	s.useSealed(r.Sealed)
	if err := in.p.opts.step("snapshot:digested"); err != nil {
		return sandbox.SnapshotInfo{}, err
	}
	// A name is a promise: what it stands for is on disk first.
	if err := syncFS(s.path("sealed")); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	if err := writeJSON(s.snapshotPath(owner, name), &r, true); err != nil {
		return sandbox.SnapshotInfo{}, full(s, err)
	}
	return r.info(), nil
}

// shareForSnapshot holds the sandbox's lock only as long as it takes to share its files.
func (in *Instance) shareForSnapshot(ctx context.Context) (*shared, error) {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return nil, err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.look()
	if err := in.forkable(&v, err); err != nil {
		return nil, err
	}
	if err := in.s.checkSpace(); err != nil {
		return nil, err
	}
	// Before they are sealed, for then they can be no more removed.
	if err := treeAs(v.rec.IDs).CheckDepth(ctx, in.layers()); errors.Is(err, tree.ErrTooDeep) {
		return nil, &sandbox.UserError{Err: sandbox.ErrLimit, Text: "no snapshot was made: " + err.Error() + "; remove them, then make it again"}
	}
	o, err := in.share(ctx, &v, true)
	if err != nil {
		return nil, err
	}
	defer in.bringToDisk(ctx, o, "")
	if err := o.again(); err != nil {
		return nil, err
	}
	o.imageName = v.rec.Spec.Image
	in.s.useSealed(o.sealed)
	return o, nil
}

// adopt makes copied layers a sealed one of o.
func (s *store) adopt(o *origin) error {
	id := newLayerID()
	dir := s.sealedDir(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	if err := writeJSON(filepath.Join(dir, layerFile), &layerRecord{Version: 1, Created: time.Now().UTC(), IDs: o.ids}, false); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(o.dir, layersDir), filepath.Join(dir, layersDir)); err != nil {
		return err
	}
	_ = os.Remove(o.dir)
	o.dir, o.sealed = "", append(slices.Clone(o.sealed), id)
	return nil
}

// digest identifies what a snapshot holds: the layers, and what they lie over.
func (s *store) digest(ctx context.Context, r *snapshotRecord) (string, int64, error) {
	sum := sha256.New()
	if r.Image != nil {
		fmt.Fprintln(sum, r.Image.Digest)
	} else {
		fmt.Fprintln(sum, r.MadeOn.Host)
		if r.Account != "" {
			fmt.Fprintln(sum, r.Account)
		}
	}
	if r.Build != "" {
		var settings any = r.Root
		if r.Image != nil {
			settings = []any{r.Image.Env, r.Image.User, r.Image.WorkDir}
		}
		fmt.Fprintln(sum, digestOf([]any{settings, r.Labels}))
	}
	var size int64
	for _, id := range r.Sealed {
		path := filepath.Join(s.sealedDir(id), layerFile)
		var l layerRecord
		if err := readJSON(path, &l); err != nil {
			return "", 0, err
		}
		if l.SHA256 == "" {
			h := sha256.New()
			content, err := treeAs(l.IDs).Pack(ctx, h, filepath.Join(s.sealedDir(id), layersDir))
			if errors.Is(err, tree.ErrTooDeep) {
				return "", 0, &sandbox.UserError{Err: sandbox.ErrLimit, Text: "no snapshot was made: " + err.Error() + "; layers keep them once that was tried: copy what is to be kept into another sandbox, and make the snapshot of that one"}
			}
			if err != nil {
				return "", 0, fmt.Errorf("digest of the files: %w", err)
			}
			l.SHA256, l.Size = hexSum(h), content.Bytes
			// Known again, should another snapshot ask.
			if err := writeJSON(path, &l, false); err != nil {
				return "", 0, err
			}
		}
		fmt.Fprintln(sum, l.SHA256)
		size += l.Size
	}
	return "sha256:" + hex.EncodeToString(sum.Sum(nil)), size, nil
}

func (r *snapshotRecord) info() sandbox.SnapshotInfo {
	return sandbox.SnapshotInfo{Owner: sandbox.Owner(r.Owner), Name: r.Name, State: sandbox.SnapshotActive, Created: r.Created, From: sandbox.SessionID(r.From), Image: r.ImageName, Digest: r.Digest, Size: r.Size, Built: r.Build != "", Labels: maps.Clone(r.Labels)}
}

// Snapshots lists those of owner (of all owners when empty).
func (p *Provider) Snapshots(_ context.Context, owner sandbox.Owner) ([]sandbox.SnapshotInfo, error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	list, err := s.snapshots()
	if err != nil {
		return nil, err
	}
	used, err := s.snapshotUsers()
	if err != nil {
		return nil, err
	}
	var out []sandbox.SnapshotInfo
	for _, r := range list {
		if owner != "" && r.Owner != string(owner) {
			continue
		}
		i := r.info()
		i.UsedBy = used[snapshotID(i.Owner, i.Name)]
		out = append(out, i)
	}
	return out, nil
}

// snapshotUsers are the sessions whose sandboxes were made of each snapshot.
func (s *store) snapshotUsers() (map[string][]sandbox.SessionID, error) {
	used := map[string][]sandbox.SessionID{}
	entries, err := os.ReadDir(s.path("sandboxes"))
	if err != nil {
		return nil, err
	}
	for _, e := range entries {
		r, err := readRecord(s.sandboxDir(e.Name()))
		if err != nil {
			if r, err = readCopy(s.sandboxDir(e.Name())); err != nil {
				continue // its layers stay, see namedLayers
			}
		}
		if r.Spec.Snapshot != "" {
			id := snapshotID(sandbox.Owner(r.Owner), r.Spec.Snapshot)
			used[id] = append(used[id], sandbox.SessionID(r.Session))
		}
	}
	return used, nil
}

// DeleteSnapshot removes the name; the sweeper frees the files that nobody else
// stands on.
func (p *Provider) DeleteSnapshot(ctx context.Context, owner sandbox.Owner, name string) error {
	s, err := p.store()
	if err != nil {
		return err
	}
	l, err := acquire(ctx, s.lockPath(snapshotLock(owner, name)), opOther)
	if err != nil {
		return err
	}
	defer l.release(true)
	if _, err := os.Lstat(s.snapshotPath(owner, name)); errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("snapshot %s: %w", name, sandbox.ErrNotFound)
	} else if err != nil {
		return err
	}
	used, err := s.snapshotUsers()
	if err != nil {
		return err
	}
	if by := used[snapshotID(owner, name)]; len(by) > 0 {
		slices.Sort(by)
		more := ""
		if len(by) > 10 {
			by, more = by[:10], fmt.Sprintf(" and %d more", len(by)-10)
		}
		var names []string
		for _, id := range by {
			names = append(names, string(id))
		}
		return &sandbox.UserError{Text: "the snapshot " + name + " is in use by the sandboxes of " + strings.Join(names, ", ") + more + "; destroy_sandbox them first", Err: sandbox.ErrLimit}
	}
	if err := os.Remove(s.snapshotPath(owner, name)); err != nil {
		return err
	}
	_ = os.Remove(s.buildLogPath(owner, name))
	return syncDir(s.path("snapshots"))
}
