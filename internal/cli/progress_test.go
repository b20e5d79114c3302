package cli

import (
	"strings"
	"testing"

	"berth/sandbox"
)

// What takes long and is not measured is said, as the layers of the first sandbox
// are; lines of a build's log are others' to show.
func TestProgressWithoutTotal(t *testing.T) {
	var b strings.Builder
	p := newProgress(&App{Stderr: &b}, false)
	p.report(sandbox.Progress{Text: "silent, since this is no terminal"})
	p.on = true
	p.report(sandbox.Progress{Text: "a line", Log: true})
	p.report(sandbox.Progress{Text: "preparing\x1b[2J"})
	p.end(false)
	if got := b.String(); !strings.HasPrefix(got, "\r\x1b[Kpreparing") || strings.Count(got, "\x1b") != 2 || !strings.HasSuffix(got, "\r\x1b[K") {
		t.Errorf("drawn %q, want the one text, without its escape sequence, and then nothing", got)
	}
}
