//go:build linux

package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/tree"
)

// partTime is how long a download that nobody goes on with is kept.
const partTime = 7 * 24 * time.Hour

// Pin keeps an image from being removed until it is released or its process
// ends. Whoever makes a sandbox holds one until the sandbox's record exists.
type Pin struct {
	f    *os.File
	path string
}

// Release ends the pin; it may be repeated.
func (p *Pin) Release() {
	if p == nil || p.f == nil {
		return
	}
	_ = os.Remove(p.path)
	_ = p.f.Close()
	p.f = nil
}

type pinFile struct {
	Image  string   `json:"image"`
	Layers []string `json:"layers"`
}

// pin is held before the layers are looked for: what is there then stays.
func (s *Store) pin(ctx context.Context, im *Image) (*Pin, error) {
	lk, err := s.lock(ctx, "store", true, nil)
	if err != nil {
		return nil, err
	}
	defer lk.release(false)
	b, err := json.Marshal(pinFile{im.Digest, im.diffs()})
	if err != nil {
		return nil, err
	}
	f, err := os.CreateTemp(s.path("pins"), "pin-*")
	if err != nil {
		return nil, err
	}
	p := &Pin{f: f, path: f.Name()}
	if _, err = f.Write(b); err == nil {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		p.Release()
		return nil, err
	}
	return p, nil
}

func (i *Image) diffs() []string {
	var list []string
	for _, l := range i.Layers {
		list = append(list, l.Diff)
	}
	return list
}

// Lower lists the directories of im's layers, which are there, the topmost
// first, as an overlay takes them.
func (s *Store) Lower(im *Image, form Form) ([]string, error) {
	var dirs []string
	seen := map[string]bool{}
	for _, l := range slices.Backward(im.Layers) {
		lf, err := s.layerFile(form, l.Diff)
		if err != nil {
			return nil, fmt.Errorf("layer %s of %s: %w", l.Diff, im.Name, err)
		}
		// The same layer once more further down changes nothing, and overlay
		// refuses it.
		if !seen[l.Diff] {
			seen[l.Diff] = true
			dirs = append(dirs, filepath.Join(s.layerDir(form, l.Diff), "fs"))
		}
		if lf.Summary.Opaque {
			break
		}
	}
	return dirs, nil
}

// Remarks tell what of im could not be laid down as it is; nil: nothing.
func (s *Store) Remarks(im *Image, form Form) []string {
	var sum tree.LayerSummary
	seen := map[string]bool{}
	for _, l := range im.Layers {
		if lf, err := s.layerFile(form, l.Diff); err == nil && !seen[l.Diff] {
			seen[l.Diff] = true
			sum.Owners += lf.Summary.Owners
			sum.Devices += lf.Summary.Devices
			sum.Attributes += lf.Summary.Attributes
		}
	}
	var list []string
	add := func(n int64, one, many string) {
		if n == 1 {
			list = append(list, "1 "+one)
		} else if n > 1 {
			list = append(list, fmt.Sprintf("%d %s", n, many))
		}
	}
	add(sum.Owners, fmt.Sprintf("file belongs to a user beyond the %d that a sandbox has here; nobody owns it inside", form.Count),
		fmt.Sprintf("files belong to users beyond the %d that a sandbox has here; nobody owns them inside", form.Count))
	add(sum.Devices, "device node was left out", "device nodes were left out")
	add(sum.Attributes, "extended attribute was left out", "extended attributes were left out")
	return list
}

// Ready tells whether all layers of im are there.
func (s *Store) Ready(im *Image, form Form) bool {
	for _, l := range im.Layers {
		if !s.ready(form, l.Diff) {
			return false
		}
	}
	return true
}

// Entry is one image of the store.
type Entry struct {
	Image
	// Names that lead to it, sorted; none when newer ones took them all.
	Names []string
	// Pulled is when it was pulled last, Used when a sandbox was made of it.
	Pulled, Used time.Time
	// Disk is what its layers take, those shared with others included; bytes.
	Disk int64
}

// List tells what is there, the one used last first.
func (s *Store) List() ([]Entry, error) {
	records, err := s.images()
	if err != nil {
		return nil, err
	}
	names, err := s.names()
	if err != nil {
		return nil, err
	}
	sizes := s.sizes()
	var list []Entry
	for _, e := range records {
		for _, n := range names {
			if n.Image == e.Digest {
				e.Names = append(e.Names, n.Name)
				if n.Pulled.After(e.Pulled) {
					e.Pulled = n.Pulled
				}
			}
		}
		slices.Sort(e.Names)
		e.Names = slices.Compact(e.Names)
		seen := map[string]bool{}
		for _, l := range e.Layers {
			if !seen[l.Diff] {
				seen[l.Diff] = true
				e.Disk += sizes[l.Diff]
			}
		}
		list = append(list, e)
	}
	slices.SortFunc(list, func(a, b Entry) int { return b.Used.Compare(a.Used) })
	return list, nil
}

func (s *Store) images() ([]Entry, error) {
	var list []Entry
	err := s.each("images", func(path string, fi fs.FileInfo) {
		var e Entry
		if readJSON(path, &e.Image) == nil && validDigest(e.Digest) && hexOf(e.Digest)+".json" == fi.Name() {
			e.Used = fi.ModTime()
			list = append(list, e)
		}
	})
	return list, err
}

func (s *Store) names() ([]nameFile, error) {
	var list []nameFile
	err := s.each("names", func(path string, _ fs.FileInfo) {
		var n nameFile
		if readJSON(path, &n) == nil {
			list = append(list, n)
		}
	})
	return list, err
}

// each calls f for each file of a directory of the store that is no temporary
// one.
func (s *Store) each(dir string, f func(path string, fi fs.FileInfo)) error {
	entries, err := os.ReadDir(s.path(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && !strings.HasPrefix(e.Name(), ".new-") {
			f(s.path(dir, e.Name()), fi)
		}
	}
	return nil
}

// sizes of layers by diff id, all forms together.
func (s *Store) sizes() map[string]int64 {
	sizes := map[string]int64{}
	s.eachLayer(func(_ string, lf layerFile) { sizes[lf.Diff] += lf.Summary.Bytes })
	return sizes
}

func (s *Store) eachLayer(f func(dir string, lf layerFile)) {
	forms, err := os.ReadDir(s.path("layers"))
	if err != nil {
		return
	}
	for _, form := range forms {
		layers, err := os.ReadDir(s.path("layers", form.Name()))
		if err != nil {
			continue
		}
		for _, l := range layers {
			dir := s.path("layers", form.Name(), l.Name())
			var lf layerFile
			if readJSON(filepath.Join(dir, "layer.json"), &lf) != nil {
				lf = layerFile{Diff: "sha256:" + l.Name()}
			}
			f(dir, lf)
		}
	}
}

// Used says what sandboxes stand on: images and layers, by digest.
type Used struct {
	Images map[string]int // how many sandboxes
	Layers map[string]bool
}

// Add counts one sandbox of im.
func (u *Used) Add(im *Image) {
	if u.Images == nil {
		u.Images, u.Layers = map[string]int{}, map[string]bool{}
	}
	u.Images[im.Digest]++
	for _, l := range im.Layers {
		u.Layers[l.Diff] = true
	}
}

// PruneOptions of Prune.
type PruneOptions struct {
	// Unused: only images not used for so long; 0: all that are not in use.
	Unused time.Duration
	// Only, if not nil, chooses among them.
	Only func(Entry) bool
	// Used tells what sandboxes stand on. It is called while none can be made.
	Used func() (Used, error)
	// Remove removes a tree of a layer, whoever owns its files; nil: tree.Remove.
	Remove func(ctx context.Context, path string) error
}

// Pruned is what Prune did.
type Pruned struct {
	Images []Entry
	Layers int
	Bytes  int64 // of layers and downloads
}

// Prune removes images that nobody uses, the layers that no image has any more,
// and downloads that nobody goes on with. What a sandbox stands on is never
// removed, nor what somebody is just pulling.
func (s *Store) Prune(ctx context.Context, o PruneOptions) (Pruned, error) {
	var out Pruned
	if _, err := os.Stat(s.o.Dir); errors.Is(err, fs.ErrNotExist) {
		return out, nil
	}
	if o.Remove == nil {
		o.Remove = func(_ context.Context, path string) error { return tree.Remove(path) }
	}
	if err := s.open(); err != nil {
		return out, err
	}
	err := s.mark(ctx, o, &out)
	// Outside of the lock, since it takes time. What an earlier process left
	// is removed along.
	if terr := s.emptyTrash(ctx, o.Remove); err == nil {
		err = terr
	}
	return out, err
}

// mark takes what is to go out of the way.
func (s *Store) mark(ctx context.Context, o PruneOptions, out *Pruned) error {
	lk, err := s.lock(ctx, "store", false, nil)
	if err != nil {
		return err
	}
	defer lk.release(false)
	used, err := o.Used()
	if err != nil {
		return fmt.Errorf("find out which images are in use: %w", err)
	}
	pinned := s.pinned()
	list, err := s.List()
	if err != nil {
		return err
	}
	keep := map[string]bool{}
	blobs := map[string]bool{}
	for _, e := range list {
		idle := time.Since(e.Used) >= o.Unused
		if used.Images[e.Digest] > 0 || pinned[e.Digest] || !idle || o.Only != nil && !o.Only(e) {
			for _, l := range e.Layers {
				keep[l.Diff], blobs[hexOf(l.Blob)] = true, true
			}
			continue
		}
		if err := s.forget(e); err != nil {
			return err
		}
		out.Images = append(out.Images, e)
	}
	var first error
	s.eachLayer(func(dir string, lf layerFile) {
		if keep[lf.Diff] || used.Layers[lf.Diff] || pinned[lf.Diff] {
			return
		}
		to := s.path("trash", fmt.Sprintf("%s-%d", filepath.Base(dir), time.Now().UnixNano()))
		if err := os.Rename(dir, to); err != nil {
			if first == nil {
				first = err
			}
			return
		}
		out.Layers++
		out.Bytes += lf.Summary.Bytes
	})
	// Downloads, but those of images that stay and are not on the disk yet.
	err = s.each("blobs", func(path string, fi fs.FileInfo) {
		name := strings.TrimSuffix(fi.Name(), partSuffix)
		digest, _, _ := strings.Cut(name, "-")
		if blobs[digest] && name == fi.Name() || time.Since(fi.ModTime()) < min(o.Unused, partTime) || s.busy("blob-"+name) {
			return
		}
		if os.Remove(path) == nil {
			out.Bytes += fi.Size()
		}
	})
	if first == nil {
		first = err
	}
	return first
}

// forget removes an image's records, names first.
func (s *Store) forget(e Entry) error {
	err := s.each("names", func(path string, _ fs.FileInfo) {
		var n nameFile
		if readJSON(path, &n) == nil && n.Image == e.Digest {
			_ = os.Remove(path)
		}
	})
	if err == nil {
		err = os.Remove(s.imageFile(e.Digest))
	}
	if errors.Is(err, fs.ErrNotExist) {
		err = nil
	}
	return err
}

// busy tells whether somebody holds a lock.
func (s *Store) busy(name string) bool {
	f, err := os.OpenFile(s.path("locks", name), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return false
	}
	defer f.Close()
	return unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB) != nil
}

// pinned are the images and layers of living pins; those of the dead are
// removed.
func (s *Store) pinned() map[string]bool {
	all := map[string]bool{}
	_ = s.each("pins", func(path string, _ fs.FileInfo) {
		f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
		if err != nil {
			return
		}
		defer f.Close()
		if unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.Remove(path)
			return
		}
		var p pinFile
		if readJSON(path, &p) == nil {
			all[p.Image] = true
			for _, l := range p.Layers {
				all[l] = true
			}
		}
	})
	return all
}

// emptyTrash also removes what pulls left that were killed.
func (s *Store) emptyTrash(ctx context.Context, remove func(context.Context, string) error) error {
	var errs []error
	for _, dir := range []string{"trash", "tmp"} {
		entries, err := os.ReadDir(s.path(dir))
		if err != nil {
			return err
		}
		for _, e := range entries {
			if dir == "tmp" {
				// Its lock is held by whoever works on it.
				lk, err := s.tryLock("layer-" + e.Name())
				if err != nil {
					continue
				}
				errs = append(errs, remove(ctx, s.path(dir, e.Name())))
				lk.release(true)
				continue
			}
			errs = append(errs, remove(ctx, s.path(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}

var errBusy = errors.New("somebody holds the lock")

func (s *Store) tryLock(name string) (*lock, error) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	lk, err := s.lock(ctx, name, false, cancel)
	if errors.Is(err, context.Canceled) {
		err = errBusy
	}
	return lk, err
}

// Bytes is what the files of im's layers, which are there, have together.
func (s *Store) Bytes(im *Image, form Form) int64 {
	var n int64
	for _, l := range im.Layers {
		if lf, err := s.layerFile(form, l.Diff); err == nil {
			n += lf.Summary.Bytes
		}
	}
	return n
}

// Sync returns when im's layers, which are there, are on the disk, for those who
// cannot count on getting them again.
func (s *Store) Sync(im *Image, form Form) error {
	d, err := os.Open(s.path("layers"))
	if err != nil {
		return err
	}
	err = unix.Syncfs(int(d.Fd()))
	_ = d.Close()
	if err != nil {
		return &fs.PathError{Op: "syncfs", Path: s.path("layers"), Err: err}
	}
	for _, l := range im.Layers {
		lf, err := s.layerFile(form, l.Diff)
		if err != nil {
			return fmt.Errorf("layer %s of %s: %w", l.Diff, im.Name, err)
		}
		if lf.Boot == "" {
			continue
		}
		lf.Boot = ""
		if err := writeJSON(filepath.Join(s.layerDir(form, l.Diff), "layer.json"), lf, true); err != nil {
			return err
		}
	}
	return nil
}
