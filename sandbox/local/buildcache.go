//go:build linux

package local

import (
	"cmp"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
	"golang.org/x/sys/unix"
)

// buildFormat changes whenever the same step would come to something else.
const buildFormat = "1"

// Bounds of the cache: what was not used for so long goes, and the oldest above
// so many bytes, or above a fifth of the file system. Logs have a bound of their
// own, in bytes.
const (
	cacheTime = 14 * 24 * time.Hour
	maxCache  = 20 << 30
	maxLogs   = 512 << 20
)

// cacheEntry is builds/cache/KEY.json: what a step came to. KEY is made of the
// step before and of all that the step depends on. It names the layer, which
// is kept as long.
type cacheEntry struct {
	Layer   string    `json:"layer,omitempty"` // sealed; "": nothing changed
	Size    int64     `json:"size"`            // bytes on disk
	Created time.Time `json:"created"`
	// Boot is when the machine ran on which it was made; a layer that was never
	// synced counts only until it is started again.
	Boot   string `json:"boot"`
	Synced bool   `json:"synced,omitempty"`
}

func (s *store) cachePath(key string) string { return s.path("builds", "cache", key+".json") }

// cached finds what a step came to, and keeps it from being removed.
func (s *store) cached(key string) (*cacheEntry, bool) {
	var e cacheEntry
	path := s.cachePath(key)
	if readJSON(path, &e) != nil {
		return nil, false
	}
	now := s.now()
	if e.Layer != "" {
		// Touched first: then whoever sweeps leaves it.
		s.useSealed([]string{e.Layer})
		_, err := os.Lstat(s.layersOf(e.Layer))
		if _, unmarked := os.Lstat(filepath.Join(s.sealedDir(e.Layer), wire.SyncedName)); err != nil || unmarked != nil && !e.Synced && e.Boot != bootID() {
			_ = os.Remove(path)
			return nil, false
		}
	}
	_ = os.Chtimes(path, now, now)
	return &e, true
}

func (s *store) remember(key, layer string) error {
	e := cacheEntry{Layer: layer, Created: s.now().UTC(), Boot: bootID()}
	if layer != "" {
		e.Size, _ = tree.Usage(s.layersOf(layer), time.Second)
	}
	return s.writeCache(key, &e)
}

// writeCache may be called for a key by several builds at once, of several
// servers: each writes a file of its own, and the last one stays.
func (s *store) writeCache(key string, e *cacheEntry) error {
	return replaceJSON(s.path("tmp", "step."+newLayerID()), s.cachePath(key), e, nil)
}

// settleCache notes that the layers of keys are on disk.
func (s *store) settleCache(keys []string) {
	for _, k := range keys {
		var e cacheEntry
		if readJSON(s.cachePath(k), &e) == nil && !e.Synced {
			e.Synced = true
			_ = s.writeCache(k, &e) // else it is made anew
		}
	}
}

func (s *store) touchCache(key string, at time.Time) {
	_ = os.Chtimes(s.cachePath(key), at, at)
}

type cacheItem struct {
	path string
	used time.Time
	cacheEntry
}

// cache reads all entries, the one used last first. Those that cannot be read
// have no layer.
func (s *store) cache() ([]cacheItem, error) {
	entries, err := os.ReadDir(s.path("builds", "cache"))
	if err != nil {
		return nil, err
	}
	var list []cacheItem
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		i := cacheItem{path: s.path("builds", "cache", e.Name()), used: fi.ModTime()}
		_ = readJSON(i.path, &i.cacheEntry)
		list = append(list, i)
	}
	slices.SortFunc(list, func(a, b cacheItem) int { return cmp.Or(b.used.Compare(a.used), strings.Compare(a.path, b.path)) })
	return list, nil
}

// PruneBuilds forgets what steps came to. Layers that snapshots or sandboxes
// stand on stay; the sweeper removes the others.
func (p *Provider) PruneBuilds(_ context.Context, unused time.Duration, dry bool) (sandbox.PrunedBuilds, error) {
	var out sandbox.PrunedBuilds
	s, err := p.store()
	if err != nil {
		return out, err
	}
	list, err := s.cache()
	if err != nil {
		return out, err
	}
	used, _, err := s.layersInUse()
	if err != nil {
		return out, err
	}
	for _, i := range list {
		if s.now().Sub(i.used) < unused {
			continue
		}
		if !dry {
			if err := os.Remove(i.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return out, err
			}
		}
		out.Steps++
		if !used[i.Layer] {
			out.Bytes += i.Size
		}
	}
	return out, nil
}

// sweepBuilds keeps the cache and the logs within their bounds.
func (s *store) sweepBuilds() error {
	list, err := s.cache()
	if err != nil {
		return err
	}
	most := int64(maxCache)
	var fsinfo unix.Statfs_t
	if unix.Statfs(s.dir, &fsinfo) == nil {
		most = min(most, int64(fsinfo.Blocks)/5*int64(fsinfo.Bsize))
	}
	var errs []error
	var size int64
	for _, i := range list {
		if size += i.Size; s.now().Sub(i.used) < cacheTime && size <= most {
			continue
		}
		if err := os.Remove(i.path); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.sweepBuildLogs())...)
}

// sweepBuildLogs removes the logs of builds that made no snapshot some time ago,
// and the oldest of all above their bound.
func (s *store) sweepBuildLogs() error {
	entries, err := os.ReadDir(s.path("builds"))
	if err != nil {
		return err
	}
	var logs []fs.FileInfo
	for _, e := range entries {
		if fi, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), ".log") {
			logs = append(logs, fi)
		}
	}
	slices.SortFunc(logs, func(a, b fs.FileInfo) int { return b.ModTime().Compare(a.ModTime()) })
	var size int64
	for _, fi := range logs {
		size += fi.Size()
		old := s.now().Sub(fi.ModTime()) > buildLogTime
		if old {
			_, err := os.Lstat(s.path("snapshots", strings.TrimSuffix(fi.Name(), ".log")))
			old = errors.Is(err, fs.ErrNotExist)
		}
		if old || size > maxLogs {
			_ = os.Remove(s.path("builds", fi.Name()))
		}
	}
	return nil
}

var _ sandbox.BuildPruner = (*Provider)(nil)
