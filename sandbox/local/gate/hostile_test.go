//go:build linux

package gate

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/gatetest"
	"berth/sandbox/local/wire"
)

// wantIdle waits until no goroutine of a flow is left.
func wantIdle(t *testing.T) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		buf := make([]byte, 4<<20)
		stacks := string(buf[:runtime.Stack(buf, true)])
		n := strings.Count(stacks, "gate.(*flow).") + strings.Count(stacks, "gate.(*gate).converse") + strings.Count(stacks, "gate.connect(")
		if n == 0 {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%d goroutines of flows are left:\n%.3000s", n, stacks)
		}
	}
}

func echoes(c net.Conn) { _, _ = io.Copy(c, c) }

func TestFlowsAreBounded(t *testing.T) {
	const most = 60
	listen(t, "0.0.0.0:7000", echoes)
	pc := listenUDP(t, "198.51.100.7:7001")
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := pc.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = pc.WriteTo(buf[:n], from)
		}
	}()
	b := newBox(t, wire.Network{}, func(l *times, _ *wire.GateStart) { l.flows = most })
	say := func(c net.Conn) error {
		if _, err := c.Write([]byte("x")); err != nil {
			return err
		}
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}
	open := func(network, addr string) (net.Conn, error) {
		c, err := b.dial(network, addr)
		if err != nil {
			return nil, err
		}
		return c, say(c)
	}
	var list []net.Conn
	for i := range most {
		network, addr := "tcp", "198.51.100.7:7000"
		if i%4 == 3 {
			network, addr = "udp", "198.51.100.7:7001"
		}
		c, err := open(network, addr)
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		list = append(list, c)
	}
	for range 3 {
		if _, err := open("tcp", "198.51.100.7:7000"); !isReset(err) {
			t.Errorf("one more: %v, want a reset", err)
		}
	}
	b.wantRefused("198.51.100.7", fmt.Sprintf("at most %d connections", most))
	c, _ := b.dial("udp", "198.51.100.8:7001")
	_, _ = c.Write([]byte("x"))
	b.wantRefused("198.51.100.8", fmt.Sprintf("at most %d connections", most))
	for _, c := range list[1:] { // those that there are go on
		if err := say(c); err != nil {
			t.Errorf("an old one: %v", err)
		}
	}
	_ = list[0].Close()
	end := time.Now().Add(5 * time.Second)
	for _, err := open("tcp", "198.51.100.7:7000"); err != nil; _, err = open("tcp", "198.51.100.7:7000") {
		if time.Now().After(end) {
			t.Fatalf("after one has ended: %v", err)
		}
	}
}

// Four thousand connections are open at a time, and cost nothing afterwards.
func TestManyFlows(t *testing.T) {
	n := min(MaxFlows, maxFlows()/2) // this process has all ends: four files each
	var lim unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &lim); err == nil {
		n = min(n, int(lim.Cur-200)/5)
	}
	listen(t, "0.0.0.0:7000", echoes)
	b := newBox(t, wire.Network{})
	conns := make([]net.Conn, n)
	begin := time.Now()
	b.net.Do(func() {
		for i := range conns {
			var err error
			if conns[i], err = net.DialTimeout("tcp", "198.51.100.7:7000", 10*time.Second); err != nil {
				t.Errorf("connection %d: %v", i, err)
				return
			}
		}
	})
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for ; i < n; i += 16 {
				if conns[i] == nil {
					return
				}
				_ = conns[i].SetDeadline(time.Now().Add(30 * time.Second))
				if _, err := conns[i].Write([]byte("x")); err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
				if _, err := io.ReadFull(conns[i], make([]byte, 1)); err != nil {
					t.Errorf("%d: %v", i, err)
					return
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d connections in %v", n, time.Since(begin))
	for _, c := range conns {
		if c != nil {
			_ = c.Close()
		}
	}
	wantIdle(t)
}

func TestPeersThatNeverAnswer(t *testing.T) {
	// A listener with a full queue answers no SYN.
	gatetest.Internet.Do(func() {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Close(fd) })
		if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Port: 7100}), unix.Listen(fd, 0)); err != nil {
			t.Fatal(err)
		}
		for range 3 {
			c, _ := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			_ = unix.Connect(c, &unix.SockaddrInet4{Port: 7100, Addr: [4]byte{198, 51, 100, 7}})
			t.Cleanup(func() { _ = unix.Close(c) })
		}
	})
	b := newBox(t, wire.Network{}, func(l *times, _ *wire.GateStart) { l.dial, l.dgram = 300*time.Millisecond, 300*time.Millisecond })
	begin := time.Now()
	if got, err := b.exchange("198.51.100.7:7100", "x"); err == nil {
		t.Errorf("got %q from a peer that does not answer", got)
	}
	if took := time.Since(begin); took > 3*time.Second {
		t.Errorf("it took %v", took)
	}
	// UDP to nobody.
	c, err := b.dial("udp", "198.51.100.7:7101")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("x"))
	time.Sleep(50 * time.Millisecond)
	wantIdle(t)
}

// A peer that takes nothing holds a connection no longer than it may.
func TestPeerThatTakesNothing(t *testing.T) {
	hold := make(chan struct{})
	defer close(hold)
	listen(t, "0.0.0.0:7000", func(net.Conn) { <-hold })
	b := newBox(t, wire.Network{}, func(l *times, _ *wire.GateStart) { l.stall = 300 * time.Millisecond })
	c, err := b.dial("tcp", "198.51.100.7:7000")
	if err != nil {
		t.Fatal(err)
	}
	junk := make([]byte, 1<<20)
	for err == nil {
		_, err = c.Write(junk)
	}
	if !isReset(err) {
		t.Errorf("got %v, want a reset", err)
	}
	wantIdle(t)
}

func TestQUICIsRefusedWhereNamesCount(t *testing.T) {
	nameServer(t, map[string][]string{"example.com": {"198.51.100.7"}})
	b := newBox(t, wire.Network{Domains: []string{"example.com"}})
	c, err := b.dial("udp", b.resolve("example.com", typeA)+":443")
	if err != nil {
		t.Fatal(err)
	}
	_, _ = c.Write([]byte("x"))
	if r := b.wantRefused("example.com", "QUIC"); r.Proto != "udp" || r.Port != 443 {
		t.Errorf("%+v", r)
	}
}

func TestLargeDatagrams(t *testing.T) {
	pc := listenUDP(t, "198.51.100.7:7000")
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
	b := newBox(t, wire.Network{})
	c, err := b.dial("udp", "198.51.100.7:7000")
	if err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64<<10)
	for _, size := range []int{60000, 1, 0, 9000} {
		say := strings.Repeat("x", size)
		if _, err := c.Write([]byte(say)); err != nil {
			t.Fatal(err)
		}
		if n, err := c.Read(buf); err != nil || string(buf[:n]) != say {
			t.Errorf("%d bytes: got %d %v", size, n, err)
		}
	}
}

// proxyServer is an HTTP proxy on port 3128 of 198.51.100.99. It connects what
// it is asked for to a server which tells the head that it got.
func proxyServer(t *testing.T, code int) (asked func() []string) {
	var mu sync.Mutex
	var list []string
	listen(t, "198.51.100.99:3128", func(c net.Conn) {
		r := bufio.NewReader(c)
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		mu.Lock()
		list = append(list, req.Method+" "+req.Host+" "+req.Header.Get("Proxy-Authorization"))
		mu.Unlock()
		if code == 0 {
			_, _ = io.Copy(io.Discard, c) // never answers
			return
		}
		_, _ = fmt.Fprintf(c, "HTTP/1.1 %d Whatever\r\nVia: x\r\n\r\n", code)
		if code == 200 {
			got, _ := io.ReadAll(r)
			_, _ = fmt.Fprintf(c, "%s via proxy %s", req.Host, got)
		}
	})
	return func() []string {
		mu.Lock()
		defer mu.Unlock()
		return append([]string(nil), list...)
	}
}

func TestProxy(t *testing.T) {
	asked := proxyServer(t, 200)
	listen(t, "0.0.0.0:7000", greet)
	nameServer(t, map[string][]string{"direct.corp": {"198.51.100.8"}, "proxy.corp": {"198.51.100.99"}, "inner.example.com": {"10.1.2.3"}, "example.com": {"198.51.100.7"}})
	b := newBox(t, wire.Network{Proxy: "http://u%40x:pass@proxy.corp:3128", NoProxy: []string{".corp", "203.0.113.2/32"}})
	auth := " Basic " + base64.StdEncoding.EncodeToString([]byte("u@x:pass"))
	for _, c := range []struct{ to, want, asked string }{
		{"198.51.100.7:7000", "198.51.100.7:7000 via proxy x", "CONNECT 198.51.100.7:7000" + auth},
		{"[2606:4700::7]:7000", "[2606:4700::7]:7000 via proxy x", "CONNECT [2606:4700::7]:7000" + auth},
		{"203.0.113.2:7000", "203.0.113.2:7000 x", ""},
		// The machine itself need not be able to resolve names.
		{"nowhere.example.com", "nowhere.example.com:7000 via proxy x", "CONNECT nowhere.example.com:7000" + auth},
		{"example.com", "example.com:7000 via proxy x", "CONNECT example.com:7000" + auth},
		{"direct.corp", "198.51.100.8:7000 x", ""},
	} {
		before := len(asked())
		to := c.to
		if !strings.Contains(to, ":") {
			to = b.resolve(to, typeA) + ":7000"
		}
		if got, err := b.exchange(to, "x"); err != nil || got != c.want {
			t.Errorf("%s: got %q %v, want %q", c.to, got, err, c.want)
		}
		if list := asked()[before:]; c.asked == "" && len(list) > 0 || c.asked != "" && (len(list) != 1 || list[0] != c.asked) {
			t.Errorf("%s: the proxy was asked %q, want %q", c.to, list, c.asked)
		}
	}
	// What is closed stays so, by address and as far as a name can be resolved.
	before := len(asked())
	for to, host := range map[string]string{"10.1.2.3:7000": "10.1.2.3", "169.254.169.254:80": "169.254.169.254", "inner.example.com": "inner.example.com"} {
		if !strings.Contains(to, ":") {
			to = b.resolve(to, typeA) + ":7000"
		}
		if got, err := b.exchange(to, "x"); err == nil {
			t.Errorf("%s: got %q", to, got)
		}
		b.wantRefused(host, "closed")
	}
	// Nor as numbers, of which proxies make addresses themselves.
	for _, name := range []string{"2852039166", "0xa9fea9fe", "169.254.43518", "0251.0376.0251.0376"} {
		if got, err := b.exchange(b.resolve(name, typeA)+":80", "x"); err == nil {
			t.Errorf("%s: got %q", name, got)
		}
		b.wantRefused(name, "which proxies take for an address")
	}
	c, _ := b.dial("udp", "198.51.100.7:7000")
	_, _ = c.Write([]byte("x"))
	b.wantRefused("198.51.100.7", "the host's proxy carries no UDP")
	if list := asked()[before:]; len(list) > 0 {
		t.Errorf("the proxy was asked %q", list)
	}
	// A list of names holds through the proxy too.
	b.set(wire.Network{Domains: []string{"example.com"}, Proxy: "http://proxy.corp:3128"})
	if r, err := b.ask("10.0.2.3:53", "evil.net", typeA); err != nil || r.rcode != rcodeNoName {
		t.Errorf("an unlisted name: %+v %v", r, err)
	}
	if got, err := b.exchange(b.resolve("example.com", typeA)+":443", hello("evil.net")); err == nil {
		t.Errorf("another TLS name: got %q", got)
	}
	b.wantRefused("example.com", "the TLS server name is evil.net")
}

func TestProxyThatRefusesOrIsSilent(t *testing.T) {
	nameServer(t, map[string][]string{})
	for code, rule := range map[int]string{403: "the host's proxy refused it with status 403", 0: ""} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			proxyServer(t, code)
			b := newBox(t, wire.Network{Proxy: "http://198.51.100.99:3128"}, func(l *times, _ *wire.GateStart) { l.dial = 300 * time.Millisecond })
			if got, err := b.exchange("198.51.100.7:7000", "x"); err == nil {
				t.Errorf("got %q", got)
			}
			if rule != "" {
				b.wantRefused("198.51.100.7", rule)
			}
			wantIdle(t)
		})
	}
}
