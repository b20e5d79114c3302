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
	// Host are the operator's prefixes: of the machine's own public addresses
	// those within them may be reached, where CIDRs have them too.
	Host []netip.Prefix `json:"host,omitempty"`
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

// Ops between the monitor and a gate; those with an arrow are answered.
const (
	OpGateStart   = "gate_start"   // GateStart + the sockets of package inside; the monitor's first
	OpGatePolicy  = "gate_policy"  // Network ->
	OpGateRefused = "gate_refused" // GateRefused -> ; from the gate
	OpGateSocket  = "gate_socket"  // GateSocket -> one descriptor; from the gate; the monitor hands it on to init
	OpGateState   = "gate_state"   // event: GateState, before the gate ends
	OpGateFlows   = "gate_flows"   // event: GateFlows
)

// GateStart is all that a gate is told at its start.
type GateStart struct {
	Network   Network          `json:"network"`
	Resolvers []netip.AddrPort `json:"resolvers,omitempty"` // the host's
	IdleMS    int64            `json:"idle_ms"`
	State     GateState        `json:"state"`
}

// GateRefused tells of one refused connection. Source is its end inside.
type GateRefused struct {
	Refusal
	Source netip.AddrPort `json:"source"`
}

// GateSocket asks for a UDP socket inside, bound to At and, when valid,
// connected to Peer.
type GateSocket struct {
	At   netip.AddrPort `json:"at"`
	Peer netip.AddrPort `json:"peer"`
}

// GateState is what one gate leaves to the next: which name an address made up
// for it stands for.
type GateState struct {
	Names []string `json:"names,omitempty"` // oldest first
	Next  uint32   `json:"next,omitempty"`  // the number of the first of Names
}

// GateFlows counts open connections.
type GateFlows struct {
	Open int `json:"open"`
}

// Ops of init for the gate.
const (
	OpNetSocket = "net_socket" // GateSocket -> one descriptor
	OpNetOwner  = "net_owner"  // NetOwner -> ProcessRef; its ID is empty when nobody's
)

// OpNetwork is from berth to the monitor: it sets the policy that its body holds,
// when there is one, and tells what holds: NetworkChange -> NetworkState.
const OpNetwork = "network"

// NetworkChange is the body of OpNetwork.
type NetworkChange struct {
	Set *Network `json:"set,omitempty"`
	// Since leaves out refusals that ended before it; unix nanoseconds.
	Since int64 `json:"since,omitempty"`
}

// NetOwner asks whose socket has this end.
type NetOwner struct {
	Proto  string         `json:"proto"` // tcp, udp
	Source netip.AddrPort `json:"source"`
}
