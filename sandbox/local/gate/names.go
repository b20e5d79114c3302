//go:build linux

package gate

import (
	"net/netip"
	"sync"

	"berth/sandbox/local/wire"
)

// Names that are answered by the list get addresses made up for them.
var (
	fake4 = netip.MustParsePrefix("198.18.0.0/15")
	fake6 = netip.MustParsePrefix("fd00:0:0:c612::/64")
)

const (
	maxNames  = 65536
	keepNames = 4096 // for the next gate
)

// names maps made-up addresses to the names they stand for. The oldest are
// forgotten when there are too many.
type names struct {
	mu   sync.Mutex
	of   map[string]uint32
	at   map[uint32]string
	next uint32 // numbers begin with 1 and wrap around
}

func newNames(s wire.GateState) *names {
	n := &names{of: map[string]uint32{}, at: map[uint32]string{}, next: s.Next % maxNames}
	for _, name := range s.Names {
		if hostName([]byte(name)) == name {
			n.number(name)
		}
	}
	return n
}

func (n *names) number(name string) uint32 {
	n.mu.Lock()
	defer n.mu.Unlock()
	if i, ok := n.of[name]; ok {
		return i
	}
	i := n.next
	n.next = (n.next + 1) % maxNames
	if old, ok := n.at[i]; ok {
		delete(n.of, old)
	}
	n.of[name], n.at[i] = i, name
	return i
}

// address is the one that stands for name.
func (n *names) address(name string, six bool) netip.Addr {
	i := n.number(name) + 1<<8 // the first 256 are left out: .0 looks odd
	if six {
		b := fake6.Addr().As16()
		b[13], b[14], b[15] = byte(i>>16), byte(i>>8), byte(i)
		return netip.AddrFrom16(b)
	}
	b := fake4.Addr().As4()
	b[1], b[2], b[3] = b[1]+byte(i>>16), byte(i>>8), byte(i)
	return netip.AddrFrom4(b)
}

// name finds what a made-up address stands for; made tells whether it is one.
func (n *names) name(a netip.Addr) (name string, made bool) {
	var i uint32
	switch {
	case fake4.Contains(a):
		b := a.As4()
		i = uint32(b[1]&1)<<16 | uint32(b[2])<<8 | uint32(b[3])
	case fake6.Contains(a):
		b := a.As16()
		i = uint32(b[13])<<16 | uint32(b[14])<<8 | uint32(b[15])
	default:
		return "", false
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.at[i-1<<8], true
}

// state is what the next gate needs.
func (n *names) state() wire.GateState {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := uint32(min(len(n.at), keepNames))
	s := wire.GateState{Next: (n.next + maxNames - count) % maxNames}
	for i := range count {
		s.Names = append(s.Names, n.at[(s.Next+i)%maxNames])
	}
	return s
}
