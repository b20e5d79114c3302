//go:build linux

package local

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"berth/sandbox"
)

// How long leftovers and memories are kept.
const (
	tombstoneTime = 30 * 24 * time.Hour
	baseTime      = 7 * 24 * time.Hour // an unused set of layers
	tmpTime       = 10 * time.Minute   // what nobody holds a lock for
)

// maxTombstones bounds them whatever their age; tests have fewer.
var maxTombstones = 10_000

// Sweep archives and deletes the stopped sandboxes whose time has come, and
// removes what killed berths left and what is old. What another process is
// just busy with is left to it. It goes on after a fault and joins the errors.
func (p *Provider) Sweep(ctx context.Context) error {
	s, err := p.store()
	if err != nil {
		return err
	}
	errs := p.sweepSandboxes(ctx, s)
	errs = append(errs, s.sweepTmp(ctx), s.sweepTrash(ctx), s.sweepTombstones(), s.sweepRetired(ctx), s.sweepPorts(), s.sweepRanges(), s.sweepLocks(), p.sweepBases(ctx, s), s.sweepBuilds(), s.sweepSealed(ctx), p.sweepImages(ctx, s))
	return errors.Join(errs...)
}

func (p *Provider) sweepSandboxes(ctx context.Context, s *store) []error {
	entries, err := os.ReadDir(s.path("sandboxes"))
	if err != nil {
		return []error{err}
	}
	var errs []error
	for _, e := range entries {
		if ctx.Err() != nil {
			return append(errs, ctx.Err())
		}
		in := &Instance{p: p, s: s, id: e.Name()}
		if err := in.sweep(ctx); err != nil && !errors.Is(err, errLocked) && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, sandbox.ErrNotFound) {
			p.log.WarnContext(ctx, "sweep", slog.String("sandbox", in.id), slog.Any("err", err))
			errs = append(errs, err)
		}
	}
	return errs
}

func (in *Instance) sweep(ctx context.Context) error {
	v, err := in.look()
	if err != nil || v.rec == nil {
		return err
	}
	in.key = v.rec.key()
	if done, err := in.sweepBuild(ctx, v.rec); done {
		return err
	}
	switch v.status {
	case sandbox.StatusStopped, sandbox.StatusArchived, sandbox.StatusDestroyed:
	default:
		return nil
	}
	if v.crashed {
		in.settle(&v)
	}
	l, err := tryAcquire(in.s.lockPath(in.id), opOther)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	// Once more: it may have been started since.
	if v, err = in.look(); err != nil || v.rec == nil {
		return err
	}
	since := in.s.now().Sub(in.stopped(&v))
	spec := v.rec.Spec
	switch {
	case v.status == sandbox.StatusDestroyed:
		l.mark(opDestroying)
		return in.destroyLocked(ctx, v.ended())
	case v.status != sandbox.StatusStopped && v.status != sandbox.StatusArchived:
		return nil
	case spec.autoDelete() >= 0 && since >= spec.autoDelete() && v.mon.Version != 0:
		l.mark(opDestroying)
		return in.destroyLocked(ctx, "stopped for "+spec.autoDelete().String())
	case v.status == sandbox.StatusArchived:
		return in.freeLayers(ctx, v.rec)
	case since >= spec.autoArchive():
		l.mark(opArchiving)
		return full(in.s, in.archive(ctx, &v))
	case v.crashed:
		// The dead monitor's init and cgroups.
		return in.p.engine.kill(ctx, in.dir())
	}
	return nil
}

// sweepTmp removes what was half made when its maker was killed.
func (s *store) sweepTmp(ctx context.Context) error {
	entries, err := os.ReadDir(s.path("tmp"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		path := s.path("tmp", e.Name())
		if id, ok := strings.CutSuffix(e.Name(), ".create"); ok {
			l, err := tryAcquire(s.lockPath(id), opOther)
			if err != nil {
				continue
			}
			errs = append(errs, s.removeTree(ctx, path))
			_, err = os.Lstat(s.sandboxDir(id))
			l.release(err != nil)
			continue
		}
		if strings.HasPrefix(e.Name(), "base.") {
			if l, err := tryAcquire(s.lockPath(e.Name()), opOther); err == nil {
				errs = append(errs, s.removeTree(ctx, path))
				l.release(true)
			}
			continue
		}
		if fi, err := e.Info(); err == nil && s.now().Sub(fi.ModTime()) > tmpTime {
			errs = append(errs, s.removeTree(ctx, path))
		}
	}
	return errors.Join(errs...)
}

func (s *store) sweepTrash(ctx context.Context) error {
	entries, err := os.ReadDir(s.path("trash"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		l, err := tryAcquire(s.lockPath(id), opOther)
		if err != nil {
			continue // its destroyer is at work
		}
		errs = append(errs, s.removeTree(ctx, s.path("trash", e.Name())))
		_, err = os.Lstat(s.sandboxDir(id))
		l.release(err != nil)
	}
	return errors.Join(errs...)
}

func (s *store) sweepTombstones() error {
	entries, err := os.ReadDir(s.path("tombstones"))
	if err != nil {
		return err
	}
	type stone struct {
		name string
		at   time.Time
	}
	var kept []stone
	for _, e := range entries {
		fi, err := e.Info()
		if err != nil {
			continue
		}
		if s.now().Sub(fi.ModTime()) > tombstoneTime {
			_ = os.Remove(s.tombstonePath(e.Name()))
			continue
		}
		kept = append(kept, stone{e.Name(), fi.ModTime()})
	}
	if len(kept) > maxTombstones {
		slices.SortFunc(kept, func(a, b stone) int { return a.at.Compare(b.at) })
		for _, k := range kept[:len(kept)-maxTombstones] {
			_ = os.Remove(s.tombstonePath(k.name))
		}
	}
	return nil
}

func (s *store) sweepRetired(ctx context.Context) error {
	entries, err := os.ReadDir(s.path("retired"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		dir := s.path("retired", e.Name())
		var note retirement
		at := time.Time{}
		if err := readJSON(filepath.Join(dir, retiredFile), &note); err == nil {
			at = note.At
		} else if fi, err := e.Info(); err == nil {
			at = fi.ModTime()
		}
		if s.now().Sub(at) > retireTime {
			errs = append(errs, s.removeTree(ctx, dir))
		}
	}
	return errors.Join(errs...)
}

// sweepRanges frees the id ranges of sandboxes that are gone.
func (s *store) sweepRanges() error {
	entries, err := os.ReadDir(s.path("ids"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		path := s.path("ids", e.Name())
		holder, err := os.Readlink(path)
		if err != nil {
			continue
		}
		if _, err := os.Lstat(s.sandboxDir(holder)); errors.Is(err, fs.ErrNotExist) {
			s.freeStale(path, holder)
		}
	}
	return nil
}

// sweepLocks removes the locks of sandboxes that are gone.
func (s *store) sweepLocks() error {
	entries, err := os.ReadDir(s.path("locks"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() == "ids" {
			continue
		}
		if _, err := os.Lstat(s.sandboxDir(e.Name())); !errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if l, err := tryAcquire(s.lockPath(e.Name()), opOther); err == nil {
			_, err := os.Lstat(s.sandboxDir(e.Name()))
			l.release(errors.Is(err, fs.ErrNotExist))
		}
	}
	return nil
}

// sweepBases removes layers of a former state of the host that nobody uses.
func (p *Provider) sweepBases(ctx context.Context, s *store) error {
	used := map[string]bool{}
	entries, err := os.ReadDir(s.path("sandboxes"))
	if err != nil {
		return err
	}
	for _, e := range entries {
		r, err := readRecord(s.sandboxDir(e.Name()))
		if err != nil {
			if r, err = readCopy(s.sandboxDir(e.Name())); err != nil {
				return nil //nolint:nilerr // it may use any of them
			}
		}
		used[r.Base.Fingerprint] = true
	}
	bases, err := os.ReadDir(s.path("base"))
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range bases {
		fi, err := e.Info()
		if err != nil || used[e.Name()] || s.now().Sub(fi.ModTime()) < baseTime {
			continue
		}
		if err := s.removeBase(ctx, e.Name()); err != nil && !errors.Is(err, errLocked) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// removeBase removes a set of layers, unless somebody begins to use it.
func (s *store) removeBase(ctx context.Context, name string) error {
	l, err := tryAcquire(s.baseLock(name), opOther)
	if err != nil {
		return err
	}
	defer l.release(true)
	// Renamed first: half of the layers must not look like all of them.
	from, to := s.path("base", name), s.path("trash", "base."+name)
	if err := os.Rename(from, to); err != nil {
		return err
	}
	// Whoever uses layers touches them first, without the lock.
	if fi, err := os.Lstat(to); err == nil && s.now().Sub(fi.ModTime()) < baseTime {
		return os.Rename(to, from)
	}
	return s.removeTree(ctx, to)
}
