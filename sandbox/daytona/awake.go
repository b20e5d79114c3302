package daytona

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"berth/sandbox"
	"berth/sandbox/daytona/api"
)

// For the platform only calls count as use of a sandbox, not processes that run
// in it. So a running server looks after those that are about to be stopped, of
// all sessions, its own or not: where a process runs that somebody started, it
// notes that the sandbox is in use. No server need know what another one did.

// How often that is done; the shortest interval is a minute.
const awakeEvery = 20 * time.Second

// Sweep has this process keep sandboxes with running processes awake from now
// on. Stopped ones are archived and deleted by the platform itself.
func (p *Provider) Sweep(ctx context.Context) error {
	at, err := p.at()
	if errors.Is(err, sandbox.ErrUnavailable) {
		return nil // there is no key, and nothing to look after
	}
	if err != nil {
		return err
	}
	p.mu.Lock()
	begin := !p.keeping && !p.closed
	if begin {
		p.keeping = true
		p.wg.Go(func() { p.keepAwake(at) })
	}
	p.mu.Unlock()
	if begin {
		p.removePassing(ctx, at)
	}
	return nil
}

func (p *Provider) keepAwake(at platform) {
	for {
		if err := p.wake(p.ctx, at); err != nil && p.ctx.Err() == nil {
			p.log.Warn("keep sandboxes with running processes awake", slog.Any("err", err))
		}
		if pause(p.ctx, awakeEvery) != nil {
			return
		}
	}
}

// wake looks once.
func (p *Provider) wake(ctx context.Context, at platform) error {
	filter := api.Filter{Labels: p.ours(), States: []api.State{api.Started}}
	var errs []error
	for sb, err := range at.Sandboxes(ctx, filter) {
		if err != nil {
			return err
		}
		if sb.AutoStop == nil || *sb.AutoStop <= 0 || sb.State != api.Started || !p.due(sb) {
			continue
		}
		busy, err := p.boxOf(sb).busy(ctx)
		if err == nil && busy {
			err = at.Touch(ctx, sb.ID)
		}
		if err != nil && !errors.Is(err, sandbox.ErrNotRunning) && !errors.Is(err, sandbox.ErrNotFound) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// due tells that a sandbox has been idle for so long that it may be stopped soon.
func (p *Provider) due(sb *api.Sandbox) bool {
	interval := time.Duration(*sb.AutoStop) * time.Minute
	ahead := max(interval/3, 2*awakeEvery)
	return sb.LastActivity.IsZero() || p.now().Add(ahead).After(sb.LastActivity.Add(interval))
}

// removePassing removes snapshots that a fork left behind whose server died.
func (p *Provider) removePassing(ctx context.Context, at platform) {
	list, err := at.Snapshots(ctx)
	if err != nil {
		return // the next server does
	}
	for _, s := range list {
		if strings.HasPrefix(s.Name, passing) && p.now().Sub(s.Created) > p.o.Times.Build {
			_ = at.DeleteSnapshot(ctx, s.ID) // likewise
		}
	}
}
