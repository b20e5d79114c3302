//go:build linux

package inside

import (
	"net/netip"

	"golang.org/x/sys/unix"

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
	fill func(*message)
}

// rules is a batch of nf_tables messages.
type rules struct {
	family uint8
	list   []*message
	what   []string
}

func (r *rules) add(kind int, flags uint16, what string) *message {
	m := newMessage(unix.NFNL_SUBSYS_NFTABLES<<8|uint16(kind), flags|unix.NLM_F_ACK, []byte{r.family, 0, 0, 0})
	r.list, r.what = append(r.list, m), append(r.what, what)
	return m
}

func (r *rules) edge(kind uint16) {
	m := newMessage(kind, 0, []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES})
	r.list, r.what = append(r.list, m), append(r.what, "nf_tables batch")
}

func (r *rules) chain(name string, hook, priority, policy int32) {
	r.add(unix.NFT_MSG_NEWCHAIN, unix.NLM_F_CREATE, "the chain "+name).
		text(unix.NFTA_CHAIN_TABLE, "berth").text(unix.NFTA_CHAIN_NAME, name).
		begin(unix.NFTA_CHAIN_HOOK).be32(unix.NFTA_HOOK_HOOKNUM, uint32(hook)).be32(unix.NFTA_HOOK_PRIORITY, uint32(priority)).end().
		be32(unix.NFTA_CHAIN_POLICY, uint32(policy)).text(unix.NFTA_CHAIN_TYPE, "filter")
}

func (r *rules) rule(chain string, what string, exprs ...[]expr) {
	m := r.add(unix.NFT_MSG_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_APPEND, what)
	m.text(unix.NFTA_RULE_TABLE, "berth").text(unix.NFTA_RULE_CHAIN, chain).begin(unix.NFTA_RULE_EXPRESSIONS)
	for _, list := range exprs {
		for _, e := range list {
			m.begin(listElem).text(exprName, e.name).begin(exprData)
			e.fill(m)
			m.end().end()
		}
	}
	m.end()
}

func verdict(code uint32) []expr {
	return []expr{{"immediate", func(m *message) {
		m.be32(immediateDreg, regVerdict).begin(immediateData).begin(dataVerdict).be32(1, code).end().end()
	}}}
}

func equals(data []byte) expr {
	return expr{"cmp", func(m *message) {
		m.be32(cmpSreg, reg1).be32(cmpOp, 0).begin(cmpData).attr(dataValue, data).end()
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
		{"payload", func(m *message) {
			m.be32(unix.NFTA_PAYLOAD_DREG, reg1).be32(unix.NFTA_PAYLOAD_BASE, payloadNetwork).
				be32(unix.NFTA_PAYLOAD_OFFSET, offset).be32(unix.NFTA_PAYLOAD_LEN, size)
		}},
		{"bitwise", func(m *message) {
			m.be32(bitSreg, reg1).be32(bitDreg, reg1).be32(bitLen, size).
				begin(bitMask).attr(dataValue, mask).end().begin(bitXor).attr(dataValue, make([]byte, len(a))).end()
		}},
		equals(a),
	}
}

func protocol(n byte) []expr {
	return []expr{
		{"meta", func(m *message) { m.be32(unix.NFTA_META_DREG, reg1).be32(unix.NFTA_META_KEY, metaL4Proto) }},
		equals([]byte{n}),
	}
}

func number(reg uint32, data []byte) expr {
	return expr{"immediate", func(m *message) {
		m.be32(immediateDreg, reg).begin(immediateData).attr(dataValue, data).end()
	}}
}

// divert gives a packet to the gate's socket, whatever its destination is.
func divert(family uint8, gate netip.AddrPort) []expr {
	// Sixteen bytes fill registers 1 to 4 of the old numbering as one.
	port := []byte{byte(gate.Port() >> 8), byte(gate.Port())}
	return []expr{
		number(reg1, gate.Addr().AsSlice()), number(reg2, port),
		{"tproxy", func(m *message) {
			m.be32(tproxyFamily, uint32(family)).be32(tproxyAddr, reg1).be32(tproxyPort, reg2)
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
	r.add(unix.NFT_MSG_NEWTABLE, unix.NLM_F_CREATE, "a table").text(unix.NFTA_TABLE_NAME, "berth")
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
	return talk(unix.NETLINK_NETFILTER, r.what, r.list...)
}
