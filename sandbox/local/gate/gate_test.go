//go:build linux

package gate

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

func isReset(err error) bool { return errors.Is(err, unix.ECONNRESET) || errors.Is(err, unix.EPIPE) }

func TestPublicIsTheInternetAndNothingElse(t *testing.T) {
	listen(t, "0.0.0.0:7000", greet)
	listen(t, "[::]:7001", greet)
	b := newBox(t, wire.Network{})
	for _, addr := range []string{"198.51.100.7:7000", "8.8.8.8:7000", "[2606:4700::1]:7001"} {
		if got, err := b.exchange(addr, "hello"); err != nil || got != addr+" hello" {
			t.Errorf("%s: got %q %v", addr, got, err)
		}
	}
	for addr, rule := range map[string]string{
		"10.0.2.2":           "loopback",
		"169.254.169.254":    "metadata",
		"168.63.129.16":      "metadata",
		"192.168.1.1":        "private",
		"172.16.0.1":         "private",
		"10.1.2.3":           "private",
		"100.64.0.1":         "private",
		"198.18.0.1":         "no longer known",
		"fd12::1":            "private",
		"64:ff9b::a9fe:a9fe": "metadata",
		"2002:a9fe:a9fe::1":  "metadata",
		"203.0.113.1":        "the host itself",
		"2001:db8::1":        "the host itself",
		"64:ff9b::cb00:7101": "the host itself",
		"2001:0:1::1":        "tunnels",
		"::7f00:1":           "loopback",
	} {
		got, err := b.exchange(net.JoinHostPort(addr, "7000"), "hello")
		if !isReset(err) && err == nil {
			t.Errorf("%s: got %q %v, want a reset", addr, got, err)
			continue
		}
		r := b.wantRefused(addr, rule)
		if r.Port != 7000 || r.Proto != "tcp" || r.Count != 1 || r.First == 0 {
			t.Errorf("%s: %+v", addr, r)
		}
	}
}

func TestLists(t *testing.T) {
	listen(t, "0.0.0.0:7000", greet)
	b := newBox(t, wire.Network{BlockAll: true})
	refused := func(addr, rule string) {
		t.Helper()
		if got, err := b.exchange(addr, "hello"); err == nil {
			t.Errorf("%s: got %q, want a reset", addr, got)
		}
		host, _, _ := net.SplitHostPort(addr)
		b.wantRefused(host, rule)
	}
	allowed := func(addr string) {
		t.Helper()
		if got, err := b.exchange(addr, "hello"); err != nil || got != addr+" hello" {
			t.Errorf("%s: got %q %v", addr, got, err)
		}
	}
	refused("8.8.8.8:7000", "network_block_all")
	if r, err := b.ask("10.0.2.3:53", "example.com", typeA); err != nil || r.rcode != rcodeNoName {
		t.Errorf("a name under block-all: %+v %v", r, err)
	}
	if r := b.wantRefused("example.com", "network_block_all"); r.Allow != "network_allow_domains example.com" || r.Proto != "dns" {
		t.Errorf("%+v", r)
	}
	b.set(wire.Network{BlockAll: true, CIDRs: prefixes("198.51.100.0/24", "10.9.0.0/16", "0.0.0.0/32")})
	allowed("198.51.100.7:7000")
	allowed("10.9.0.1:7000")
	refused("9.9.9.9:7000", "network_allow_list")
	refused("10.8.0.1:7000", "private")
	// Everything is the internet, not what is beside it.
	b.set(wire.Network{CIDRs: prefixes("0.0.0.0/0", "169.254.0.0/16")})
	allowed("9.9.9.8:7000")
	allowed("169.254.169.254:7000")
	refused("10.8.0.2:7000", "private")
}

func TestHostLoopbackOnlyWhenListed(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			greet(c)
			_ = c.Close()
		}
	}()
	_, port, _ := net.SplitHostPort(l.Addr().String())
	b := newBox(t, wire.Network{})
	if got, err := b.exchange("10.0.2.2:"+port, "x"); err == nil {
		t.Errorf("got %q, want a reset", got)
	}
	b.set(wire.Network{CIDRs: prefixes("127.0.0.1/32", "0.0.0.0/0")})
	if got, err := b.exchange("10.0.2.2:"+port, "x"); err != nil || !strings.HasSuffix(got, " x") {
		t.Errorf("listed: got %q %v", got, err)
	}
}

func TestDomains(t *testing.T) {
	nameServer(t, map[string][]string{
		"example.com": {"198.51.100.7"}, "a.b.example.org": {"198.51.100.8"}, "rebind.example.org": {"169.254.169.254", "127.0.0.1", "10.0.0.1"},
		"mapped.example.org": {"::ffff:10.0.0.5"}, "six.example.org": {"2606:4700::7"}, "evil.net": {"198.51.100.9"}, "own.example.org": {"203.0.113.1"},
	})
	for _, port := range []string{"80", "443", "7000"} {
		listen(t, "0.0.0.0:"+port, greet)
	}
	b := newBox(t, wire.Network{Domains: []string{"example.com", "*.example.org"}})
	for _, name := range []string{"evil.net", "example.org", "xexample.com", "example.com.evil.net"} {
		if r, err := b.ask("10.0.2.3:53", name, typeA); err != nil || r.rcode != rcodeNoName {
			t.Errorf("%s: %+v %v, want no such name", name, r, err)
		}
		b.wantRefused(name, "network_allow_domains")
	}
	if r, err := b.ask("10.0.2.3:53", "missing.example.org", typeA); err != nil || r.rcode != rcodeNoName {
		t.Errorf("a name that does not exist: %+v %v", r, err)
	}
	// Another server gets no question either.
	if r, err := b.ask("9.9.9.9:53", "evil.net", typeA); err != nil || r.rcode != rcodeNoName {
		t.Errorf("by another server: %+v %v", r, err)
	}
	com := b.resolve("Example.COM", typeA)
	if !strings.HasPrefix(com, "198.18.") && !strings.HasPrefix(com, "198.19.") {
		t.Errorf("example.com is %s", com)
	}
	if again := b.resolve("example.com", typeA); again != com {
		t.Errorf("example.com is %s and %s", com, again)
	}
	get := "GET / HTTP/1.1\r\nHost: example.com\r\n\r\n"
	for addr, send := range map[string]string{"80": get, "443": hello("example.com"), "7000": "anything"} {
		got, err := b.exchange(com+":"+addr, send)
		if err != nil || got != "198.51.100.7:"+addr+" "+send {
			t.Errorf("port %s: got %q %v", addr, got, err)
		}
	}
	six := b.resolve("example.com", typeAAAA)
	if got, err := b.exchange("["+six+"]:7000", "x"); err != nil || got != "198.51.100.7:7000 x" {
		t.Errorf("over IPv6: got %q %v", got, err)
	}
	if got, err := b.exchange(b.resolve("six.example.org", typeA)+":7000", "x"); err != nil || got != "[2606:4700::7]:7000 x" {
		t.Errorf("to IPv6: got %q %v", got, err)
	}
	for _, c := range []struct{ name, port, send, rule string }{
		{"example.com", "80", "GET / HTTP/1.1\r\nHost: evil.net\r\n\r\n", "the Host of the HTTP request is evil.net"},
		{"example.com", "80", "GET / HTTP/1.1\r\nHost: 169.254.169.254\r\n\r\n", "the Host of the HTTP request is 169.254.169.254"},
		{"example.com", "80", "GET / HTTP/1.1\r\nHost: 0x7f000001\r\n\r\n", "0x7f000001"},
		{"example.com", "80", "GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n", "cannot be read"},
		{"example.com", "80", "GET / HTTP/1.1\r\nHost: example.com\r\nHost: evil.net\r\n\r\n", "cannot be read"},
		{"example.com", "80", "GET http://evil.net/ HTTP/1.1\r\nHost: example.com\r\n\r\n", "cannot be read"},
		{"example.com", "80", "GET / HTTP/1.0\r\n\r\n", "missing"},
		{"example.com", "80", get + "GET / HTTP/1.1\r\nHost: evil.net\r\n\r\n", "later HTTP request is evil.net"},
		{"example.com", "443", hello("evil.net"), "the TLS server name is evil.net"},
		{"example.com", "443", hello(""), "missing"},
		{"example.com", "443", "SSH-2.0", "cannot be read"},
		{"rebind.example.org", "7000", "x", "rebind.example.org leads to 169.254.169.254"},
		{"mapped.example.org", "7000", "x", "mapped.example.org leads to 10.0.0.5: private"},
		{"own.example.org", "7000", "x", "own.example.org leads to 203.0.113.1: it is an address of the host itself"},
	} {
		got, err := b.exchange(b.resolveAny(c.name)+":"+c.port, c.send)
		if err == nil {
			t.Errorf("%s:%s %.30q: got %q, want a reset", c.name, c.port, c.send, got)
		}
		b.wantRefused(c.name, c.rule)
	}
	// An address that nobody resolved, and the true one.
	for _, addr := range []string{"198.51.100.7:7000", "198.19.250.1:7000"} {
		if got, err := b.exchange(addr, "x"); err == nil {
			t.Errorf("%s: got %q, want a reset", addr, got)
		}
	}
}

// resolveAny asks for an address of either family.
func (b *box) resolveAny(name string) string {
	b.t.Helper()
	return b.resolve(name, typeA)
}

func TestForwardedNamesAndRebinding(t *testing.T) {
	nameServer(t, map[string][]string{"example.com": {"198.51.100.7"}, "rebind.net": {"169.254.169.254"}})
	listen(t, "0.0.0.0:7000", greet)
	b := newBox(t, wire.Network{})
	if got, err := b.exchange(b.resolve("example.com", typeA)+":7000", "x"); err != nil || got != "198.51.100.7:7000 x" {
		t.Errorf("got %q %v", got, err)
	}
	if got, err := b.exchange(b.resolve("rebind.net", typeA)+":7000", "x"); err == nil {
		t.Errorf("got %q, want a reset", got)
	}
	b.wantRefused("169.254.169.254", "metadata")
	// The same question over TCP; the fake name server speaks UDP only.
	c, err := b.dial("tcp", "10.0.2.3:53")
	if err != nil {
		t.Fatal(err)
	}
	q := newQuery(7, "example.com", typeA)
	_, _ = c.Write(append([]byte{0, byte(len(q))}, q...))
	buf := make([]byte, 512)
	if n, err := c.Read(buf); err != nil || n < 14 || buf[2] != 0 || buf[3] != 7 || buf[5]&0xf != rcodeFailure {
		t.Errorf("got %x %v, want a server failure", buf[:n], err)
	}
}

func TestUDP(t *testing.T) {
	echo := func(addr string) {
		pc := listenUDP(t, addr)
		go func() {
			buf := make([]byte, 64<<10)
			for {
				n, from, err := pc.ReadFrom(buf)
				if err != nil {
					return
				}
				_, _ = pc.WriteTo(buf[:n], from)
			}
		}()
	}
	echo("198.51.100.7:7000")
	echo("[2606:4700::7]:7000")
	b := newBox(t, wire.Network{})
	for _, addr := range []string{"198.51.100.7:7000", "[2606:4700::7]:7000"} {
		c, err := b.dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		for _, say := range []string{"one", "two", strings.Repeat("x", 1400)} {
			_, _ = c.Write([]byte(say))
			buf := make([]byte, 9000)
			if n, err := c.Read(buf); err != nil || string(buf[:n]) != say {
				t.Errorf("%s: got %.20q %v, want %.20q", addr, buf[:n], err, say)
			}
		}
	}
	c, err := b.dial("udp", "10.1.1.1:7000")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("x"))
	if r := b.wantRefused("10.1.1.1", "private"); r.Proto != "udp" {
		t.Errorf("%+v", r)
	}
}

func TestPolicyCutsWhatIsOpen(t *testing.T) {
	listen(t, "0.0.0.0:7000", func(c net.Conn) { _, _ = io.Copy(c, c) })
	b := newBox(t, wire.Network{})
	echo := func(c net.Conn) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	stays, err := b.dial("tcp", "198.51.100.7:7000")
	if err != nil {
		t.Fatal(err)
	}
	goes, err := b.dial("tcp", "198.51.100.99:7000")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []net.Conn{stays, goes} {
		if err := echo(c); err != nil {
			t.Fatal(err)
		}
	}
	b.set(wire.Network{CIDRs: prefixes("198.51.100.7/32")})
	if err := echo(stays); err != nil {
		t.Errorf("what is still allowed was cut: %v", err)
	}
	if err := echo(goes); !isReset(err) {
		t.Errorf("what is forbidden now: %v, want a reset", err)
	}
	b.wantRefused("198.51.100.99", "cut when the policy changed")
}

// A session's list alone does not open the machine's own public addresses; the
// operator's does, and what was open is cut when that ends.
func TestHostsOwnPublicAddress(t *testing.T) {
	var lists []net.Listener
	for _, addr := range []string{"203.0.113.1:7000", "[2001:db8::1]:7000"} {
		l, err := net.Listen("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		lists = append(lists, l)
	}
	for _, l := range lists {
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() { defer c.Close(); echoes(c) }()
			}
		}()
	}
	nameServer(t, map[string][]string{"own.example.org": {"203.0.113.1"}})
	asked := wire.Network{CIDRs: prefixes("203.0.113.1/32", "203.0.113.0/24", "0.0.0.0/0", "2001:db8::1/128", "::/0"), Domains: []string{"own.example.org"}}
	allowed := asked
	allowed.Host = prefixes("203.0.113.1/32", "2001:db8::/64")
	b := newBox(t, asked)
	to := []string{"203.0.113.1:7000", "[2001:db8::1]:7000", "[64:ff9b::cb00:7101]:7000", b.resolve("own.example.org", typeA) + ":7000"}
	echo := func(addr string) (net.Conn, error) {
		c, err := b.dial("tcp", addr)
		if err != nil {
			return c, err
		}
		_, _ = c.Write([]byte("x"))
		_, err = io.ReadFull(c, make([]byte, 1))
		return c, err
	}
	for _, addr := range to {
		if _, err := echo(addr); err == nil {
			t.Errorf("%s was reached by a session's list", addr)
		}
	}
	b.wantRefused("203.0.113.1", "of the operator does not have it")
	b.set(allowed)
	var open []net.Conn
	for _, addr := range to {
		c, err := echo(addr)
		if err != nil {
			t.Fatalf("%s, which the operator opened: %v", addr, err)
		}
		open = append(open, c)
	}
	b.set(wire.Network{Domains: allowed.Domains, CIDRs: prefixes("0.0.0.0/0", "::/0"), Host: allowed.Host})
	for i, c := range open {
		_, err := c.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(c, make([]byte, 1))
		}
		if !isReset(err) {
			t.Errorf("%s, which is listed no more: %v, want a reset", to[i], err)
		}
	}
}

// What a cut flow still had to send is not sent, whatever its goroutines do.
func TestStopEndsAtOnce(t *testing.T) {
	for _, network := range []string{"tcp", "udp"} {
		var out *sock
		var err error
		if network == "udp" {
			out, err = datagrams(netip.MustParseAddrPort("203.0.113.2:7000"))
		} else {
			listen(t, "203.0.113.2:7000", func(c net.Conn) { _, _ = io.Copy(io.Discard, c) })
			out, err = connect(netip.MustParseAddrPort("203.0.113.2:7000"), time.Second)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer out.Close()
		in, err := datagrams(netip.MustParseAddrPort("127.0.0.1:9"))
		if err != nil {
			t.Fatal(err)
		}
		defer in.Close()
		f := &flow{in: in, out: out}
		f.stop()
		_ = out.SetDeadline(time.Time{}) // as a goroutine does that was on its way to
		if _, err := out.Write([]byte("x")); err == nil {
			t.Errorf("%s: bytes are taken after the cut", network)
		}
		out.control(func(fd int) {
			if _, err := unix.Getpeername(fd); err == nil {
				t.Errorf("%s: still connected", network)
			}
		})
	}
}

func TestHalfClosedSlowAndSilentPeersEnd(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	listen(t, "0.0.0.0:7000", func(net.Conn) { <-hold })
	b := newBox(t, wire.Network{Domains: []string{"example.com"}, CIDRs: prefixes("198.51.100.0/24")}, func(l *times, _ *wire.GateStart) {
		l.half, l.idle, l.sniff = 100*time.Millisecond, 300*time.Millisecond, 100*time.Millisecond
	})
	nameServer(t, map[string][]string{"example.com": {"198.51.100.7"}})
	ends := func(name, addr string, after func(net.Conn)) {
		c, err := b.dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		after(c)
		begin := time.Now()
		if _, err := io.ReadAll(c); err == nil || isTimeout(err) {
			t.Errorf("%s: %v after %v, want a reset", name, err, time.Since(begin))
		}
	}
	ends("half-closed", "198.51.100.7:7000", func(c net.Conn) { _ = c.(*net.TCPConn).CloseWrite() })
	ends("silent", "198.51.100.7:7000", func(net.Conn) {})
	ends("tells no name", b.resolve("example.com", typeA)+":443", func(net.Conn) {})
}

func TestGateEndsIdleAndTheNextKnowsTheNames(t *testing.T) {
	nameServer(t, map[string][]string{"example.com": {"198.51.100.7"}})
	quick := func(_ *times, s *wire.GateStart) { s.IdleMS = 200 }
	b := newBox(t, wire.Network{Domains: []string{"example.com"}}, quick)
	addr := b.resolve("example.com", typeA)
	select {
	case err := <-b.done:
		b.done <- err
	case <-time.After(5 * time.Second):
		t.Fatal("the gate does not end")
	}
	var n *names
	for range 100 { // until what it left is read
		b.mu.Lock()
		n = newNames(b.state)
		b.mu.Unlock()
		if len(n.at) > 0 {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	if name, made := n.name(mustAddr(addr)); name != "example.com" || !made {
		t.Errorf("got %q %t for %s", name, made, addr)
	}
}
