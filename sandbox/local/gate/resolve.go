//go:build linux

package gate

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	askTime   = 2 * time.Second // for one resolver to answer
	maxAsking = 256             // questions under way
	maxCache  = 1024
)

var (
	errNoSuchName = errors.New("no such name")
	errNoAnswer   = errors.New("the host's name servers do not answer")
	errTooMany    = errors.New("too many questions at once")
)

// resolver asks the host's name servers.
type resolver struct {
	servers []netip.AddrPort
	slots   chan struct{}

	mu    sync.Mutex
	cache map[string]cached
	dead  time.Time // until then no server answers
}

type cached struct {
	addrs []netip.Addr
	until time.Time
}

func newResolver(servers []netip.AddrPort) *resolver {
	return &resolver{servers: servers, slots: make(chan struct{}, maxAsking), cache: map[string]cached{}}
}

func random16() uint16 {
	var b [2]byte
	_, _ = unix.Getrandom(b[:], 0)
	return binary.BigEndian.Uint16(b[:])
}

// exchange asks until a server answers; query has an id of its own making.
func (r *resolver) exchange(query []byte, stream bool) ([]byte, error) {
	select {
	case r.slots <- struct{}{}:
		defer func() { <-r.slots }()
	default:
		return nil, errTooMany
	}
	// A query that the sandbox made gets an id that it does not know.
	id := [2]byte{query[0], query[1]}
	query = append([]byte(nil), query...)
	binary.BigEndian.PutUint16(query, random16())
	for range 2 {
		for _, at := range r.servers {
			ask := askOne
			if stream {
				ask = askStream
			}
			if answer, err := ask(at, query); err == nil {
				copy(answer, id[:])
				return answer, nil
			}
		}
	}
	return nil, errNoAnswer
}

func askOne(at netip.AddrPort, query []byte) ([]byte, error) {
	s, err := datagrams(at)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(askTime))
	if _, err := s.Write(query); err != nil {
		return nil, err
	}
	buf := make([]byte, maxDNS)
	for {
		n, err := s.Read(buf)
		if err != nil {
			return nil, err
		}
		if _, err := parseReply(query, buf[:n]); err == nil || n > 12 && buf[0] == query[0] && buf[1] == query[1] && buf[2]&0x80 != 0 && buf[3]&0xf == rcodeFormat {
			return buf[:n], nil
		}
	}
}

func askStream(at netip.AddrPort, query []byte) ([]byte, error) {
	s, err := connect(at, askTime)
	if err != nil {
		return nil, err
	}
	defer s.Close()
	_ = s.SetDeadline(time.Now().Add(2 * askTime))
	if _, err := s.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(query))), query...)); err != nil {
		return nil, err
	}
	return readStream(s)
}

// readStream reads one message of DNS over TCP.
func readStream(s *sock) ([]byte, error) {
	var head [2]byte
	if _, err := s.readFull(head[:], 2); err != nil {
		return nil, err
	}
	buf := make([]byte, binary.BigEndian.Uint16(head[:]))
	if len(buf) < 12 {
		return nil, errDNS
	}
	_, err := s.readFull(buf, len(buf))
	return buf, err
}

// lookup finds the addresses of a name. It fails with errNoSuchName when there
// surely is none.
func (r *resolver) lookup(name string) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(name); err == nil {
		return []netip.Addr{a}, nil
	}
	r.mu.Lock()
	c, ok := r.cache[name]
	r.mu.Unlock()
	if ok && time.Now().Before(c.until) {
		if len(c.addrs) == 0 {
			return nil, errNoSuchName
		}
		return c.addrs, nil
	}
	type result struct {
		reply
		err error
	}
	both := make(chan result, 2)
	for _, kind := range []uint16{typeA, typeAAAA} {
		go func() {
			q := newQuery(0, name, kind)
			b, err := r.exchange(q, false)
			if err != nil {
				both <- result{err: err}
				return
			}
			p, err := parseReply(q, b)
			if err == nil && p.truncated && len(p.addrs) == 0 {
				if b, err = r.exchange(q, true); err == nil {
					p, err = parseReply(q, b)
				}
			}
			if err == nil && p.rcode != rcodeOK && p.rcode != rcodeNoName {
				err = errNoAnswer
			}
			both <- result{p, err}
		}()
	}
	ttl := uint32(60)
	var four, six []netip.Addr
	var failed error
	for range 2 {
		a := <-both
		if a.err != nil {
			failed = a.err
			continue
		}
		for _, addr := range a.addrs {
			ttl = min(ttl, a.ttl)
			if addr.Is4() {
				four = append(four, addr)
			} else {
				six = append(six, addr)
			}
		}
	}
	c = cached{addrs: append(four, six...), until: time.Now().Add(time.Duration(max(ttl, 1)) * time.Second)}
	if len(c.addrs) == 0 && failed != nil {
		return nil, failed
	}
	if len(c.addrs) == 0 {
		c.until = time.Now().Add(5 * time.Second)
	}
	r.mu.Lock()
	if len(r.cache) >= maxCache {
		clear(r.cache)
	}
	r.cache[name] = c
	r.mu.Unlock()
	if len(c.addrs) == 0 {
		return nil, errNoSuchName
	}
	return c.addrs, nil
}

// soon is what lookup finds within limit; nothing where names are not resolved
// at all, which is remembered for a minute.
func (r *resolver) soon(name string, limit time.Duration) []netip.Addr {
	r.mu.Lock()
	dead := time.Now().Before(r.dead)
	r.mu.Unlock()
	if dead {
		return nil
	}
	found := make(chan []netip.Addr, 1)
	go func() {
		addrs, err := r.lookup(name)
		if errors.Is(err, errNoAnswer) {
			r.mu.Lock()
			r.dead = time.Now().Add(time.Minute)
			r.mu.Unlock()
		}
		found <- addrs
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case addrs := <-found:
		return addrs
	case <-t.C:
		return nil
	}
}
