//go:build linux

package gate

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"berth/sandbox/local/wire"
)

// times bound how long anything may do nothing, and how much there may be.
type times struct {
	sniff time.Duration // for a client to tell the name it wants
	dial  time.Duration
	idle  time.Duration // a connection without a byte either way
	half  time.Duration // the same, once one side has ended
	stall time.Duration // a peer that takes nothing
	dgram time.Duration // UDP without a datagram
	ask   time.Duration // for the monitor to find out who asked
	flows int           // connections at a time; 0: as many as files allow
}

var defaultTimes = times{
	sniff: 10 * time.Second, dial: 20 * time.Second, idle: 2 * time.Hour, half: 5 * time.Minute,
	stall: 15 * time.Minute, dgram: time.Minute, ask: 3 * time.Second,
}

// flow is one connection, or one pair of UDP addresses.
type flow struct {
	gate *gate
	src  netip.AddrPort // inside
	dst  netip.AddrPort // as the sandbox has it
	udp  bool
	// name that the sandbox asked for, where addresses are made up, and the
	// address that was dialled; invalid with a proxy.
	name   string
	dialed netip.Addr
	own    bool // dialed is the machine's own

	in, out  *sock
	first    []byte       // read from in, to be sent first
	http     bool         // each request is checked
	switched chan bool    // whether the first answer leaves HTTP; closed when that is known, or never will be
	last     atomic.Int64 // of any byte; nanoseconds
	half     atomic.Bool
	cut      atomic.Bool
}

func (f *flow) host() string {
	if f.name != "" {
		return f.name
	}
	return f.dst.Addr().String()
}

func (f *flow) proto() string {
	if f.udp {
		return "udp"
	}
	return "tcp"
}

// refuse reports the flow; the end inside is still open, so that its owner can
// be found.
func (f *flow) refuse(v verdict) { f.gate.refuse(f.proto(), f.src, f.host(), f.dst.Port(), v, true) }

// judge says whether the flow may go on under p.
func (f *flow) judge(p *policy) verdict {
	if f.name != "" {
		if v := p.name(f.name); !v.ok() {
			return v
		}
	}
	a := f.dialed
	if f.name == "" && !a.IsValid() {
		a = f.dst.Addr()
	}
	if a.IsValid() {
		v := p.address(a, f.name != "")
		if v.ok() && f.own {
			v = p.own(a)
		}
		return v
	}
	return verdict{}
}

// serve runs a TCP connection from its acceptance to its end.
func (f *flow) serve() {
	g := f.gate
	v, err := f.open()
	if !v.ok() {
		f.refuse(v)
	}
	if !v.ok() || err != nil {
		f.in.reset()
		return
	}
	if !g.register(f) { // the policy changed meanwhile
		f.in.reset()
		f.out.reset()
		return
	}
	f.relay()
}

// open finds out where the flow wants to go, and dials. First bytes that were
// read for that are sent on.
func (f *flow) open() (verdict, error) {
	g := f.gate
	p := g.policy.Load()
	if g.isDNS(p, f.dst) {
		return verdict{}, g.dnsStream(f)
	}
	name, made := g.names.name(f.dst.Addr())
	if !made {
		if v := p.address(f.target(), false); !v.ok() {
			return v, nil
		}
		return f.dial(p, []netip.Addr{f.target()})
	}
	if name == "" {
		return verdict{"this address is no longer known; look the name up again", ""}, nil
	}
	f.name = name
	if v := p.name(name); !v.ok() {
		return v, nil
	}
	if p.names() {
		if v := f.sniff(); !v.ok() {
			return v, nil
		}
	}
	if p.proxy == nil || p.proxy.without(name) {
		addrs, err := g.resolver.lookup(name)
		if err != nil {
			return verdict{}, err
		}
		return f.dial(p, addrs)
	}
	if v := f.judgeName(p, name); !v.ok() {
		return v, nil
	}
	return f.viaProxy(p, name)
}

// judgeName judges where a name leads that the proxy resolves itself: what can
// be known of it here.
func (f *flow) judgeName(p *policy, name string) verdict {
	if _, err := netip.ParseAddr(name); err != nil && numeric(name) {
		return verdict{name + " is a number, which proxies take for an address", ""}
	}
	addrs := f.gate.resolver.soon(name, time.Second)
	var v verdict
	for _, a := range addrs {
		if v = p.address(a, true); v.ok() {
			return v
		}
	}
	if !v.ok() {
		v.rule = name + " leads to " + plain(addrs[0]).String() + ": " + v.rule
	}
	return v
}

// target is the address to dial for one that the sandbox named itself.
func (f *flow) target() netip.Addr {
	a := f.dst.Addr()
	if a == wire.NetHost {
		return loopback4
	}
	return a
}

// dial connects to the first of addrs that may be reached and answers.
func (f *flow) dial(p *policy, addrs []netip.Addr) (verdict, error) {
	var refused verdict
	err := error(nil)
	tried := 0
	for _, a := range addrs {
		a = plain(a)
		v := p.address(a, f.name != "")
		own := false
		if v.ok() && !a.IsLoopback() {
			if own, err = isOwn(a); err != nil {
				tried++
				continue
			}
			if own {
				v = p.own(a)
			}
		}
		if !v.ok() {
			refused = v
			continue
		}
		if p.proxy != nil && f.name == "" && !p.proxy.without(a.String()) { // open has asked for a name
			f.dialed, f.own = a, own
			return f.viaProxy(p, a.String())
		}
		if tried++; tried > 4 {
			break
		}
		if f.out, err = connect(netip.AddrPortFrom(a, f.dst.Port()), f.gate.times.dial/time.Duration(min(len(addrs), 4))); err == nil {
			f.dialed, f.own = a, own
			return verdict{}, nil
		}
	}
	if tried == 0 && !refused.ok() {
		if f.name != "" {
			refused.rule = f.name + " leads to " + plain(addrs[0]).String() + ": " + refused.rule
		}
		return refused, nil
	}
	return verdict{}, err
}

func (f *flow) viaProxy(p *policy, host string) (verdict, error) {
	var err error
	f.out, err = p.proxy.connect(f.gate.resolver, host, f.dst.Port(), f.gate.times.dial)
	var pe *proxyError
	if errors.As(err, &pe) {
		return verdict{pe.Error(), ""}, nil
	}
	return verdict{}, err
}

// sniff reads the first bytes of a connection to a listed name and checks
// that they are meant for that name: at a shared address another host could
// be asked for. Other ports than those of HTTP and TLS are known by the name alone.
func (f *flow) sniff() verdict {
	port := f.dst.Port()
	if port != 443 && port != 80 {
		return verdict{}
	}
	_ = f.in.SetReadDeadline(time.Now().Add(f.gate.times.sniff))
	defer func() { _ = f.in.SetReadDeadline(time.Time{}) }()
	var b []byte
	buf := make([]byte, 4096)
	for {
		n, err := f.in.Read(buf)
		b = append(b, buf[:n]...)
		var name string
		perr := errMore
		if n > 0 {
			if port == 443 {
				name, perr = tlsName(b)
			} else {
				name, _, perr = httpName(b)
			}
		}
		what := "the TLS server name"
		if port == 80 {
			what = "the Host of the HTTP request"
		}
		switch {
		case perr == nil && name == f.name:
			f.first, f.http = b, port == 80
			return verdict{}
		case perr == nil:
			return verdict{what + " is " + name + ", the connection was made to " + f.name, "network_allow_domains " + name}
		case errors.Is(perr, errNoName):
			return verdict{what + " is missing", ""}
		case !errors.Is(perr, errMore) || err != nil || len(b) > maxSniff:
			return verdict{what + " cannot be read", ""}
		}
	}
}

// relay carries bytes both ways until both sides have ended.
func (f *flow) relay() {
	defer f.gate.unregister(f)
	f.touch()
	f.in.keepAlive()
	f.out.keepAlive()
	done := make(chan error, 1)
	f.switched = make(chan bool, 1)
	go func() { done <- f.receive() }()
	err := f.send()
	if err2 := <-done; err != nil || err2 != nil {
		f.in.reset()
		f.out.reset()
		return
	}
	_ = f.in.Close()
	_ = f.out.Close()
}

// receive carries what the server answers.
func (f *flow) receive() error {
	if f.http {
		more, err := f.firstAnswer()
		if err != nil || !more {
			return err
		}
	}
	return f.pump(f.in, f.out)
}

// firstAnswer carries the beginning of the first answer and looks whether it
// says that the connection is a web socket from there on.
func (f *flow) firstAnswer() (more bool, err error) {
	defer close(f.switched)
	const line = "HTTP/1.1 101"
	var head []byte
	for len(head) < len(line) {
		_ = f.out.SetReadDeadline(time.Now().Add(f.patience()))
		b, n, err := f.out.borrow()
		if isTimeout(err) && time.Since(time.Unix(0, f.last.Load())) < f.patience() {
			continue
		}
		if err != nil {
			return false, f.failed(err)
		}
		head = append(head, b[:min(n, len(line)-len(head))]...)
		if n > 0 {
			f.touch()
			_ = f.in.SetWriteDeadline(time.Now().Add(f.gate.times.stall))
			_, err = f.in.Write(b[:n])
		}
		giveBack(b)
		if err != nil {
			return false, f.failed(err)
		}
		if n == 0 {
			return false, f.ended(f.in)
		}
	}
	f.switched <- string(head[:7]) == line[:7] && string(head[8:]) == line[8:]
	return true, nil
}

// ended passes the end of one direction on to dst.
func (f *flow) ended(dst *sock) error {
	if f.cut.Load() {
		return f.failed(errCut)
	}
	f.half.Store(true)
	dst.closeWrite()
	// The other way may have little time left now.
	_ = dst.SetReadDeadline(time.Now().Add(f.gate.times.half))
	return nil
}

// send carries what the client sends.
func (f *flow) send() error {
	first := f.first
	f.first = nil
	if f.http {
		return f.pumpHTTP(f.out, f.in, first)
	}
	if len(first) > 0 {
		_ = f.out.SetWriteDeadline(time.Now().Add(f.gate.times.stall))
		if _, err := f.out.Write(first); err != nil {
			return f.failed(err)
		}
	}
	return f.pump(f.out, f.in)
}

var errCut = errors.New("the policy changed")

func (f *flow) touch() { f.last.Store(time.Now().UnixNano()) }

// pump carries bytes from src to dst until src ends.
func (f *flow) pump(dst, src *sock) error {
	t := &f.gate.times
	var moved, stalled time.Time
	for {
		now := time.Now()
		if now.Sub(moved) > time.Second {
			moved = now
			_ = src.SetReadDeadline(now.Add(f.patience()))
		}
		if now.Sub(stalled) > time.Second {
			stalled = now
			_ = dst.SetWriteDeadline(now.Add(t.stall))
		}
		n, err := splice(dst, src)
		if isTimeout(err) && n == 0 {
			if quiet := time.Since(time.Unix(0, f.last.Load())); quiet < f.patience() {
				_ = src.SetReadDeadline(time.Now().Add(f.patience() - quiet))
				moved = time.Now()
				continue // the other way is in use
			}
		}
		if err != nil {
			return f.failed(err)
		}
		if n == 0 {
			return f.ended(dst)
		}
		f.touch()
	}
}

// failed ends the other direction too.
func (f *flow) failed(err error) error {
	f.cut.Store(true)
	now := time.Now()
	_ = f.in.SetDeadline(now)
	_ = f.out.SetDeadline(now)
	return err
}

func (f *flow) patience() time.Duration {
	if f.cut.Load() {
		return 0
	}
	if f.half.Load() {
		return f.gate.times.half
	}
	return f.gate.times.idle
}

// stop ends a flow that the policy forbids now. When it returns nothing more
// goes out, not even what the kernel still had to send: the flow's own
// goroutines may be late, or be setting a deadline just now.
func (f *flow) stop() {
	_ = f.failed(nil)
	f.out.disconnect()
}

// pumpHTTP is pump for what a client sends on a connection to a listed name,
// where each request must be meant for that name.
func (f *flow) pumpHTTP(dst, src *sock, first []byte) error {
	r := &requests{name: f.name}
	b := first
	var from *block
	for {
		pass, err := r.feed(b)
		if from != nil {
			giveBack(from)
			from = nil
		}
		if len(pass) > 0 {
			_ = dst.SetWriteDeadline(time.Now().Add(f.gate.times.stall))
			if _, werr := dst.Write(pass); werr != nil {
				return f.failed(werr)
			}
		}
		if err != nil {
			v := verdict{"an HTTP request that cannot be read", ""}
			if r.wrong != "" {
				v = verdict{"the Host of a later HTTP request is " + r.wrong + ", the connection was made to " + f.name, "network_allow_domains " + r.wrong}
			}
			f.refuse(v)
			return f.failed(err)
		}
		if r.wait {
			r.wait, r.open = false, <-f.switched
			if b, r.held = r.held, nil; len(b) > 0 {
				continue
			}
		}
		_ = src.SetReadDeadline(time.Now().Add(f.patience()))
		var n int
		if from, n, err = src.borrow(); err == nil && n == 0 {
			giveBack(from)
			return f.ended(dst)
		}
		if isTimeout(err) && time.Since(time.Unix(0, f.last.Load())) < f.patience() {
			b = nil
			continue
		}
		if err != nil {
			return f.failed(err)
		}
		f.touch()
		b = from[:n]
	}
}

// Addresses with a meaning of their own.
var (
	dns6      = netip.MustParseAddr("fd00::3")
	loopback4 = netip.AddrFrom4([4]byte{127, 0, 0, 1})
)
