package sandbox

import (
	"bytes"
	"testing"
)

// plainText stops at the first byte that is not to stay, wherever it stands.
func TestPlainText(t *testing.T) {
	slow := func(b []byte) int {
		for i, c := range b {
			if c < 0x20 && c != '\t' && c != '\n' || c >= 0x7f {
				return i
			}
		}
		return len(b)
	}
	for at := range 20 {
		for size := at; size < 24; size++ {
			for c := range 256 {
				b := bytes.Repeat([]byte("ab\n\t~ Z"), 4)[:size]
				if at < size {
					b[at] = byte(c)
				}
				if got, want := plainText(b), slow(b); got != want {
					t.Fatalf("plainText(%q) = %d, want %d", b, got, want)
				}
			}
		}
	}
}
