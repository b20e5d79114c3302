//go:build linux

package gate

import (
	"encoding/json"
	"errors"
	"net/netip"
	"os"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/inside"
	"berth/sandbox/local/wire"
)

// MaxFlows is how many connections of one sandbox are open at a time.
const MaxFlows = 4096

// Idle is how long a gate lives without use.
const Idle = 30 * time.Second

// maxQueued bounds the datagrams, in bytes, that wait for their flows to open.
const maxQueued = 4 << 20

// gate is the running program.
type gate struct {
	link     *link
	times    times
	idle     time.Duration
	resolver *resolver
	names    *names
	policy   atomic.Pointer[policy]

	answering chan struct{} // DNS datagrams being answered
	six       sync.Once
	sixOK     bool

	dnsMu     sync.Mutex
	answerers map[netip.AddrPort]*sock

	intake   intake
	queued   atomic.Int64 // bytes of datagrams that wait
	maxFlows int

	mu    sync.Mutex
	open  int // flows, also those that are being opened
	flows map[*flow]struct{}
	udp   map[pair]*dgrams
	hush  map[pair]time.Time

	asking  chan struct{} // reports that wait for the monitor
	lateMu  sync.Mutex
	late    map[wire.Refusal]int64 // reports to be sent without asking
	flusher bool
}

// Main is `box gate`; descriptor 3 leads to the monitor.
func Main() int {
	conn, err := wire.Socket(3, 1<<20)
	if err != nil {
		return 2
	}
	// It works for one sandbox, whose flood shall not slow the others; all of its
	// threads are a process group.
	_ = unix.Setpriority(unix.PRIO_PGRP, 0, 5)
	if err := harden(); err != nil {
		_, _ = os.Stderr.WriteString("gate: " + err.Error() + "\n")
		return 2
	}
	debug.SetMemoryLimit(256 << 20)
	debug.SetGCPercent(50)
	f, err := conn.Recv()
	if err != nil || f.Op != wire.OpGateStart {
		return 2
	}
	var s wire.GateStart
	if err := json.Unmarshal(f.Body, &s); err != nil {
		return 2
	}
	if err := run(conn, &s, f.Files, defaultTimes); err != nil {
		_, _ = os.Stderr.WriteString("gate: " + err.Error() + "\n")
		return 1
	}
	return 0
}

// run serves until the monitor is gone, or nothing has been used for a while.
func run(conn *wire.Conn, s *wire.GateStart, files []*os.File, t times) error {
	g := &gate{link: &link{conn: conn, calls: map[uint64]chan *wire.Frame{}}, times: t, idle: time.Duration(s.IdleMS) * time.Millisecond,
		resolver: newResolver(s.Resolvers), names: newNames(s.State), answering: make(chan struct{}, maxAsking),
		answerers: map[netip.AddrPort]*sock{}, flows: map[*flow]struct{}{}, udp: map[pair]*dgrams{}, hush: map[pair]time.Time{},
		asking: make(chan struct{}, 64), late: map[wire.Refusal]int64{}, maxFlows: t.flows}
	if g.maxFlows == 0 {
		g.maxFlows = maxFlows()
	}
	g.policy.Store(newPolicy(s.Network))
	g.use()
	var socks []*sock
	defer func() {
		for _, s := range socks {
			_ = s.Close()
		}
		g.shut()
	}()
	for i, f := range files {
		s, err := own(f)
		if err != nil {
			return err
		}
		socks = append(socks, s)
		switch i {
		case inside.TCP4, inside.TCP6:
			go g.accept(s)
		default:
			go g.readUDP(s)
		}
	}
	gone := make(chan struct{})
	go func() {
		_ = g.link.read(g.setPolicy) // its end is all that matters
		close(gone)
	}()
	if g.idle <= 0 {
		g.idle = Idle
	}
	tick := time.NewTicker(max(g.idle/4, 10*time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-gone:
			return nil
		case <-tick.C:
		}
		if g.quiet() {
			_ = conn.Send(wire.Header{Op: wire.OpGateState}, g.names.state(), nil)
			return nil
		}
	}
}

// quiet tells that nothing has used the gate for a while; then nothing will.
func (g *gate) quiet() bool {
	return g.intake.end(func(last time.Time) bool {
		g.mu.Lock()
		defer g.mu.Unlock()
		return g.open == 0 && time.Since(last) > g.idle
	})
}

// maxFlows is how many connections the open files allow, each having two
// sockets and, while it is slow, a pipe in each direction.
func maxFlows() int {
	var l unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &l) != nil {
		return MaxFlows
	}
	return max(16, int(min(MaxFlows, (l.Cur-min(l.Cur, 256))/3)))
}

func (g *gate) tooMany() verdict {
	return verdict{"at most " + strconv.Itoa(g.maxFlows) + " connections are open at a time", ""}
}

func (g *gate) use() { g.intake.last.Store(time.Now().UnixNano()) }

// shut ends all flows.
func (g *gate) shut() {
	g.mu.Lock()
	for f := range g.flows {
		f.stop()
	}
	g.mu.Unlock()
	g.dnsMu.Lock()
	for _, s := range g.answerers {
		_ = s.Close()
	}
	g.dnsMu.Unlock()
}

// enter counts a flow in; g.mu is held.
func (g *gate) enter() bool {
	if g.open >= g.maxFlows {
		return false
	}
	g.open++
	return true
}

// leave counts a flow out; g.mu is held.
func (g *gate) leave() {
	g.open--
	g.use()
}

func (g *gate) accept(l *sock) {
	for {
		in, src, err := l.accept(&g.intake)
		if err != nil {
			switch {
			case errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED):
				continue
			case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM):
				time.Sleep(20 * time.Millisecond) // until others end
				continue
			}
			return
		}
		f := &flow{gate: g, src: src, dst: in.local(), in: in}
		g.mu.Lock()
		ok := g.enter()
		g.mu.Unlock()
		if !ok {
			g.refuse("tcp", f.src, f.host(), f.dst.Port(), g.tooMany(), false)
			in.reset()
			continue
		}
		go func() {
			defer func() {
				g.mu.Lock()
				g.leave()
				g.mu.Unlock()
			}()
			f.serve()
		}()
	}
}

// register notes an open flow, unless the policy forbids it meanwhile.
func (g *gate) register(f *flow) bool {
	g.mu.Lock()
	v := f.judge(g.policy.Load())
	if v.ok() {
		g.flows[f] = struct{}{}
	}
	g.mu.Unlock()
	if !v.ok() {
		f.refuse(v)
	}
	return v.ok()
}

func (g *gate) unregister(f *flow) {
	g.mu.Lock()
	delete(g.flows, f)
	g.mu.Unlock()
}

// setPolicy makes n hold, also for what is open.
func (g *gate) setPolicy(n wire.Network) {
	p := newPolicy(n)
	type ended struct {
		f *flow
		v verdict
	}
	var list []ended
	g.mu.Lock()
	g.policy.Store(p)
	for f := range g.flows {
		if v := f.judge(p); !v.ok() {
			list = append(list, ended{f, v})
		}
	}
	clear(g.hush)
	g.mu.Unlock()
	for i, e := range list {
		e.v.rule += " (cut when the policy changed)"
		if i < 32 { // before its program can notice and end, so that its answer tells
			g.link.tell(wire.OpGateRefused, wire.GateRefused{Source: e.f.src, Refusal: wire.Refusal{
				Host: e.f.host(), Port: e.f.dst.Port(), Proto: e.f.proto(), Rule: e.v.rule, Allow: e.v.allow, Count: 1, First: time.Now().UnixNano()}})
		} else {
			g.refuse(e.f.proto(), e.f.src, e.f.host(), e.f.dst.Port(), e.v, false)
		}
		e.f.stop()
	}
}

// refuse reports what was not let out. With ask the monitor has a moment to
// find out whose socket src is, before the caller closes it.
func (g *gate) refuse(proto string, src netip.AddrPort, host string, port uint16, v verdict, ask bool) {
	r := wire.Refusal{Host: host, Port: port, Proto: proto, Rule: v.rule, Allow: v.allow}
	if ask {
		select {
		case g.asking <- struct{}{}:
			r.Count, r.First = 1, time.Now().UnixNano()
			_, _ = g.link.call(wire.OpGateRefused, wire.GateRefused{Refusal: r, Source: src}, g.times.ask)
			<-g.asking
			return
		default:
		}
	}
	g.lateMu.Lock()
	defer g.lateMu.Unlock()
	if _, ok := g.late[r]; ok || len(g.late) < 256 {
		g.late[r]++
	} else {
		g.late[wire.Refusal{Host: "others", Proto: proto, Rule: v.rule}]++
	}
	if !g.flusher {
		g.flusher = true
		time.AfterFunc(100*time.Millisecond, g.flush)
	}
}

// flush sends what was counted meanwhile.
func (g *gate) flush() {
	g.lateMu.Lock()
	late := g.late
	g.late, g.flusher = map[wire.Refusal]int64{}, false
	g.lateMu.Unlock()
	for r, n := range late {
		r.Count, r.First = n, time.Now().UnixNano()
		g.link.tell(wire.OpGateRefused, wire.GateRefused{Refusal: r})
	}
}

// link is the connection to the monitor.
type link struct {
	conn *wire.Conn

	mu    sync.Mutex
	next  uint64
	calls map[uint64]chan *wire.Frame
	gone  bool
}

var errLink = errors.New("the monitor does not answer")

func (l *link) tell(op string, body any) { _ = l.conn.Send(wire.Header{Op: op}, body, nil) }

// call asks the monitor; the caller owns the frame's files.
func (l *link) call(op string, body any, limit time.Duration) (*wire.Frame, error) {
	ch := make(chan *wire.Frame, 1)
	l.mu.Lock()
	if l.gone {
		l.mu.Unlock()
		return nil, errLink
	}
	l.next++
	id := l.next
	l.calls[id] = ch
	l.mu.Unlock()
	if err := l.conn.Send(wire.Header{ID: id, Op: op}, body, nil); err != nil {
		l.drop(id)
		return nil, err
	}
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case f, ok := <-ch:
		if !ok {
			return nil, errLink
		}
		if f.Error != nil {
			closeAll(f.Files)
			return nil, f.Error
		}
		return f, nil
	case <-t.C:
		if !l.drop(id) { // it came just now
			if f := <-ch; f != nil {
				closeAll(f.Files)
			}
		}
		return nil, errLink
	}
}

func (l *link) drop(id uint64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, ok := l.calls[id]
	delete(l.calls, id)
	return ok
}

// socket asks for a UDP socket inside.
func (l *link) socket(at, peer netip.AddrPort) (*sock, error) {
	f, err := l.call(wire.OpGateSocket, wire.GateSocket{At: at, Peer: peer}, 5*time.Second)
	if err != nil {
		return nil, err
	}
	if len(f.Files) != 1 {
		closeAll(f.Files)
		return nil, errLink
	}
	return own(f.Files[0])
}

// read takes what the monitor sends until it is gone.
func (l *link) read(policy func(wire.Network)) error {
	for {
		f, err := l.conn.Recv()
		if err != nil {
			l.mu.Lock()
			l.gone = true
			for id, ch := range l.calls {
				close(ch)
				delete(l.calls, id)
			}
			l.mu.Unlock()
			return err
		}
		switch f.Op {
		case wire.OpGatePolicy:
			var n wire.Network
			h := wire.Header{ID: f.ID}
			if err := json.Unmarshal(f.Body, &n); err != nil {
				h.Error = &wire.Error{Code: wire.CodeInvalid, Text: "the policy cannot be understood"}
			} else {
				policy(n)
			}
			_ = l.conn.Send(h, nil, nil)
		case "":
			l.mu.Lock()
			ch := l.calls[f.ID]
			delete(l.calls, f.ID)
			l.mu.Unlock()
			if ch == nil {
				closeAll(f.Files)
				continue
			}
			ch <- f
		default:
			closeAll(f.Files)
		}
	}
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}
