//go:build linux

package guest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/inside"
	"berth/sandbox/local/wire"
)

// openGate closes the network namespace and keeps the gate's sockets. Without
// them there is no way out either.
func (g *guest) openGate() wire.Held {
	files, err := inside.Open()
	if err != nil {
		text := "no network, since the egress gate cannot be set up: " + err.Error()
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.EPROTONOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.EAFNOSUPPORT) {
			text += "; it needs nf_tables and nft_tproxy in the kernel: as root, modprobe -a nf_tables nft_tproxy"
		}
		return wire.Held{State: "not enforced", Detail: text}
	}
	g.gate = files
	detail := "egress gate"
	if len(files) <= inside.TCP6 {
		detail += ", without IPv6"
	}
	return wire.Held{State: "enforced", Detail: detail}
}

// netSocket makes a socket from which the gate answers.
func (g *guest) netSocket(r *wire.GateSocket) ([]*os.File, error) {
	if g.launch.Network == nil || !r.At.IsValid() {
		return nil, invalid("there is no gate")
	}
	f, err := inside.Datagrams(r.At, r.Peer)
	if err != nil {
		return nil, err
	}
	return []*os.File{f}, nil
}

// Who floods the network with connections must not keep init busy with looking
// for whose they are: it has this much processor time for that, and gets it back
// slowly. Time that others have the processor is not counted, or on a busy
// machine nobody would be found.
const (
	ownerTime  = 200 * time.Millisecond
	ownerShare = 20 // of the time that passes, one part in so many
)

// allowance is time that may be spent, and comes back while none is.
type allowance struct {
	used func() time.Duration // a clock of what is spent

	mu   sync.Mutex
	debt time.Duration
	last time.Time
}

// threadTime is the processor time of the calling thread.
func threadTime() time.Duration {
	var t unix.Timespec
	if unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t) != nil {
		return 0
	}
	return time.Duration(t.Nano())
}

// spend runs f unless too much was spent, one at a time; who comes while another
// is at it waits no longer than it may.
func (a *allowance) spend(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := time.Now()
	a.debt, a.last = max(0, a.debt-now.Sub(a.last)/ownerShare), now
	if a.debt >= ownerTime {
		return
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := a.used()
	f()
	a.debt += a.used() - before
}

// netOwner finds the process of the monitor's whose program has the socket
// with that source; empty when it cannot be found, or there was much to find.
func (g *guest) netOwner(r *wire.NetOwner) (id string) {
	g.owners.spend(func() { id = g.findOwner(r) })
	return id
}

func (g *guest) findOwner(r *wire.NetOwner) string {
	inode := socketInode(r)
	if inode == "" {
		return ""
	}
	link := "socket:[" + inode + "]"
	buf := make([]byte, 64)
	dir, err := os.Open("/proc")
	if err != nil {
		return ""
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	looked := 0
	for i := len(names) - 1; i >= 0; i-- { // the youngest first
		pid, err := strconv.Atoi(names[i])
		if err != nil || pid == 1 {
			continue
		}
		fds, err := os.Open("/proc/" + names[i] + "/fd")
		if err != nil {
			continue
		}
		list, _ := fds.Readdirnames(4096)
		found := false
		for _, fd := range list {
			n, err := unix.Readlinkat(int(fds.Fd()), fd, buf)
			if err == nil && string(buf[:n]) == link {
				found = true
				break
			}
		}
		_ = fds.Close()
		if found {
			if t := g.owner(pid); t != nil {
				return t.id
			}
			return ""
		}
		if looked += len(list); looked > 20000 {
			return ""
		}
	}
	return ""
}

// socketInode finds the socket with this source in the kernel's table.
func socketInode(r *wire.NetOwner) string {
	if !r.Source.IsValid() || r.Proto != "tcp" && r.Proto != "udp" {
		return ""
	}
	names := []string{r.Proto, r.Proto + "6"} // a socket of IPv6 speaks IPv4 too
	if r.Source.Addr().Is6() {
		names = names[1:]
	}
	for _, name := range names {
		want := []byte(tableAddr(r.Source, name == r.Proto))
		b, err := os.ReadFile("/proc/net/" + name)
		if err != nil {
			continue
		}
		any := []byte(tableAddr(netip.AddrPortFrom(netip.IPv6Unspecified(), r.Source.Port()), false))
		if name == r.Proto {
			any = []byte(tableAddr(netip.AddrPortFrom(netip.IPv4Unspecified(), r.Source.Port()), true))
		}
		for line := range bytes.Lines(b) {
			f := bytes.Fields(line)
			if len(f) > 9 && (bytes.Equal(f[1], want) || r.Proto == "udp" && bytes.Equal(f[1], any)) && string(f[9]) != "0" {
				return string(f[9])
			}
		}
	}
	return ""
}

// tableAddr writes an address as /proc/net/tcp has it: words in the machine's
// own order.
func tableAddr(a netip.AddrPort, four bool) string {
	const digits = "0123456789ABCDEF"
	var raw []byte
	if four {
		b := a.Addr().As4()
		raw = b[:]
	} else {
		b := a.Addr().As16()
		raw = b[:]
	}
	var out []byte
	hex := func(b ...byte) {
		for _, c := range b {
			out = append(out, digits[c>>4], digits[c&15])
		}
	}
	for ; len(raw) > 0; raw = raw[4:] {
		hex(binary.BigEndian.AppendUint32(nil, binary.NativeEndian.Uint32(raw))...)
	}
	out = append(out, ':')
	hex(byte(a.Port()>>8), byte(a.Port()))
	return string(out)
}
