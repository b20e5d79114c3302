//go:build linux

package monitor

import (
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// Bounds of what is kept of refusals.
const (
	maxRefusals        = 200
	maxRefusalsProcess = 10
)

// owner asks init whose connection was refused.
func (k *gatekeeper) owner(r *wire.GateRefused) string {
	if !r.Source.IsValid() {
		return ""
	}
	proto := r.Proto
	if proto == "dns" {
		proto = "udp"
	}
	f, e := k.m.guest.call(wire.OpNetOwner, &wire.NetOwner{Proto: proto, Source: r.Source}, 3*time.Second)
	if e != nil {
		return ""
	}
	var ref wire.ProcessRef
	if json.Unmarshal(f.Body, &ref) != nil {
		return ""
	}
	k.m.mu.Lock()
	defer k.m.mu.Unlock()
	if k.m.procs[ref.ID] == nil {
		return ""
	}
	return ref.ID
}

// note counts a refusal, at first as nobody's, and returns it as it is kept.
func (k *gatekeeper) note(r wire.Refusal) wire.Refusal {
	r.Host, r.Rule, r.Allow, r.Proto = plain(r.Host, 260), plain(r.Rule, 600), plain(r.Allow, 300), plain(r.Proto, 8)
	now := time.Now().UnixNano()
	r.First, r.Last, r.Count, r.Process = now, now, max(1, min(r.Count, 1<<40)), ""
	k.mu.Lock()
	defer k.mu.Unlock()
	k.count(r)
	return r
}

// count adds r; k.mu is held.
func (k *gatekeeper) count(r wire.Refusal) {
	for i := range k.refused {
		if o := &k.refused[i]; same(o, &r) {
			o.Count, o.First, o.Last = o.Count+r.Count, min(o.First, r.First), max(o.Last, r.Last)
			return
		}
	}
	if len(k.refused) >= maxRefusals {
		k.lost += k.refused[0].Count
		k.refused = slices.Delete(k.refused, 0, 1)
	}
	k.refused = append(k.refused, r)
}

func same(a, b *wire.Refusal) bool {
	return a.Host == b.Host && a.Port == b.Port && a.Proto == b.Proto && a.Rule == b.Rule && a.Process == b.Process
}

// attribute gives to process what was noted as nobody's.
func (k *gatekeeper) attribute(r wire.Refusal, process string) {
	if process == "" {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	i := slices.IndexFunc(k.refused, func(o wire.Refusal) bool { return same(&o, &r) })
	if i < 0 {
		return // forgotten meanwhile
	}
	if k.refused[i].Count -= r.Count; k.refused[i].Count <= 0 {
		k.refused = slices.Delete(k.refused, i, i+1)
	}
	r.Process = process
	k.count(r)
}

// of lists the refusals that concern a process: its own, and those of nobody
// known since it was started.
func (k *gatekeeper) of(p *wire.Process) []wire.Refusal {
	if k == nil {
		return p.Refused
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	var out []wire.Refusal
	for _, r := range k.refused {
		if r.Process == p.ID || r.Process == "" && r.Last >= p.Started {
			if out = append(out, r); len(out) == maxRefusalsProcess {
				break
			}
		}
	}
	return out
}

// turnAway resets what waits for a gate that cannot be run, and says so.
func (k *gatekeeper) turnAway(rule string) {
	for _, f := range k.files {
		raw, err := f.SyscallConn()
		if err != nil {
			continue
		}
		_ = raw.Control(func(l uintptr) {
			for range 4096 {
				fd, _, err := unix.Accept4(int(l), unix.SOCK_CLOEXEC)
				if err == unix.EINVAL || err == unix.EOPNOTSUPP { // of datagrams
					if _, _, err = unix.Recvfrom(int(l), make([]byte, 1), unix.MSG_DONTWAIT); err == nil {
						k.note(wire.Refusal{Host: "any address", Proto: "udp", Rule: rule})
						continue
					}
				}
				if err != nil {
					return
				}
				r := wire.Refusal{Proto: "tcp", Rule: rule}
				if sa, err := unix.Getsockname(fd); err == nil {
					to := addrPort(sa)
					r.Host, r.Port = to.Addr().String(), to.Port()
				}
				k.note(r)
				_ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
				_ = unix.Close(fd)
			}
		})
	}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr).Unmap(), uint16(a.Port))
	}
	return netip.AddrPort{}
}

// plain is s, bounded and without what could disturb a terminal or a reader.
func plain(s string, n int) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r == utf8Error {
			return '?'
		}
		return r
	}, cut(s, n))
}

const utf8Error = '\uFFFD'
