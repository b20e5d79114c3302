//go:build linux

package gate

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

type pair struct{ src, dst netip.AddrPort }

const (
	maxAnswering = 64 // sockets that answer DNS, one for each address asked
	fakeTTL      = 60 // seconds
)

// dgrams is the flow of a pair of UDP addresses.
type dgrams struct {
	flow
	queue chan []byte // until out is open
}

// isDNS tells whether what goes to dst is answered here. Where names are not
// made up, other servers than the sandbox's own may be asked like any address.
func (g *gate) isDNS(p *policy, dst netip.AddrPort) bool {
	return dst.Port() == 53 && (dst.Addr() == wire.NetDNS || dst.Addr() == dns6 || p.made())
}

// readUDP takes datagrams from inside until the socket is closed.
func (g *gate) readUDP(s *sock) {
	buf := make([]byte, 64<<10)
	oob := make([]byte, 256)
	for {
		n, oobn, src, err := s.receive(buf, oob, &g.intake)
		if err != nil {
			if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOBUFS) {
				continue
			}
			return
		}
		dst := origDst(oob[:oobn])
		if !dst.IsValid() || !src.IsValid() {
			continue
		}
		data := append([]byte(nil), buf[:n]...)
		if g.isDNS(g.policy.Load(), dst) {
			select {
			case g.answering <- struct{}{}:
				go func() {
					defer func() { <-g.answering }()
					g.dnsDatagram(src, dst, data)
				}()
			default: // asked again when it matters
			}
			continue
		}
		g.datagram(pair{src, dst}, data)
	}
}

func origDst(oob []byte) netip.AddrPort {
	msgs, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return netip.AddrPort{}
	}
	for i := range msgs {
		if sa, err := unix.ParseOrigDstAddr(&msgs[i]); err == nil {
			return addrPort(sa)
		}
	}
	return netip.AddrPort{}
}

// datagram sends one on its way.
func (g *gate) datagram(p pair, data []byte) {
	g.mu.Lock()
	d := g.udp[p]
	if d == nil {
		if until, ok := g.hush[p]; ok && time.Now().Before(until) {
			g.mu.Unlock()
			return // refused a moment ago
		}
		d = &dgrams{queue: make(chan []byte, 16)}
		d.gate, d.src, d.dst, d.udp = g, p.src, p.dst, true
		if !g.enter() {
			g.hushed(p)
			g.mu.Unlock()
			g.refuse("udp", p.src, d.host(), p.dst.Port(), g.tooMany(), false)
			return
		}
		g.udp[p] = d
		go g.converse(p, d)
	}
	out := d.out
	if out == nil {
		d.wait(data) // under the lock: converse looks into the queue after it has set out
	}
	g.mu.Unlock()
	if out != nil {
		d.touch()
		out.send(data, netip.AddrPort{})
	}
}

// wait keeps a datagram until the flow is open, or drops it when there are
// too many.
func (d *dgrams) wait(data []byte) {
	n := int64(len(data))
	if d.gate.queued.Add(n) > maxQueued {
		d.gate.queued.Add(-n)
		return
	}
	select {
	case d.queue <- data:
	default:
		d.gate.queued.Add(-n)
	}
}

// flush empties the queue, to out if that is open.
func (d *dgrams) flush(out *sock) {
	for {
		select {
		case data := <-d.queue:
			d.gate.queued.Add(-int64(len(data)))
			if out != nil {
				out.send(data, netip.AddrPort{})
			}
			continue
		default:
		}
		return
	}
}

// hushed keeps quiet about p for a second; g.mu is held.
func (g *gate) hushed(p pair) {
	if len(g.hush) > 4096 {
		clear(g.hush)
	}
	g.hush[p] = time.Now().Add(time.Second)
}

// converse runs a UDP flow.
func (g *gate) converse(p pair, d *dgrams) {
	v, in, out := g.openUDP(d)
	g.mu.Lock()
	if out != nil {
		if v = d.judge(g.policy.Load()); v.ok() {
			d.in, d.out = in, out
			g.flows[&d.flow] = struct{}{}
		}
	}
	if d.out == nil {
		g.hushed(p)
	}
	g.mu.Unlock()
	defer func() {
		g.mu.Lock()
		delete(g.udp, p)
		delete(g.flows, &d.flow)
		g.leave()
		d.flush(nil) // nothing comes to it any more
		g.mu.Unlock()
		for _, s := range []*sock{in, out} {
			if s != nil {
				_ = s.Close()
			}
		}
	}()
	if d.out == nil {
		if !v.ok() {
			d.refuse(v)
		}
		return
	}
	d.touch()
	d.flush(out)
	done := make(chan struct{})
	go func() {
		defer close(done)
		d.carry(out, in)
	}()
	d.carry(in, out)
	<-done
}

func (d *dgrams) carry(dst, src *sock) {
	for {
		wait := d.gate.times.dgram - time.Since(time.Unix(0, d.last.Load()))
		if wait <= 0 || d.cut.Load() {
			_ = d.failed(nil)
			return
		}
		_ = src.SetReadDeadline(time.Now().Add(wait))
		if d.cut.Load() {
			return
		}
		buf, n, err := src.borrow()
		switch {
		case isTimeout(err):
			continue
		case errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.EINTR):
			continue // nobody listens there; the program will notice by the silence
		case err != nil:
			_ = d.failed(err)
			return
		}
		d.touch()
		dst.send(buf[:n], netip.AddrPort{})
		giveBack(buf)
	}
}

// openUDP judges a UDP flow and opens both its ends.
func (g *gate) openUDP(d *dgrams) (v verdict, in, out *sock) {
	p := g.policy.Load()
	a := d.target()
	if name, made := g.names.name(a); made {
		d.name = name
		switch {
		case name == "":
			return verdict{"this address is no longer known; look the name up again", ""}, nil, nil
		case d.dst.Port() == 443:
			return verdict{"QUIC hides the name it wants; TCP goes through", ""}, nil, nil
		}
		if v := p.name(name); !v.ok() {
			return v, nil, nil
		}
		addrs, err := g.resolver.lookup(name)
		if err != nil {
			return verdict{}, nil, nil
		}
		a = plain(addrs[0])
		for _, x := range addrs {
			if x = plain(x); p.address(x, true).ok() {
				a = x
				break
			}
		}
	}
	a = plain(a)
	if v := p.address(a, d.name != ""); !v.ok() {
		if d.name != "" {
			v.rule = d.name + " leads to " + a.String() + ": " + v.rule
		}
		return v, nil, nil
	}
	if p.proxy != nil && !p.proxy.without(a.String()) && (d.name == "" || !p.proxy.without(d.name)) {
		return verdict{"the host's proxy carries no UDP", ""}, nil, nil
	}
	own, err := isOwn(a)
	if err != nil {
		return verdict{}, nil, nil
	}
	if own && !a.IsLoopback() {
		if v := p.own(a); !v.ok() {
			return v, nil, nil
		}
		d.own = true
	}
	d.dialed = a
	out, err = datagrams(netip.AddrPortFrom(a, d.dst.Port()))
	if err != nil {
		return verdict{}, nil, nil
	}
	if in, err = g.link.socket(d.dst, d.src); err != nil {
		_ = out.Close()
		return verdict{}, nil, nil
	}
	return verdict{}, in, out
}

// dnsDatagram answers a query.
func (g *gate) dnsDatagram(src, dst netip.AddrPort, query []byte) {
	answer := g.dns("udp", src, query, false)
	if answer == nil {
		return
	}
	if s := g.answerer(dst); s != nil {
		s.send(answer, src)
	}
}

// answerer is a socket inside that has the address which was asked.
func (g *gate) answerer(at netip.AddrPort) *sock {
	g.dnsMu.Lock()
	defer g.dnsMu.Unlock()
	if s := g.answerers[at]; s != nil {
		return s
	}
	if len(g.answerers) >= maxAnswering {
		for a, s := range g.answerers {
			_ = s.Close()
			delete(g.answerers, a)
			break
		}
	}
	s, err := g.link.socket(at, netip.AddrPort{})
	if err != nil {
		return nil
	}
	g.answerers[at] = s
	return s
}

// dnsStream answers queries over TCP; the connection is over then.
func (g *gate) dnsStream(f *flow) error {
	for range 100 {
		_ = f.in.SetDeadline(time.Now().Add(g.times.sniff))
		query, err := readStream(f.in)
		if err != nil {
			return err
		}
		answer := g.dns("tcp", f.src, query, true)
		if answer == nil {
			return errDNS
		}
		if _, err := f.in.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return err
		}
	}
	return errDNS
}

// dns answers one query; nil when it is no query.
func (g *gate) dns(proto string, src netip.AddrPort, query []byte, stream bool) []byte {
	q, err := parseQuery(query)
	if err != nil {
		return nil
	}
	p := g.policy.Load()
	if !p.made() || !p.names() && q.kind != typeA && q.kind != typeAAAA {
		if q.kind == typeAAAA && !g.hasIPv6() {
			return q.answer(query, rcodeOK, 0) // programs would try in vain
		}
		answer, err := g.resolver.exchange(query, stream)
		if err != nil {
			return q.answer(query, rcodeFailure, 0)
		}
		return answer
	}
	if v := p.name(q.name); !v.ok() {
		g.refuse("dns", src, q.name, 0, v, proto == "udp")
		return q.answer(query, rcodeNoName, 0)
	}
	if q.kind != typeA && q.kind != typeAAAA || q.class != classIN {
		return q.answer(query, rcodeOK, 0)
	}
	if p.proxy == nil || p.proxy.without(q.name) {
		switch _, err := g.resolver.lookup(q.name); {
		case errors.Is(err, errNoSuchName):
			return q.answer(query, rcodeNoName, 0)
		case err != nil:
			return q.answer(query, rcodeFailure, 0)
		}
	}
	return q.answer(query, rcodeOK, fakeTTL, g.names.address(q.name, q.kind == typeAAAA))
}

// hasIPv6 tells whether the host has a route to the IPv6 internet.
func (g *gate) hasIPv6() bool {
	g.six.Do(func() {
		if s, err := datagrams(netip.AddrPortFrom(netip.MustParseAddr("2620:fe::fe"), 53)); err == nil {
			a := s.local().Addr()
			g.sixOK = a.IsGlobalUnicast() && !a.IsPrivate()
			_ = s.Close()
		}
	})
	return g.sixOK
}
