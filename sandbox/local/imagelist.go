//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/image"
	"berth/sandbox/local/wire"
)

// Images lists the images that are there.
func (p *Provider) Images(context.Context) ([]sandbox.ImageInfo, error) {
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	is, err := p.imageStore(s)
	if err != nil {
		return nil, err
	}
	list, err := is.List()
	if err != nil {
		return nil, err
	}
	used, err := s.usedImages()
	if err != nil {
		return nil, err
	}
	form := p.formNow(s)
	var out []sandbox.ImageInfo
	for _, e := range list {
		i := infoOf(e, used)
		i.Remarks = is.Remarks(&e.Image, form)
		out = append(out, i)
	}
	return out, nil
}

func infoOf(e image.Entry, used image.Used) sandbox.ImageInfo {
	return sandbox.ImageInfo{Names: e.Names, Digest: e.Digest, Platform: e.Platform, Pulled: e.Pulled, Used: e.Used, Disk: e.Disk, Layers: len(e.Layers), Sandboxes: used.Images[e.Digest]}
}

// usedImages are those that sandboxes stand on, stopped and set aside ones too.
func (s *store) usedImages() (image.Used, error) {
	var used image.Used
	for _, place := range []string{"sandboxes", "retired"} {
		entries, err := os.ReadDir(s.path(place))
		if err != nil {
			return used, err
		}
		for _, e := range entries {
			dir := s.path(place, e.Name())
			var r record
			if err := readJSON(filepath.Join(dir, recordFile), &r); err != nil {
				if err := readJSON(filepath.Join(dir, recordCopy), &r); err != nil {
					if _, serr := os.Lstat(dir); errors.Is(serr, fs.ErrNotExist) {
						continue
					}
					if place == "retired" {
						continue // nothing can be started of it any more
					}
					return used, fmt.Errorf("the record of a sandbox in %s cannot be read, so any image may be its own; destroy it first: %w", dir, err)
				}
			}
			if r.Image != nil {
				used.Add(&r.Image.Image)
			}
		}
	}
	snaps, err := s.snapshots()
	for _, r := range snaps {
		if r.Image != nil {
			used.Add(&r.Image.Image)
		}
	}
	return used, err
}

// PullImage fetches what name leads to now.
func (p *Provider) PullImage(ctx context.Context, name string) (sandbox.ImageInfo, error) {
	s, err := p.store()
	if err != nil {
		return sandbox.ImageInfo{}, err
	}
	is, err := p.imageStore(s)
	if err != nil {
		return sandbox.ImageInfo{}, err
	}
	n, err := is.Parse(name)
	if err != nil {
		return sandbox.ImageInfo{}, err
	}
	form := p.formNow(s)
	im, pin, err := is.Pull(ctx, n, form, true, report(ctx))
	if err != nil {
		return sandbox.ImageInfo{}, full(s, err)
	}
	defer pin.Release()
	now := time.Now()
	return sandbox.ImageInfo{Names: []string{im.Name}, Digest: im.Digest, Platform: im.Platform, Pulled: now, Used: now, Layers: len(im.Layers), Remarks: is.Remarks(im, form)}, nil
}

// PruneImages removes images that nobody uses.
func (p *Provider) PruneImages(ctx context.Context, unused time.Duration, only []string, dry bool) (sandbox.PrunedImages, error) {
	s, err := p.store()
	if err != nil {
		return sandbox.PrunedImages{}, err
	}
	is, err := p.imageStore(s)
	if err != nil {
		return sandbox.PrunedImages{}, err
	}
	chosen := map[string]bool{}
	for _, o := range only {
		if n, err := is.Parse(o); err == nil {
			chosen[n.Full] = true
		}
		chosen[o] = true
	}
	match := func(e image.Entry) bool {
		if len(only) == 0 || chosen[e.Digest] {
			return true
		}
		return slices.ContainsFunc(e.Names, func(n string) bool { return chosen[n] })
	}
	var out sandbox.PrunedImages
	if dry {
		list, err := is.List()
		if err != nil {
			return out, err
		}
		used, err := s.usedImages()
		if err != nil {
			return out, err
		}
		for _, e := range list {
			if used.Images[e.Digest] == 0 && time.Since(e.Used) >= unused && match(e) {
				out.Images = append(out.Images, infoOf(e, used))
				out.Bytes += e.Disk
			}
		}
		return out, nil
	}
	done, err := is.Prune(ctx, image.PruneOptions{Unused: unused, Only: match, Used: s.usedImages, Remove: removeLayer})
	for _, e := range done.Images {
		out.Images = append(out.Images, infoOf(e, image.Used{}))
	}
	out.Bytes = done.Bytes
	return out, err
}

// removeLayer removes a layer of an image, whose owners an ordinary user with
// more ids than its own cannot touch without help.
func removeLayer(ctx context.Context, path string) error {
	as := treeAs(wire.IDs{})
	if ids, _ := idMode(); ids.Mode == wire.IDsSub {
		as = treeAs(ids)
	}
	return as.Remove(ctx, path)
}

// pruneEvery is how often a server looks for images that nobody uses.
const pruneEvery = time.Hour

// sweepImages removes images that were not used for long.
func (p *Provider) sweepImages(ctx context.Context, s *store) error {
	if _, err := os.Stat(s.path("images")); err != nil || p.opts.Images.KeepUnused == 0 {
		return nil //nolint:nilerr // then there are none
	}
	p.mu.Lock()
	due := p.pruned.IsZero() || time.Since(p.pruned) > pruneEvery
	if due {
		p.pruned = time.Now()
	}
	p.mu.Unlock()
	if !due {
		return nil
	}
	if _, err := s.usedImages(); err != nil {
		return nil //nolint:nilerr // any image may be its own; the sandbox's own state tells of it
	}
	got, err := p.PruneImages(ctx, p.opts.Images.KeepUnused, nil, false)
	if len(got.Images) > 0 {
		p.log.InfoContext(ctx, "unused images removed", slog.Int("images", len(got.Images)), slog.Int64("bytes", got.Bytes))
	}
	return err
}
