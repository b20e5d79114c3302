//go:build linux

package local

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// Sealing makes what a sandbox has written a layer that others can stand on
// too: its directory of upper layers is renamed to sealed/ID/layers, and it gets
// an empty one. From then on nobody writes to the layer. Files there belong to
// the ids inside, 0 and 1000, so that sandboxes with different ranges of ids can
// share it; where they are not (no id-mapped mounts), all sandboxes have one range.
//
// The record names the layer as Sealing before the rename and not any more
// after it, so that whoever comes after a kill knows where the files are. A
// layer is used by those whose records name it; there is no counter that
// could be wrong. The sweeper removes what nobody has named for a while.

// layerFile describes a sealed layer: whose ids its files have.
const layerFile = "layer.json"

type layerRecord struct {
	Version int       `json:"version"`
	Created time.Time `json:"created"`
	IDs     wire.IDs  `json:"ids"`
	// Boot is the boot of the machine in which it was sealed. Its files are
	// surely on the disk once wire.SyncedName lies beside; before, they are as
	// safe as any files that were just written.
	Boot string `json:"boot,omitempty"`
	// SHA256 of the packed files, and their bytes, once somebody asked.
	SHA256 string `json:"sha256,omitempty"`
	Size   int64  `json:"size,omitempty"`
}

// maxSealed is how many layers, those of its image among them, a sandbox stands
// on at most; the kernel takes 500. What more there would be is copied.
var maxSealed = 400

// layers is how many r's sandbox stands on.
func (r *record) layers() int {
	n := len(r.Sealed)
	if r.Image != nil {
		n += len(r.Image.Layers)
	}
	return n
}

// deep tells that nothing of r can be sealed any more.
func (r *record) deep() bool { return r.layers() >= maxSealed }

// sealedTime is how long a layer that nobody names is kept: whoever is just
// going to name it has touched it.
const sealedTime = 10 * time.Minute

func newLayerID() string {
	var b [10]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	return strings.ToLower(base32.StdEncoding.EncodeToString(b[:]))
}

func (s *store) sealedDir(id string) string { return s.path("sealed", id) }

// sealedPaths are where the layers' files are, topmost first.
func (s *store) sealedPaths(ids []string) []string {
	var out []string
	for i := len(ids) - 1; i >= 0; i-- {
		out = append(out, filepath.Join(s.sealedDir(ids[i]), layersDir))
	}
	return out
}

// useSealed tells the sweeper that layers are used.
func (s *store) useSealed(ids []string) {
	now := s.now()
	for _, id := range ids {
		_ = os.Chtimes(s.sealedDir(id), now, now)
	}
}

// keep calls touch, now and again, until stop is called: for what the sweeper
// takes for left behind when nobody has touched it for a while.
func (s *store) keep(touch func()) (stop func()) {
	touch()
	end, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		t := time.NewTicker(min(sealedTime, tmpTime) / 4)
		defer t.Stop()
		for {
			select {
			case <-end:
				return
			case <-t.C:
				touch()
			}
		}
	}()
	return func() { close(end); <-ended }
}

// keepDir is keep for directories in tmp.
func (s *store) keepDir(dir string) (stop func()) {
	return s.keep(func() { now := s.now(); _ = os.Chtimes(dir, now, now) })
}

// standOn puts the sealed layers, topmost first, over the lower ones of mounts.
func standOn(mounts []wire.Mount, sealed []string) {
	if len(sealed) == 0 {
		return
	}
	for i := range mounts {
		if m := &mounts[i]; m.Type == "overlay" && m.Upper != "" {
			m.Lower = append(sealedUppers(sealed, filepath.Base(filepath.Dir(m.Upper))), m.Lower...)
		}
	}
}

// sealedUppers are those of the layers that have something for the overlay of
// that name.
func sealedUppers(layers []string, name string) []string {
	var out []string
	for _, l := range layers {
		upper := filepath.Join(l, name, "upper")
		if !empty(upper) {
			out = append(out, upper)
		}
	}
	return out
}

// empty tells of a directory that nothing is in it, or that there is none. One
// that may not be read holds something.
func empty(dir string) bool {
	f, err := os.Open(dir)
	if err != nil {
		return errors.Is(err, fs.ErrNotExist)
	}
	defer f.Close()
	names, _ := f.Readdirnames(1)
	return len(names) == 0
}

// unchanged tells that a sandbox has written nothing of its own.
func (in *Instance) unchanged() bool {
	entries, err := os.ReadDir(in.layers())
	if err != nil {
		return false
	}
	for _, e := range entries {
		if !empty(filepath.Join(in.layers(), e.Name(), "upper")) {
			return false
		}
	}
	return true
}

// intendSeal writes down that the layers of r's sandbox are going to be sealed.
func (in *Instance) intendSeal(r *record) error {
	id := newLayerID()
	dir := in.s.sealedDir(id)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	err := writeJSON(filepath.Join(dir, layerFile), &layerRecord{Version: 1, Created: time.Now().UTC(), IDs: r.IDs, Boot: bootID()}, false)
	if err == nil {
		r.Sealing, r.Sealed = id, append(r.Sealed[:len(r.Sealed):len(r.Sealed)], id)
		err = in.s.orderRecord(in.id, r)
	}
	return err
}

// seal does it. The sandbox does not run.
func (in *Instance) seal(r *record) error {
	if err := os.Rename(in.layers(), filepath.Join(in.s.sealedDir(r.Sealing), layersDir)); err != nil {
		return err
	}
	if err := in.p.opts.step("seal:renamed"); err != nil {
		return err
	}
	return os.Mkdir(in.layers(), 0o700)
}

// settleSeal finds out what became of a sealing that was begun, and writes it
// down; for holders of the lock.
func (in *Instance) settleSeal(r *record) error {
	if r.Sealing == "" {
		return nil
	}
	dir := filepath.Join(in.s.sealedDir(r.Sealing), layersDir)
	if _, err := os.Lstat(dir); err == nil {
		if err := os.Mkdir(in.layers(), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	} else if errors.Is(err, fs.ErrNotExist) {
		r.Sealed = r.Sealed[:len(r.Sealed)-1]
	} else {
		return err
	}
	r.Sealing = ""
	return in.s.orderRecord(in.id, r)
}

// incomplete tells that files of r had not all been written to the disk when the
// machine went down.
func (s *store) incomplete(id string, r *record) bool {
	now := bootID()
	lost := func(dir, boot string) bool {
		if boot == "" || boot == now {
			return false
		}
		_, err := os.Lstat(filepath.Join(dir, wire.SyncedName))
		return errors.Is(err, fs.ErrNotExist)
	}
	if lost(s.sandboxDir(id), r.Unsynced) {
		return true
	}
	for _, l := range r.Sealed {
		var lr layerRecord
		if err := readJSON(filepath.Join(s.sealedDir(l), layerFile), &lr); err == nil && lost(s.sealedDir(l), lr.Boot) {
			return true
		}
	}
	return false
}

// unmarked is the topmost layer of r if it is not known to be on the disk.
func (s *store) unmarked(r *record) string {
	if len(r.Sealed) == 0 {
		return ""
	}
	id := r.Sealed[len(r.Sealed)-1]
	if _, err := os.Lstat(filepath.Join(s.sealedDir(id), wire.SyncedName)); errors.Is(err, fs.ErrNotExist) {
		return id
	}
	return ""
}

// sweepSealed removes the layers that nobody has named for a while.
func (s *store) sweepSealed(ctx context.Context) error {
	layers, err := os.ReadDir(s.path("sealed"))
	if err != nil || len(layers) == 0 {
		return err
	}
	used, known, err := s.namedLayers()
	if err != nil || !known {
		return err
	}
	var errs []error
	for _, e := range layers {
		fi, err := e.Info()
		if err != nil || used[e.Name()] || s.now().Sub(fi.ModTime()) < sealedTime {
			continue
		}
		// Renamed first: half of a layer must not look like all of it.
		to := s.path("trash", "sealed."+e.Name())
		if err := os.Rename(s.sealedDir(e.Name()), to); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, s.removeTree(ctx, to))
	}
	return errors.Join(errs...)
}

// namedLayers reads which layers are named by any record, or by what builds
// remember. known is false when a record cannot be read: it may name any.
func (s *store) namedLayers() (used map[string]bool, known bool, err error) {
	used, known, err = s.layersInUse()
	if err != nil || !known {
		return used, known, err
	}
	steps, err := s.cache()
	for _, i := range steps {
		used[i.Layer] = true
	}
	return used, true, err
}

// layersInUse reads which layers sandboxes and snapshots stand on.
func (s *store) layersInUse() (used map[string]bool, known bool, err error) {
	used = map[string]bool{}
	for _, place := range []string{"tmp", "sandboxes", "retired"} {
		entries, err := os.ReadDir(s.path(place))
		if err != nil {
			return nil, false, err
		}
		for _, e := range entries {
			if place == "tmp" && !e.IsDir() {
				continue // of the cache
			}
			var r record
			dir := s.path(place, e.Name())
			err := readJSON(filepath.Join(dir, recordFile), &r)
			if err != nil {
				err = readJSON(filepath.Join(dir, recordCopy), &r)
			}
			switch {
			case err == nil:
				for _, id := range r.Sealed {
					used[id] = true
				}
			case place == "tmp" && errors.Is(err, fs.ErrNotExist):
			default:
				if _, gone := os.Lstat(dir); gone == nil {
					return nil, false, nil
				}
			}
		}
	}
	snaps, err := s.snapshots()
	for _, r := range snaps {
		for _, id := range r.Sealed {
			used[id] = true
		}
	}
	return used, err == nil, nil
}

// missingLayer names a layer of r that is not there; "" when all are.
func (s *store) missingLayer(r *record) string {
	for _, id := range r.Sealed {
		if id == r.Sealing {
			continue
		}
		if _, err := os.Lstat(filepath.Join(s.sealedDir(id), layersDir)); errors.Is(err, fs.ErrNotExist) {
			return s.sealedDir(id)
		}
	}
	return ""
}

var (
	_ sandbox.Forker         = (*Instance)(nil)
	_ sandbox.Snapshotter    = (*Instance)(nil)
	_ sandbox.SnapshotKeeper = (*Provider)(nil)
)
