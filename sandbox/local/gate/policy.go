//go:build linux

package gate

import (
	"net/netip"
	"slices"
	"strings"

	"berth/sandbox/local/wire"
)

// verdict on a destination. Rule and Allow are empty when it may be reached.
type verdict struct {
	rule  string
	allow string // what would let it out
}

func (v verdict) ok() bool { return v.rule == "" }

// policy is immutable.
type policy struct {
	wire.Network
	proxy *proxy
}

func newPolicy(n wire.Network) *policy {
	return &policy{Network: n, proxy: parseProxy(n.Proxy, n.NoProxy)}
}

// lists tells that only what is listed may be reached.
func (p *policy) lists() bool { return p.BlockAll || len(p.CIDRs) > 0 || len(p.Domains) > 0 }

// names tells that names are answered by the list alone.
func (p *policy) names() bool { return p.BlockAll || len(p.Domains) > 0 }

// made tells that names get made-up addresses: so too with a proxy, which takes
// names, where the machine itself may be unable to resolve any.
func (p *policy) made() bool { return p.names() || p.proxy != nil }

// special are the ranges that are no part of the internet.
var special = []struct {
	prefix netip.Prefix
	rule   string
}{
	{netip.MustParsePrefix("127.0.0.0/8"), "the host's loopback is closed"},
	{netip.MustParsePrefix("::1/128"), "the host's loopback is closed"},
	{netip.MustParsePrefix("0.0.0.0/8"), "the host's loopback is closed"},
	{netip.MustParsePrefix("::/96"), "the host's loopback is closed"},
	{netip.MustParsePrefix("169.254.0.0/16"), "link-local and metadata addresses are closed"},
	{netip.MustParsePrefix("168.63.129.16/32"), "link-local and metadata addresses are closed"}, // Azure's, for its machines alone
	{netip.MustParsePrefix("fe80::/10"), "link-local and metadata addresses are closed"},
	{netip.MustParsePrefix("10.0.0.0/8"), "private ranges are closed"},
	{netip.MustParsePrefix("172.16.0.0/12"), "private ranges are closed"},
	{netip.MustParsePrefix("192.168.0.0/16"), "private ranges are closed"},
	{netip.MustParsePrefix("100.64.0.0/10"), "private ranges are closed"},
	{netip.MustParsePrefix("192.0.0.0/24"), "private ranges are closed"},
	{netip.MustParsePrefix("198.18.0.0/15"), "private ranges are closed"},
	{netip.MustParsePrefix("fc00::/7"), "private ranges are closed"},
	{netip.MustParsePrefix("fec0::/10"), "private ranges are closed"},
	{netip.MustParsePrefix("64:ff9b:1::/48"), "private ranges are closed"},
	{netip.MustParsePrefix("2001::/32"), "tunnels are closed"},
	{netip.MustParsePrefix("224.0.0.0/3"), "multicast and reserved addresses are closed"},
	{netip.MustParsePrefix("ff00::/8"), "multicast and reserved addresses are closed"},
}

var (
	nat64   = netip.MustParsePrefix("64:ff9b::/96")
	sixToV4 = netip.MustParsePrefix("2002::/16")
)

// plain is the address that a really leads to: an IPv4 address in one of the
// disguises that IPv6 has for it counts as what it is.
func plain(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	b := a.As16()
	switch {
	case a.Is4():
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:]))
	case sixToV4.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6]))
	}
	return a
}

// address judges a destination. named tells that the sandbox asked for it by a
// name that may be reached.
func (p *policy) address(a netip.Addr, named bool) verdict {
	a = plain(a)
	block := netip.Prefix{}
	rule := ""
	for _, s := range special {
		if s.prefix.Contains(a) {
			block, rule = s.prefix, s.rule
			break
		}
	}
	for _, c := range p.CIDRs {
		// 0.0.0.0/0 means the internet. A special range is opened by a prefix
		// that lies within it.
		if c.Contains(a) && (rule == "" || c.Bits() >= block.Bits()) {
			return verdict{}
		}
	}
	allow := "network_allow_list " + netip.PrefixFrom(a, a.BitLen()).String()
	switch {
	case rule != "":
		if !slices.ContainsFunc(p.Host, func(c netip.Prefix) bool { return c.Contains(a) && c.Bits() >= block.Bits() }) {
			allow = "limits.network_allow_list of the operator, and then " + allow
		}
		return verdict{rule, allow}
	case named || !p.lists():
		return verdict{}
	case len(p.CIDRs) > 0:
		return verdict{"not in network_allow_list", allow}
	case len(p.Domains) > 0:
		return verdict{"not in network_allow_domains", allow}
	}
	return verdict{"network_block_all", allow}
}

// own judges an address that belongs to this machine itself, though it is a
// public one: services that the host meant for others listen there. It must be
// listed, and be one that the operator lets sandboxes list.
func (p *policy) own(a netip.Addr) verdict {
	a = plain(a)
	within := func(list []netip.Prefix) bool {
		return slices.ContainsFunc(list, func(c netip.Prefix) bool { return c.Contains(a) && c.Bits() >= a.BitLen()/2 })
	}
	switch {
	case !within(p.Host):
		return verdict{"it is an address of the host itself, and limits.network_allow_list of the operator does not have it", ""}
	case !within(p.CIDRs):
		return verdict{"it is an address of the host itself", "network_allow_list " + netip.PrefixFrom(a, a.BitLen()).String()}
	}
	return verdict{}
}

// numeric tells that programs may read a name as an IPv4 address: its last part
// is a number. No name of the internet is so.
func numeric(name string) bool {
	last := name[strings.LastIndexByte(name, '.')+1:]
	if hex, ok := strings.CutPrefix(last, "0x"); ok {
		return strings.Trim(hex, "0123456789abcdef") == ""
	}
	return strings.Trim(last, "0123456789") == ""
}

// name judges a name, which is in lower case and without a final dot.
func (p *policy) name(name string) verdict {
	if !p.names() {
		return verdict{}
	}
	for _, d := range p.Domains {
		if d == name {
			return verdict{}
		}
		if rest, ok := strings.CutPrefix(d, "*."); ok && len(name) > len(rest)+1 && strings.HasSuffix(name, rest) && name[len(name)-len(rest)-1] == '.' {
			return verdict{}
		}
	}
	rule := "not in network_allow_domains"
	if len(p.Domains) == 0 {
		rule = "network_block_all"
	}
	return verdict{rule, "network_allow_domains " + name}
}
