//go:build linux

package gate

import (
	"errors"
	"io"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// sock is a socket that Go's poller watches. Package net is left out, since the
// program that holds this one also runs where memory counts.
type sock struct {
	*os.File
	raw syscall.RawConn
}

// adopt takes over fd.
func adopt(fd int) (*sock, error) {
	if err := unix.SetNonblock(fd, true); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "socket")
	raw, err := f.SyscallConn()
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return &sock{f, raw}, nil
}

// own takes over a received file.
func own(f *os.File) (*sock, error) {
	raw, err := f.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if cerr := raw.Control(func(n uintptr) { fd, err = unix.FcntlInt(n, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		err = cerr
	}
	_ = f.Close()
	if err != nil {
		return nil, err
	}
	return adopt(fd)
}

func (s *sock) control(f func(fd int)) { _ = s.raw.Control(func(fd uintptr) { f(int(fd)) }) }

// reset closes with RST, so that the peer sees a failure and no end.
func (s *sock) reset() {
	s.control(func(fd int) { _ = unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) })
	_ = s.Close()
}

// disconnect aborts a connection at once, and drops what waits to be sent; it
// may be in use.
func (s *sock) disconnect() {
	s.control(func(fd int) {
		var none unix.RawSockaddr // of no family
		_, _, _ = unix.Syscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&none)), unsafe.Sizeof(none))
	})
}

func (s *sock) closeWrite() { s.control(func(fd int) { _ = unix.Shutdown(fd, unix.SHUT_WR) }) }

// keepAlive lets the kernel find out that a peer is gone.
func (s *sock) keepAlive() {
	s.control(func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
		_ = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPIDLE, 60)
		_ = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPINTVL, 20)
		_ = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_KEEPCNT, 6)
		_ = unix.SetsockoptInt(fd, unix.SOL_TCP, unix.TCP_NODELAY, 1)
	})
}

func (s *sock) local() (a netip.AddrPort) {
	s.control(func(fd int) {
		if sa, err := unix.Getsockname(fd); err == nil {
			a = addrPort(sa)
		}
	})
	return a
}

// intake is what is taken from inside. Once it has ended nothing is taken, and
// what comes waits for the next gate.
type intake struct {
	mu   sync.RWMutex
	over bool
	last atomic.Int64 // when something was taken; nanoseconds
}

var errOver = errors.New("the gate ends")

// take runs f, which takes something or says why not. A nil intake never ends.
func (t *intake) take(f func() error) error {
	if t == nil {
		return f()
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	if t.over {
		return errOver
	}
	err := f()
	if err == nil {
		t.last.Store(time.Now().UnixNano())
	}
	return err
}

// end ends it if f, told when something was taken last, says so.
func (t *intake) end(f func(last time.Time) bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.over = t.over || f(time.Unix(0, t.last.Load()))
	return t.over
}

// accept waits for a connection.
func (s *sock) accept(t *intake) (*sock, netip.AddrPort, error) {
	var fd int
	var sa unix.Sockaddr
	var err error
	if werr := s.raw.Read(func(l uintptr) bool {
		err = t.take(func() (err error) {
			fd, sa, err = unix.Accept4(int(l), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
			return err
		})
		return !errors.Is(err, unix.EAGAIN)
	}); werr != nil {
		return nil, netip.AddrPort{}, werr
	}
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	c, err := adopt(fd)
	return c, addrPort(sa), err
}

// receive takes a datagram; oob and t may be nil.
func (s *sock) receive(b, oob []byte, t *intake) (n, oobn int, from netip.AddrPort, err error) {
	var sa unix.Sockaddr
	if werr := s.raw.Read(func(fd uintptr) bool {
		err = t.take(func() (err error) {
			n, oobn, _, sa, err = unix.Recvmsg(int(fd), b, oob, 0)
			return err
		})
		return !errors.Is(err, unix.EAGAIN)
	}); werr != nil {
		return 0, 0, from, werr
	}
	return n, oobn, addrPort(sa), err
}

// block is what one read may bring, as large as the largest datagram.
type block [64 << 10]byte

var blocks = sync.Pool{New: func() any { return new(block) }}

func giveBack(b *block) { blocks.Put(b) }

// borrow reads into a block that the caller gives back, unless there is an
// error. While it waits it has none: thousands of connections are idle.
func (s *sock) borrow() (b *block, n int, err error) {
	werr := s.raw.Read(func(fd uintptr) bool {
		b = blocks.Get().(*block)
		if n, err = unix.Read(int(fd), b[:]); err != nil {
			giveBack(b)
			b = nil
		}
		return !errors.Is(err, unix.EAGAIN)
	})
	if werr != nil {
		return nil, 0, werr
	}
	return b, n, err
}

// send sends a datagram, or drops it when there is no room.
func (s *sock) send(b []byte, to netip.AddrPort) {
	s.control(func(fd int) {
		if to.IsValid() {
			_ = unix.Sendto(fd, b, unix.MSG_NOSIGNAL, sockaddr(to))
		} else {
			_, _ = unix.Write(fd, b)
		}
	})
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

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

func family(a netip.Addr) int {
	if a.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

// connect opens a TCP connection from the host.
func connect(to netip.AddrPort, limit time.Duration) (*sock, error) {
	fd, err := unix.Socket(family(to.Addr()), unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil && err != unix.EINPROGRESS {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	s, err := adopt(fd)
	if err != nil {
		return nil, err
	}
	_ = s.SetWriteDeadline(time.Now().Add(limit))
	first := true
	werr := s.raw.Write(func(fd uintptr) bool {
		if first {
			first = false
			_, perr := unix.Getpeername(int(fd))
			return perr == nil
		}
		var code int
		if code, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR); err == nil && code != 0 {
			err = unix.Errno(code)
		}
		if err != nil {
			return true
		}
		_, perr := unix.Getpeername(int(fd))
		return perr == nil
	})
	if werr != nil {
		err = werr
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	_ = s.SetWriteDeadline(time.Time{})
	return s, nil
}

// datagrams makes a UDP socket on the host, connected to to.
func datagrams(to netip.AddrPort) (*sock, error) {
	fd, err := unix.Socket(family(to.Addr()), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err := unix.Connect(fd, sockaddr(to)); err != nil {
		_ = unix.Close(fd)
		return nil, os.NewSyscallError("connect", err)
	}
	return adopt(fd)
}

// isOwn tells whether an address belongs to this machine: the kernel then
// speaks to it from that very address. Nothing is sent. An error means that it
// could not be found out; where there is no way, the address is none.
func isOwn(a netip.Addr) (bool, error) {
	s, err := datagrams(netip.AddrPortFrom(a, 9))
	switch {
	case errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.ENOMEM):
		return false, err
	case err != nil:
		return false, nil
	}
	defer s.Close()
	return s.local().Addr() == a, nil
}

// readFull reads into b, at least least bytes.
func (s *sock) readFull(b []byte, least int) (n int, err error) {
	for n < least && err == nil {
		var m int
		m, err = s.Read(b[n:])
		n += m
	}
	if errors.Is(err, io.EOF) && n >= least {
		err = nil
	}
	return n, err
}

func isTimeout(err error) bool { return errors.Is(err, os.ErrDeadlineExceeded) }

// pipe carries bytes from one socket to another within the kernel.
type pipe struct{ r, w int }

// pipes are kept for those who need one next. An idle connection has none.
var pipes = make(chan *pipe, 32)

func newPipe() (*pipe, error) {
	select {
	case p := <-pipes:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, err
	}
	_, _ = unix.FcntlInt(uintptr(fds[0]), unix.F_SETPIPE_SZ, 256<<10)
	return &pipe{fds[0], fds[1]}, nil
}

// put gives an empty pipe back.
func (p *pipe) put() {
	select {
	case pipes <- p:
	default:
		p.close()
	}
}

func (p *pipe) close() {
	_ = unix.Close(p.r)
	_ = unix.Close(p.w)
}

// splice moves what src has to dst once; n is 0 at the end of src. It waits
// for src without a pipe, and for dst with one.
func splice(dst, src *sock) (n int64, err error) {
	var p *pipe
	if rerr := src.raw.Read(func(fd uintptr) bool {
		if p == nil {
			if p, err = newPipe(); err != nil {
				return true
			}
		}
		for {
			n, err = unix.Splice(int(fd), nil, p.w, nil, 1<<20, unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			if !errors.Is(err, unix.EINTR) {
				break
			}
		}
		if errors.Is(err, unix.EAGAIN) {
			p.put()
			p = nil
			return false
		}
		return true
	}); rerr != nil {
		err = rerr
	}
	if err != nil || n == 0 {
		if p != nil {
			p.put() // nothing came in
		}
		return 0, err
	}
	for left := n; left > 0; {
		var m int64
		if werr := dst.raw.Write(func(fd uintptr) bool {
			m, err = unix.Splice(p.r, nil, int(fd), nil, int(left), unix.SPLICE_F_NONBLOCK|unix.SPLICE_F_MOVE)
			return !errors.Is(err, unix.EAGAIN)
		}); werr != nil {
			err = werr
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err == nil && m == 0 {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			p.close() // it is not empty
			return n, err
		}
		left -= m
	}
	p.put()
	return n, nil
}
