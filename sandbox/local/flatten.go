//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"time"

	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// flatten makes one layer of all the sealed ones of o when there are more than a
// sandbox may stand on. Else a snapshot of a sandbox of a snapshot, and so on,
// would come to more than the kernel takes. The former layers are as they were.
func (s *store) flatten(ctx context.Context, o *origin) error {
	r := record{Sealed: o.sealed, Image: o.image}
	if r.layers() <= maxSealed {
		return nil
	}
	defer s.keep(func() { s.useSealed(o.sealed) })()
	id := newLayerID()
	dir := s.path("tmp", "flat."+id)
	if err := os.MkdirAll(filepath.Join(dir, layersDir), 0o700); err != nil {
		return err
	}
	defer s.keepDir(dir)()
	as := treeAs(o.ids)
	err := s.merge(ctx, o, filepath.Join(dir, layersDir))
	if err == nil {
		err = writeJSON(filepath.Join(dir, layerFile), &layerRecord{Version: 1, Created: time.Now().UTC(), IDs: o.ids}, false)
	}
	if err == nil {
		err = os.Rename(dir, s.sealedDir(id))
	}
	if err != nil {
		_ = as.Remove(context.WithoutCancel(ctx), dir)
		return fmt.Errorf("make one layer of %d: %w", len(o.sealed), err)
	}
	o.sealed = []string{id}
	return nil
}

// merge lays down in dir what the layers of o hold together, for each of the
// overlays that they belong to.
func (s *store) merge(ctx context.Context, o *origin, dir string) error {
	paths := s.sealedPaths(o.sealed)
	var names []string
	for _, p := range paths {
		entries, err := os.ReadDir(p)
		if err != nil {
			return err
		}
		for _, e := range entries {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	as := treeAs(o.ids)
	for _, name := range slices.Compact(names) {
		uppers := sealedUppers(paths, name)
		if len(uppers) == 0 {
			continue
		}
		to := filepath.Join(dir, name, "upper")
		if err := os.MkdirAll(to, 0o700); err != nil {
			return err
		}
		r, w := io.Pipe()
		packed := make(chan error, 1)
		go func() {
			_, err := as.PackStack(ctx, w, tree.StackOptions{Dirs: uppers, Own: true})
			packed <- err
			_ = w.CloseWithError(err)
		}()
		_, err := as.UnpackLayer(ctx, r, to, tree.LayerOptions{UserXattr: o.ids.Mode != wire.IDsRange, Count: math.MaxInt32, Own: true})
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		_ = r.CloseWithError(err)
		if perr := <-packed; err == nil || perr != nil && !errors.Is(perr, err) {
			err = errors.Join(perr, err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
