package providertest

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"berth/sandbox"
)

// Echo is a TCP server which returns what it is sent, outside of the sandboxes.
type Echo struct {
	// Address is how sandboxes call it.
	Address netip.AddrPort
	// Opens is the range whose listing lets them.
	Opens netip.Prefix
}

func (b *box) networker() sandbox.Networker {
	b.t.Helper()
	n, ok := b.inst.(sandbox.Networker)
	if !ok {
		b.t.Fatalf("%T is no Networker", b.inst)
	}
	return n
}

// set makes p hold, and checks that it is told.
func (b *box) set(p sandbox.NetworkPolicy) {
	b.t.Helper()
	if err := b.networker().SetNetwork(b.ctx(b.t), p); err != nil {
		b.t.Fatalf("SetNetwork(%v): %v", p, err)
	}
	b.wantPolicy(p)
}

func (b *box) wantPolicy(p sandbox.NetworkPolicy) {
	b.t.Helper()
	info, err := b.inst.Info(b.ctx(b.t))
	if err != nil {
		b.t.Fatalf("Info: %v", err)
	}
	if got := info.Spec.Network; got == nil || !got.Equal(p) {
		b.t.Errorf("got policy %v, want %v", got, p)
	}
}

func testNetwork(t *testing.T, s *suite) {
	if !s.can(t, Networks) {
		return
	}
	some := sandbox.NetworkPolicy{BlockAll: true, AllowCIDRs: []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24")}}
	if s.can(t, AnyRule) {
		some.AllowCIDRs = append(some.AllowCIDRs, netip.MustParsePrefix("2001:db8::/32"))
		some.AllowDomains = []string{"example.com", "*.example.org"}
	}
	t.Run("kept", func(t *testing.T) {
		b := s.makeWith(t, func(spec *sandbox.Spec) { spec.Network = &sandbox.NetworkPolicy{BlockAll: true} })
		b.wantPolicy(sandbox.NetworkPolicy{BlockAll: true})
		b.set(some)
		if err := b.inst.Stop(b.ctx(t)); err != nil {
			t.Fatalf("Stop: %v", err)
		}
		b.wantPolicy(some)
		// On a stopped one, which it does not start.
		less := sandbox.NetworkPolicy{BlockAll: true, Asked: &some}
		b.set(less)
		b.wantPolicy(less)
		less.Asked = &sandbox.NetworkPolicy{}
		b.set(less)
		b.wantPolicy(less)
		b.set(sandbox.NetworkPolicy{})
		b.status(sandbox.StatusStopped)
		b.set(some)
		b.lookup()
		if err := b.inst.Start(b.ctx(t)); err != nil {
			t.Fatalf("Start: %v", err)
		}
		b.status(sandbox.StatusRunning)
		b.wantPolicy(some)
	})
	t.Run("destroyed", func(t *testing.T) {
		b := s.make(t)
		n := b.networker()
		if err := b.inst.Destroy(b.ctx(t)); err != nil {
			t.Fatalf("Destroy: %v", err)
		}
		wantErr(t, "SetNetwork", n.SetNetwork(b.ctx(t), some), sandbox.ErrNotFound)
	})
	t.Run("enforced", func(t *testing.T) {
		if s.h.Outside == nil {
			t.Skip("the harness has no Outside: what a policy does is not shown")
		}
		enforced(t, s, s.h.Outside(t))
	})
}

// enforced shows what policies do to connections to a server outside.
func enforced(t *testing.T, s *suite, srv Echo) {
	b := s.makeWith(t, func(spec *sandbox.Spec) { spec.Network = &sandbox.NetworkPolicy{BlockAll: true} })
	connect := fmt.Sprintf("exec 3<>/dev/tcp/%s/%d", srv.Address.Addr(), srv.Address.Port())
	once := "bash -c '" + connect + " && echo hello >&3 && head -n 1 <&3'"
	refused := func(when string) {
		t.Helper()
		info, out, _ := b.sh(once)
		if out != "" {
			t.Errorf("%s: got %q through", when, out)
			return
		}
		if len(info.Refused) != 1 {
			t.Errorf("%s: got %+v, want one refusal", when, info.Refused)
			return
		}
		r := info.Refused[0]
		if r.Host != srv.Address.Addr().String() || r.Port != int(srv.Address.Port()) || r.Protocol != "tcp" || r.Rule == "" || r.Count != 1 || r.First.Before(info.Started) {
			t.Errorf("%s: %+v", when, r)
		}
	}
	refused("block-all from the start")
	if info, out, _ := b.sh("true"); len(info.Refused) != 0 {
		t.Errorf("another command: %v %q", info.Refused, out)
	}
	open := sandbox.NetworkPolicy{BlockAll: true, AllowCIDRs: []netip.Prefix{srv.Opens}}
	b.set(open)
	if out := b.must(once); out != "hello\n" {
		t.Errorf("listed: got %q", out)
	}
	// What is open when the network is closed ends, and the call returns then.
	talk := b.spawn(b.command("bash -c '" + connect + "; echo begun; echo tick >&3; while read -r l <&3; do echo $l; sleep 0.05; echo tick >&3; done; echo ended'"))
	b.waitFor(talk, "tick\ntick\n")
	b.set(sandbox.NetworkPolicy{BlockAll: true})
	if info, out, _ := b.ended(talk); !strings.HasSuffix(out, "ended\n") || len(info.Refused) == 0 {
		t.Errorf("cut: %+v %q", info.Refused, out)
	}
	refused("closed again")
	// In force from the first command after a start.
	if err := b.inst.Stop(b.ctx(t)); err != nil {
		t.Fatalf("Stop: %v", err)
	}
	if err := b.inst.Start(b.ctx(t)); err != nil {
		t.Fatalf("Start: %v", err)
	}
	refused("after a restart")
	info, err := b.inst.Info(b.ctx(t))
	if err != nil || len(info.Refused) == 0 {
		t.Errorf("Info tells no refusal: %+v %v", info.Refused, err)
	}
}
