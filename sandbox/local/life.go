//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"time"

	"berth/sandbox"
	"berth/sandbox/local/wire"
)

// Start brings the sandbox to running.
func (in *Instance) Start(ctx context.Context) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opStarting)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.lookLocked(l, opStarting)
	for err == nil && v.status == sandbox.StatusStopping { // its monitor ends it, being idle
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(5 * time.Millisecond):
		}
		v, err = in.lookLocked(l, opStarting)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	case err != nil:
		return err
	}
	switch v.status {
	case sandbox.StatusRunning:
		return nil
	case sandbox.StatusError:
		return &sandbox.UserError{Text: "the sandbox is damaged: " + v.reason, Err: sandbox.ErrUnavailable}
	case sandbox.StatusDestroyed:
		if err := in.destroyLocked(ctx, v.ended()); err != nil {
			return err
		}
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	}
	return full(in.s, in.start(ctx, &v))
}

func (in *Instance) start(ctx context.Context, v *view) error {
	p, r := in.p, v.rec
	if v.crashed {
		// What a killed monitor left outside: init, cgroups.
		if err := p.engine.kill(ctx, in.dir()); err != nil {
			return err
		}
	}
	if err := in.s.checkSpace(); err != nil {
		return err
	}
	if r.Archived != nil {
		if err := in.restore(ctx, r); err != nil {
			return err
		}
	}
	if err := in.settleSeal(r); err != nil {
		return err
	}
	before := *r
	launch, err := p.prepare(ctx, in.s, in.id, r)
	if err != nil {
		return err
	}
	in.s.useSealed(r.Sealed)
	if r.IDs != before.IDs || r.Base != before.Base || r.MadeOn != before.MadeOn {
		if err := in.s.writeRecord(in.id, r); err != nil {
			return err
		}
	}
	if err := p.opts.step("start:prepared"); err != nil {
		return err
	}
	if err := p.engine.launch(ctx, launch, r.Session); err != nil {
		return launchError(err)
	}
	p.log.InfoContext(ctx, "sandbox started", slog.String("session", string(r.Session)), slog.String("sandbox", in.id))
	return nil
}

// stopTime is how long an orderly stop may take before everything is killed.
// What is open in buckets is brought in, which a service that is away makes slow.
const stopTime = 75 * time.Second

// Stop ends everything inside. Only what runs is seen stopping.
func (in *Instance) Stop(ctx context.Context) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.look()
	if errors.Is(err, fs.ErrNotExist) {
		if _, terr := in.s.readTombstone(in.id); terr == nil {
			return nil
		}
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	}
	if err != nil {
		return err
	}
	if v.alive {
		l.mark(opStopping)
		if err := in.halt(ctx, "asked to"); err != nil {
			return err
		}
	}
	if v.status == sandbox.StatusDestroyed || v.rec != nil && v.rec.Spec.deletedOnStop() {
		l.mark(opDestroying)
		if now, err := in.look(); err == nil {
			v = now
		}
		return in.destroyLocked(ctx, v.ended())
	}
	return nil
}

// halt stops a living monitor in order, or else by force. A caller that goes
// away does not stop the stopping half way.
func (in *Instance) halt(ctx context.Context, reason string) error {
	if err := in.p.opts.step("stop:begin"); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopTime)
	defer cancel()
	c, err := in.p.engine.connect(ctx, in.dir())
	if err == nil {
		err = c.Stop(ctx, reason)
	}
	if err != nil && !errors.Is(err, sandbox.ErrNotRunning) {
		in.p.log.WarnContext(ctx, "sandbox stopped by force", slog.String("sandbox", in.id), slog.Any("err", err))
	}
	if err != nil {
		if kerr := in.p.engine.kill(ctx, in.dir()); kerr != nil {
			return kerr
		}
	}
	return in.p.opts.step("stop:halted")
}

// Update keeps spec and applies it.
func (in *Instance) Update(ctx context.Context, spec sandbox.Spec) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.look()
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && v.status == sandbox.StatusDestroyed:
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	case err != nil:
		return err
	case v.rec == nil:
		return &sandbox.UserError{Text: "the sandbox is damaged: " + v.reason, Err: sandbox.ErrUnavailable}
	}
	was := v.rec.Spec.Image
	v.rec.Spec = fromSpec(spec)
	v.rec.Spec.Image = was
	if err := in.s.writeRecord(in.id, v.rec); err != nil {
		return full(in.s, err)
	}
	if !v.alive {
		return nil
	}
	c, err := in.p.engine.connect(ctx, in.dir())
	if errors.Is(err, sandbox.ErrNotRunning) {
		return nil // it stopped meanwhile; the next start reads the record
	}
	if err != nil {
		return err
	}
	// Also when the record said so before: whoever wrote that may have failed,
	// or been killed, before the gate was told.
	if _, err := c.Network(ctx, in.p.network(v.rec.Spec)); err != nil {
		return fmt.Errorf("set the network: %w", err)
	}
	return c.Configure(ctx, intervals(v.rec.Spec))
}

// Resize gives a running sandbox other limits, where cgroups hold them. They hold
// at its next starts, too.
func (in *Instance) Resize(ctx context.Context, to sandbox.Resources) error {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.look()
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && v.status == sandbox.StatusDestroyed:
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	case err != nil:
		return err
	case v.rec == nil || !v.alive:
		return fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotRunning)
	case to.Disk != 0 && to.Disk != v.rec.Spec.Disk:
		return &sandbox.FieldError{Field: "resources.disk_gib", Problem: "the size of a sandbox's file system is set when the sandbox is made", Allowed: "what it is", Hint: "leave it out, or fork the sandbox"}
	}
	rec := *v.rec
	if to.CPU > 0 {
		rec.Spec.CPU = to.CPU
	}
	if to.Memory > 0 {
		rec.Spec.Memory = to.Memory
	}
	c, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return err
	}
	limits := in.p.limits(rec.Spec)
	change := wire.LimitChange{}
	if to.CPU > 0 {
		change.CPUMilli = limits.CPUMilli
	}
	if to.Memory > 0 {
		change.Memory = limits.Memory
	}
	if err := in.s.writeRecord(in.id, &rec); err != nil {
		return full(in.s, err)
	}
	if err := c.Limit(ctx, change); err != nil {
		err = errors.Join(err, in.s.writeRecord(in.id, v.rec))
		if errors.Is(err, sandbox.ErrUnsupported) {
			return &sandbox.UserError{Text: err.Error(), Err: sandbox.ErrUnsupported}
		}
		return err
	}
	return nil
}

// SetNetwork changes what the sandbox may reach, at once.
func (in *Instance) SetNetwork(ctx context.Context, p sandbox.NetworkPolicy) error {
	info, err := in.Info(ctx)
	if err != nil {
		return err
	}
	info.Spec.Network = &p
	return in.Update(ctx, info.Spec)
}
