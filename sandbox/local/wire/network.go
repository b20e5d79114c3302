package wire

import "net/netip"

// Addresses of a sandbox's network. Every address is local inside; these have
// a meaning.
var (
	NetSelf4 = netip.AddrFrom4([4]byte{10, 0, 2, 15})
	NetSelf6 = netip.MustParseAddr("fd00::15")
	// NetHost is the host's own loopback, where the policy opens that.
	NetHost = netip.AddrFrom4([4]byte{10, 0, 2, 2})
	// NetDNS answers names.
	NetDNS = netip.AddrFrom4([4]byte{10, 0, 2, 3})
	// NetGate4 and NetGate6 are where the gate's sockets are bound.
	NetGate4 = netip.AddrFrom4([4]byte{10, 0, 2, 4})
	NetGate6 = netip.MustParseAddr("fd00::4")
)

// NetGatePort is the port of the gate's sockets.
const NetGatePort = 1

// Network is the policy that a gate enforces; sandbox.NetworkPolicy says what
// the fields mean.
type Network struct {
	BlockAll bool           `json:"block_all,omitempty"`
	CIDRs    []netip.Prefix `json:"cidrs,omitempty"`
	Domains  []string       `json:"domains,omitempty"` // lower case, without a final dot
	// Proxy is an http URL; what leaves goes through it by CONNECT, but for
	// hosts of NoProxy (names, ".suffix", addresses, prefixes).
	Proxy   string   `json:"proxy,omitempty"`
	NoProxy []string `json:"no_proxy,omitempty"`
}

// Refusal is a connection, or several alike, that the gate did not let out.
type Refusal struct {
	Host  string `json:"host"` // name or address
	Port  uint16 `json:"port,omitempty"`
	Proto string `json:"proto"` // tcp, udp, dns
	Rule  string `json:"rule"`
	Allow string `json:"allow,omitempty"` // what would let it out
	Count int64  `json:"count"`
	First int64  `json:"first"` // unix nanoseconds
	Last  int64  `json:"last"`
	// Process whose program asked; empty when that could not be found.
	Process string `json:"process,omitempty"`
}

// NetworkState answers OpNetwork.
type NetworkState struct {
	Network Network   `json:"network"`
	Held    Held      `json:"held"`
	Refused []Refusal `json:"refused,omitempty"`
	// Lost counts refusals of destinations beyond those listed.
	Lost  int64 `json:"lost,omitempty"`
	Flows int   `json:"flows"` // open connections; 0 when the gate sleeps
}
