//go:build linux

package scope

import (
	"encoding/binary"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// bus plays a message bus for one client: it answers every call with what
// answer makes of its member and body.
func bus(t *testing.T, greeting string, answer func(member string, body []byte) []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	go func() {
		s, err := l.Accept()
		if err != nil {
			return
		}
		defer s.Close()
		f, err := s.(*net.UnixConn).File()
		if err != nil {
			return
		}
		defer f.Close()
		c := &conn{fd: int(f.Fd())} // in blocking mode
		line := func() {
			for b := []byte{0}; b[0] != '\n'; {
				if b, err = c.read(1); err != nil {
					return
				}
			}
		}
		line()
		_ = c.write([]byte(greeting))
		line()
		for {
			head, err := c.read(16)
			if err != nil {
				return
			}
			size, fields := binary.LittleEndian.Uint32(head[4:]), binary.LittleEndian.Uint32(head[12:])
			rest, err := c.read((int(fields)+7)/8*8 + int(size))
			if err != nil {
				return
			}
			r := reader{order: binary.LittleEndian, data: rest[:fields]}
			member := ""
			for r.at < len(r.data) {
				r.align(8)
				switch code, kind := r.byte(), r.signature(); {
				case kind == "g":
					r.signature()
				case code == fieldMember:
					member = r.text()
				default:
					r.text()
				}
			}
			_ = c.write(answer(member, rest[len(rest)-int(size):]))
		}
	}()
	return path
}

// message is one as the bus sends it.
func message(kind byte, reply uint32, errorName, text string) []byte {
	var body writer
	body.text(text)
	w := writer{data: []byte{'l', kind, 0, 1}}
	w.number(uint32(len(body.data)))
	w.number(99)
	w.array(8, func() {
		w.align(8)
		w.data = append(w.data, fieldReply)
		w.signature("u")
		w.number(reply)
		if errorName != "" {
			w.align(8)
			w.data = append(w.data, fieldErrorName)
			w.signature("s")
			w.text(errorName)
		}
		w.align(8)
		w.data = append(w.data, fieldSignature)
		w.signature("g")
		w.signature("s")
	})
	w.align(8)
	return append(w.data, body.data...)
}

func TestStart(t *testing.T) {
	var asked []byte
	path := bus(t, "OK 1234\r\n", func(member string, body []byte) []byte {
		if member == "Hello" {
			return append(message(4, 0, "", "a signal"), message(methodReturn, 1, "", ":1.5")...)
		}
		asked = body
		return message(methodReturn, 2, "", "/job/7")
	})
	if err := Start(path, "berth-x.scope", "a sandbox", 4242); err != nil {
		t.Fatal(err)
	}
	r := reader{order: binary.LittleEndian, data: asked}
	if unit, mode := r.text(), r.text(); unit != "berth-x.scope" || mode != "fail" {
		t.Errorf("asked for %q, %q", unit, mode)
	}
	end := int(r.number())
	r.align(8)
	end += r.at
	got := map[string]any{}
	for r.at < end && !r.bad {
		r.align(8)
		switch name, kind := r.text(), r.signature(); kind {
		case "s":
			got[name] = r.text()
		case "b":
			got[name] = r.number() == 1
		case "au":
			if n := r.number(); n != 4 {
				t.Errorf("%s has %d bytes", name, n)
			}
			got[name] = r.number()
		}
	}
	if r.bad || got["Delegate"] != true || got["PIDs"] != uint32(4242) || got["CollectMode"] != "inactive-or-failed" {
		t.Errorf("asked with %v", got)
	}
}

// What goes wrong is said, and nothing hangs or panics.
func TestRefusals(t *testing.T) {
	denied := func(member string, _ []byte) []byte {
		if member == "Hello" {
			return message(methodReturn, 1, "", ":1.5")
		}
		return message(methodError, 2, "org.freedesktop.DBus.Error.AccessDenied", "not for you")
	}
	nonsense := func(string, []byte) []byte { return []byte(strings.Repeat("nonsense", 100)) }
	truncated := func(string, []byte) []byte {
		b := message(methodReturn, 1, "", "x")
		b[17] = 200 // a signature longer than the message
		return b
	}
	for name, tt := range map[string]struct {
		path, want string
	}{
		"none":      {filepath.Join(t.TempDir(), "none"), "no such file"},
		"user":      {bus(t, "REJECTED EXTERNAL\r\n", denied), "refuses"},
		"denied":    {bus(t, "OK 1\r\n", denied), "AccessDenied: not for you"},
		"nonsense":  {bus(t, "OK 1\r\n", nonsense), "no message"},
		"truncated": {bus(t, "OK 1\r\n", truncated), "no message"},
	} {
		if err := Start(tt.path, "x.scope", "x", os.Getpid()); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
	}
}
