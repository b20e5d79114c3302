//go:build linux

package inside

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

var native = binary.NativeEndian

// message builds one netlink message with nested attributes.
type message struct {
	b    []byte
	open []int // starts of nested attributes
}

func newMessage(kind, flags uint16, body []byte) *message {
	m := &message{b: make([]byte, unix.SizeofNlMsghdr, 128)}
	native.PutUint16(m.b[4:], kind)
	native.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST)
	m.b = append(m.b, body...)
	m.pad()
	return m
}

func (m *message) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

func (m *message) attr(kind uint16, data []byte) *message {
	m.b = native.AppendUint16(m.b, uint16(4+len(data)))
	m.b = native.AppendUint16(m.b, kind)
	m.b = append(m.b, data...)
	m.pad()
	return m
}

func (m *message) text(kind uint16, s string) *message { return m.attr(kind, append([]byte(s), 0)) }

// be32 adds a number in network order, as nf_tables has them.
func (m *message) be32(kind uint16, v uint32) *message {
	return m.attr(kind, binary.BigEndian.AppendUint32(nil, v))
}

func (m *message) begin(kind uint16) *message {
	m.open = append(m.open, len(m.b))
	m.b = native.AppendUint16(m.b, 0)
	m.b = native.AppendUint16(m.b, kind|unix.NLA_F_NESTED)
	return m
}

func (m *message) end() *message {
	at := m.open[len(m.open)-1]
	m.open = m.open[:len(m.open)-1]
	native.PutUint16(m.b[at:], uint16(len(m.b)-at))
	return m
}

func (m *message) bytes(seq uint32) []byte {
	native.PutUint32(m.b, uint32(len(m.b)))
	native.PutUint32(m.b[8:], seq)
	return m.b
}

// talk sends messages as one datagram and waits for the acknowledgements of
// those that ask for one. Its error names the first that failed.
func talk(protocol int, what []string, messages ...*message) error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, protocol)
	if err != nil {
		return os.NewSyscallError("netlink socket", err)
	}
	defer unix.Close(fd)
	// The kernel answers at once; a bug in it must not hang PID 1.
	_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
	var out []byte
	acks := 0
	for i, m := range messages {
		out = append(out, m.bytes(uint32(i+1))...)
		if native.Uint16(m.b[6:])&unix.NLM_F_ACK != 0 {
			acks++
		}
	}
	if err := unix.Sendto(fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("netlink send", err)
	}
	buf := make([]byte, 16<<10)
	for acks > 0 {
		n, _, err := unix.Recvfrom(fd, buf, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("netlink receive", err)
		}
		for b := buf[:n]; len(b) >= unix.SizeofNlMsghdr; {
			size := int(native.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("netlink: malformed answer")
			}
			if native.Uint16(b[4:]) == unix.NLMSG_ERROR && size >= unix.SizeofNlMsghdr+4 {
				seq := int(native.Uint32(b[8:]))
				if code := int32(native.Uint32(b[16:])); code != 0 {
					e := &Error{Err: unix.Errno(-code)}
					if seq >= 1 && seq <= len(what) {
						e.What = what[seq-1]
					}
					return e
				}
				acks--
			}
			b = b[min((size+3)&^3, len(b)):]
		}
	}
	return nil
}

// Error is a refusal of the kernel's.
type Error struct {
	What string // "tproxy", "add a route" …
	Err  error
}

func (e *Error) Error() string { return strings.TrimPrefix(e.What+": "+e.Err.Error(), ": ") }

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Err }
