//go:build linux

package client

import (
	"context"
	"errors"
	"net"
	"net/netip"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// DialPort connects to a port of the loopback interface inside;
// syscall.ECONNREFUSED when nothing listens there.
func (c *Conn) DialPort(ctx context.Context, port uint16) (net.Conn, error) {
	fr, err := c.call(ctx, wire.OpDial, wire.Dial{Port: port}, nil)
	if err != nil {
		return nil, err
	}
	defer closeFiles(fr.Files)
	if len(fr.Files) != 1 {
		return nil, errors.New("the sandbox sent no socket")
	}
	raw, err := fr.Files[0].SyscallConn()
	if err != nil {
		return nil, err
	}
	var kind int
	var serr error
	if err := raw.Control(func(fd uintptr) { kind, serr = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TYPE) }); err != nil {
		return nil, err
	}
	if serr != nil || kind != unix.SOCK_STREAM {
		return nil, errors.New("the sandbox sent another thing than a socket")
	}
	nc, err := net.FileConn(fr.Files[0])
	if err != nil {
		return nil, errors.New("the sandbox sent another thing than a socket")
	}
	// Init may lie: what it sends must be what was asked for.
	if to, err := netip.ParseAddrPort(nc.RemoteAddr().String()); err != nil || !to.Addr().Unmap().IsLoopback() || to.Port() != port {
		_ = nc.Close()
		return nil, errors.New("the sandbox sent a socket that leads elsewhere")
	}
	return nc, nil
}
