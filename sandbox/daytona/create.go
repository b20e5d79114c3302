package daytona

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// Create makes the key's sandbox. There is one of its name, whatever happens on
// the way: when the platform does not say what came of the request, Create looks
// for the name, and tells by a label whether what it finds is of its own making.
func (p *Provider) Create(ctx context.Context, key sandbox.Key, spec sandbox.Spec) (sandbox.Instance, error) {
	if _, err := p.at(); err != nil {
		return nil, err
	}
	made := strings.ToLower(rand.Text())
	n, err := p.plan(ctx, key, spec, made)
	if err != nil {
		return nil, err
	}
	return p.make(ctx, key, spec, n, made)
}

// plan checks spec and says it in the platform's words. Nothing is made yet but
// volumes.
func (p *Provider) plan(ctx context.Context, key sandbox.Key, spec sandbox.Spec, made string) (api.NewSandbox, error) {
	n := api.NewSandbox{Name: p.nameOf(key), Target: p.o.Target}
	var errs []error
	labels, err := p.labels(key, spec, made, false)
	errs = append(errs, err)
	n.Labels = labels
	if spec.Network != nil {
		n.NetworkBlockAll, n.NetworkAllowList, err = settingsOf(*spec.Network)
		errs = append(errs, err)
	}
	switch {
	case spec.Snapshot != "":
	case spec.Image != "":
		full, err := imageName(spec.Image)
		errs = append(errs, err)
		n.Build = &api.Build{Dockerfile: "FROM " + full + "\n"}
		r := spec.Resources
		for _, c := range []struct {
			field, unit string
			asked       float64
			to          *int
		}{{"resources.cpu", "cores", r.CPU, &n.CPU}, {"resources.memory_gib", "GiB", gib(r.Memory), &n.Memory}, {"resources.disk_gib", "GiB", gib(r.Disk), &n.Disk}} {
			if *c.to = int(math.Ceil(c.asked)); float64(*c.to) != c.asked && !p.o.BestEffort {
				errs = append(errs, &sandbox.FieldError{Field: c.field, Problem: fmt.Sprintf("%g %s is no whole number", c.asked, c.unit), Allowed: "whole " + c.unit + " at Daytona"})
			}
		}
	}
	for i, v := range spec.Volumes {
		if v.ReadOnly {
			errs = append(errs, &sandbox.FieldError{Field: fmt.Sprintf("volumes[%d].read_only", i), Problem: "Daytona attaches no volume read-only", Allowed: "false",
				Hint: "attach it writable, or leave it out"})
		}
	}
	if err := errors.Join(errs...); err != nil {
		return n, err
	}
	if spec.Snapshot != "" {
		s, err := p.usableSnapshot(ctx, key.Owner, spec.Snapshot)
		if err != nil {
			return n, err
		}
		n.Snapshot = s.Name
	}
	for _, v := range spec.Volumes {
		id, err := p.volume(ctx, key.Owner, v.Volume)
		if err != nil {
			return n, err
		}
		n.Volumes = append(n.Volumes, api.Mount{Volume: id, Path: v.Path, Subpath: v.Subpath})
	}
	if spec.User != "" && spec.User != placeholderUser {
		n.User = spec.User
	}
	if spec.Public != nil {
		n.Public = *spec.Public
	}
	minutes := func(d *time.Duration) *int {
		if d == nil {
			return nil
		}
		if *d < 0 {
			return new(-1)
		}
		return new(whole(*d))
	}
	n.AutoStop, n.AutoArchive, n.AutoDelete = minutes(spec.AutoStop), minutes(spec.AutoArchive), minutes(spec.AutoDelete)
	return n, nil
}

// make has the platform make n, and waits until it runs.
func (p *Provider) make(ctx context.Context, key sandbox.Key, spec sandbox.Spec, n api.NewSandbox, made string) (*Instance, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	sb, err := at.Create(ctx, n)
	switch {
	case err == nil:
	case errors.Is(err, api.ErrConflict), errors.Is(err, api.ErrMaybeDone):
		// Somebody has the name: another server, or this very request, of which
		// a proxy, or this client, sent another copy.
		if sb, err = p.search(ctx, n.Name, made, err); err != nil {
			return nil, err
		}
	default:
		return nil, p.refused(spec, err)
	}
	p.note(sb.ID)
	i := p.instance(key, sb)
	if sb, err = p.await(ctx, i, spec); err != nil {
		return nil, err
	}
	if err := i.settle(ctx, sb); err != nil {
		return nil, p.undo(ctx, i, err)
	}
	p.learn(ctx, sb)
	i.fresh = nil // it is old by now
	return i, nil
}

// search looks for the sandbox of a name after a creation whose outcome is not
// known. ErrExists when it is of somebody else's making.
func (p *Provider) search(ctx context.Context, name, made string, cause error) (*api.Sandbox, error) {
	at, err := p.at()
	if err != nil {
		return nil, err
	}
	taken := errors.Is(cause, api.ErrConflict)
	for end := p.now().Add(p.o.Times.Doubt); ; {
		sb, err := at.Sandbox(context.WithoutCancel(ctx), name)
		switch {
		case err == nil && sb.Labels[labelMade] == made:
			return sb, nil
		case err == nil:
			return nil, sandbox.ErrExists
		case errors.Is(err, api.ErrNotFound) && taken:
			// It was just there: let the caller look again.
			return nil, sandbox.ErrExists
		}
		if p.now().After(end) || pause(ctx, min(time.Second, p.o.Times.Look)) != nil {
			return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf(
				"Daytona did not say whether it makes the sandbox (%v), and there is none of its name %s yet; make the same call again: it looks for that first, and two are never made", cause, name)}
		}
	}
}

// refused says why the platform makes no sandbox.
func (p *Provider) refused(spec sandbox.Spec, err error) error {
	var e *api.Error
	if errors.As(err, &e) && e.Status == 404 && p.o.Target != "" {
		return &sandbox.UserError{Text: fmt.Sprintf("Daytona knows no target %q (%s); the operator's setting daytona.target, or DAYTONA_TARGET, names the region", p.o.Target, e.Message)}
	}
	if errors.As(err, &e) && e.Status == 400 && spec.Snapshot != "" && strings.Contains(strings.ToLower(e.Message), "snapshot") {
		return &sandbox.FieldError{Field: "snapshot", Problem: fmt.Sprintf("Daytona makes no sandbox of %s: %s", spec.Snapshot, e.Message), Hint: "list_snapshots shows those there are"}
	}
	return p.fail("create the sandbox", err)
}

// await waits until a new sandbox runs. One that failed is deleted.
func (p *Provider) await(ctx context.Context, i *Instance, spec sandbox.Spec) (*api.Sandbox, error) {
	most := p.o.Times.Create
	if spec.Image != "" {
		most = p.o.Times.Build
	}
	var log *follower
	defer func() { log.close() }()
	sb, err := i.until(ctx, p.now().Add(most), "create", func(sb *api.Sandbox) (bool, error) {
		switch sb.State {
		case api.Started:
			return true, nil
		case api.BuildingSnapshot:
			if log == nil && spec.Image != "" {
				log = p.follow(ctx, func(ctx context.Context) (logReader, error) { return p.have.SandboxLog(ctx, i.id, true) }, false)
			}
		case api.Errored, api.BuildFailed:
			return false, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "Daytona could not make the sandbox: " + cmp.Or(sb.ErrorReason, string(sb.State)) + log.why()}
		case api.Stopped: // it stopped before anybody saw it run
			return true, nil
		}
		return false, nil
	})
	switch {
	case err == nil && sb.State == api.Stopped:
		return sb, i.Start(ctx)
	case err == nil:
		return sb, nil
	case sb != nil && (sb.State == api.Errored || sb.State == api.BuildFailed):
		return nil, p.undo(ctx, i, err)
	case errors.Is(err, sandbox.ErrNotFound):
		return nil, &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: "the sandbox went away while Daytona was making it; make the same call again"}
	}
	// It is still being made, whole and under its name: the next call finds it.
	return nil, err
}

// undo deletes what a failed creation left, and says so when that fails too.
func (p *Provider) undo(ctx context.Context, i *Instance, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), p.o.Times.Change)
	defer cancel()
	if err := i.Destroy(ctx); err != nil {
		return &sandbox.UserError{Err: sandbox.ErrUnavailable, Text: fmt.Sprintf("%v; what is left of it could not be deleted (%v): destroy_sandbox does that", cause, err)}
	}
	return cause
}
