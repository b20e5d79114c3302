//go:build linux

package gate

import (
	"encoding/binary"
	"errors"
	"net/netip"
)

// DNS, as far as the gate needs it (RFC 1035).
const (
	typeA, typeAAAA, typeOPT = 1, 28, 41
	classIN                  = 1

	rcodeOK, rcodeFormat, rcodeFailure = 0, 1, 2
	rcodeNoName                        = 3

	maxDNS = 4096 // bytes of a message that is taken in
)

var errDNS = errors.New("malformed DNS message")

// question is what a query asks.
type question struct {
	id    uint16
	flags uint16
	name  string // lower case, without the final dot; "" is the root
	kind  uint16
	class uint16
	end   int // where the question ends in the message
}

// parseQuery reads a query with one question.
func parseQuery(b []byte) (question, error) {
	var q question
	if len(b) < 12 || len(b) > maxDNS {
		return q, errDNS
	}
	q.id, q.flags = binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])
	if q.flags&0x8000 != 0 || q.flags>>11&0xf != 0 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return q, errDNS
	}
	at := 12
	name := make([]byte, 0, 64)
	for {
		if at >= len(b) {
			return q, errDNS
		}
		n := int(b[at])
		at++
		if n == 0 {
			break
		}
		if n > 63 || at+n > len(b) || len(name)+n+1 > 254 { // a pointer has no place here
			return q, errDNS
		}
		if len(name) > 0 {
			name = append(name, '.')
		}
		for _, c := range b[at : at+n] {
			switch {
			case c >= 'A' && c <= 'Z':
				c += 'a' - 'A'
			case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_':
			default:
				return q, errDNS // no host is called so, and it must not reach logs
			}
			name = append(name, c)
		}
		at += n
	}
	if at+4 > len(b) {
		return q, errDNS
	}
	q.name, q.kind, q.class, q.end = string(name), binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:]), at+4
	return q, nil
}

// answer makes a reply to the query b with these addresses.
func (q *question) answer(b []byte, rcode int, ttl uint32, addrs ...netip.Addr) []byte {
	out := append(make([]byte, 0, q.end+28*len(addrs)), b[:q.end]...)
	flags := 0x8080 | q.flags&0x0110 | uint16(rcode) // an answer, recursion available; as asked: recursion, checking disabled
	binary.BigEndian.PutUint16(out[2:], flags)
	binary.BigEndian.PutUint16(out[6:], uint16(len(addrs)))
	binary.BigEndian.PutUint32(out[8:], 0)
	for _, a := range addrs {
		kind := uint16(typeA)
		if a.Is6() {
			kind = typeAAAA
		}
		out = append(out, 0xc0, 12)
		out = binary.BigEndian.AppendUint16(out, kind)
		out = binary.BigEndian.AppendUint16(out, classIN)
		out = binary.BigEndian.AppendUint32(out, ttl)
		out = binary.BigEndian.AppendUint16(out, uint16(a.BitLen()/8))
		out = append(out, a.AsSlice()...)
	}
	return out
}

// newQuery makes a query of the gate's own.
func newQuery(id uint16, name string, kind uint16) []byte {
	b := []byte{byte(id >> 8), byte(id), 1, 0, 0, 1, 0, 0, 0, 0, 0, 0}
	start := 0
	for i := 0; i <= len(name) && name != ""; i++ {
		if i == len(name) || name[i] == '.' {
			b = append(b, byte(i-start))
			b = append(b, name[start:i]...)
			start = i + 1
		}
	}
	b = append(b, 0)
	b = binary.BigEndian.AppendUint16(b, kind)
	return binary.BigEndian.AppendUint16(b, classIN)
}

// reply is what a resolver said.
type reply struct {
	rcode     int
	truncated bool
	addrs     []netip.Addr
	ttl       uint32 // the least; of no meaning without addrs
}

// parseReply reads the answer to query, which must be of the same id and question.
func parseReply(query, b []byte) (reply, error) {
	var r reply
	q, err := parseQuery(query)
	if err != nil || len(b) < q.end || binary.BigEndian.Uint16(b) != q.id || b[2]&0x80 == 0 || binary.BigEndian.Uint16(b[4:]) != 1 {
		return r, errDNS
	}
	for i := 12; i < q.end; i++ {
		if c := b[i]; c != query[i] && (c|0x20 != query[i]|0x20 || c < 'A') {
			return r, errDNS
		}
	}
	r.rcode, r.truncated, r.ttl = int(b[3]&0xf), b[2]&2 != 0, 300
	at := q.end
	for range binary.BigEndian.Uint16(b[6:]) {
		if at, err = skipName(b, at); err != nil || at+10 > len(b) {
			if r.truncated {
				return r, nil
			}
			return r, errDNS
		}
		kind, class, ttl, size := binary.BigEndian.Uint16(b[at:]), binary.BigEndian.Uint16(b[at+2:]), binary.BigEndian.Uint32(b[at+4:]), int(binary.BigEndian.Uint16(b[at+8:]))
		at += 10
		if at+size > len(b) {
			return r, errDNS
		}
		if class == classIN && kind == q.kind && (kind == typeA && size == 4 || kind == typeAAAA && size == 16) && len(r.addrs) < 16 {
			a, _ := netip.AddrFromSlice(b[at : at+size])
			r.addrs, r.ttl = append(r.addrs, a), min(r.ttl, ttl)
		}
		at += size
	}
	return r, nil
}

func skipName(b []byte, at int) (int, error) {
	for at < len(b) {
		n := int(b[at])
		switch {
		case n == 0:
			return at + 1, nil
		case n >= 0xc0:
			return at + 2, nil
		case n > 63:
			return at, errDNS
		}
		at += 1 + n
	}
	return at, errDNS
}
