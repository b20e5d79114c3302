package sandbox

import (
	"context"
	"math"
	"math/rand/v2"
	"path"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestClean(t *testing.T) {
	for in, want := range map[string]string{
		"a\r\nb\r\n":                        "a\nb\n",
		"1%\r2%\r3%":                        "3%",
		"1%\r2%\r\nx":                       "2%\nx",
		"bar\r":                             "bar",
		"\x1b[1;31mred\x1b[0m":              "red",
		"\x1b]0;title\x07text":              "text",
		"\x1b]8;;http://x\x1b\\link":        "link",
		"\x1b(Bx\x1b=y\x1b7z":               "xyz",
		"a\x1b[31":                          "a",
		"a\x1b[\x01b":                       "ab",
		"a\bb":                              "b",
		"a\x00b\x07c":                       "a\uFFFDbc",
		"\xff€\u0085x":                      "\uFFFD€x",
		"\x1b]" + strings.Repeat("x", 5000): strings.Repeat("x", 5000),
		"tab\tstays":                        "tab\tstays",
	} {
		if got := clean([]byte(in)); got != want {
			t.Errorf("clean(%.40q): got %.60q, want %.60q", in, got, want)
		}
	}
}

func TestParseCursor(t *testing.T) {
	for _, s := range []string{"", "c", "c1", "c1.", "c.1", "1.2", "c-1.0", "c01.0", "c1.2.3", "c1.2 ", "c9223372036854775808.0", "c+1.0"} {
		if c, err := ParseCursor(s); err == nil {
			t.Errorf("ParseCursor(%q): got %v", s, c)
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add("c0.0")
	f.Add("c12.9223372036854775807")
	f.Fuzz(func(t *testing.T, s string) {
		if c, err := ParseCursor(s); err == nil && (c.String() != s || c.Stdout < 0 || c.Stderr < 0) {
			t.Errorf("ParseCursor(%q): got %v", s, c)
		}
	})
}

func FuzzClean(f *testing.F) {
	for _, s := range []string{"a\x1b[31mb", "\x1b]0;x\x07", "é\r\n\b", "\x1bP\x1b\\", "\xe2\x82"} {
		f.Add([]byte(s), uint16(3))
	}
	f.Fuzz(func(t *testing.T, b []byte, at uint16) {
		got := clean(b)
		if !utf8.ValidString(got) || strings.ContainsAny(got, "\x1b\r\x00\b") {
			t.Errorf("clean(%q): got %q", b, got)
		}
		h := incomplete(b)
		if h < 0 || h > len(b) || h > 2*maxEscape {
			t.Fatalf("incomplete(%q): got %d", b, h)
		}
		// What is shown in two pieces, with the unfinished held back, is free of
		// sequences like the whole.
		cut := min(int(at), len(b))
		cut -= incomplete(b[:cut])
		two := append(append([]byte(nil), stripEscapes(b[:cut])...), stripEscapes(b[cut:])...)
		if len(b) < maxEscape && string(two) != string(stripEscapes(b)) {
			t.Errorf("stripEscapes of %q and %q gives %q, of both %q", b[:cut], b[cut:], two, stripEscapes(b))
		}
	})
}

// memory is a process whose output is in memory.
type memory struct {
	Process
	out, err []byte
	info     ProcessInfo
}

func (m *memory) Read(_ context.Context, c Cursor, most int64) (Output, error) {
	take := func(b []byte, at, kept int64) ([]byte, int64, int64) {
		gone := max(0, kept-at)
		at += gone
		n := max(0, min(most, int64(len(b))-at, 1+rand.Int64N(500)))
		most -= n
		return b[min(at, int64(len(b))):][:n], at + n, gone
	}
	var o Output
	var a, b int64
	o.Stdout, o.Next.Stdout, a = take(m.out, c.Stdout, m.info.Kept.Stdout)
	o.Stderr, o.Next.Stderr, b = take(m.err, c.Stderr, m.info.Kept.Stderr)
	o.Dropped = a + b
	return o, nil
}

func FuzzOutput(f *testing.F) {
	f.Add([]byte(strings.Repeat("line of text\n", 50)), []byte("é€"), uint16(100), uint16(3), true)
	f.Add([]byte(strings.Repeat("\x1b[31mé", 90)), []byte(nil), uint16(50), uint16(0), false)
	f.Fuzz(func(t *testing.T, out, errs []byte, budget, kept uint16, ended bool) {
		p := &memory{out: out, err: errs}
		p.info = ProcessInfo{Produced: Cursor{int64(len(out)), int64(len(errs))}, State: ProcessRunning}
		p.info.Kept.Stdout = min(int64(kept), p.info.Produced.Stdout)
		if ended {
			p.info.State = ProcessExited
		}
		most := int64(budget) + 16
		var res RunResult
		if err := collect(t.Context(), p, p.info, Cursor{}, most, &res); err != nil {
			t.Fatal(err)
		}
		for _, x := range []Text{res.Stdout, res.Stderr} {
			if !utf8.ValidString(x.Head) || !utf8.ValidString(x.Tail) || x.Cut < 0 {
				t.Errorf("got %+v", x)
			}
		}
		end, err := ParseCursor(res.Cursor)
		if err != nil || ended && end != p.info.Produced || res.Dropped != p.info.Kept.Stdout {
			t.Errorf("cursor %s of %v, dropped %d of %v", res.Cursor, p.info.Produced, res.Dropped, p.info.Kept)
		}
		if (res.Stdout.Cut+res.Stderr.Cut > 0) != (res.CutCursor != "") {
			t.Errorf("cut %d and %d, but cursor %q", res.Stdout.Cut, res.Stderr.Cut, res.CutCursor)
		}
		// Reading page by page gets to the end, and joins to all bytes.
		at, got := Cursor{}, 0
		for range 20000 {
			var r RunResult
			if err := page(t.Context(), p, p.info, at, most, true, &r); err != nil {
				t.Fatal(err)
			}
			next, _ := ParseCursor(r.Cursor)
			got += len(r.RawStdout) + len(r.RawStderr)
			if next == at {
				break
			}
			at = next
		}
		if want := len(out) + len(errs) - int(p.info.Kept.Stdout); got != want || at != p.info.Produced {
			t.Errorf("the pages have %d bytes to %v, want %d to %v", got, at, want, p.info.Produced)
		}
		// Cleaned pages get to the end too, but for what is held back.
		at = Cursor{}
		for range 20000 {
			var r RunResult
			if err := page(t.Context(), p, p.info, at, most, false, &r); err != nil {
				t.Fatal(err)
			}
			next, _ := ParseCursor(r.Cursor)
			if next == at {
				break
			}
			if at = next; !utf8.ValidString(r.Stdout.Head) {
				t.Errorf("invalid UTF-8: %q", r.Stdout.Head)
			}
		}
		if ended && at != p.info.Produced {
			t.Errorf("the cleaned pages end at %v of %v", at, p.info.Produced)
		}
		var n RunResult
		if err := newest(t.Context(), p, p.info, most, 0, true, &n); err != nil || int64(len(n.RawStdout)+len(n.RawStderr)) > most {
			t.Errorf("newest: %d bytes of %d, %v", len(n.RawStdout)+len(n.RawStderr), most, err)
		}
	})
}

func FuzzEdit(f *testing.F) {
	f.Add("a\nb\nc\n", "b", "x\ny", false)
	f.Add("a\r\nb\r\n", "a\nb", "c", true)
	f.Fuzz(func(t *testing.T, text, old, to string, all bool) {
		if old == "" {
			return
		}
		got, n, err := applyEdits(text, []Edit{{OldText: old, NewText: to, ReplaceAll: all}}, "f")
		if err != nil {
			return
		}
		if n < 1 || !all && n != 1 {
			t.Errorf("%d replacements", n)
		}
		// The diff, applied, gives the new text.
		x, _ := splitLines(text, math.MaxInt)
		y, _ := splitLines(got, math.MaxInt)
		var joined []string
		at := 0
		for _, c := range compareLines(x, y) {
			if c.x0 < at || c.x1 < c.x0 || c.y1 < c.y0 {
				t.Fatalf("changes are out of order: %+v", c)
			}
			joined = append(append(joined, x[at:c.x0]...), y[c.y0:c.y1]...)
			at = c.x1
		}
		joined = append(joined, x[at:]...)
		if strings.Join(joined, "") != got {
			t.Errorf("the diff gives %q, want %q", strings.Join(joined, ""), got)
		}
		if !utf8.ValidString(unifiedDiff("f", text, got)) {
			t.Error("the diff is not UTF-8")
		}
	})
}

func FuzzResolve(f *testing.F) {
	for _, s := range []string{"", "~", "~/x", "../../etc", "/a//b/../c", "a/./b", "~user"} {
		f.Add(s)
	}
	info := Info{Home: "/home/agent", Spec: Spec{WorkingDirectory: "/workspace"}}
	f.Fuzz(func(t *testing.T, s string) {
		if got := resolve(info, s); !path.IsAbs(got) || path.Clean(got) != got {
			t.Errorf("resolve(%q): got %q", s, got)
		}
	})
}
