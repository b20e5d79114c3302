//go:build unix

package sandbox_test

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"

	"berth/sandbox"
)

func TestReadFile(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	if _, err := m.ReadFile(ctxOf(t), key, sandbox.ReadFileRequest{Path: "x"}); !errors.Is(err, sandbox.ErrNotFound) {
		t.Errorf("a session never seen: got %v", err)
	}
	sh(t, m, `seq 1 10 >ten; printf 'a\nb' >noend; : >empty; printf 'a\000b' >nul; printf '\211PNG\r\n\032\nxxxx' >p.png
		mkdir d; mkfifo fifo; seq 1 200000 >big; head -c 100000 /dev/zero | tr '\0' x >long; echo >>long; echo end >>long; printf 'caf\351 au lait, an old encoding, it is still text\n' >latin`)
	for _, c := range []struct {
		r                  sandbox.ReadFileRequest
		data               string
		first, last, lines int
		truncated          bool
		mime               string
	}{
		{r: sandbox.ReadFileRequest{Path: "ten"}, data: seq(10), first: 1, last: 10, lines: 10},
		{r: sandbox.ReadFileRequest{Path: "~/ten", Offset: 3, Limit: 2}, data: "3\n4\n", first: 3, last: 4, lines: 10, truncated: true},
		{r: sandbox.ReadFileRequest{Path: "ten", Offset: 10}, data: "10\n", first: 10, last: 10, lines: 10},
		{r: sandbox.ReadFileRequest{Path: "noend"}, data: "a\nb", first: 1, last: 2, lines: 2},
		{r: sandbox.ReadFileRequest{Path: "empty"}, lines: 0},
		{r: sandbox.ReadFileRequest{Path: "nul", Raw: true}, data: "a\x00b", lines: -1, mime: "application/octet-stream"},
		{r: sandbox.ReadFileRequest{Path: "p.png"}, data: "\x89PNG\r\n\x1a\nxxxx", lines: -1, mime: "image/png"},
		{r: sandbox.ReadFileRequest{Path: "latin"}, data: "caf\uFFFD au lait, an old encoding, it is still text\n", first: 1, last: 1, lines: 1},
		{r: sandbox.ReadFileRequest{Path: "long", Offset: 2}, data: "end\n", first: 2, last: 2, lines: 2},
		{r: sandbox.ReadFileRequest{Path: "big", Offset: 199999}, data: "199999\n200000\n", first: 199999, last: 200000, lines: 200000},
	} {
		got, err := m.ReadFile(ctxOf(t), key, c.r)
		if err != nil {
			t.Errorf("%+v: %v", c.r, err)
			continue
		}
		if c.mime == "" {
			c.mime = "text/plain"
		}
		if string(got.Data) != c.data || got.First != c.first || got.Last != c.last || got.Lines != c.lines || got.Truncated != c.truncated || got.MIME != c.mime {
			t.Errorf("%+v: got %.60q, lines %d-%d of %d, %v, %s", c.r, got.Data, got.First, got.Last, got.Lines, got.Truncated, got.MIME)
		}
	}
	big, err := m.ReadFile(ctxOf(t), key, sandbox.ReadFileRequest{Path: "big"})
	if err != nil || len(big.Data) > sandbox.MaxText || !big.Truncated || big.Lines != 200000 || !strings.HasSuffix(string(big.Data), fmt.Sprintf("\n%d\n", big.Last)) {
		t.Errorf("a big file: got %d bytes, to line %d of %d, %v", len(big.Data), big.Last, big.Lines, err)
	}
	long, err := m.ReadFile(ctxOf(t), key, sandbox.ReadFileRequest{Path: "long"})
	if err != nil || len(long.Data) > 10_000 || !strings.Contains(string(long.Data), "more bytes in this line]\nend\n") {
		t.Errorf("a long line: got %d bytes, %v", len(long.Data), err)
	}
	for path, want := range map[string]error{"missing": fs.ErrNotExist, "d": sandbox.ErrIsDir, "fifo": sandbox.ErrNotRegular, "nul": sandbox.ErrUnsupported} {
		if _, err := m.ReadFile(ctxOf(t), key, sandbox.ReadFileRequest{Path: path}); !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", path, err, want)
		}
	}
	if _, err := m.ReadFile(ctxOf(t), key, sandbox.ReadFileRequest{Path: "ten", Offset: 11}); err == nil || !strings.Contains(err.Error(), "10 lines") {
		t.Errorf("beyond the end: got %v", err)
	}
}

func TestWriteFileStartsAndKeeps(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	sh(t, m, "true")
	if _, err := m.StopSandbox(ctxOf(t), key, false); err != nil {
		t.Fatal(err)
	}
	res, err := m.WriteFile(ctxOf(t), key, sandbox.WriteFileRequest{Path: "a/b", Data: []byte("x\x00y")})
	if err != nil || !res.Created || res.Bytes != 3 || !res.Notice.Started {
		t.Errorf("got %+v, %v", res, err)
	}
	if res, err = m.WriteFile(ctxOf(t), key, sandbox.WriteFileRequest{Path: "a/b", Data: []byte("z"), Append: true}); err != nil || res.Created {
		t.Errorf("got %+v, %v", res, err)
	}
	if got := sh(t, m, "od -An -c a/b"); !strings.Contains(got.Stdout.Head, `x  \0   y   z`) {
		t.Errorf("got %q", got.Stdout.Head)
	}
	if _, err := m.WriteFile(ctxOf(t), key, sandbox.WriteFileRequest{Path: "a\x00b"}); err == nil {
		t.Error("a path with a NUL byte is taken")
	}
}

func TestEditFile(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	for _, c := range []struct {
		name, text string
		edits      []sandbox.Edit
		want       string
		diff       []string
		err        []string
	}{
		{name: "one", text: "a\nb\nc\n", edits: []sandbox.Edit{{OldText: "b", NewText: "B"}}, want: "a\nB\nc\n", diff: []string{"@@ -1,3 +1,3 @@\n a\n-b\n+B\n c\n"}},
		{name: "in order", text: "a\n", edits: []sandbox.Edit{{OldText: "a", NewText: "b"}, {OldText: "b", NewText: "c"}}, want: "c\n"},
		{name: "all", text: "x x\nx\n", edits: []sandbox.Edit{{OldText: "x", NewText: "y", ReplaceAll: true}}, want: "y y\ny\n"},
		{name: "delete", text: "a\nb\n", edits: []sandbox.Edit{{OldText: "b\n"}}, want: "a\n", diff: []string{"@@ -1,2 +1 @@\n a\n-b\n"}},
		{name: "no end", text: "a", edits: []sandbox.Edit{{OldText: "a", NewText: "b"}}, want: "b", diff: []string{"-a\n\\ No newline at end of file\n+b\n\\ No newline"}},
		{name: "crlf", text: "a\r\nb\r\nc\r\n", edits: []sandbox.Edit{{OldText: "a\nb", NewText: "x\ny\nz"}}, want: "x\r\ny\r\nz\r\nc\r\n"},
		{name: "crlf single", text: "a\r\nb\r\n", edits: []sandbox.Edit{{OldText: "b", NewText: "x\ny"}}, want: "a\r\nx\r\ny\r\n"},
		{name: "twice", text: "x\na\nx\n", edits: []sandbox.Edit{{OldText: "a", NewText: "b"}, {OldText: "x", NewText: "y"}}, err: []string{"edits.1.old_text", "2 times", "lines 1, 3", "nothing was changed"}},
		{name: "none", text: "  foo(a)\n", edits: []sandbox.Edit{{OldText: "foo(a)\nbar", NewText: "y"}}, err: []string{"edits.0.old_text", "not in", "line 1"}},
		{name: "binary", text: "a\x00b", edits: []sandbox.Edit{{OldText: "a", NewText: "c"}}, err: []string{"binary"}},
		{name: "two hunks", text: seq(30), edits: []sandbox.Edit{{OldText: "\n3\n", NewText: "\nthree\n"}, {OldText: "\n25\n", NewText: "\n"}}, want: strings.Replace(strings.Replace(seq(30), "\n3\n", "\nthree\n", 1), "\n25\n", "\n", 1),
			diff: []string{"@@ -1,6 +1,6 @@", "@@ -22,7 +22,6 @@"}},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			sh(t, m, "rm -f f; : >f; chmod 640 f")
			if _, err := m.WriteFile(ctxOf(t), key, sandbox.WriteFileRequest{Path: "f", Data: []byte(c.text)}); err != nil {
				t.Fatal(err)
			}
			res, err := m.EditFile(ctxOf(t), key, sandbox.EditFileRequest{Path: "f", Edits: c.edits})
			got, rerr := m.ReadFile(ctxOf(t), key, sandbox.ReadFileRequest{Path: "f", Raw: true})
			if rerr != nil {
				t.Fatal(rerr)
			}
			if c.err != nil {
				for _, part := range c.err {
					if err == nil || !strings.Contains(err.Error(), part) {
						t.Errorf("got error %v, want %q in it", err, part)
					}
				}
				if string(got.Data) != c.text {
					t.Errorf("it was changed to %q", got.Data)
				}
				return
			}
			if err != nil || string(got.Data) != c.want {
				t.Fatalf("got %q, %v; want %q", got.Data, err, c.want)
			}
			for _, part := range c.diff {
				if !strings.Contains(res.Diff, part) {
					t.Errorf("the diff lacks %q:\n%s", part, res.Diff)
				}
			}
			if got.File.Mode.Perm() != 0o640 {
				t.Errorf("mode is now %v", got.File.Mode)
			}
		})
	}
}

// A name that means a directory, or somebody's home, to every program is no
// file's to this one.
func TestNamesOfNoFile(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	sh(t, m, "printf kept >w")
	for _, name := range []string{"w/", "w/.", "sub/..", ".", "..", "~root/x", "~x"} {
		_, err := m.WriteFile(ctxOf(t), key, sandbox.WriteFileRequest{Path: name, Data: []byte("over")})
		var field *sandbox.FieldError
		if !errors.As(err, &field) || field.Field != "path" {
			t.Errorf("writing %q: %v, want that path is refused", name, err)
		}
	}
	if got := sh(t, m, "cat w"); got.Stdout.Head != "kept" {
		t.Errorf("the file beside them reads %q", got.Stdout.Head)
	}
}
