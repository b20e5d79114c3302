//go:build linux

// Package inside is the sandbox's end of the egress gate. In the sandbox's own
// network namespace every address is local, and there is no device but the
// loopback: no packet leaves. A rule of nf_tables gives whatever is sent
// elsewhere than to the sandbox itself to four sockets, which go to the gate
// outside. Whoever has no CAP_NET_ADMIN here, and no command has it, can
// change nothing of this.
package inside

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/netlink"
	"berth/sandbox/local/wire"
)

// The order of the sockets that Open returns. Those of IPv6 are absent where
// the kernel has no IPv6.
const (
	TCP4 = iota
	UDP4
	TCP6
	UDP6
)

// Open closes the namespace in which the caller is, and returns the sockets
// that get what would leave it. The loopback interface is up. The caller needs
// CAP_NET_ADMIN in the namespace. After an error nothing can leave either: then
// there is no route.
func Open() ([]*os.File, error) {
	var files []*os.File
	fail := func(err error) ([]*os.File, error) {
		for _, f := range files {
			_ = f.Close()
		}
		return nil, err
	}
	for _, six := range []bool{false, true} {
		if six && unix.Access("/proc/sys/net/ipv6", unix.F_OK) != nil {
			break
		}
		// The walls come before the routes.
		err := walls(six)
		if err == nil {
			err = routes(six)
		}
		if err != nil {
			if six {
				return files, nil // without routes there is no IPv6
			}
			return fail(err)
		}
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_DGRAM} {
			f, err := gateSocket(six, kind)
			if err != nil {
				return fail(err)
			}
			files = append(files, f)
		}
	}
	return files, nil //nolint:nilerr // IPv6 may be missing
}

func routes(six bool) error {
	const lo = 1 // always the first device
	self, family := wire.NetSelf4, uint8(unix.AF_INET)
	if six {
		self, family = wire.NetSelf6, unix.AF_INET6
	}
	index := netlink.Native.AppendUint32(nil, lo)
	ifa := append([]byte{family, uint8(self.BitLen()), unix.IFA_F_PERMANENT | unix.IFA_F_NODAD, unix.RT_SCOPE_UNIVERSE}, index...)
	addr := netlink.New(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, ifa).
		Attr(unix.IFA_LOCAL, self.AsSlice()).Attr(unix.IFA_ADDRESS, self.AsSlice())
	scope := uint8(unix.RT_SCOPE_HOST)
	rt := []byte{family, 0, 0, 0, unix.RT_TABLE_LOCAL, unix.RTPROT_STATIC, scope, unix.RTN_LOCAL, 0, 0, 0, 0}
	route := netlink.New(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_REPLACE, rt).
		Attr(unix.RTA_OIF, index).Attr(unix.RTA_PREFSRC, self.AsSlice())
	if err := netlink.Talk(unix.NETLINK_ROUTE, []string{"add an address"}, addr); err != nil {
		return err
	}
	return netlink.Talk(unix.NETLINK_ROUTE, []string{"add a route"}, route)
}

// Socket options that unix does not name.
const (
	ipTransparent, ipRecvOrigDst     = 19, 20
	ipv6Transparent, ipv6RecvOrigDst = 75, 74
)

func transparent(fd int, six bool) error {
	if six {
		return unix.SetsockoptInt(fd, unix.SOL_IPV6, ipv6Transparent, 1)
	}
	return unix.SetsockoptInt(fd, unix.SOL_IP, ipTransparent, 1)
}

func gateSocket(six bool, kind int) (*os.File, error) {
	addr := wire.NetGate4
	if six {
		addr = wire.NetGate6
	}
	f, err := bound(netip.AddrPortFrom(addr, wire.NetGatePort), kind, false)
	if err != nil {
		return nil, err
	}
	fd := int(f.Fd()) // blocking mode is set by whoever uses it
	if kind == unix.SOCK_STREAM {
		err = os.NewSyscallError("listen", unix.Listen(fd, 4096))
	} else if six {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_IPV6, ipv6RecvOrigDst, 1))
	} else {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_IP, ipRecvOrigDst, 1))
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

func bound(at netip.AddrPort, kind int, shared bool) (*os.File, error) {
	six := at.Addr().Is6()
	family := unix.AF_INET
	var sa unix.Sockaddr = &unix.SockaddrInet4{Port: int(at.Port()), Addr: [4]byte{}}
	if six {
		family = unix.AF_INET6
		sa = &unix.SockaddrInet6{Port: int(at.Port()), Addr: at.Addr().As16()}
	} else {
		sa.(*unix.SockaddrInet4).Addr = at.Addr().As4()
	}
	fd, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if six {
		_ = unix.SetsockoptInt(fd, unix.SOL_IPV6, unix.IPV6_V6ONLY, 1)
	}
	if shared {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	if err = transparent(fd, six); err == nil {
		err = unix.Bind(fd, sa)
	}
	if err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("bind "+at.String(), err)
	}
	return os.NewFile(uintptr(fd), "gate"), nil
}

// Datagrams returns a UDP socket bound to at, from which the gate answers in
// the name of that address. With peer valid the socket is connected to it.
func Datagrams(at, peer netip.AddrPort) (*os.File, error) {
	// Several programs speak to one address, each through a socket of its own.
	f, err := bound(at, unix.SOCK_DGRAM, true)
	if err != nil || !peer.IsValid() {
		return f, err
	}
	var sa unix.Sockaddr
	if peer.Addr().Is4() {
		sa = &unix.SockaddrInet4{Port: int(peer.Port()), Addr: peer.Addr().As4()}
	} else {
		sa = &unix.SockaddrInet6{Port: int(peer.Port()), Addr: peer.Addr().As16()}
	}
	if err := unix.Connect(int(f.Fd()), sa); err != nil {
		_ = f.Close()
		return nil, os.NewSyscallError("connect", err)
	}
	return f, nil
}
