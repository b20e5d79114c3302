//go:build unix

package providertest

import (
	"context"
	"net"
	"slices"
	"strconv"

	"berth/sandbox"
)

var (
	_ sandbox.PortDialer = (*fakeInstance)(nil)
	_ sandbox.PortKeeper = (*fakeInstance)(nil)
	_ sandbox.PortFinder = (*Fake)(nil)
	_ sandbox.PortLister = (*Fake)(nil)
)

// DialPort dials the host's own loopback: that is where commands run.
func (i *fakeInstance) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	if err := i.provider.usable(ctx); err != nil {
		return nil, err
	}
	if i.box.info().Status != sandbox.StatusRunning {
		return nil, sandbox.ErrNotRunning
	}
	return (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(int(port))))
}

func (i *fakeInstance) KeepPort(ctx context.Context, p sandbox.Port) (sandbox.Port, error) {
	if err := i.provider.usable(ctx); err != nil {
		return p, err
	}
	b := i.box
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.status == sandbox.StatusDestroyed {
		return p, sandbox.ErrNotFound
	}
	at := slices.IndexFunc(b.ports, func(o sandbox.Port) bool { return o.Number == p.Number })
	if at < 0 {
		if len(b.ports) >= sandbox.MaxPorts {
			return p, sandbox.ErrLimit
		}
		b.ports = append(b.ports, sandbox.NewPort(p.Number))
		slices.SortFunc(b.ports, func(x, y sandbox.Port) int { return int(x.Number) - int(y.Number) })
		at = slices.IndexFunc(b.ports, func(o sandbox.Port) bool { return o.Number == p.Number })
	}
	b.ports[at].Public = p.Public
	if p.Listen != 0 {
		b.ports[at].Listen = p.Listen
	}
	return b.ports[at], nil
}

// allPorts calls f with every exposed port.
func (f *Fake) allPorts(visit func(*fakeBox, sandbox.Port)) {
	f.store.mu.Lock()
	boxes := make([]*fakeBox, 0, len(f.store.boxes))
	for _, b := range f.store.boxes {
		boxes = append(boxes, b)
	}
	f.store.mu.Unlock()
	for _, b := range boxes {
		for _, p := range b.info().Ports {
			visit(b, p)
		}
	}
}

// FindPort finds the sandbox of a label.
func (f *Fake) FindPort(ctx context.Context, label string) (sandbox.Instance, sandbox.Port, error) {
	if err := f.usable(ctx); err != nil {
		return nil, sandbox.Port{}, err
	}
	var inst sandbox.Instance
	var port sandbox.Port
	f.allPorts(func(b *fakeBox, p sandbox.Port) {
		if p.Label == label {
			inst, port = &fakeInstance{box: b, provider: f}, p
		}
	})
	if inst == nil {
		return nil, sandbox.Port{}, sandbox.ErrNotFound
	}
	return inst, port, nil
}

// PortLabels lists all labels.
func (f *Fake) PortLabels(ctx context.Context) ([]string, error) {
	var labels []string
	f.allPorts(func(_ *fakeBox, p sandbox.Port) { labels = append(labels, p.Label) })
	return labels, f.usable(ctx)
}
