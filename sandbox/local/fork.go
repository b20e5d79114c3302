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
	"time"

	"berth/sandbox"
	"berth/sandbox/local/disk"
	"berth/sandbox/local/tree"
	"berth/sandbox/local/wire"
)

// origin is what a new sandbox stands on beside the default root.
type origin struct {
	sealed   []string
	ids      wire.IDs
	madeOn   baseName
	diskKind string
	image    *imageRecord
	account  string // as a spec has it
	// imageName is what the spec calls it; for snapshots.
	imageName string
	// dir holds what becomes the new sandbox's own: its layers, and the image
	// with the files where a disk limit has them on one. Empty: nothing.
	dir string
	// root is what a build said of the default root; nil without one.
	root *rootConfig
	// build is the lock of the build that the sandbox is made for; or empty.
	build string
	// mounts are those that the source is to have beside its spec's.
	mounts []mountRecord
	// fork: of another sandbox's files, which need not be on the disk yet.
	fork bool
}

// shared is what share leaves to do beside its origin.
type shared struct {
	*origin
	// resume starts the sandbox whose files were shared again; nil when it
	// need not be.
	resume func() error
	// held are mounts that bringToDisk lets go of.
	held *os.File
	// layer is the sealed one that is not known to be on the disk; or empty.
	layer string
}

// bringToDisk has what was shared brought to the disk, and does not wait for
// it; to is the new sandbox, empty when there is none.
func (in *Instance) bringToDisk(ctx context.Context, o *shared, to string) {
	var dirs []string
	if o.layer != "" {
		dirs = append(dirs, in.s.sealedDir(o.layer))
	}
	if to != "" {
		dirs = append(dirs, in.s.sandboxDir(to))
	}
	if o.held != nil || len(dirs) > 0 {
		in.p.engine.settle(context.WithoutCancel(ctx), o.held, dirs...)
	}
}

func originOf(r *record) *origin {
	o := &origin{sealed: r.Sealed, ids: r.IDs, madeOn: r.MadeOn, diskKind: r.DiskKind, image: r.Image, account: r.Spec.Account, root: r.Root, mounts: r.Mounts}
	if o.ids.IDMapped {
		o.ids.Base = 0 // each has a range of its own
	}
	return o
}

// Fork makes another sandbox of what this one is at this moment. When nothing
// runs in it, its files become a layer of both, and it is restarted on that;
// else its processes stand still while the files are copied.
func (in *Instance) Fork(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	p, s := in.p, in.s
	to := p.instance(s, key)
	exists := fmt.Errorf("session %s: %w", key.Session, sandbox.ErrExists)
	if to.id == in.id {
		return nil, exists
	}
	// In one order everywhere, or two forks would wait for each other.
	locks := map[string]*lock{}
	first, second := in, to
	if to.id < in.id {
		first, second = to, in
	}
	for _, x := range []*Instance{first, second} {
		op := opOther
		if x == to {
			op = opCreating
		}
		l, err := acquire(ctx, s.lockPath(x.id), op)
		if err != nil {
			return nil, err
		}
		locks[x.id] = l
		defer func() { l.release(x.gone()) }()
	}
	v, err := in.look()
	if err := in.forkable(&v, err); err != nil {
		return nil, err
	}
	l := locks[to.id]
	switch is, err := to.lookLocked(l, opCreating); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return nil, err
	case is.status == sandbox.StatusDestroyed:
		if err := to.destroyLocked(ctx, is.ended()); err != nil {
			return nil, err
		}
		l.mark(opCreating)
	default:
		return nil, exists
	}
	if err := s.checkSpace(); err != nil {
		return nil, err
	}
	o, err := in.share(ctx, &v, false)
	if err != nil {
		return nil, full(s, err)
	}
	made := ""
	defer func() { in.bringToDisk(ctx, o, made) }()
	if err := p.opts.step("fork:shared"); err != nil {
		return nil, err
	}
	o.fork = true
	resumed := make(chan error, 1)
	go func() { resumed <- o.again() }()
	err = to.create(ctx, spec, o.origin)
	if rerr := <-resumed; rerr != nil {
		// It is stopped and whole, and its next use starts it.
		p.log.WarnContext(ctx, "forked sandbox not restarted", slog.String("session", v.rec.Session), slog.Any("err", rerr))
		if err != nil {
			err = errors.Join(err, rerr)
		}
	}
	if err != nil {
		return nil, full(s, err)
	}
	made = to.id
	p.log.InfoContext(ctx, "sandbox forked", slog.String("session", string(key.Session)), slog.String("from", v.rec.Session), slog.String("sandbox", to.id))
	return to, nil
}

// again is resume, if there is any.
func (o *shared) again() error {
	if o.resume == nil {
		return nil
	}
	return o.resume()
}

// forkable tells why a sandbox's files cannot be shared; nil when they can.
func (in *Instance) forkable(v *view, err error) error {
	notFound := fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return notFound
	case err != nil:
		return err
	}
	switch v.status {
	case sandbox.StatusRunning, sandbox.StatusStopped, sandbox.StatusArchived:
		return nil
	case sandbox.StatusDestroyed:
		return notFound
	case sandbox.StatusError:
		return &sandbox.UserError{Text: "the sandbox is damaged: " + v.reason, Err: sandbox.ErrUnavailable}
	}
	return &sandbox.UserError{Text: "the sandbox is " + string(v.status) + "; try again in a moment", Err: sandbox.ErrUnavailable}
}

// share makes what the sandbox has written available to another, as of one
// moment, and leaves it running or stopped as it was, but for what the result
// says. With plain, files that are in the image of a disk limit are taken out of
// it. The caller holds its lock, and calls bringToDisk in the end.
func (in *Instance) share(ctx context.Context, v *view, plain bool) (*shared, error) {
	r := v.rec
	if !v.alive {
		o, err := in.shareStopped(ctx, v, plain)
		return &shared{origin: o, layer: in.s.unmarked(r)}, err
	}
	// Somebody was killed who had begun; it runs on what it was started on.
	if err := in.settleSeal(r); err != nil {
		return nil, err
	}
	switch {
	case r.DiskKind == wire.DiskImage || r.DiskKind == wire.DiskTmpfs:
		o, err := in.shareLimited(ctx, r, plain)
		return &shared{origin: o}, err
	case r.DiskKind == "" && !r.deep():
		o, err := in.shareQuiet(ctx, r)
		if err != nil || o != nil {
			return o, err
		}
	}
	o, err := in.shareBusy(ctx, r, plain)
	return &shared{origin: o}, err
}

func (in *Instance) shareStopped(ctx context.Context, v *view, plain bool) (*origin, error) {
	r := v.rec
	if v.crashed {
		if err := in.p.engine.kill(ctx, in.dir()); err != nil {
			return nil, err
		}
	}
	if r.Archived != nil {
		if err := in.restore(ctx, r); err != nil {
			return nil, err
		}
	}
	if err := in.settleSeal(r); err != nil {
		return nil, err
	}
	switch {
	case r.DiskKind == wire.DiskTmpfs: // nothing is left of it
		return nil, limitedFork()
	case r.DiskKind != "" || r.deep():
		// A limit counts what is the sandbox's own; so its files stay that.
		return in.copyLayers(ctx, r, plain)
	case in.unchanged():
		return originOf(r), nil
	}
	if err := in.intendSeal(r); err != nil {
		return nil, err
	}
	if err := in.p.opts.step("seal:intended"); err != nil {
		return nil, err
	}
	err := in.seal(r)
	if serr := in.settleSeal(r); err == nil {
		err = serr
	}
	return originOf(r), err
}

// quiet returns a connection to a running sandbox in which nothing runs; nil
// when something does.
func (in *Instance) quiet(ctx context.Context) (connection, error) {
	c, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return nil, in.notRunning(err)
	}
	list, err := c.Processes(ctx)
	if err != nil {
		return nil, in.notRunning(err)
	}
	for _, i := range list {
		if i.State == sandbox.ProcessRunning || len(i.Leftovers) > 0 {
			return nil, nil
		}
	}
	// Memory that looks like files does not outlive a restart.
	if left, err := c.Files().ReadDir(ctx, "/dev/shm"); err != nil || len(left) > 0 {
		return nil, nil //nolint:nilerr // copied, the sandbox is not touched
	}
	return c, nil
}

// makeWay ends a quiet sandbox. busy: something runs by now, and nothing was
// done.
func (in *Instance) makeWay(ctx context.Context, c connection) (busy bool, err error) {
	ending, cancel := context.WithTimeout(ctx, stopTime)
	defer cancel()
	busy, err = c.MakeWay(ending)
	switch {
	case busy || errors.Is(err, sandbox.ErrUnsupported):
		return true, nil
	case errors.Is(err, sandbox.ErrNotRunning):
		return true, in.notRunning(err)
	}
	// One that did not end in order may have left something running.
	if mon, _, merr := in.p.engine.monitor(in.dir()); err != nil || merr != nil || mon.Stopped == 0 {
		if kerr := in.p.engine.kill(ctx, in.dir()); kerr != nil {
			return false, errors.Join(err, kerr)
		}
	}
	return false, in.p.opts.step("seal:halted")
}

// shareLimited copies the image of a running sandbox whose disk limit keeps
// its files on one, if nothing runs in it.
func (in *Instance) shareLimited(ctx context.Context, r *record, plain bool) (*origin, error) {
	if r.DiskKind == wire.DiskTmpfs {
		return nil, limitedFork()
	}
	c, err := in.quiet(ctx)
	if err == nil && c == nil {
		err = limitedFork()
	}
	if err != nil {
		return nil, err
	}
	ctx = context.WithoutCancel(ctx)
	busy, err := in.makeWay(ctx, c)
	if err == nil && busy {
		err = limitedFork()
	}
	if err != nil {
		return nil, err
	}
	o, err := in.copyLayers(ctx, r, plain)
	if rerr := in.restart(ctx, r); rerr != nil {
		err = errors.Join(err, fmt.Errorf("restart the forked sandbox: %w", rerr))
	}
	return o, err
}

func limitedFork() error {
	return &sandbox.UserError{Err: sandbox.ErrUnsupported, Text: "the sandbox's disk limit keeps its files where they cannot be copied while processes run, or at all when it is ephemeral; end its processes with kill_process, or stop_sandbox, and fork again"}
}

// shareQuiet seals the layers of a running sandbox in which nothing runs, and
// leaves it to be restarted on them. nil when something runs.
func (in *Instance) shareQuiet(ctx context.Context, r *record) (*shared, error) {
	c, err := in.quiet(ctx)
	if c == nil || err != nil {
		return nil, err
	}
	if in.unchanged() {
		return &shared{origin: originOf(r), layer: in.s.unmarked(r)}, nil
	}
	// From here on, somebody who leaves must not stop it half way.
	ctx = context.WithoutCancel(ctx)
	if err := in.intendSeal(r); err != nil {
		return nil, err
	}
	if err := in.p.opts.step("seal:intended"); err != nil {
		return nil, err
	}
	o := &shared{layer: r.Sealing, held: in.p.engine.hold(in.dir())}
	busy, err := in.makeWay(ctx, c)
	if busy || err != nil {
		o.letGo()
		if busy {
			err = errors.Join(err, in.settleSeal(r))
		}
		return nil, err
	}
	o.resume = func() error {
		err := in.restart(ctx, r)
		if err != nil && o.held != nil {
			// Perhaps because the former mounts are still there.
			o.letGo()
			err = in.restart(ctx, r)
		}
		if err != nil {
			return fmt.Errorf("restart the forked sandbox: %w", err)
		}
		return nil
	}
	if err := in.seal(r); err != nil {
		err = errors.Join(err, o.resume())
		o.letGo()
		return nil, err
	}
	o.origin = originOf(r)
	return o, nil
}

// letGo does without holding mounts, and waits until they are gone.
func (o *shared) letGo() {
	if o.held != nil {
		_ = o.held.Close()
		o.held = nil
	}
}

// restart starts the sandbox again after its layers were sealed.
func (in *Instance) restart(ctx context.Context, r *record) error {
	// Only in memory: the record says that it was being sealed until it runs.
	now := *r
	if r.Sealing == "" {
	} else if _, err := os.Lstat(filepath.Join(in.s.sealedDir(r.Sealing), layersDir)); err != nil {
		now.Sealed = r.Sealed[:len(r.Sealed)-1]
	}
	launch, err := in.p.prepare(ctx, in.s, in.id, &now)
	if err != nil {
		return err
	}
	if err := in.p.opts.step("seal:prepared"); err != nil {
		return err
	}
	if err := in.p.engine.launch(ctx, launch, r.Session); err != nil {
		return launchError(err)
	}
	r.IDs, r.Base, r.MadeOn = now.IDs, now.Base, now.MadeOn
	if err := in.p.opts.step("seal:launched"); err != nil {
		return err
	}
	return in.settleSeal(r)
}

// shareBusy copies the layers while everything inside stands still.
func (in *Instance) shareBusy(ctx context.Context, r *record, plain bool) (*origin, error) {
	still, err := in.p.engine.freeze(ctx, in.dir())
	if errors.Is(err, sandbox.ErrUnsupported) {
		return nil, &sandbox.UserError{Text: "the sandbox was started by an older berth, which cannot hold its processes still; stop_sandbox first, or end them with kill_process, and fork again", Err: sandbox.ErrUnsupported}
	}
	if errors.Is(err, sandbox.ErrLimit) {
		return nil, &sandbox.UserError{Text: "the sandbox cannot be held still to copy its files: " + err.Error() + "; try again, or stop_sandbox first", Err: sandbox.ErrUnavailable}
	}
	if err != nil {
		return nil, in.notRunning(err)
	}
	o, err := in.copyLayers(ctx, r, plain)
	if terr := still.thaw(context.WithoutCancel(ctx)); err == nil && terr != nil {
		_ = treeAs(r.IDs).Remove(context.WithoutCancel(ctx), o.dir)
		err = &sandbox.UserError{Text: "copying the files took longer than " + (wire.FreezeMost * time.Millisecond).String() + ", for which processes can be held still; stop_sandbox or end them with kill_process, and fork again", Err: sandbox.ErrLimit}
	}
	return o, err
}

// copyLayers copies the layers into a directory of their own.
func (in *Instance) copyLayers(ctx context.Context, r *record, plain bool) (*origin, error) {
	dir := in.s.path("tmp", "copy."+newLayerID())
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	defer in.s.keepDir(dir)()
	o := originOf(r)
	o.dir = dir
	as := treeAs(r.IDs)
	if err := in.p.opts.step("fork:copying"); err != nil {
		return nil, err
	}
	layers := filepath.Join(dir, layersDir)
	var err error
	if plain {
		err = in.withFiles(r, func(files string) error {
			_, err := as.Copy(ctx, files, layers)
			return err
		})
	} else {
		_, err = as.Copy(ctx, in.layers(), layers)
	}
	if err == nil && r.DiskKind == wire.DiskImage && !plain {
		image := filepath.Join(in.dir(), disk.Image)
		err = withImage(image, func(files string) error {
			// Its last mount may still be on its way out.
			if err := syncFS(files); err != nil {
				return err
			}
			return tree.CopyFile(ctx, image, filepath.Join(dir, disk.Image))
		})
	}
	if err != nil {
		_ = as.Remove(context.WithoutCancel(ctx), dir)
		return nil, fmt.Errorf("copy the files: %w", err)
	}
	return o, nil
}
