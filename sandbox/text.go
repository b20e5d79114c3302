package sandbox

import (
	"bytes"
	"encoding/binary"
	"math/bits"
	"strings"
	"unicode/utf8"
	"unsafe"
)

// maxEscape bounds an escape sequence; what is longer is no sequence but text
// after a stray introducer.
const maxEscape = 4096

// escape measures the escape sequence at the start of b, which begins with ESC.
// n is its length; 0 when b ends before the sequence does.
func escape(b []byte) (n int) {
	if len(b) < 2 {
		return 0
	}
	switch c := b[1]; {
	case c == '[': // CSI: parameters, intermediates, a final byte
		for i := 2; i < len(b); i++ {
			switch {
			case b[i] >= 0x40 && b[i] <= 0x7e:
				return i + 1
			case b[i] < 0x20 || b[i] > 0x3f || i >= maxEscape:
				return i // broken off: what follows is text
			}
		}
		return 0
	case c == ']' || c == 'P' || c == 'X' || c == '^' || c == '_': // OSC, DCS, SOS, PM, APC: up to BEL or ST
		for i := 2; i < len(b); i++ {
			switch {
			case b[i] == 0x07:
				return i + 1
			case b[i] == 0x1b && i+1 == len(b):
				return 0
			case b[i] == 0x1b && b[i+1] == '\\':
				return i + 2
			case b[i] == 0x1b:
				return i
			case i >= maxEscape:
				return 2
			}
		}
		return 0
	case c >= 0x20 && c <= 0x2f: // intermediates, then a final byte
		for i := 2; i < len(b); i++ {
			if b[i] < 0x20 || b[i] > 0x2f || i >= maxEscape {
				if b[i] >= 0x30 && b[i] <= 0x7e {
					return i + 1
				}
				return i
			}
		}
		return 0
	case c >= 0x30 && c <= 0x7e:
		return 2
	}
	return 1
}

// incomplete counts the bytes at the end of b that may belong to a rune, an
// escape sequence or a line end whose rest has not come yet.
func incomplete(b []byte) int {
	// An unfinished sequence is at most maxEscape long, but may hold an ESC
	// itself, so sequences are walked from the first that can matter.
	from := max(0, len(b)-2*maxEscape)
	for i := from; i < len(b); {
		k := bytes.IndexByte(b[i:], 0x1b)
		if k < 0 {
			break
		}
		i += k
		n := escape(b[i:])
		if n == 0 {
			return len(b) - i
		}
		i += n
	}
	if n := len(b); n > 0 && b[n-1] == '\r' {
		return 1
	}
	for n := 1; n < utf8.UTFMax && n <= len(b); n++ {
		if c := b[len(b)-n]; utf8.RuneStart(c) {
			if c >= utf8.RuneSelf && !utf8.FullRune(b[len(b)-n:]) {
				return n
			}
			break
		}
	}
	return 0
}

// stripEscapes removes escape sequences; one that b ends in is removed as far
// as it goes.
func stripEscapes(b []byte) []byte {
	i := bytes.IndexByte(b, 0x1b)
	if i < 0 {
		return b
	}
	out := append(make([]byte, 0, len(b)), b[:i]...)
	for i < len(b) {
		if b[i] != 0x1b {
			k := bytes.IndexByte(b[i:], 0x1b)
			if k < 0 {
				k = len(b) - i
			}
			out = append(out, b[i:i+k]...)
			i += k
			continue
		}
		n := escape(b[i:])
		if n == 0 {
			break
		}
		i += n
	}
	return out
}

// clean makes output readable: valid UTF-8, no escape sequences, no control
// characters but newline and tab. Of a line that was written over with carriage
// returns, as progress bars do, the last state stays. A NUL shows as U+FFFD.
// The text may be b's own memory, so nobody may write to b afterwards.
func clean(b []byte) string {
	plain := plainText(b)
	if plain == len(b) { // nothing to clean, as mostly
		return unsafe.String(unsafe.SliceData(b), len(b))
	}
	b = stripEscapes(b)
	var out strings.Builder
	out.Grow(len(b))
	line := make([]byte, 0, 256) // the present line
	fresh := false               // a carriage return came: the next character begins the line anew
	for len(b) > 0 {
		// The common case, a run of plain ASCII, goes in one piece.
		k := 0
		for k < len(b) && (b[k] >= 0x20 && b[k] < 0x7f || b[k] == '\t') {
			k++
		}
		if k > 0 {
			if fresh {
				line, fresh = line[:0], false
			}
			line = append(line, b[:k]...)
			b = b[k:]
			continue
		}
		r, size := utf8.DecodeRune(b)
		b = b[size:]
		switch {
		case r == '\n':
			out.Write(line)
			out.WriteByte('\n')
			line, fresh = line[:0], false
			continue
		case r == '\r':
			fresh = true
			continue
		case r == '\b':
			if _, n := utf8.DecodeLastRune(line); !fresh {
				line = line[:len(line)-n]
			}
			continue
		case r == 0:
			r = utf8.RuneError
		case r < 0x20 || r >= 0x7f && r < 0xa0:
			continue
		}
		if fresh {
			line, fresh = line[:0], false
		}
		line = utf8.AppendRune(line, r)
	}
	out.Write(line)
	return out.String()
}

// headEnd is where the kept beginning of b ends: after its last line if that
// keeps at least half of it, else on a rune end.
func headEnd(b []byte) int {
	half := len(b) / 2
	if i := bytes.LastIndexByte(b[half:], '\n'); i >= 0 {
		return half + i + 1
	}
	return len(b) - incomplete(b)
}

// tailStart is where the kept end begins in b, at from or later: at a line if
// that keeps at least half of it, else on a rune start outside any escape
// sequence. The bytes of b before from are there to see such a sequence.
func tailStart(b []byte, from int) int {
	if from > 0 && b[from-1] == '\n' {
		return from
	}
	if i := bytes.IndexByte(b[from:], '\n'); i >= 0 && i+1 <= (len(b)-from)/2 {
		return from + i + 1
	}
	for i := max(0, from-256); i < from; {
		k := bytes.IndexByte(b[i:from], 0x1b)
		if k < 0 {
			break
		}
		i += k
		n := escape(b[i:])
		if n == 0 {
			break // as long as all that is left; show it rather than nothing
		}
		if i += n; i > from {
			from = i
		}
	}
	for n := 0; n < utf8.UTFMax-1 && from < len(b) && !utf8.RuneStart(b[from]); n++ {
		from++
	}
	return from
}

// plainText counts the bytes at the start of b that clean leaves as they are.
func plainText(b []byte) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for i+8 <= len(b) {
		x := binary.LittleEndian.Uint64(b[i:])
		// A top bit is set for a byte below 0x20, a DEL, or what is not ASCII. What
		// follows the first of these may be set for its sake.
		found := ((x - ones*0x20) | (x + ones) | x) & tops
		if found == 0 {
			i += 8
			continue
		}
		i += bits.TrailingZeros64(found) / 8
		if b[i] != '\t' && b[i] != '\n' {
			return i
		}
		i++
	}
	for ; i < len(b); i++ {
		if c := b[i]; c < 0x20 && c != '\t' && c != '\n' || c >= 0x7f {
			break
		}
	}
	return i
}

// CleanText makes output readable: see clean. It keeps nothing of b.
func CleanText(b []byte) string { return clean(bytes.Clone(b)) }
