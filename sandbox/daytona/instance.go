package daytona

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// Instance is a handle on one sandbox.
type Instance struct {
	p   *Provider
	key sandbox.Key
	id  string // native
	// adopted: berth did not make it, it was found by its own id or name.
	adopted bool

	mu    sync.Mutex
	fresh *api.Sandbox // what led here, for the first who asks
	at    time.Time    // when that was
}

func (p *Provider) instance(key sandbox.Key, sb *api.Sandbox) *Instance {
	return &Instance{p: p, key: key, id: sb.ID, adopted: sb.Name != p.nameOf(key), fresh: sb, at: p.now()}
}

// freshFor is how long what a lookup found is taken for the present state: a
// caller looks a sandbox up and asks for its state in one go.
const freshFor = 200 * time.Millisecond

// ID is the sandbox's id at the platform.
func (i *Instance) ID() string { return i.id }

// look reads the present state.
func (i *Instance) look(ctx context.Context) (*api.Sandbox, error) {
	at, err := i.p.at()
	if err != nil {
		return nil, err
	}
	sb, err := at.Sandbox(ctx, i.id)
	if err != nil {
		return nil, i.p.fail("look at the sandbox", err)
	}
	return sb, nil
}

// Info reads the present state.
func (i *Instance) Info(ctx context.Context) (sandbox.Info, error) {
	i.mu.Lock()
	sb := i.fresh
	if i.fresh = nil; sb != nil && i.p.now().Sub(i.at) > freshFor {
		sb = nil
	}
	i.mu.Unlock()
	if sb == nil {
		var err error
		if sb, err = i.look(ctx); err != nil {
			return sandbox.Info{}, err
		}
	}
	if statusOf(sb) == sandbox.StatusRunning {
		i.p.learn(ctx, sb)
	}
	info := i.p.infoOf(i.key, sb)
	info.Mounts = i.mounts(ctx, sb)
	return info, nil
}

// Start starts it.
func (i *Instance) Start(ctx context.Context) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	sb, err := i.look(ctx)
	if err != nil {
		return err
	}
	i.p.note(i.id)
	was := sb.State
	if was != api.Started {
		deadline := i.p.now().Add(i.p.o.Times.Change)
		if was == api.Archived || was == api.Archiving || was == api.Restoring {
			deadline = i.p.now().Add(i.p.o.Times.Archive)
		}
		sb, err = i.until(ctx, deadline, "start", func(sb *api.Sandbox) (bool, error) {
			switch s := sb.State; {
			case s == api.Started:
				return true, nil
			case gone(sb):
				return false, sandbox.ErrNotFound
			case s == api.Errored || s == api.BuildFailed:
				return false, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona: the sandbox does not start: " + cmp.Or(sb.ErrorReason, string(s))}
			case settled(s): // also when it came to rest again: somebody stopped it
				// A conflict is a change that is under way: look again.
				if err := at.Start(ctx, i.id); err != nil && !errors.Is(err, api.ErrConflict) {
					return false, i.p.fail("start the sandbox", err)
				}
			}
			return false, nil
		})
		if err != nil {
			return err
		}
		i.p.forgetBox(i.id) // its helper, if any, is another process now
	}
	if err := i.settle(ctx, sb); err != nil {
		return err
	}
	i.p.learn(ctx, sb)
	return nil
}

// until looks until done says so, done fails, or the deadline has passed. done
// is called with each state that is seen.
func (i *Instance) until(ctx context.Context, deadline time.Time, doing string, done func(*api.Sandbox) (bool, error)) (*api.Sandbox, error) {
	var last *api.Sandbox
	for wait := 100 * time.Millisecond; ; wait = min(wait*3/2, i.p.o.Times.Look) {
		sb, err := i.look(ctx)
		switch {
		case err == nil:
			last = sb
			ok, err := done(sb)
			if ok || err != nil {
				return sb, err
			}
		case errors.Is(err, sandbox.ErrNotFound), ctx.Err() != nil, errors.Is(err, sandbox.ErrClosed):
			return nil, err
		case i.p.now().After(deadline):
			return nil, err
		}
		if i.p.now().After(deadline) {
			state := "in a state that nobody knows"
			if last != nil {
				state = string(last.State)
			}
			return last, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf(
				"Daytona: %s the sandbox: it is still %s; make the same call again later, or destroy_sandbox", doing, state)}
		}
		if last != nil {
			sandbox.Report(ctx, sandbox.Progress{Text: "Daytona: the sandbox is " + string(last.State)})
		}
		if err := pause(ctx, wait); err != nil {
			return last, err
		}
	}
}

// Stop stops it; the platform gives processes 10 s. An ephemeral one is deleted.
func (i *Instance) Stop(ctx context.Context) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	i.p.note(i.id)
	told := false
	_, err = i.until(ctx, i.p.now().Add(i.p.o.Times.Change), "stop", func(sb *api.Sandbox) (bool, error) {
		switch sb.State {
		case api.Started:
			if !told {
				told = true
				leave := i.leaving(ctx, sb)
				i.p.farewell(ctx, i.id, "the sandbox was stopped")
				leave()
			}
			// Of one that has stopped meanwhile the platform says 400: look.
			if err := at.Stop(ctx, i.id); err != nil && !errors.Is(err, api.ErrConflict) && !errors.Is(err, api.ErrNotFound) {
				if now, lerr := i.look(ctx); lerr == nil && now.State == api.Started {
					return false, i.p.fail("stop the sandbox", err)
				}
			}
		case api.Stopped, api.Archived, api.Archiving, api.Paused, api.Destroyed, api.Errored, api.BuildFailed:
			return true, nil
		}
		return false, nil
	})
	i.p.forgetBox(i.id)
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil // an ephemeral one
	}
	return err
}

// Destroy deletes it, and waits until it is gone.
func (i *Instance) Destroy(ctx context.Context) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	i.p.note(i.id)
	asked := false
	_, err = i.until(ctx, i.p.now().Add(i.p.o.Times.Change), "destroy", func(sb *api.Sandbox) (bool, error) {
		switch {
		case gone(sb):
			return true, nil
		case sb.State == api.Destroying, asked && !settled(sb.State):
			return false, nil
		}
		switch err := at.Delete(ctx, i.id); {
		case err == nil:
			asked = true
		case errors.Is(err, api.ErrNotFound):
			return true, nil
		case errors.Is(err, api.ErrConflict): // while it changes
		default:
			return false, i.p.fail("destroy the sandbox", err)
		}
		return false, nil
	})
	i.p.forgetBox(i.id)
	i.p.mu.Lock()
	delete(i.p.mounts, i.id)
	i.p.mu.Unlock()
	if errors.Is(err, sandbox.ErrNotFound) {
		return nil
	}
	return err
}

// Archive moves a stopped one's files to cheaper storage.
func (i *Instance) Archive(ctx context.Context) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	i.p.note(i.id)
	first := true
	_, err = i.until(ctx, i.p.now().Add(i.p.o.Times.Archive), "archive", func(sb *api.Sandbox) (bool, error) {
		begin := first
		first = false
		switch sb.State {
		case api.Archived:
			return true, nil
		case api.Started:
			return false, &sandbox.UserError{Text: "the sandbox runs; stop_sandbox with archive stops it first"}
		case api.Stopped, api.Paused:
			// It may read stopped for a moment after the request.
			if begin || sb.DesiredState != api.Archived {
				if err := at.Archive(ctx, i.id); err != nil && !errors.Is(err, api.ErrConflict) {
					return false, i.p.fail("archive the sandbox", err)
				}
			}
		case api.Errored, api.BuildFailed, api.Destroyed:
			return false, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona: the sandbox cannot be archived: " + cmp.Or(sb.ErrorReason, string(sb.State))}
		}
		return false, nil
	})
	return err
}

// Recover asks the platform to bring it out of an error, where that says that it
// can.
func (i *Instance) Recover(ctx context.Context) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	sb, err := i.look(ctx)
	if err != nil {
		return err
	}
	if sb.State == api.Errored && !sb.Recoverable {
		return &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona cannot recover it: " + cmp.Or(sb.ErrorReason, "no reason is given")}
	}
	if sb.State == api.Errored {
		if err := at.Recover(ctx, i.id); err != nil && !errors.Is(err, api.ErrConflict) {
			return i.p.fail("recover the sandbox", err)
		}
	}
	i.p.note(i.id)
	_, err = i.until(ctx, i.p.now().Add(i.p.o.Times.Change), "recover", func(sb *api.Sandbox) (bool, error) {
		if sb.State == api.Errored || sb.State == api.BuildFailed {
			return false, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona could not recover it: " + cmp.Or(sb.ErrorReason, string(sb.State))}
		}
		return settled(sb.State), nil
	})
	return err
}

// Retire deletes a broken one: the platform keeps no broken sandboxes for later.
func (i *Instance) Retire(ctx context.Context, _ string) (string, error) {
	return "", i.Destroy(ctx)
}

// Touch notes that it is in use.
func (i *Instance) Touch(ctx context.Context) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	if err := at.Touch(ctx, i.id); err != nil {
		return i.p.fail("note that the sandbox is in use", err)
	}
	return nil
}

// Update applies what of spec can be changed, and keeps the rest.
func (i *Instance) Update(ctx context.Context, spec sandbox.Spec) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	sb, err := i.look(ctx)
	if err != nil {
		return err
	}
	was := i.p.infoOf(i.key, sb).Spec
	// What is fixed when a sandbox is made stays what it is.
	spec.Image, spec.Snapshot, spec.Resources, spec.Volumes, spec.Ephemeral = was.Image, was.Snapshot, was.Resources, was.Volumes, was.Ephemeral
	network := spec.Network
	spec.Network = was.Network
	r, _ := readRecord(sb)
	i.p.note(i.id)
	if err := i.keep(ctx, sb, spec, r.Network != nil && r.Network.Late); err != nil {
		return err
	}
	for _, c := range []struct {
		want, is *time.Duration
		set      func(context.Context, string, int) error
	}{{spec.AutoStop, was.AutoStop, at.SetAutoStop}, {spec.AutoArchive, was.AutoArchive, at.SetAutoArchive}, {spec.AutoDelete, was.AutoDelete, at.SetAutoDelete}} {
		if c.want == nil || c.is != nil && *c.want == *c.is {
			continue
		}
		n := whole(*c.want)
		if *c.want < 0 {
			n = -1
		}
		if err := c.set(ctx, i.id, n); err != nil {
			return i.p.fail("set an interval", err)
		}
	}
	if spec.Public != nil && *spec.Public != sb.Public {
		if err := at.SetPublic(ctx, i.id, *spec.Public); err != nil {
			return i.p.fail("open or close its ports", err)
		}
	}
	if network != nil && !network.Equal(*was.Network) {
		return i.SetNetwork(ctx, *network)
	}
	return nil
}

// keep writes the labels that spec asks for, if they are others than those there
// are, and lets foreign ones of ours be.
func (i *Instance) keep(ctx context.Context, sb *api.Sandbox, spec sandbox.Spec, late bool) error {
	return i.keepWith(ctx, sb, spec, late, added(sb.Labels))
}

// keepWith is keep with other mounts than those that mount_bucket has added so far.
func (i *Instance) keepWith(ctx context.Context, sb *api.Sandbox, spec sandbox.Spec, late bool, extra []mountRecord) error {
	at, err := i.p.at()
	if err != nil {
		return err
	}
	labels, err := i.p.labels(i.key, spec, sb.Labels[labelMade], late)
	if err != nil {
		return err
	}
	if _, err := i.p.unseal(i.key, sb.Labels); err != nil && len(spec.Env) == 0 {
		for k, v := range sb.Labels { // another server may be able to read them
			if strings.HasPrefix(k, labelEnv) {
				labels[k] = v
			}
		}
	}
	if err := putAdded(labels, extra); err != nil {
		return err
	}
	if maps.Equal(labels, sb.Labels) {
		return nil
	}
	if err := at.SetLabels(ctx, i.id, labels); err != nil {
		return i.p.fail("keep the session's settings", err)
	}
	sb.Labels = labels
	return nil
}

// claim marks a sandbox that is adopted as its session's.
func (i *Instance) claim(ctx context.Context) error {
	sb, err := i.look(ctx)
	if err != nil {
		return err
	}
	if _, session := ownerOf(sb); session != "" {
		return nil
	}
	return i.keep(ctx, sb, i.p.infoOf(i.key, sb).Spec, false)
}
