package tools

import (
	"bytes"
	"strings"
	"unicode/utf8"
)

// cleaner collects a stream's bytes and gives them out as lines of plain text:
// valid UTF-8, without escape sequences, a bare carriage return ending a line.
type cleaner struct {
	buf []byte
}

func (c *cleaner) add(p []byte) { c.buf = append(c.buf, p...) }
func (c *cleaner) len() int     { return len(c.buf) }

// trim drops the oldest lines beyond max bytes and tells how many bytes went.
func (c *cleaner) trim(max int) int {
	if len(c.buf) <= max {
		return 0
	}
	cut := len(c.buf) - max
	if i := bytes.IndexByte(c.buf[cut:], '\n'); i >= 0 {
		cut += i + 1
	}
	c.buf = append(c.buf[:0], c.buf[cut:]...)
	return cut
}

// take removes and cleans what is held up to the last line's end, or all but
// an incomplete rune.
func (c *cleaner) take(all bool) string {
	n := bytes.LastIndexAny(c.buf, "\r\n") + 1
	if all {
		n = len(c.buf)
		for back := 1; back <= utf8.UTFMax && back <= n; back++ {
			if b := c.buf[n-back]; utf8.RuneStart(b) {
				if b >= utf8.RuneSelf && !utf8.FullRune(c.buf[n-back:]) {
					n -= back
				}
				break
			}
		}
	}
	text := plain(c.buf[:n])
	c.buf = append(c.buf[:0], c.buf[n:]...)
	return text
}

// plain strips escape sequences and control characters and makes the rest
// valid UTF-8.
func plain(p []byte) string {
	var b strings.Builder
	for i := 0; i < len(p); {
		switch ch := p[i]; {
		case ch == 0x1b:
			i += escape(p[i:])
			continue
		case ch == '\r':
			if i+1 >= len(p) || p[i+1] != '\n' {
				b.WriteByte('\n')
			}
		case ch < ' ' && ch != '\n' && ch != '\t', ch == 0x7f:
		default:
			b.WriteByte(ch)
		}
		i++
	}
	return strings.ToValidUTF8(b.String(), "\uFFFD")
}

// escape is the length of the escape sequence (ECMA-48) at p's begin.
func escape(p []byte) int {
	if len(p) < 2 {
		return len(p)
	}
	switch p[1] {
	case '[': // CSI: parameters, then one final byte
		for i := 2; i < len(p); i++ {
			if p[i] >= 0x40 && p[i] <= 0x7e {
				return i + 1
			}
		}
		return len(p)
	case ']', 'P', 'X', '^', '_': // strings up to BEL or ST
		for i := 2; i < len(p); i++ {
			if p[i] == 0x07 {
				return i + 1
			}
			if p[i] == 0x1b && i+1 < len(p) && p[i+1] == '\\' {
				return i + 2
			}
		}
		return len(p)
	}
	return 2
}
