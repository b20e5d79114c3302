//go:build unix

package sandbox_test

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"berth/sandbox"
)

func cidrs(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func TestNetworkCeiling(t *testing.T) {
	closed := sandbox.NetworkPolicy{BlockAll: true, AllowCIDRs: cidrs("203.0.113.0/24"), AllowDomains: []string{"*.example.org", "example.com"}}
	for name, row := range map[string]struct {
		most, ask sandbox.NetworkPolicy
		want      string // of the refusal; empty: it is taken
	}{
		"public":             {ask: sandbox.NetworkPolicy{}},
		"less":               {ask: closed},
		"private":            {ask: sandbox.NetworkPolicy{AllowCIDRs: cidrs("192.168.7.0/24")}, want: "network_allow_list: 192.168.7.0/24 is the host's, link-local or private"},
		"unique local":       {ask: sandbox.NetworkPolicy{AllowCIDRs: cidrs("fd00::/16")}, want: "network_allow_list"},
		"the whole internet": {ask: sandbox.NetworkPolicy{AllowCIDRs: cidrs("0.0.0.0/0", "::/0")}},
		"opened":             {most: sandbox.NetworkPolicy{AllowCIDRs: cidrs("192.168.0.0/16")}, ask: sandbox.NetworkPolicy{AllowCIDRs: cidrs("192.168.7.0/24")}},
		"wider than opened":  {most: sandbox.NetworkPolicy{AllowCIDRs: cidrs("192.168.7.0/24")}, ask: sandbox.NetworkPolicy{AllowCIDRs: cidrs("192.168.0.0/16")}, want: "192.168.0.0/16"},
		"public of less":     {most: closed, want: "network_block_all: the whole internet is more"},
		"within":             {most: closed, ask: sandbox.NetworkPolicy{BlockAll: true, AllowCIDRs: cidrs("203.0.113.7/32"), AllowDomains: []string{"a.example.org", "*.b.example.org", "example.com"}}},
		"nothing":            {most: closed, ask: sandbox.NetworkPolicy{BlockAll: true}},
		"another range":      {most: closed, ask: sandbox.NetworkPolicy{AllowCIDRs: cidrs("198.51.100.0/24")}, want: "198.51.100.0/24 is more than"},
		"a name above":       {most: closed, ask: sandbox.NetworkPolicy{AllowDomains: []string{"example.org"}}, want: "example.org is more than"},
		"a star above":       {most: closed, ask: sandbox.NetworkPolicy{AllowDomains: []string{"*.example.com"}}, want: "*.example.com is more than"},
		"a longer name":      {most: closed, ask: sandbox.NetworkPolicy{AllowDomains: []string{"evilexample.org"}}, want: "evilexample.org is more than"},
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			m, _ := newFake(t, sandbox.Options{Limits: sandbox.Limits{Network: row.most}})
			res, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{Network: &row.ask})
			if row.want != "" {
				if err == nil || !strings.Contains(err.Error(), row.want) {
					t.Errorf("got %v, want %q", err, row.want)
				}
				return
			}
			if err != nil || res.Info.Spec.Network == nil || !res.Info.Spec.Network.Equal(row.ask) {
				t.Errorf("got %+v, %v; want %+v", res, err, row.ask)
			}
		})
	}
	m, _ := newFake(t, sandbox.Options{Limits: sandbox.Limits{Network: closed}})
	res, err := m.StartSandbox(ctxOf(t), key, sandbox.Spec{})
	if err != nil || res.Info.Spec.Network == nil || !res.Info.Spec.Network.Equal(closed) {
		t.Errorf("asked for nothing: %+v, %v; want the operator's", res, err)
	}
	if _, err := sandbox.NewManager(nil, sandbox.Options{Defaults: sandbox.Spec{Network: &sandbox.NetworkPolicy{AllowCIDRs: cidrs("10.0.0.0/8")}}}); err == nil {
		t.Error("defaults beyond the ceiling are taken")
	}
}

// A sandbox that was made under a wider ceiling is held to the new one.
func TestNetworkCeilingLater(t *testing.T) {
	wide, f := newFake(t, sandbox.Options{Limits: sandbox.Limits{Network: sandbox.NetworkPolicy{AllowCIDRs: cidrs("10.0.0.0/8")}}})
	ask := sandbox.NetworkPolicy{AllowCIDRs: cidrs("10.1.0.0/16", "203.0.113.0/24"), AllowDomains: []string{"example.com"}}
	if _, err := wide.StartSandbox(ctxOf(t), key, sandbox.Spec{Network: &ask}); err != nil {
		t.Fatal(err)
	}
	public := sandbox.Key{Owner: key.Owner, Session: "public"}
	if _, err := wide.StartSandbox(ctxOf(t), public, sandbox.Spec{}); err != nil {
		t.Fatal(err)
	}
	now := sandbox.NetworkPolicy{BlockAll: true, AllowDomains: []string{"example.com"}}
	narrow := managerOf(t, f, sandbox.Options{Limits: sandbox.Limits{Network: now}})
	for k, want := range map[sandbox.Key]sandbox.NetworkPolicy{
		key:    {AllowDomains: []string{"example.com"}, Asked: &ask},
		public: {BlockAll: true, AllowDomains: []string{"example.com"}, Asked: &sandbox.NetworkPolicy{}},
	} {
		if k == public {
			if _, err := wide.StopSandbox(ctxOf(t), k, false); err != nil {
				t.Fatal(err)
			}
		}
		res, err := narrow.ExecuteCommand(ctxOf(t), k, sandbox.RunRequest{Command: "true"})
		if err != nil || !strings.Contains(strings.Join(res.Notice.Warnings, "\n"), "the operator allows less network") {
			t.Errorf("%v: got %+v, %v; want a warning", k, res, err)
		}
		info, err := narrow.GetSandbox(ctxOf(t), k)
		if err != nil || info.Spec.Network == nil || !info.Spec.Network.Equal(want) {
			t.Errorf("%v: got %+v, %v; want %+v", k, info.Spec.Network, err, want)
		}
		// It is told once, and does not stay when the operator allows it again: a
		// command in another directory may have had other settings.
		again := managerOf(t, f, sandbox.Options{Limits: sandbox.Limits{Network: now}})
		if res, err := again.ExecuteCommand(ctxOf(t), k, sandbox.RunRequest{Command: "true"}); err != nil || len(res.Notice.Warnings) > 0 {
			t.Errorf("%v: once more: %+v, %v", k, res, err)
		}
		wider := managerOf(t, f, sandbox.Options{Limits: sandbox.Limits{Network: sandbox.NetworkPolicy{AllowCIDRs: cidrs("10.0.0.0/8")}}})
		res, err = wider.ExecuteCommand(ctxOf(t), k, sandbox.RunRequest{Command: "true"})
		if err != nil || !strings.Contains(strings.Join(res.Notice.Warnings, "\n"), "what was asked for again") {
			t.Errorf("%v: got %+v, %v; want a notice", k, res, err)
		}
		if info, err = wider.GetSandbox(ctxOf(t), k); err != nil || !info.Spec.Network.Equal(*want.Asked) {
			t.Errorf("%v: got %+v, %v; want %+v", k, info.Spec.Network, err, want.Asked)
		}
	}
}

func TestSetNetwork(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	ask := sandbox.NetworkPolicy{BlockAll: true, AllowCIDRs: cidrs("203.0.113.0/24")}
	if _, err := m.SetNetwork(ctxOf(t), key, ask); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("never seen: %v, want ErrNotFound", err)
	}
	sh(t, m, "true")
	info, err := m.SetNetwork(ctxOf(t), key, ask)
	if err != nil || info.Spec.Network == nil || !info.Spec.Network.Equal(ask) {
		t.Errorf("got %+v, %v", info, err)
	}
	if _, err := m.SetNetwork(ctxOf(t), key, sandbox.NetworkPolicy{AllowCIDRs: cidrs("127.0.0.1/32")}); err == nil {
		t.Error("the host's loopback is opened")
	}
	if info, err = m.GetSandbox(ctxOf(t), key); err != nil || !info.Spec.Network.Equal(ask) {
		t.Errorf("after a refused change: %+v, %v", info, err)
	}
}
