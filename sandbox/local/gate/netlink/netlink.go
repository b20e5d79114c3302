//go:build linux

// Package netlink writes the few messages with which a network namespace is
// set up.
package netlink

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Native is the byte order of netlink but for the values of nf_tables.
var Native = binary.NativeEndian

// Message builds one netlink message with nested attributes.
type Message struct {
	b    []byte
	open []int // starts of nested attributes
}

// New begins a message whose fixed part is body.
func New(kind, flags uint16, body []byte) *Message {
	m := &Message{b: make([]byte, unix.SizeofNlMsghdr, 128)}
	Native.PutUint16(m.b[4:], kind)
	Native.PutUint16(m.b[6:], flags|unix.NLM_F_REQUEST)
	m.b = append(m.b, body...)
	m.pad()
	return m
}

func (m *Message) pad() {
	for len(m.b)%4 != 0 {
		m.b = append(m.b, 0)
	}
}

// Attr adds an attribute.
func (m *Message) Attr(kind uint16, data []byte) *Message {
	m.b = Native.AppendUint16(m.b, uint16(4+len(data)))
	m.b = Native.AppendUint16(m.b, kind)
	m.b = append(m.b, data...)
	m.pad()
	return m
}

// Raw adds bytes that are no attribute, such as the fixed part of a nested message.
func (m *Message) Raw(b []byte) *Message {
	m.b = append(m.b, b...)
	m.pad()
	return m
}

// Text adds a text, ended by a NUL.
func (m *Message) Text(kind uint16, s string) *Message { return m.Attr(kind, append([]byte(s), 0)) }

// BE32 adds a number in network order, as nf_tables has them.
func (m *Message) BE32(kind uint16, v uint32) *Message {
	return m.Attr(kind, binary.BigEndian.AppendUint32(nil, v))
}

// Begin opens an attribute that holds others, until End.
func (m *Message) Begin(kind uint16) *Message {
	m.open = append(m.open, len(m.b))
	m.b = Native.AppendUint16(m.b, 0)
	m.b = Native.AppendUint16(m.b, kind|unix.NLA_F_NESTED)
	return m
}

// End closes what Begin opened.
func (m *Message) End() *Message {
	at := m.open[len(m.open)-1]
	m.open = m.open[:len(m.open)-1]
	Native.PutUint16(m.b[at:], uint16(len(m.b)-at))
	return m
}

func (m *Message) bytes(seq uint32) []byte {
	Native.PutUint32(m.b, uint32(len(m.b)))
	Native.PutUint32(m.b[8:], seq)
	return m.b
}

// Talk sends messages as one datagram and waits for the acknowledgements of
// those that ask for one. Its error names the first that failed.
func Talk(protocol int, what []string, messages ...*Message) error {
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
		if Native.Uint16(m.b[6:])&unix.NLM_F_ACK != 0 {
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
			size := int(Native.Uint32(b))
			if size < unix.SizeofNlMsghdr || size > len(b) {
				return errors.New("netlink: malformed answer")
			}
			if Native.Uint16(b[4:]) == unix.NLMSG_ERROR && size >= unix.SizeofNlMsghdr+4 {
				seq := int(Native.Uint32(b[8:]))
				if code := int32(Native.Uint32(b[16:])); code != 0 {
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
