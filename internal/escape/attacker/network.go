//go:build linux

package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"berth/internal/escape"
	wirenl "berth/sandbox/local/gate/netlink"
)

var networkProbes = []probe{
	{name: "abstract_sockets", refused: "the host's abstract unix sockets", run: abstractSockets},
	{name: "unix_sockets", refused: "the host's unix sockets, berth's monitor's above all", run: unixSockets},
	{name: "tcp", refused: "listeners of the host, on loopback and on its addresses", run: tcpListeners},
	{name: "udp", refused: "datagrams to the host", run: udpListeners},
	{name: "metadata", refused: "metadata services and private addresses", run: metadata},
	{name: "interfaces", refused: "interfaces beside our own loopback", run: interfaces},
	{name: "gate_rules", refused: "changing what the egress gate is fed by", run: gateRules},
	{name: "netlink", refused: "changing the network, watching the host's", run: netlink},
}

func abstractSockets(t *target) escape.Finding {
	var ways []string
	for _, name := range t.Abstract {
		for _, kind := range []string{"unix", "unixpacket", "unixgram"} {
			if c, err := net.DialTimeout(kind, "@"+name, time.Second); err == nil {
				_ = c.Close()
				ways = append(ways, "connected to @"+name)
				break
			}
		}
	}
	b, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		return broken("%v", err)
	}
	for _, name := range append(append([]string(nil), t.Abstract...), t.Sockets...) {
		if strings.Contains(string(b), name) {
			ways = append(ways, "/proc/net/unix names "+name)
		}
	}
	return found(ways, "%d names unknown here", len(t.Abstract))
}

func unixSockets(t *target) escape.Finding {
	var ways []string
	for _, path := range t.Sockets {
		for _, prefix := range []string{"", "/proc/1/root", "/proc/1/cwd", "/proc/self/root/.."} {
			if c, err := net.DialTimeout("unix", prefix+path, time.Second); err == nil {
				_ = c.Close()
				ways = append(ways, "connected to "+prefix+path)
			}
		}
	}
	return found(ways, "%d paths unknown here", len(t.Sockets))
}

func tcpListeners(t *target) escape.Finding {
	var ways []string
	for _, addr := range t.TCP {
		if reached(addr) {
			ways = append(ways, "connected to "+addr)
		}
	}
	return found(ways, "%d addresses refused", len(t.TCP))
}

// reached tells whether a connection leads anywhere. The egress gate takes each
// and resets those that it does not let out.
func reached(addr string) bool {
	c, err := net.DialTimeout("tcp", addr, time.Second)
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second)) // a gate may be busy; silence counts as reached
	// A reset is told once: to the write when it is there by then, and the read sees an end.
	if _, err = c.Write([]byte("ping")); err == nil {
		_, err = c.Read(make([]byte, 16))
	}
	return !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE)
}

// gateRules tries to change what holds the sandbox's network closed.
func gateRules(t *target) escape.Finding {
	var ways []string
	type change struct {
		what     string
		protocol int
		list     []*wirenl.Message
	}
	edge := func(kind uint16) *wirenl.Message {
		return wirenl.New(kind, 0, []byte{0, 0, 0, unix.NFNL_SUBSYS_NFTABLES})
	}
	lo := []byte{1, 0, 0, 0}
	for _, c := range []change{
		{"deleted the rules", unix.NETLINK_NETFILTER, []*wirenl.Message{edge(unix.NFNL_MSG_BATCH_BEGIN),
			wirenl.New(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_DELTABLE, unix.NLM_F_ACK, []byte{unix.AF_INET, 0, 0, 0}).Text(unix.NFTA_TABLE_NAME, "berth"),
			edge(unix.NFNL_MSG_BATCH_END)}},
		{"added an address", unix.NETLINK_ROUTE, []*wirenl.Message{wirenl.New(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE,
			append([]byte{unix.AF_INET, 32, 0, 0}, lo...)).Attr(unix.IFA_LOCAL, []byte{10, 9, 9, 9})}},
		{"deleted the route", unix.NETLINK_ROUTE, []*wirenl.Message{wirenl.New(unix.RTM_DELROUTE, unix.NLM_F_ACK,
			[]byte{unix.AF_INET, 0, 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, unix.RT_SCOPE_HOST, unix.RTN_LOCAL, 0, 0, 0, 0}).Attr(unix.RTA_OIF, lo)}},
	} {
		if err := wirenl.Talk(c.protocol, nil, c.list...); err == nil {
			ways = append(ways, c.what)
		}
	}
	// In the name of others, and past the rules by a mark.
	if s, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0); err == nil {
		if unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_MARK, 1) == nil && t.user != "root" {
			ways = append(ways, "marked packets")
		}
		_ = unix.Close(s)
	}
	return found(ways, "refused")
}

func udpListeners(t *target) escape.Finding {
	var ways []string
	for _, addr := range t.UDP {
		c, err := net.DialTimeout("udp", addr, time.Second)
		if err != nil {
			continue
		}
		_ = c.SetDeadline(time.Now().Add(300 * time.Millisecond))
		_, _ = c.Write([]byte("ping"))
		if _, err := c.Read(make([]byte, 16)); err == nil {
			ways = append(ways, addr+" answered")
		}
		_ = c.Close()
	}
	return found(ways, "%d addresses silent", len(t.UDP))
}

func metadata(t *target) escape.Finding {
	var ways []string
	for _, addr := range []string{"169.254.169.254:80", "[fd00:ec2::254]:80", "100.100.100.200:80", "192.168.0.1:80", "10.0.0.1:80", "172.17.0.1:2375"} {
		if reached(addr) {
			ways = append(ways, "connected to "+addr)
		}
	}
	return found(ways, "unreachable")
}

func interfaces(t *target) escape.Finding {
	all, err := net.Interfaces()
	if err != nil {
		return broken("%v", err)
	}
	var ways []string
	for _, i := range all {
		// Tunnels that a kernel puts into each new namespace are down.
		if i.Name != "lo" && i.Flags&net.FlagUp != 0 {
			ways = append(ways, "interface "+i.Name)
		}
	}
	b, _ := os.ReadFile("/proc/net/route")
	if n := strings.Count(string(b), "\n"); n > 1 {
		ways = append(ways, fmt.Sprintf("%d routes", n-1))
	}
	return found(ways, "only loopback is up")
}

func netlink(t *target) escape.Finding {
	var ways []string
	// Taking loopback down needs the right to administer the network.
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		return broken("%v", err)
	}
	if e := linkFlags(uint32(lo.Index), uint32(unix.IFF_UP)); e == 0 {
		ways = append(ways, "set an interface's flags")
	}
	// Packet filters: the batch begin message is refused without that right.
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_NETFILTER); err == nil {
		_ = unix.Close(fd)
		if s, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_RAW); err == nil {
			// IPT_SO_SET_REPLACE of an empty table.
			if err := unix.SetsockoptString(s, unix.IPPROTO_IP, 64, strings.Repeat("\x00", 128)); err == nil {
				ways = append(ways, "replaced a packet filter")
			}
			_ = unix.Close(s)
		}
	}
	// The kernel's device events are the host's.
	if fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_AUDIT); err == nil {
		msg := make([]byte, unix.SizeofNlMsghdr)
		msg[0], msg[4], msg[5], msg[6] = unix.SizeofNlMsghdr, 0xe8, 3, unix.NLM_F_REQUEST|unix.NLM_F_ACK // AUDIT_GET
		if err := unix.Sendto(fd, msg, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err == nil {
			tv := unix.Timeval{Usec: 200000}
			_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &tv)
			b := make([]byte, 512)
			if n, _, err := unix.Recvfrom(fd, b, 0); err == nil && n >= 20 && (b[4] == 0xe8 && b[5] == 3) {
				ways = append(ways, "the audit system answered")
			}
		}
		_ = unix.Close(fd)
	}
	if err := unix.Sethostname([]byte(t.Hostname)); err == nil && t.user != "root" {
		ways = append(ways, "the user set the host name")
	}
	return found(ways, "refused")
}

// linkFlags asks for an interface to be up, and returns the kernel's answer.
func linkFlags(index, flags uint32) syscall.Errno {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return unix.EPERM
	}
	defer unix.Close(fd)
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg)
	le := func(at int, v uint32) {
		for i := range 4 {
			b[at+i] = byte(v >> (8 * i))
		}
	}
	le(0, uint32(len(b)))
	b[4], b[6] = unix.RTM_NEWLINK, unix.NLM_F_REQUEST|unix.NLM_F_ACK
	le(20, index)
	le(24, flags)
	le(28, flags)
	if err := unix.Sendto(fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return unix.EPERM
	}
	answer := make([]byte, 512)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil || n < 20 {
		return unix.EPERM
	}
	code := int32(uint32(answer[16]) | uint32(answer[17])<<8 | uint32(answer[18])<<16 | uint32(answer[19])<<24)
	return syscall.Errno(-code)
}
