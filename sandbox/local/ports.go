//go:build linux

package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"slices"
	"strings"

	"berth/sandbox"
)

var (
	_ sandbox.PortDialer = (*Instance)(nil)
	_ sandbox.PortKeeper = (*Instance)(nil)
	_ sandbox.Toucher    = (*Instance)(nil)
	_ sandbox.PortFinder = (*Provider)(nil)
	_ sandbox.PortLister = (*Provider)(nil)
)

// portRecord is an exposed port.
type portRecord struct {
	Port   uint16 `json:"port"`
	Label  string `json:"label"`
	Token  string `json:"token"`
	Public bool   `json:"public,omitempty"`
	Listen uint16 `json:"listen,omitempty"`
}

func (r portRecord) port() sandbox.Port {
	return sandbox.Port{Number: r.Port, Label: r.Label, Token: r.Token, Public: r.Public, Listen: r.Listen}
}

// DialPort connects to a port inside.
func (in *Instance) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	c, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return nil, in.notRunning(err)
	}
	return c.DialPort(ctx, port)
}

// Touch counts as use.
func (in *Instance) Touch(ctx context.Context) error {
	c, err := in.p.engine.connect(ctx, in.dir())
	if err != nil {
		return in.notRunning(err)
	}
	return c.Touch(ctx)
}

// KeepPort notes an exposed port. The label comes before the record: killed in
// between, it leads to a sandbox that does not know it, and is swept.
func (in *Instance) KeepPort(ctx context.Context, p sandbox.Port) (sandbox.Port, error) {
	l, err := acquire(ctx, in.s.lockPath(in.id), opOther)
	if err != nil {
		return p, err
	}
	defer func() { l.release(in.gone()) }()
	v, err := in.look()
	switch {
	case errors.Is(err, fs.ErrNotExist), err == nil && v.status == sandbox.StatusDestroyed:
		return p, fmt.Errorf("session %s: %w", in.key.Session, sandbox.ErrNotFound)
	case err != nil:
		return p, err
	case v.rec == nil:
		return p, &sandbox.UserError{Text: "the sandbox is damaged: " + v.reason, Err: sandbox.ErrUnavailable}
	}
	at := slices.IndexFunc(v.rec.Ports, func(r portRecord) bool { return r.Port == p.Number })
	fresh := at < 0
	if fresh {
		if len(v.rec.Ports) >= sandbox.MaxPorts {
			return p, &sandbox.UserError{Err: sandbox.ErrLimit, Text: fmt.Sprintf("%d ports of this sandbox are exposed, and that is the most; serve several things behind one of them", len(v.rec.Ports))}
		}
		made := sandbox.NewPort(p.Number)
		if err := os.Symlink(in.id, in.s.path("ports", made.Label)); err != nil {
			return p, full(in.s, err)
		}
		v.rec.Ports = append(v.rec.Ports, portRecord{Port: p.Number, Label: made.Label, Token: made.Token})
		slices.SortFunc(v.rec.Ports, func(a, b portRecord) int { return int(a.Port) - int(b.Port) })
		at = slices.IndexFunc(v.rec.Ports, func(r portRecord) bool { return r.Port == p.Number })
	}
	r := &v.rec.Ports[at]
	before := *r
	r.Public = p.Public
	if p.Listen != 0 {
		r.Listen = p.Listen
	}
	if fresh || *r != before {
		if err := in.s.writeRecord(in.id, v.rec); err != nil {
			return p, full(in.s, err)
		}
	}
	return r.port(), nil
}

// validLabel keeps what comes with requests from naming other files.
func validLabel(label string) bool {
	return len(label) == 20 && strings.Trim(label, "abcdefghijklmnopqrstuvwxyz234567") == ""
}

// FindPort finds the sandbox of a label.
func (p *Provider) FindPort(_ context.Context, label string) (sandbox.Instance, sandbox.Port, error) {
	none := func() (sandbox.Instance, sandbox.Port, error) {
		return nil, sandbox.Port{}, fmt.Errorf("no port is exposed as %.40q: %w", label, sandbox.ErrNotFound)
	}
	if !validLabel(label) {
		return none()
	}
	s, err := p.store()
	if err != nil {
		return nil, sandbox.Port{}, err
	}
	id, err := os.Readlink(s.path("ports", label))
	if errors.Is(err, fs.ErrNotExist) {
		return none()
	}
	if err != nil {
		return nil, sandbox.Port{}, err
	}
	r, err := readRecord(s.sandboxDir(id))
	if errors.Is(err, fs.ErrNotExist) {
		return none()
	}
	if err != nil {
		return nil, sandbox.Port{}, err
	}
	for _, pr := range r.Ports {
		if pr.Label == label {
			return p.instance(s, r.key()), pr.port(), nil
		}
	}
	return none()
}

// PortLabels lists all labels. It makes no state directory.
func (p *Provider) PortLabels(context.Context) ([]string, error) {
	if _, err := os.Stat(p.opts.Dir); err != nil {
		return nil, nil //nolint:nilerr // nothing was ever made there
	}
	s, err := p.store()
	if err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(s.path("ports"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var labels []string
	for _, e := range entries {
		if validLabel(e.Name()) {
			labels = append(labels, e.Name())
		}
	}
	return labels, err
}

// dropPorts removes the labels of a sandbox that goes.
func (s *store) dropPorts(r *record) {
	for _, p := range r.Ports {
		if validLabel(p.Label) {
			_ = os.Remove(s.path("ports", p.Label)) // what is left leads nowhere, and is swept
		}
	}
}

// sweepPorts removes labels of which no sandbox knows.
func (s *store) sweepPorts() error {
	entries, err := os.ReadDir(s.path("ports"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // of an older berth; made at the next start
	}
	for _, e := range entries {
		path := s.path("ports", e.Name())
		fi, ierr := e.Info()
		id, lerr := os.Readlink(path)
		if ierr != nil || lerr != nil || s.now().Sub(fi.ModTime()) < tmpTime {
			continue
		}
		r, rerr := readRecord(s.sandboxDir(id))
		if errors.Is(rerr, fs.ErrNotExist) || rerr == nil && !slices.ContainsFunc(r.Ports, func(p portRecord) bool { return p.Label == e.Name() }) {
			_ = os.Remove(path)
		}
	}
	return err
}
