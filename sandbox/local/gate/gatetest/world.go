//go:build linux

// Package gatetest makes a small world for tests of the egress gate: network
// namespaces of the tests' own that stand for the host, for the internet, in
// which every address answers, and for a sandbox. The machine's own interfaces
// are not touched.
package gatetest

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/netlink"
)

// Marker is set in the environment of a program that is in the world.
const Marker = "BERTH_GATETEST_WORLD"

// Main runs the tests again within a network namespace, the host's of the
// world, as root of a user namespace. It returns the exit code.
func Main(m *testing.M) int {
	if slices.ContainsFunc(os.Args, func(a string) bool { return strings.HasPrefix(a, "-test.fuzzworker") }) {
		return m.Run() // fuzzing needs no world
	}
	if os.Getenv(Marker) != "" {
		if err := host(); err != nil {
			fmt.Fprintln(os.Stderr, "gatetest:", err)
			return 1
		}
		return m.Run()
	}
	exe, err := os.Executable()
	if err != nil {
		fmt.Fprintln(os.Stderr, "gatetest:", err)
		return 1
	}
	cmd := exec.CommandContext(context.Background(), exe, os.Args[1:]...)
	cmd.Env = append(os.Environ(), Marker+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}},
		Pdeathsig:   syscall.SIGKILL,
	}
	var exit *exec.ExitError
	if err := cmd.Run(); errors.As(err, &exit) {
		return exit.ExitCode()
	} else if err != nil {
		fmt.Fprintln(os.Stderr, "gatetest: this machine gives no namespaces:", err)
		return 1
	}
	return 0
}

// Internet is the namespace of all addresses; a sandbox's is made by NewNet.
var Internet *Net

// Addresses of the wire between the host and the internet.
const (
	Host4  = "203.0.113.1/24"
	World4 = "203.0.113.2/24"
	Host6  = "2001:db8::1/64"
	World6 = "2001:db8::2/64"
	// Server6 is an IPv6 address of the internet to which servers can bind.
	Server6 = "2606:4700::7/128"
)

func host() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	var err error
	if Internet, err = NewNet(); err != nil {
		return err
	}
	if err := up("lo"); err != nil {
		return err
	}
	peer := make([]byte, unix.SizeofIfInfomsg)
	m := netlink.New(unix.RTM_NEWLINK, unix.NLM_F_ACK|unix.NLM_F_CREATE|unix.NLM_F_EXCL, make([]byte, unix.SizeofIfInfomsg)).
		Text(unix.IFLA_IFNAME, "world").Begin(unix.IFLA_LINKINFO).Text(unix.IFLA_INFO_KIND, "veth").Begin(unix.IFLA_INFO_DATA).
		Begin(1).Raw(peer).Text(unix.IFLA_IFNAME, "host").Attr(unix.IFLA_NET_NS_FD, netlink.Native.AppendUint32(nil, uint32(Internet.fd))).End().End().End()
	if err := netlink.Talk(unix.NETLINK_ROUTE, []string{"a veth pair"}, m); err != nil {
		return err
	}
	if err := errors.Join(up("world"), address("world", Host4), address("world", Host6),
		route("world", netip.MustParseAddr("203.0.113.2"), false), route("world", netip.MustParseAddr("2001:db8::2"), false)); err != nil {
		return err
	}
	Internet.Do(func() {
		err = errors.Join(up("lo"), up("host"), address("host", World4), address("host", World6), // every other address is its own
			address("lo", Server6), route("lo", netip.MustParseAddr("0.0.0.0"), true), route("lo", netip.MustParseAddr("::"), true))
	})
	return err
}

// Net is a network namespace with a thread in it.
type Net struct {
	fd   int
	work chan func()
}

// NewNet makes a namespace that lives until the program ends, or Close.
func NewNet() (*Net, error) {
	n := &Net{work: make(chan func())}
	ready := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			ready <- err
			return
		}
		var err error
		n.fd, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		ready <- err
		for f := range n.work {
			f()
		}
	}()
	return n, <-ready
}

// Do runs f on the namespace's thread. Sockets that f makes belong there and
// can be used anywhere.
func (n *Net) Do(f func()) {
	done := make(chan struct{})
	n.work <- func() { defer close(done); f() }
	<-done
}

// Up brings the loopback interface up.
func (n *Net) Up() (err error) {
	n.Do(func() { err = up("lo") })
	return err
}

// Close ends the thread, and the namespace once its sockets are closed.
func (n *Net) Close() {
	close(n.work)
	_ = unix.Close(n.fd)
}

func up(name string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return err
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr)
}

func index(name string) ([]byte, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return nil, err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return nil, err
	}
	return netlink.Native.AppendUint32(nil, ifr.Uint32()), nil
}

func family(a netip.Addr) byte {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func address(name, prefix string) error {
	p := netip.MustParsePrefix(prefix)
	i, err := index(name)
	if err != nil {
		return err
	}
	body := append([]byte{family(p.Addr()), byte(p.Bits()), unix.IFA_F_NODAD, 0}, i...)
	return netlink.Talk(unix.NETLINK_ROUTE, []string{"the address " + prefix}, netlink.New(unix.RTM_NEWADDR, unix.NLM_F_ACK|unix.NLM_F_CREATE, body).
		Attr(unix.IFA_LOCAL, p.Addr().AsSlice()).Attr(unix.IFA_ADDRESS, p.Addr().AsSlice()))
}

// route makes the default route, by a router or, with local, to the namespace
// itself.
func route(name string, via netip.Addr, local bool) error {
	i, err := index(name)
	if err != nil {
		return err
	}
	kind, scope := byte(unix.RTN_UNICAST), byte(unix.RT_SCOPE_UNIVERSE)
	if local {
		kind, scope = unix.RTN_LOCAL, unix.RT_SCOPE_HOST
	}
	m := netlink.New(unix.RTM_NEWROUTE, unix.NLM_F_ACK|unix.NLM_F_CREATE, []byte{family(via), 0, 0, 0, unix.RT_TABLE_MAIN, unix.RTPROT_STATIC, scope, kind, 0, 0, 0, 0}).
		Attr(unix.RTA_OIF, i)
	if !local {
		m.Attr(unix.RTA_GATEWAY, via.AsSlice())
	}
	return netlink.Talk(unix.NETLINK_ROUTE, []string{"a route to " + via.String()}, m)
}
