package cli

import (
	"bytes"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestFilter(t *testing.T) {
	for _, c := range []struct{ name, in, want string }{
		{"text", "plain\ttext\r\nmore\n", "plain\ttext\r\nmore\n"},
		{"unicode", "grün 漢字 🦀 e\u0301\n", "grün 漢字 🦀 e\u0301\n"},
		{"colours", "\x1b[31mred\x1b[0m \x1b[1;38;5;120mx\x1b[38:2::1:2:3my\x1b[m", "\x1b[31mred\x1b[0m \x1b[1;38;5;120mx\x1b[38:2::1:2:3my\x1b[m"},
		{"colour_left_on", "\x1b[7mloud", "\x1b[7mloud\x1b[0m"},
		{"cursor", "a\x1b[2J\x1b[1;1Hb\x1b[?1049hc\x1b[6nd\x1b[>4;2me\x1b[?5mf", "abcdef"},
		{"title", "a\x1b]0;title\x07b\x1b]52;c;aGk=\x1b\\c", "abc"},
		{"link", "\x1b]8;;http://x\x1b\\text\x1b]8;;\x1b\\", "text"},
		{"device_strings", "a\x1bP+q544e\x1b\\b\x1b_apc\x1b\\c\x1b^pm\x1b\\d\x1bXsos\x1b\\e", "abcde"},
		{"short", "a\x1b(0b\x1b7c\x1bcd\x1b#8e\x1b%Gf", "abcdef"},
		{"controls", "a\x00b\x07c\x08d\x0be\x0cf\x7fg\x0eh\x05i", "abcdefghi"},
		{"c1", "a\u009b2Jb\u0090c\u0085d", "a2Jbcd"},
		{"c1_of_8_bits", "a\x9b2Jb\xffc", "a\ufffd2Jb\ufffdc"},
		{"cut_characters", "a\xe6\xbcb\xf0\x9fc", "a\ufffdb\ufffdc"},
		{"string_without_end", "a\x1b]0;title\nnext\n", "a\nnext\n"},
		{"sequence_in_a_string", "\x1b]0;t\x1b[31mred", "\x1b[31mred\x1b[0m"},
		{"cancelled", "a\x1b[3\x18b\x1b]x\x1ac", "abc"},
		{"sequence_in_a_sequence", "a\x1b[3\x1b[31mb\x1b[0m\x1b\x1b[2Jc", "a\x1b[31mb\x1b[0mc"},
		{"long", "a\x1b[" + strings.Repeat("1;", 200) + "mb", "ab"},
		{"half_at_the_end", "a\x1b[3", "a"},
	} {
		t.Run(c.name, func(t *testing.T) {
			for size := 1; size <= len(c.in); size++ {
				var b bytes.Buffer
				f := &filter{w: &b}
				for rest := []byte(c.in); len(rest) > 0; {
					n := min(size, len(rest))
					if m, err := f.Write(rest[:n]); m != n || err != nil {
						t.Fatalf("Write: %d, %v; want %d", m, err, n)
					}
					rest = rest[n:]
				}
				f.close()
				if b.String() != c.want {
					t.Fatalf("%q, written %d bytes at a time: got %q, want %q", c.in, size, b.String(), c.want)
				}
			}
		})
	}
}

// Nothing that a terminal acts upon comes through, but colours.
func FuzzFilter(f *testing.F) {
	for _, s := range []string{"a\x1b[31mb", "\x1b]0;t\x07", "\x9b2J", "\x1bP\x1b\\x", "漢\x1b[38;5;1m"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var b bytes.Buffer
		w := &filter{w: &b}
		if _, err := w.Write(in); err != nil {
			t.Fatal(err)
		}
		w.close()
		out := b.String()
		if !utf8.ValidString(out) {
			t.Fatalf("%q gives %q, which is not UTF-8", in, out)
		}
		for len(out) > 0 {
			if rest, ok := strings.CutPrefix(out, "\x1b["); ok {
				rest = strings.TrimLeft(rest, "0123456789;:")
				if !strings.HasPrefix(rest, "m") {
					t.Fatalf("%q gives %q: an escape sequence that is no colour", in, b.String())
				}
				out = rest[1:]
				continue
			}
			r, n := utf8.DecodeRuneInString(out)
			if r < 0x20 && r != '\n' && r != '\t' && r != '\r' || r >= 0x7f && r < 0xa0 {
				t.Fatalf("%q gives %q: a control character", in, b.String())
			}
			out = out[n:]
		}
	})
}
