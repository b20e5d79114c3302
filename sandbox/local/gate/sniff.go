//go:build linux

package gate

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// What a first look at a connection may find.
var (
	errMore   = errors.New("more bytes are needed")
	errNoName = errors.New("no name is told")
	errForm   = errors.New("not understood")
)

// maxSniff bounds what is read before a connection is let out by its name.
const maxSniff = 32 << 10

// tlsName finds the server name in the first bytes of a TLS connection
// (RFC 8446 4.1.2, RFC 6066 3). The ClientHello may come in several records.
func tlsName(b []byte) (string, error) {
	var hello []byte
	for {
		if len(b) < 5 {
			return "", more(b, []byte{22, 3})
		}
		size := int(binary.BigEndian.Uint16(b[3:]))
		if b[0] != 22 || b[1] != 3 || size == 0 || size > 1<<14+256 {
			return "", errForm
		}
		whole := len(b) >= 5+size
		hello = append(hello, b[5:min(5+size, len(b))]...)
		if len(hello) >= 4 {
			if hello[0] != 1 {
				return "", errForm
			}
			n := int(hello[1])<<16 | int(hello[2])<<8 | int(hello[3])
			if n > maxSniff {
				return "", errForm
			}
			if len(hello) >= 4+n {
				return helloName(hello[4 : 4+n])
			}
		}
		if !whole {
			return "", errMore
		}
		b = b[5+size:]
	}
}

// more tells whether b may still become what begins with start.
func more(b, start []byte) error {
	n := min(len(b), len(start))
	if bytes.Equal(b[:n], start[:n]) {
		return errMore
	}
	return errForm
}

// reader takes length-prefixed fields apart; bad once they do not fit.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}

func (r *reader) number(size int) (n int) {
	for _, c := range r.take(size) {
		n = n<<8 | int(c)
	}
	return n
}

func helloName(b []byte) (string, error) {
	r := &reader{b: b}
	r.take(2 + 32)      // version, random
	r.take(r.number(1)) // session
	r.take(r.number(2)) // ciphers
	r.take(r.number(1)) // compression
	ext := &reader{b: r.take(r.number(2))}
	if r.bad {
		return "", errForm
	}
	name := ""
	for len(ext.b) > 0 && !ext.bad {
		kind := ext.number(2)
		body := &reader{b: ext.take(ext.number(2))}
		if kind != 0 {
			continue
		}
		list := &reader{b: body.take(body.number(2))}
		for len(list.b) > 0 && !list.bad {
			of := list.number(1)
			v := list.take(list.number(2))
			if of == 0 && !list.bad {
				if name != "" {
					return "", errForm // which of them the server takes is not known
				}
				if name = hostName(v); name == "" {
					return "", errForm
				}
			}
		}
		if list.bad || body.bad {
			return "", errForm
		}
	}
	if ext.bad {
		return "", errForm
	}
	if name == "" {
		return "", errNoName
	}
	return name, nil
}

// hostName is b as a name: lower case, no final dot; "" when it is none.
func hostName(b []byte) string {
	b = bytes.TrimSuffix(b, []byte("."))
	if len(b) == 0 || len(b) > 253 || b[0] == '.' || b[len(b)-1] == '.' || bytes.Contains(b, []byte("..")) {
		return ""
	}
	out := make([]byte, len(b))
	for i, c := range b {
		switch {
		case c >= 'A' && c <= 'Z':
			c += 'a' - 'A'
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9', c == '-', c == '_', c == '.':
		default:
			return ""
		}
		out[i] = c
	}
	return string(out)
}

// httpName finds the host that an HTTP/1 request is meant for, and where its
// head ends. It is strict where servers differ: a head in which two readers
// could see two hosts is none.
func httpName(b []byte) (name string, head int, err error) {
	end := bytes.Index(b, []byte("\r\n\r\n"))
	look := b
	if end >= 0 {
		look = b[:end+2]
	}
	if i := bytes.IndexByte(look, 0); i >= 0 {
		return "", 0, errForm
	}
	if len(b) > 0 && (b[0] < 'A' || b[0] > 'Z') {
		return "", 0, errForm
	}
	line, rest, ok := bytes.Cut(look, []byte("\r\n"))
	if !ok {
		if len(b) > 16<<10 {
			return "", 0, errForm
		}
		return "", 0, errMore
	}
	parts := bytes.Split(line, []byte(" "))
	if len(parts) != 3 || !visible(parts[0]) || !visible(parts[1]) || string(parts[2]) != "HTTP/1.1" && string(parts[2]) != "HTTP/1.0" {
		return "", 0, errForm
	}
	if end < 0 {
		return "", 0, errMore
	}
	found := 0
	for len(rest) > 0 {
		line, rest, _ = bytes.Cut(rest, []byte("\r\n"))
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok || !visible(key) || !printable(value) {
			return "", 0, errForm // also a folded line
		}
		if bytes.EqualFold(key, []byte("host")) {
			found++
			if name = hostOf(bytes.Trim(value, " \t")); name == "" {
				return "", 0, errForm
			}
		}
	}
	if found != 1 {
		if found == 0 {
			return "", 0, errNoName
		}
		return "", 0, errForm
	}
	if target := parts[1]; len(target) > 0 && target[0] != '/' && string(target) != "*" {
		// An absolute target wins over Host.
		_, after, ok := bytes.Cut(target, []byte("://"))
		if !ok {
			return "", 0, errForm
		}
		if i := bytes.IndexAny(after, "/?#"); i >= 0 {
			after = after[:i]
		}
		if hostOf(after) != name {
			return "", 0, errForm
		}
	}
	return name, end + 4, nil
}

// hostOf is the name in "name" or "name:port". An address is no name that
// could be listed, but is returned for the report.
func hostOf(b []byte) string {
	if i := bytes.LastIndexByte(b, ':'); i >= 0 {
		if len(bytes.Trim(b[i+1:], "0123456789")) > 0 {
			return "" // in "name:x@other" the host is other
		}
		b = b[:i]
	}
	return hostName(b)
}

// visible tells that b is not empty, and has neither blanks nor control
// characters: some servers end a line, or a word, at one of those.
func visible(b []byte) bool {
	return len(b) > 0 && printable(b) && !bytes.ContainsAny(b, " \t")
}

// printable tells that b has no control characters but tabs.
func printable(b []byte) bool {
	for _, c := range b {
		if c < ' ' && c != '\t' || c == 0x7f {
			return false
		}
	}
	return true
}
