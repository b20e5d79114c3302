//go:build linux

package guest

import (
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"berth/sandbox/local/wire"
)

// dialTime bounds one dial. On a loopback it takes no time, unless the program
// that listens takes no connections.
const dialTime = 5 * time.Second

// dial connects to a port inside. What listens there is foreign: init hands
// the socket out and reads nothing from it.
func dial(r *wire.Dial) ([]*os.File, error) {
	if r.Port == 0 {
		return nil, invalid("port: must be 1 to 65535")
	}
	port, late := int(r.Port), time.Now().Add(dialTime)
	var first error
	for _, to := range []unix.Sockaddr{&unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}, &unix.SockaddrInet6{Port: port, Addr: [16]byte{15: 1}}} {
		f, err := dialTo(to, late)
		if err == nil {
			return []*os.File{f}, nil
		}
		if first == nil {
			first = err
		}
	}
	text := "nothing listens on port " + strconv.Itoa(port) + " inside"
	if first != unix.ECONNREFUSED {
		text = "port " + strconv.Itoa(port) + " inside takes no connection: " + first.Error()
	}
	return nil, &wire.Error{Code: wire.CodeRefused, Text: text}
}

func dialTo(to unix.Sockaddr, late time.Time) (*os.File, error) {
	family := unix.AF_INET
	if _, six := to.(*unix.SockaddrInet6); six {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	err = unix.Connect(fd, to)
	f := os.NewFile(uintptr(fd), "socket")
	if err == unix.EINPROGRESS {
		err = connected(f, late)
	}
	if err != nil {
		_ = f.Close()
		return nil, err
	}
	return f, nil
}

// connected waits for a connection under way without holding a thread.
func connected(f *os.File, late time.Time) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	if err := f.SetWriteDeadline(late); err != nil {
		return err
	}
	defer f.SetWriteDeadline(time.Time{})
	var state error
	err = raw.Write(func(fd uintptr) bool {
		n, gerr := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
		if gerr == nil && n != 0 {
			gerr = unix.Errno(n)
		}
		if state = gerr; state != nil {
			return true
		}
		_, perr := unix.Getpeername(int(fd))
		return perr != unix.ENOTCONN
	})
	if err != nil {
		return unix.ETIMEDOUT
	}
	return state
}
