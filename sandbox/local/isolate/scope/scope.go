//go:build linux

// Package scope asks the systemd of an ordinary user for a scope: a cgroup that
// is handed to the user with its controllers, for a process of theirs and what it
// makes below. It speaks the little of D-Bus that one call takes, by itself,
// since its caller stays resident once for each sandbox.
//
// The wire format is the D-Bus specification's, version 1; the call is
// org.freedesktop.systemd1.Manager.StartTransientUnit.
package scope

import (
	"encoding/binary"
	"encoding/hex"
	"errors"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Bus is where the message bus of user uid listens.
func Bus(uid int) string { return "/run/user/" + strconv.Itoa(uid) + "/bus" }

// Bounds of what is read.
const (
	patience   = 3 // seconds
	maxMessage = 1 << 20
)

// Start asks for the scope unit, such as "berth-x.scope", with process pid in
// it. It returns when systemd has taken the job; the process is moved a
// moment later.
func Start(bus, unit, description string, pid int) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	for _, o := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
		_ = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, o, &unix.Timeval{Sec: patience})
	}
	if err := unix.Connect(fd, &unix.SockaddrUnix{Name: bus}); err != nil {
		return &os.PathError{Op: "connect", Path: bus, Err: err}
	}
	c := &conn{fd: fd}
	if err := c.authenticate(); err != nil {
		return err
	}
	const daemon, systemd = "org.freedesktop.DBus", "org.freedesktop.systemd1"
	if err := c.call("/org/freedesktop/DBus", daemon, daemon, "Hello", "", nil); err != nil {
		return err
	}
	return c.call("/org/freedesktop/systemd1", systemd, systemd+".Manager", "StartTransientUnit", "ssa(sv)a(sa(sv))", startArguments(unit, description, pid))
}

// startArguments are of the signature ssa(sv)a(sa(sv)).
func startArguments(unit, description string, pid int) []byte {
	var b writer
	b.text(unit)
	b.text("fail")
	b.array(8, func() {
		property := func(name, signature string, value func()) {
			b.align(8)
			b.text(name)
			b.signature(signature)
			value()
		}
		property("Description", "s", func() { b.text(description) })
		property("PIDs", "au", func() { b.array(4, func() { b.number(uint32(pid)) }) })
		property("Delegate", "b", func() { b.number(1) })
		property("CollectMode", "s", func() { b.text("inactive-or-failed") })
	})
	b.array(8, func() {}) // no units beside it
	return b.data
}

// writer marshals, least significant byte first.
type writer struct{ data []byte }

func (w *writer) align(n int) {
	for len(w.data)%n != 0 {
		w.data = append(w.data, 0)
	}
}

func (w *writer) number(v uint32) {
	w.align(4)
	w.data = binary.LittleEndian.AppendUint32(w.data, v)
}

func (w *writer) text(s string) {
	w.number(uint32(len(s)))
	w.data = append(append(w.data, s...), 0)
}

func (w *writer) signature(s string) {
	w.data = append(append(append(w.data, byte(len(s))), s...), 0)
}

// array writes what elements writes, each of that alignment, after its length.
func (w *writer) array(alignment int, elements func()) {
	w.number(0)
	at := len(w.data)
	w.align(alignment)
	begin := len(w.data)
	elements()
	binary.LittleEndian.PutUint32(w.data[at-4:], uint32(len(w.data)-begin))
}

type conn struct {
	fd     int
	serial uint32
}

func (c *conn) write(b []byte) error {
	for len(b) > 0 {
		n, err := unix.Write(c.fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return os.NewSyscallError("write to the message bus", err)
		}
		b = b[n:]
	}
	return nil
}

func (c *conn) read(n int) ([]byte, error) {
	b := make([]byte, n)
	for at := 0; at < n; {
		m, err := unix.Read(c.fd, b[at:])
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return nil, errors.New("the message bus does not answer")
		case err != nil:
			return nil, os.NewSyscallError("read from the message bus", err)
		case m == 0:
			return nil, errors.New("the message bus hung up")
		default:
			at += m
		}
	}
	return b, nil
}

// authenticate says who we are; the socket proves it.
func (c *conn) authenticate() error {
	if err := c.write([]byte("\x00AUTH EXTERNAL " + hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid()))) + "\r\n")); err != nil {
		return err
	}
	line := ""
	for !strings.HasSuffix(line, "\r\n") {
		b, err := c.read(1)
		if err != nil {
			return err
		}
		if line += string(b); len(line) > 1000 {
			break
		}
	}
	if !strings.HasPrefix(line, "OK ") {
		return errors.New("the message bus refuses this user")
	}
	return c.write([]byte("BEGIN\r\n"))
}

// The types of messages, and the fields of their headers that matter.
const (
	methodCall, methodReturn, methodError = 1, 2, 3

	fieldPath, fieldInterface, fieldMember, fieldErrorName, fieldReply, fieldDestination, fieldSignature = 1, 2, 3, 4, 5, 6, 8
)

// call calls a method and waits for its answer.
func (c *conn) call(path, destination, iface, member, signature string, body []byte) error {
	c.serial++
	w := writer{data: []byte{'l', methodCall, 0, 1}}
	w.number(uint32(len(body)))
	w.number(c.serial)
	w.array(8, func() {
		field := func(code byte, kind, value string) {
			w.align(8)
			w.data = append(w.data, code)
			w.signature(kind)
			if kind == "g" {
				w.signature(value)
				return
			}
			w.text(value)
		}
		field(fieldPath, "o", path)
		field(fieldDestination, "s", destination)
		field(fieldInterface, "s", iface)
		field(fieldMember, "s", member)
		if signature != "" {
			field(fieldSignature, "g", signature)
		}
	})
	w.align(8)
	if err := c.write(append(w.data, body...)); err != nil {
		return err
	}
	for range 1000 { // signals may come first
		kind, reply, name, text, err := c.receive()
		if err != nil {
			return err
		}
		switch {
		case reply != c.serial:
		case kind == methodReturn:
			return nil
		case kind == methodError:
			return errors.New(member + ": " + name + ": " + text)
		}
	}
	return errors.New("the message bus does not answer")
}

// receive reads one message: its type, which call it answers, and of an error
// its name and text.
func (c *conn) receive() (kind byte, reply uint32, name, text string, err error) {
	malformed := errors.New("the message bus sent what is no message")
	head, err := c.read(16)
	if err != nil {
		return 0, 0, "", "", err
	}
	if head[0] != 'l' && head[0] != 'B' {
		return 0, 0, "", "", malformed
	}
	r := reader{order: binary.LittleEndian}
	if head[0] == 'B' {
		r.order = binary.BigEndian
	}
	size, fields := r.order.Uint32(head[4:]), r.order.Uint32(head[12:])
	if size > maxMessage || fields > maxMessage {
		return 0, 0, "", "", malformed
	}
	padded := (int(fields) + 7) / 8 * 8
	all, err := c.read(padded + int(size))
	if err != nil {
		return 0, 0, "", "", err
	}
	r.data = all[:fields]
	for r.at < len(r.data) && !r.bad {
		r.align(8)
		code := r.byte()
		switch signature := r.signature(); {
		case signature == "s" || signature == "o":
			if s := r.text(); code == fieldErrorName {
				name = s
			}
		case signature == "g":
			r.signature()
		case signature == "u":
			if v := r.number(); code == fieldReply {
				reply = v
			}
		default:
			r.bad = true
		}
	}
	if r.bad {
		return 0, 0, "", "", malformed
	}
	if kind = head[1]; kind == methodError {
		body := reader{order: r.order, data: all[padded:]}
		text = body.text()
	}
	return kind, reply, name, text, nil
}

// reader takes apart what a writer of either order wrote. After something that
// does not fit it is bad, and gives zeros.
type reader struct {
	order binary.ByteOrder
	data  []byte
	at    int
	bad   bool
}

func (r *reader) take(n int) []byte {
	if r.bad || n < 0 || n > len(r.data)-r.at {
		r.bad = true
		return nil
	}
	b := r.data[r.at : r.at+n]
	r.at += n
	return b
}

func (r *reader) align(n int) { r.take((n - r.at%n) % n) }

func (r *reader) byte() byte {
	if b := r.take(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) number() uint32 {
	r.align(4)
	if b := r.take(4); b != nil {
		return r.order.Uint32(b)
	}
	return 0
}

func (r *reader) text() string {
	n := r.number()
	if n > maxMessage {
		r.bad = true
	}
	b := r.take(int(n))
	r.take(1)
	return string(b)
}

func (r *reader) signature() string {
	b := r.take(int(r.byte()))
	r.take(1)
	return string(b)
}
