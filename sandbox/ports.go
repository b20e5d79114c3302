package sandbox

import (
	"context"
	"crypto/rand"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync/atomic"
	"time"
)

// MaxPorts bounds the exposed ports of one sandbox.
const MaxPorts = 64

// Port is a port inside that is exposed: reachable through berth, by whoever
// knows its label, and its token unless it is public.
type Port struct {
	Number uint16
	// Label names the port in URLs: 20 characters of base32, 100 random bits.
	Label string
	// Token opens it when it is not Public. It is there in any case.
	Token  string
	Public bool
	// Listen is the port of this machine's loopback where it is shown too;
	// 0: none yet.
	Listen uint16
}

// PortLink is where a port is reached at an address of the provider's own.
type PortLink struct {
	URL    string
	Public bool
	// Token opens it when it is not Public: programs send it in Header, people
	// open VisitURL.
	Token, Header, VisitURL string
	Until                   string // in words
}

// NewPort makes the label and the token of a port.
func NewPort(number uint16) Port {
	var b [30]byte
	_, _ = rand.Read(b[:]) // never fails, see crypto/rand
	text := strings.ToLower(base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(b[:]))
	return Port{Number: number, Label: text[:20], Token: text[20:]}
}

// PortRequest of ExposePort. Public nil means as the sandbox's spec says.
type PortRequest struct {
	Port   int
	Public *bool
	// Asleep exposes the port of a sandbox that does not run, too, and leaves
	// it so; else it is started.
	Asleep bool
}

// PortResult of ExposePort.
type PortResult struct {
	Port Port
	// Link is where a provider with addresses of its own shows the port; of Port
	// then only Number and Public count.
	Link   *PortLink
	Info   Info
	Notice Notice
}

// ExposePort makes a port of the session's sandbox reachable from outside. It
// starts a stopped sandbox, unless told otherwise, and creates none. Exposing a port again changes
// who may use it and nothing else.
func (m *Manager) ExposePort(ctx context.Context, key Key, r PortRequest) (*PortResult, error) {
	ctx = withDeadline(ctx)
	if r.Port < 1 || r.Port > 65535 {
		return nil, &FieldError{Field: "port", Problem: fmt.Sprintf("%d is no port", r.Port), Allowed: "1 to 65535"}
	}
	b := &box{}
	var err error
	if r.Asleep {
		b.inst, b.info, err = m.existing(ctx, key)
	} else {
		b, err = m.ready(ctx, key, startOnly, Spec{})
	}
	if err != nil {
		return nil, sayNoSession(err, key)
	}
	if l, can := b.inst.(PortLinker); can {
		link, err := l.LinkPort(ctx, uint16(r.Port), r.Public)
		if err != nil {
			return nil, fmt.Errorf("expose the port: %w", err)
		}
		return &PortResult{Port: Port{Number: uint16(r.Port), Public: link.Public}, Link: &link, Info: b.info, Notice: b.notice}, nil
	}
	keeper, can := b.inst.(PortKeeper)
	if _, dials := b.inst.(PortDialer); !can || !dials {
		return nil, m.noPorts()
	}
	p := Port{Number: uint16(r.Port)}
	if s := b.info.Spec.Public; s != nil {
		p.Public = *s
	}
	if r.Public != nil {
		p.Public = *r.Public
	}
	if p, err = keeper.KeepPort(ctx, p); err != nil {
		return nil, fmt.Errorf("expose the port: %w", err)
	}
	info, err := b.inst.Info(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the sandbox: %w", err)
	}
	return &PortResult{Port: p, Info: info, Notice: b.notice}, nil
}

func (m *Manager) noPorts() error {
	return &UserError{Err: ErrUnsupported, Text: fmt.Sprintf("the provider %s does not expose ports", m.provider.Name())}
}

// ExposedPort finds a port by its label; ErrNotFound when there is none.
func (m *Manager) ExposedPort(ctx context.Context, label string) (Port, error) {
	_, p, err := m.findPort(ctx, label)
	return p, err
}

func (m *Manager) findPort(ctx context.Context, label string) (Instance, Port, error) {
	f, can := m.provider.(PortFinder)
	if !can {
		return nil, Port{}, m.noPorts()
	}
	inst, p, err := f.FindPort(ctx, label)
	if err != nil && !errors.Is(err, ErrNotFound) {
		err = fmt.Errorf("look up the port: %w", err)
	}
	return inst, p, err
}

// ExposedLabels lists the labels of all exposed ports, of all owners.
func (m *Manager) ExposedLabels(ctx context.Context) ([]string, error) {
	l, can := m.provider.(PortLister)
	if !can {
		return nil, nil
	}
	return l.PortLabels(ctx)
}

// PortListens notes at which port of the loopback the port of that label is
// shown, so that a later server shows it there again.
func (m *Manager) PortListens(ctx context.Context, label string, listen uint16) error {
	inst, p, err := m.findPort(ctx, label)
	if err != nil {
		return err
	}
	k, can := inst.(PortKeeper)
	if !can {
		return m.noPorts()
	}
	p.Listen = listen
	_, err = k.KeepPort(ctx, p)
	return err
}

// DialPort connects to the exposed port of that label. What goes through the
// connection counts as use of the sandbox. It starts nothing: ErrNotRunning
// when the sandbox does not run, syscall.ECONNREFUSED when nothing listens.
func (m *Manager) DialPort(ctx context.Context, label string) (net.Conn, error) {
	inst, p, err := m.findPort(ctx, label)
	if err != nil {
		return nil, err
	}
	d, can := inst.(PortDialer)
	if !can {
		return nil, m.noPorts()
	}
	c, err := d.DialPort(ctx, p.Number)
	if err != nil {
		return nil, err
	}
	t, can := inst.(Toucher)
	if !can {
		return c, nil
	}
	u := &usedConn{Conn: c, m: m, toucher: t}
	u.touched.Store(time.Now().UnixNano())
	return u, nil
}

// touchEvery is how often a connection in use says so. Idle times count in
// minutes.
const touchEvery = 20 * time.Second

// usedConn notes its use.
type usedConn struct {
	net.Conn
	m       *Manager
	toucher Toucher
	touched atomic.Int64 // unix nanoseconds
}

func (c *usedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.used()
	}
	return n, err
}

func (c *usedConn) Write(p []byte) (int, error) {
	c.used()
	return c.Conn.Write(p)
}

func (c *usedConn) used() {
	last, now := c.touched.Load(), time.Now().UnixNano()
	if now-last < int64(touchEvery) || !c.touched.CompareAndSwap(last, now) {
		return
	}
	c.m.mu.Lock()
	defer c.m.mu.Unlock()
	if c.m.closed {
		return
	}
	c.m.wg.Go(func() {
		ctx, cancel := context.WithTimeout(c.m.ctx, touchEvery)
		defer cancel()
		_ = c.toucher.Touch(ctx) // it ends as if nobody used it, at the worst
	})
}
