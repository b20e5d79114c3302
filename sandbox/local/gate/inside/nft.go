//go:build linux

package inside

import (
	"net/netip"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/netlink"
	"berth/sandbox/local/wire"
)

// What of nf_tables' attributes unix does not name.
const (
	nfInet4, nfInet6             = 2, 10
	hookPrerouting, hookOutput   = 0, 3
	tproxyFamily, tproxyAddr     = 1, 2
	tproxyPort                   = 3
	verdictDrop, verdictAccept   = 0, 1
	regVerdict, reg1, reg2       = 0, 1, 2
	payloadNetwork               = 1
	metaL4Proto                  = 16
	dataValue, dataVerdict       = 1, 2
	listElem                     = 1
	exprName, exprData           = 1, 2
	immediateDreg, immediateData = 1, 2
	cmpSreg, cmpOp, cmpData      = 1, 2, 3
	bitSreg, bitDreg, bitLen     = 1, 2, 3
	bitMask, bitXor              = 4, 5
)

type expr struct {
	name string
	fill func(*netlink.Message)
}

// rules is a batch of nf_tables messages.
type rules struct {
	family uint8
	list   []*netlink.Message
	what   []string
}

func (r *rules) add(kind int, flags uint16, what string) *netlink.Message {
	m := netlink.New(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(kind), flags|unix.NLM_F_ACK, []byte{r.family, 0, 0, 0})
	r.list, r.what = append(r.list, m), append(r.what, what)
	return m
}

func (r *rules) edge(kind uint16) {
	m := netlink.New(kind, 0, []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES})
	r.list, r.what = append(r.list, m), append(r.what, "nf_tables batch")
}

func (r *rules) chain(name string, hook, priority, policy int32) {
	r.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "the chain "+name).
		Text(unix.NFTA_CHAIN_TABLE, "berth").Text(unix.NFTA_CHAIN_NAME, name).
		Begin(unix.NFTA_CHAIN_HOOK).BE32(unix.NFTA_HOOK_HOOKNUM, uint32(hook)).BE32(unix.NFTA_HOOK_PRIORITY, uint32(priority)).End().
		BE32(unix.NFTA_CHAIN_POLICY, uint32(policy)).Text(unix.NFTA_CHAIN_TYPE, "filter")
}

func (r *rules) rule(chain string, what string, exprs ...[]expr) {
	m := r.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, what)
	m.Text(unix.NFTA_RULE_TABLE, "berth").Text(unix.NFTA_RULE_CHAIN, chain).Begin(unix.NFTA_RULE_EXPRESSIONS)
	for _, list := range exprs {
		for _, e := range list {
			m.Begin(listElem).Text(exprName, e.name).Begin(exprData)
			e.fill(m)
			m.End().End()
		}
	}
	m.End()
}

func verdict(code uint32) []expr {
	return []expr{{"immediate", func(m *netlink.Message) {
		m.BE32(immediateDreg, regVerdict).Begin(immediateData).Begin(dataVerdict).BE32(1, code).End().End()
	}}}
}

func equals(data []byte) expr {
	return expr{"cmp", func(m *netlink.Message) {
		m.BE32(cmpSreg, reg1).BE32(cmpOp, 0).Begin(cmpData).Attr(dataValue, data).End()
	}}
}

// to matches destinations within p.
func to(p netip.Prefix) []expr {
	a := p.Masked().Addr().AsSlice()
	offset, size := uint32(16), uint32(len(a))
	if len(a) == 16 {
		offset = 24
	}
	mask := make([]byte, len(a))
	for i := range p.Bits() {
		mask[i/8] |= 0x80 >> (i % 8)
	}
	return []expr{
		{"payload", func(m *netlink.Message) {
			m.BE32(unix.NFTA_PAYLOAD_DREG, reg1).BE32(unix.NFTA_PAYLOAD_BASE, payloadNetwork).
				BE32(unix.NFTA_PAYLOAD_OFFSET, offset).BE32(unix.NFTA_PAYLOAD_LEN, size)
		}},
		{"bitwise", func(m *netlink.Message) {
			m.BE32(bitSreg, reg1).BE32(bitDreg, reg1).BE32(bitLen, size).
				Begin(bitMask).Attr(dataValue, mask).End().Begin(bitXor).Attr(dataValue, make([]byte, len(a))).End()
		}},
		equals(a),
	}
}

func protocol(n byte) []expr {
	return []expr{
		{"meta", func(m *netlink.Message) { m.BE32(unix.NFTA_META_DREG, reg1).BE32(unix.NFTA_META_KEY, metaL4Proto) }},
		equals([]byte{n}),
	}
}

func number(reg uint32, data []byte) expr {
	return expr{"immediate", func(m *netlink.Message) {
		m.BE32(immediateDreg, reg).Begin(immediateData).Attr(dataValue, data).End()
	}}
}

// divert gives a packet to the gate's socket, whatever its destination is.
func divert(family uint8, gate netip.AddrPort) []expr {
	// Sixteen bytes fill registers 1 to 4 of the old numbering as one.
	port := []byte{byte(gate.Port() >> 8), byte(gate.Port())}
	return []expr{
		number(reg1, gate.Addr().AsSlice()), number(reg2, port),
		{"tproxy", func(m *netlink.Message) {
			m.BE32(tproxyFamily, uint32(family)).BE32(tproxyAddr, reg1).BE32(tproxyPort, reg2)
		}},
	}
}

// walls makes all that leaves a process here end in the gate's sockets. What
// is neither TCP nor UDP, and multicast, is dropped.
func walls(six bool) error {
	r := &rules{family: nfInet4}
	self, gate, loop := wire.NetSelf4, wire.NetGate4, netip.MustParsePrefix("127.0.0.0/8")
	multi := netip.MustParsePrefix("224.0.0.0/3") // 240/4 has no use either
	if six {
		r.family, self, gate = nfInet6, wire.NetSelf6, wire.NetGate6
		loop, multi = netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("ff00::/8")
	}
	own := netip.PrefixFrom(self, self.BitLen())
	at := netip.AddrPortFrom(gate, wire.NetGatePort)

	r.edge(unix.NFNL_MSG_BATCH_BEGIN)
	r.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "a table").Text(unix.NFTA_TABLE_NAME, "berth")
	r.chain("in", hookPrerouting, -150, verdictAccept)
	r.rule("in", "a rule", to(loop), verdict(verdictAccept))
	r.rule("in", "a rule", to(own), verdict(verdictAccept))
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		r.rule("in", "tproxy", protocol(proto), divert(r.family, at), verdict(verdictAccept))
	}
	r.rule("in", "a rule", verdict(verdictDrop))
	r.chain("out", hookOutput, 0, verdictDrop)
	r.rule("out", "a rule", to(loop), verdict(verdictAccept))
	r.rule("out", "a rule", to(own), verdict(verdictAccept))
	r.rule("out", "a rule", to(multi), verdict(verdictDrop))
	for _, proto := range []byte{unix.IPPROTO_TCP, unix.IPPROTO_UDP} {
		r.rule("out", "a rule", protocol(proto), verdict(verdictAccept))
	}
	r.edge(unix.NFNL_MSG_BATCH_END)
	return netlink.Talk(unix.NETLINK_NETFILTER, r.what, r.list...)
}
