//go:build linux

package inside_test

import (
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/gate/inside"
)

// within runs f in a network namespace of its own, as root of a new user
// namespace when the tests run as an ordinary user.
func within(t *testing.T, f func()) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a thread of a Go program can enter a network namespace only as root; the sandboxes' own tests show it for ordinary users")
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with the namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			t.Errorf("unshare: %v", err)
			return
		}
		up(t)
		f()
	}()
	<-done
}

func up(t *testing.T) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	ifr, _ := unix.NewIfreq("lo")
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		t.Error(err)
	}
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func TestEverythingEndsInTheGate(t *testing.T) {
	within(t, func() {
		begin := time.Now()
		files, err := inside.Open()
		if err != nil {
			t.Errorf("Open: %v", err)
			return
		}
		t.Logf("Open took %v", time.Since(begin))
		if len(files) != 4 {
			t.Errorf("got %d sockets, want 4", len(files))
			return
		}
		for i, dst := range []string{"8.8.8.8:443", "10.0.2.3:53", "169.254.169.254:80", "[2001:db8::1]:443", "[fd00::3]:53"} {
			addr := netip.MustParseAddrPort(dst)
			family, sa := sockaddr(addr)
			at := inside.TCP4
			if addr.Addr().Is6() {
				at = inside.TCP6
			}
			tcp, _ := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			_ = unix.SetsockoptTimeval(tcp, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 2})
			if err := unix.Connect(tcp, sa); err != nil {
				t.Errorf("connect to %s: %v", dst, err)
				continue
			}
			conn, _, err := unix.Accept4(int(files[at].Fd()), unix.SOCK_CLOEXEC)
			if err != nil {
				t.Error(err)
				continue
			}
			name, _ := unix.Getsockname(conn)
			if got := text(name); got != dst {
				t.Errorf("the accepted socket says %s, want %s", got, dst)
			}
			_ = unix.Close(conn)
			_ = unix.Close(tcp)

			udp, _ := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			_ = unix.SetsockoptTimeval(udp, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
			if err := unix.Connect(udp, sa); err != nil {
				t.Error(err)
			}
			if _, err := unix.Write(udp, []byte("hello")); err != nil {
				t.Errorf("send to %s: %v", dst, err)
				continue
			}
			gate := int(files[at+1].Fd())
			_ = unix.SetsockoptTimeval(gate, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 2})
			oob := make([]byte, 128)
			_, n, _, from, err := unix.Recvmsg(gate, make([]byte, 100), oob, 0)
			if err != nil {
				t.Errorf("nothing came for %s: %v", dst, err)
				continue
			}
			cmsgs, _ := unix.ParseSocketControlMessage(oob[:n])
			orig, err := unix.ParseOrigDstAddr(&cmsgs[0])
			if err != nil || text(orig) != dst {
				t.Errorf("original destination %v %v, want %s", text(orig), err, dst)
			}
			peer := netip.MustParseAddrPort(text(from))
			back, err := inside.Datagrams(addr, peer)
			if err != nil {
				t.Errorf("Datagrams: %v", err)
				continue
			}
			if _, err := unix.Write(int(back.Fd()), []byte("back")); err != nil {
				t.Error(err)
			}
			buf := make([]byte, 10)
			if n, err := unix.Read(udp, buf); err != nil || string(buf[:n]) != "back" {
				t.Errorf("case %d: answer %q %v, want back", i, buf[:max(n, 0)], err)
			}
			_ = back.Close()
			_ = unix.Close(udp)
		}
		// What is neither TCP nor UDP does not get out, and the kernel itself
		// does not answer in the name of the world.
		icmp, err := unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_ICMP)
		if err != nil {
			t.Error(err)
			return
		}
		_, sa := sockaddr(netip.MustParseAddrPort("8.8.8.8:0"))
		if err := unix.Sendto(icmp, []byte{8, 0, 0xf7, 0xff, 0, 0, 0, 0}, 0, sa); err != unix.EPERM {
			t.Errorf("ping: %v, want %v", err, unix.EPERM)
		}
		_ = unix.Close(icmp)
		for _, f := range files {
			_ = f.Close()
		}
	})
}

func text(sa unix.Sockaddr) string {
	switch a := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port)).String()
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(a.Addr), uint16(a.Port)).String()
	}
	return "none"
}

func TestOpenNamesWhatIsMissing(t *testing.T) {
	// In the host's own namespace, without rights, the kernel refuses: the
	// error says which step.
	done := make(chan error)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		var none [2]unix.CapUserData
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			done <- err
			return
		}
		_, err := inside.Open()
		done <- err
	}()
	err := <-done
	if os.Geteuid() != 0 {
		t.Skip("needs root to make the namespace")
	}
	if err == nil || !strings.Contains(err.Error(), "operation not permitted") {
		t.Errorf("got %v, want operation not permitted", err)
	}
}
