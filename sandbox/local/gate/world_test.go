//go:build linux

package gate

import (
	"encoding/binary"
	"encoding/json"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/gatetest"
	"berth/sandbox/local/gate/inside"
	"berth/sandbox/local/wire"
)

func TestMain(m *testing.M) { os.Exit(gatetest.Main(m)) }

// box is a sandbox's network with a gate that runs in this process, and a
// stand-in for the monitor.
type box struct {
	t    *testing.T
	net  *gatetest.Net
	conn *wire.Conn
	done chan error

	mu      sync.Mutex
	refused []wire.Refusal
	state   wire.GateState
	ids     uint64
	answers map[uint64]chan *wire.Frame
}

// hostDNS stands for the host's name server; it runs in the internet.
var hostDNS = netip.MustParseAddrPort("192.0.2.53:53")

func newBox(t *testing.T, n wire.Network, change ...func(*times, *wire.GateStart)) *box {
	t.Helper()
	b := &box{t: t, done: make(chan error, 1), answers: map[uint64]chan *wire.Frame{}}
	var err error
	if b.net, err = gatetest.NewNet(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.net.Close)
	if err := b.net.Up(); err != nil {
		t.Fatal(err)
	}
	var files []*os.File
	b.net.Do(func() { files, err = inside.Open() })
	if err != nil {
		t.Fatal(err)
	}
	b.start(n, wire.GateState{}, files, change...)
	return b
}

func (b *box) start(n wire.Network, state wire.GateState, files []*os.File, change ...func(*times, *wire.GateStart)) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		b.t.Fatal(err)
	}
	b.conn, _ = wire.Socket(pair[0], 0)
	other, _ := wire.Socket(pair[1], 0)
	s := &wire.GateStart{Network: n, Resolvers: []netip.AddrPort{hostDNS}, State: state, IdleMS: 60000}
	limits := defaultTimes
	limits.dial, limits.ask = 2*time.Second, 2*time.Second
	for _, f := range change {
		f(&limits, s)
	}
	go func() { b.done <- run(other, s, files, limits); _ = other.Close() }()
	stopped := make(chan struct{})
	go func() { defer close(stopped); b.monitor() }()
	b.t.Cleanup(func() { _ = b.conn.Close(); <-stopped; <-b.done })
}

func (b *box) monitor() {
	for {
		f, err := b.conn.Recv()
		if err != nil {
			return
		}
		switch f.Op {
		case wire.OpGateRefused:
			var r wire.GateRefused
			if err := json.Unmarshal(f.Body, &r); err != nil {
				b.t.Error(err)
			}
			b.mu.Lock()
			b.refused = append(b.refused, r.Refusal)
			b.mu.Unlock()
			if f.ID != 0 {
				_ = b.conn.Send(wire.Header{ID: f.ID}, nil, nil)
			}
		case wire.OpGateSocket:
			var r wire.GateSocket
			_ = json.Unmarshal(f.Body, &r)
			var file *os.File
			var err error
			b.net.Do(func() { file, err = inside.Datagrams(r.At, r.Peer) })
			if err != nil {
				_ = b.conn.Send(wire.Header{ID: f.ID, Error: &wire.Error{Text: err.Error()}}, nil, nil)
				continue
			}
			_ = b.conn.Send(wire.Header{ID: f.ID}, nil, nil, file)
			_ = file.Close()
		case wire.OpGateState:
			b.mu.Lock()
			_ = json.Unmarshal(f.Body, &b.state)
			b.mu.Unlock()
		case "":
			b.mu.Lock()
			ch := b.answers[f.ID]
			b.mu.Unlock()
			ch <- f
		}
	}
}

// set changes the policy and waits until it holds.
func (b *box) set(n wire.Network) {
	b.mu.Lock()
	b.ids++
	id := b.ids
	ch := make(chan *wire.Frame, 1)
	b.answers[id] = ch
	b.mu.Unlock()
	if err := b.conn.Send(wire.Header{ID: id, Op: wire.OpGatePolicy}, n, nil); err != nil {
		b.t.Fatal(err)
	}
	<-ch
}

// dial connects from within the sandbox.
func (b *box) dial(network, addr string) (c net.Conn, err error) {
	b.net.Do(func() { c, err = (&net.Dialer{Timeout: 5 * time.Second}).Dial(network, addr) })
	if err == nil {
		b.t.Cleanup(func() { _ = c.Close() })
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	}
	return c, err
}

// exchange connects, sends, and returns all that comes back until the end.
func (b *box) exchange(addr, send string) (string, error) {
	b.t.Helper()
	c, err := b.dial("tcp", addr)
	if err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, send); err != nil {
		return "", err
	}
	_ = c.(*net.TCPConn).CloseWrite()
	got, err := io.ReadAll(c)
	return string(got), err
}

// wantRefused finds a refusal.
func (b *box) wantRefused(host, rule string) wire.Refusal {
	b.t.Helper()
	until := time.Now().Add(3 * time.Second)
	for {
		b.mu.Lock()
		list := append([]wire.Refusal(nil), b.refused...)
		b.mu.Unlock()
		for _, r := range list {
			if r.Host == host && strings.Contains(r.Rule, rule) {
				return r
			}
		}
		if time.Now().After(until) {
			b.t.Fatalf("no refusal of %s by %q; there are %+v", host, rule, list)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// listen opens a server in the internet, or, with n, elsewhere.
func listen(t testing.TB, addr string, serve func(net.Conn)) {
	t.Helper()
	var l net.Listener
	var err error
	gatetest.Internet.Do(func() { l, err = net.Listen("tcp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer c.Close(); serve(c) }()
		}
	}()
}

// greet answers with where the connection ended, and what was sent.
func greet(c net.Conn) {
	got, _ := io.ReadAll(c)
	_, _ = io.WriteString(c, c.LocalAddr().String()+" "+string(got))
}

// nameServer answers as the host's name server, from a table of names.
func nameServer(t testing.TB, table map[string][]string) {
	t.Helper()
	var pc net.PacketConn
	var err error
	gatetest.Internet.Do(func() { pc, err = net.ListenPacket("udp", hostDNS.String()) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	go func() {
		buf := make([]byte, 4096)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			q, err := parseQuery(buf[:n])
			if err != nil {
				continue
			}
			addrs, ok := table[q.name]
			if !ok {
				_, _ = pc.WriteTo(q.answer(buf[:n], rcodeNoName, 0), from)
				continue
			}
			var list []netip.Addr
			for _, a := range addrs {
				if addr := netip.MustParseAddr(a); addr.Is4() == (q.kind == typeA) && (q.kind == typeA || q.kind == typeAAAA) {
					list = append(list, addr)
				}
			}
			_, _ = pc.WriteTo(q.answer(buf[:n], rcodeOK, 30, list...), from)
		}
	}()
}

// ask sends a query from within the sandbox.
func (b *box) ask(server, name string, kind uint16) (reply, error) {
	c, err := b.dial("udp", server)
	if err != nil {
		return reply{}, err
	}
	q := newQuery(77, name, kind)
	if _, err := c.Write(q); err != nil {
		return reply{}, err
	}
	buf := make([]byte, 4096)
	n, err := c.Read(buf)
	if err != nil {
		return reply{}, err
	}
	return parseReply(q, buf[:n])
}

// resolve asks for one address.
func (b *box) resolve(name string, kind uint16) string {
	b.t.Helper()
	r, err := b.ask("10.0.2.3:53", name, kind)
	if err != nil || len(r.addrs) == 0 {
		b.t.Fatalf("resolve %s: %+v %v", name, r, err)
	}
	return r.addrs[0].String()
}

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// hello makes a ClientHello record with this server name.
func hello(name string) string {
	sni := binary.BigEndian.AppendUint16(nil, uint16(len(name)+3))
	sni = append(append(append(sni, 0), byte(len(name)>>8), byte(len(name))), name...)
	ext := append(binary.BigEndian.AppendUint16([]byte{0, 0}, uint16(len(sni))), sni...)
	if name == "" {
		ext = nil
	}
	body := append([]byte{3, 3}, make([]byte, 32)...)
	body = append(body, 0, 0, 2, 0x13, 1, 1, 0)
	body = append(binary.BigEndian.AppendUint16(body, uint16(len(ext))), ext...)
	msg := append([]byte{1, 0, byte(len(body) >> 8), byte(len(body))}, body...)
	return string(append([]byte{22, 3, 1, byte(len(msg) >> 8), byte(len(msg))}, msg...))
}

func listenUDP(t testing.TB, addr string) (pc net.PacketConn) {
	t.Helper()
	var err error
	gatetest.Internet.Do(func() { pc, err = net.ListenPacket("udp", addr) })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = pc.Close() })
	return pc
}

func mustAddr(s string) netip.Addr { return netip.MustParseAddr(s) }
