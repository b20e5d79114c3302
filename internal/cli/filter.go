package cli

import (
	"io"
	"strings"
	"unicode/utf8"
)

// filter passes text from a sandbox on to a terminal without what a terminal
// would act upon: of escape sequences only colours stay (SGR), of control
// characters only newline, tab and carriage return. Sequences may be split over
// writes.
type filter struct {
	w        io.Writer
	state    filterState
	sequence []byte // a CSI sequence so far, or the beginning of a character
	coloured bool
	out      []byte
}

type filterState int

const (
	inText      filterState = iota
	inCharacter             // a character of several bytes
	inEscape                // after ESC
	inShort                 // ESC and intermediate bytes, such as of a character set
	inCSI                   // ESC [
	inString                // a title, an image, … up to its end
	inStringEnd             // ESC in a string
)

// maxSequence bounds what is kept of a CSI sequence; colours are shorter.
const maxSequence = 64

func (f *filter) Write(p []byte) (int, error) {
	f.out = f.out[:0]
	for _, b := range p {
		f.byte(b)
	}
	if _, err := f.w.Write(f.out); err != nil {
		return 0, err
	}
	return len(p), nil
}

// close ends a colour that is still on.
func (f *filter) close() {
	if f.coloured {
		_, _ = io.WriteString(f.w, "\x1b[0m") // the terminal may be gone
		f.coloured = false
	}
}

func (f *filter) byte(b byte) {
	// Whatever was begun, these begin or end something.
	switch {
	case f.state == inCharacter:
		if b&0xc0 == 0x80 {
			f.sequence = append(f.sequence, b)
			if utf8.FullRune(f.sequence) {
				f.character()
			}
			return
		}
		f.character()
	case b == '\n' && f.state != inText, b == 0x18 || b == 0x1a:
		// A sequence that does not end must not swallow all that follows.
		f.state = inText
	}
	switch f.state {
	case inText:
		f.text(b)
	case inEscape:
		switch {
		case b == '[':
			f.state, f.sequence = inCSI, append(f.sequence[:0], "\x1b["...)
		case strings.IndexByte("]PX^_", b) >= 0:
			f.state = inString
		case b >= 0x20 && b <= 0x2f:
			f.state = inShort
		case b != 0x1b:
			f.state = inText
		}
	case inShort:
		if b < 0x20 || b > 0x2f {
			f.state = inText
		}
	case inCSI:
		if b == 0x1b {
			f.state = inEscape
			return
		}
		if len(f.sequence) < maxSequence {
			f.sequence = append(f.sequence, b)
		}
		if b >= 0x40 && b <= 0x7e {
			f.state = inText
			if colour(f.sequence) {
				f.out = append(f.out, f.sequence...)
				f.coloured = string(f.sequence) != "\x1b[0m" && string(f.sequence) != "\x1b[m"
			}
		}
	case inString:
		switch b {
		case 0x07:
			f.state = inText
		case 0x1b:
			f.state = inStringEnd
		}
	case inStringEnd:
		if f.state = inText; b != '\\' {
			f.state = inEscape // which ends a string, too, and begins another sequence
			f.byte(b)
		}
	}
}

func (f *filter) text(b byte) {
	switch {
	case b == 0x1b:
		f.state = inEscape
	case b == '\n', b == '\t', b == '\r', b >= 0x20 && b < 0x7f:
		f.out = append(f.out, b)
	case b >= 0x80:
		f.sequence = append(f.sequence[:0], b)
		if f.state = inCharacter; utf8.FullRune(f.sequence) {
			f.character()
		}
	}
}

// character writes the character collected. What is none might be a control
// code in another encoding than UTF-8, and U+0080 to U+009F are.
func (f *filter) character() {
	f.state = inText
	if r, _ := utf8.DecodeRune(f.sequence); r >= 0xa0 { // U+FFFD, too
		f.out = utf8.AppendRune(f.out, r)
	}
}

// colour tells whether a CSI sequence sets colours, and nothing else.
func colour(s []byte) bool {
	last := len(s) - 1
	if s[last] != 'm' {
		return false
	}
	for _, b := range s[2:last] {
		if (b < '0' || b > '9') && b != ';' && b != ':' {
			return false
		}
	}
	return true
}
