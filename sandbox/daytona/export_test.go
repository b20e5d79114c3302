package daytona

import (
	"context"
	"time"
)

// InSpace keeps what a test makes apart from all else in its account.
func (o Options) InSpace(name string) Options {
	o.space = name
	return o
}

// Platform is what the provider asks of Daytona.
type Platform = platform

// Over is New over another client of the platform.
func Over(o Options, over Platform) (*Provider, error) {
	p, err := New(o)
	if err == nil {
		p.have = over
	}
	return p, err
}

// Exec runs a command by the toolbox, as the helper's transport does.
func (i *Instance) Exec(ctx context.Context, command string, timeout time.Duration) (string, int, error) {
	return i.p.box(i.id).Exec(ctx, command, timeout)
}

// Later has the provider's clock go ahead.
func (p *Provider) Later(d time.Duration) { p.now = func() time.Time { return time.Now().Add(d) } }

// Wake looks once after sandboxes with running processes.
func (p *Provider) Wake(ctx context.Context) error { return p.wake(ctx, p.have) }

// NameOf is the name at the platform of the key's sandbox.
var NameOf = (*Provider).nameOf

// FromInside says where a mount's fault was seen.
var FromInside = fromInside
