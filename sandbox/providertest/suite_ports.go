package providertest

import (
	"errors"
	"io"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"berth/sandbox"
)

// An echo server on a port of its own choice, which it prints; per address.
var echoServers = map[sandbox.Language]string{
	sandbox.JavaScript: `exec %P -e 'const s=require("net").createServer(c=>c.pipe(c)).listen(0,"%A",()=>console.log("port "+s.address().port+"."))'`,
	sandbox.Python: `exec %P -uc 'import socket,threading
s=socket.create_server(("%A",0),family=socket.AF_INET6 if ":" in "%A" else socket.AF_INET);print("port %d."%s.getsockname()[1])
def echo(c):
  while d:=c.recv(65536): c.sendall(d)
  c.close()
while 1: threading.Thread(target=echo,args=(s.accept()[0],)).start()'`,
}

// echo starts an echo server inside and returns its port.
func (b *box) echo(address string) uint16 {
	b.t.Helper()
	return b.serve("echo", echoServers, address)
}

// serve starts one of the servers inside and returns the port that it prints. In
// their texts %P is the runtime and %A the address.
func (b *box) serve(what string, servers map[sandbox.Language]string, address string) uint16 {
	b.t.Helper()
	for lang, text := range servers {
		path := b.info.Runtimes[lang]
		if path == "" {
			continue
		}
		p := b.spawn(b.command(strings.NewReplacer("%P", path, "%A", address).Replace(text)))
		out := b.waitFor(p, ".")
		_, after, _ := strings.Cut(out, "port ")
		n, err := strconv.ParseUint(strings.TrimRight(strings.TrimSpace(after), "."), 10, 16)
		if err != nil {
			b.t.Fatalf("the %s server printed %q", what, out)
		}
		return uint16(n)
	}
	b.t.Skip("neither node nor python inside: no server to reach")
	return 0
}

func testPorts(t *testing.T, s *suite) {
	if !s.can(t, Ports) {
		return
	}
	dial := func(t *testing.T, b *box, port uint16) {
		t.Helper()
		c, err := b.inst.(sandbox.PortDialer).DialPort(b.ctx(t), port)
		if err != nil {
			t.Fatalf("DialPort(%d): %v", port, err)
		}
		defer c.Close()
		sent := strings.Repeat("all of it, in order. ", 20000)
		go func() {
			_, _ = io.WriteString(c, sent) // what is missing shows in what comes back
			if h, ok := c.(interface{ CloseWrite() error }); ok {
				_ = h.CloseWrite()
			}
		}()
		got := make([]byte, len(sent))
		if _, err := io.ReadFull(c, got); err != nil || string(got) != sent {
			t.Fatalf("%d bytes came back otherwise: %v", len(got), err)
		}
	}
	t.Run("dial", func(t *testing.T) {
		b := s.make(t)
		dial(t, b, b.echo("127.0.0.1"))
	})
	t.Run("ipv6", func(t *testing.T) {
		b := s.make(t)
		if s.p.Name() == "fake" {
			t.Skip("the fake dials the host's 127.0.0.1 alone")
		}
		dial(t, b, b.echo("::1"))
	})
	t.Run("refused", func(t *testing.T) {
		b := s.make(t)
		if _, err := b.inst.(sandbox.PortDialer).DialPort(b.ctx(t), 1); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("a port without a server: got %v, want ECONNREFUSED", err)
		}
		if err := b.inst.Stop(b.ctx(t)); err != nil {
			t.Fatal(err)
		}
		if _, err := b.inst.(sandbox.PortDialer).DialPort(b.ctx(t), 1); !errors.Is(err, sandbox.ErrNotRunning) {
			t.Errorf("a stopped sandbox: got %v, want ErrNotRunning", err)
		}
		b.status(sandbox.StatusStopped)
	})
	t.Run("kept", func(t *testing.T) {
		b := s.make(t)
		ctx := b.ctx(t)
		keep := func(p sandbox.Port) sandbox.Port {
			t.Helper()
			got, err := b.inst.(sandbox.PortKeeper).KeepPort(ctx, p)
			if err != nil {
				t.Fatalf("KeepPort(%v): %v", p, err)
			}
			return got
		}
		first := keep(sandbox.Port{Number: 3000})
		if len(first.Label) != 20 || len(first.Token) < 20 || first.Public {
			t.Fatalf("got %+v", first)
		}
		other := keep(sandbox.Port{Number: 80, Public: true})
		if other.Label == first.Label || other.Token == first.Token || !other.Public {
			t.Errorf("another port: got %+v, first %+v", other, first)
		}
		want := first
		want.Public, want.Listen = true, 40000
		if got := keep(sandbox.Port{Number: 3000, Public: true, Listen: 40000}); got != want {
			t.Errorf("again: got %+v, want %+v", got, want)
		}
		want.Public = false
		if got := keep(sandbox.Port{Number: 3000}); got != want {
			t.Errorf("private again: got %+v, want %+v", got, want)
		}
		if err := b.inst.Stop(ctx); err != nil {
			t.Fatal(err)
		}
		if s.h.Reopen != nil {
			s.p = s.h.Reopen(t, s.p)
			b.lookup()
		}
		if got := b.status(sandbox.StatusStopped).Ports; !slices.Equal(got, []sandbox.Port{other, want}) {
			t.Errorf("Info.Ports of the stopped sandbox: got %+v", got)
		}
		inst, got, err := s.p.(sandbox.PortFinder).FindPort(ctx, first.Label)
		if err != nil || got != want {
			t.Fatalf("FindPort: got %+v, %v", got, err)
		}
		if info, err := inst.Info(ctx); err != nil || info.Key != b.key {
			t.Errorf("FindPort leads to %v, %v", info.Key, err)
		}
		labels, err := s.p.(sandbox.PortLister).PortLabels(ctx)
		if slices.Sort(labels); err != nil || !slices.Contains(labels, first.Label) || !slices.Contains(labels, other.Label) {
			t.Errorf("PortLabels: got %v, %v", labels, err)
		}
		for _, wrong := range []string{"", "aaaaaaaaaaaaaaaaaaaa", "../../../../etc/passw", strings.ToUpper(first.Label), first.Label[:19]} {
			if _, _, err := s.p.(sandbox.PortFinder).FindPort(ctx, wrong); !errors.Is(err, sandbox.ErrNotFound) {
				t.Errorf("FindPort(%q): got %v, want ErrNotFound", wrong, err)
			}
		}
		if err := b.inst.Destroy(ctx); err != nil {
			t.Fatal(err)
		}
		if _, _, err := s.p.(sandbox.PortFinder).FindPort(ctx, first.Label); !errors.Is(err, sandbox.ErrNotFound) {
			t.Errorf("FindPort of a destroyed sandbox: got %v, want ErrNotFound", err)
		}
		if labels, err := s.p.(sandbox.PortLister).PortLabels(ctx); err != nil || slices.Contains(labels, first.Label) {
			t.Errorf("PortLabels after destroy: got %v, %v", labels, err)
		}
	})
	t.Run("limit", func(t *testing.T) {
		b := s.make(t)
		for n := range sandbox.MaxPorts {
			if _, err := b.inst.(sandbox.PortKeeper).KeepPort(b.ctx(t), sandbox.Port{Number: uint16(1000 + n)}); err != nil {
				t.Fatalf("port %d: %v", n, err)
			}
		}
		if _, err := b.inst.(sandbox.PortKeeper).KeepPort(b.ctx(t), sandbox.Port{Number: 80}); !errors.Is(err, sandbox.ErrLimit) {
			t.Errorf("one more: got %v, want ErrLimit", err)
		}
	})
}
