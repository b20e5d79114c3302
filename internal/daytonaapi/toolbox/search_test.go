//go:build linux

package toolbox_test

import (
	"fmt"
	"io"
	"runtime"
	"strings"
	"testing"
	"testing/iotest"

	"berth/internal/daytonaapi/toolbox"
)

func TestFindSearchReplace(t *testing.T) {
	w := newWorld(t)
	w.put("/tmp/d/a.txt", "one needle\nnothing\nneedle.* needle")
	w.put("/tmp/d/sub/b.go", "x\r\nneedle in b\r\n")
	w.put("/tmp/d/bin", "\x00needle\n")
	w.put("/tmp/d/long", "needle\n"+strings.Repeat("x", 70<<10)+"\nneedle\n")
	w.run("mkfifo /tmp/d/fifo; ln -s a.txt /tmp/d/link; mkdir -m 0 /tmp/d/closed; chmod 600 /tmp/d/a.txt")
	var found []struct {
		File    string
		Line    int
		Content string
	}
	w.do("GET", "/files/find?path=/tmp/d&pattern=needle", nil, 200, &found)
	got := ""
	for _, f := range found {
		got += fmt.Sprintf("%s:%d:%s|", strings.TrimPrefix(f.File, "/tmp/d/"), f.Line, f.Content)
	}
	if want := "a.txt:1:one needle|a.txt:3:needle.* needle|long:1:needle|sub/b.go:2:needle in b\r|"; got != want {
		t.Errorf("find: %q, want %q", got, want)
	}
	w.do("GET", "/files/find?path=/tmp/d/a.txt&pattern=needle.*", nil, 200, &found)
	if len(found) != 1 || found[0].Line != 3 {
		t.Errorf("find in one file: %+v", found)
	}
	w.do("GET", "/files/find?path=/tmp/none&pattern=x", nil, 200, &found)
	if len(found) != 0 {
		t.Errorf("find nowhere: %+v", found)
	}
	w.problem(w.do("GET", "/files/find?path=/tmp", nil, 400, nil), 400, "BAD_REQUEST", "pattern")
	var names struct{ Files []string }
	w.do("GET", "/files/search?path=/tmp/d&pattern=*.[tg][xo]*", nil, 200, &names)
	if got := strings.Join(names.Files, " "); got != "/tmp/d/a.txt /tmp/d/sub/b.go" {
		t.Errorf("search: %s", got)
	}
	w.problem(w.do("GET", "/files/search?path=/tmp/d&pattern=[", nil, 400, nil), 400, "BAD_REQUEST", "pattern")
	w.problem(w.do("GET", "/files/search?path=/tmp/none&pattern=*", nil, 404, nil), 404, "FILE_NOT_FOUND", "/tmp/none")

	var results []struct {
		File    string
		Success bool
		Error   string
	}
	w.do("POST", "/files/replace", m{"files": []string{"/tmp/d/a.txt", "/tmp/d/sub/b.go", "/tmp/d/none", "/tmp/d/long"}, "pattern": "needle", "newValue": "$1\\"}, 200, &results)
	if len(results) != 4 || !results[0].Success || !results[1].Success || results[2].Success || results[2].Error == "" || !results[3].Success {
		t.Errorf("replace: %+v", results)
	}
	if got := w.get("/tmp/d/a.txt"); got != "one $1\\\nnothing\n$1\\.* $1\\" {
		t.Errorf("replaced: %q", got)
	}
	if got := w.run("stat -c %a /tmp/d/a.txt"); got != "600\n" {
		t.Errorf("the mode: %q", got)
	}
	w.do("POST", "/files/replace", m{"files": []string{"/tmp/d/a.txt"}, "pattern": "$1\\", "newValue": ""}, 200, &results)
	if got := w.get("/tmp/d/a.txt"); got != "one \nnothing\n.* " {
		t.Errorf("replaced by nothing: %q", got)
	}
	for _, bad := range []m{{"pattern": "x", "newValue": "y"}, {"files": []string{"/tmp/d/bin"}, "newValue": "y"}, {"files": []string{"/tmp/d/bin"}, "pattern": "x"}} {
		w.problem(w.do("POST", "/files/replace", bad, 400, nil), 400, "BAD_REQUEST", "")
	}
}

// What a search finds is held by the server: one that finds too much is refused.
func TestSearchesAreBounded(t *testing.T) {
	w := newWorld(t)
	// Lines of nearly 64 KiB; and names of nearly 4 KiB.
	w.run(`mkdir /tmp/l; cd /tmp/l; yes "$(head -c 64000 /dev/zero | tr '\0' x)" | head -n 200 >a; cp a b`)
	w.problem(w.do("GET", "/files/find?path=/tmp/l&pattern=x", nil, 400, nil), 400, "BAD_REQUEST", "16 MiB")
	var found []struct{ Content string }
	w.do("GET", "/files/find?path=/tmp/l/a&pattern=x", nil, 200, &found)
	if len(found) != 200 {
		t.Errorf("found %d lines, want 200", len(found))
	}
	w.run(`cd /tmp/l; cat a b >c`)
	w.problem(w.do("GET", "/files/find?path=/tmp/l/c&pattern=x", nil, 400, nil), 400, "BAD_REQUEST", "16 MiB")

	w.run(`mkdir /tmp/n; cd /tmp/n; d=$(head -c 250 /dev/zero | tr '\0' d); for i in $(seq 15); do mkdir $d; cd -P $d; done; seq 5000 | xargs touch`)
	w.problem(w.do("GET", "/files?path=/tmp/n&depth=20", nil, 400, nil), 400, "BAD_REQUEST", "16 MiB")
	w.problem(w.do("GET", "/files/search?path=/tmp/n&pattern=*", nil, 400, nil), 400, "BAD_REQUEST", "16 MiB")
	var names struct{ Files []string }
	w.do("GET", "/files/search?path=/tmp/n&pattern=1*", nil, 200, &names)
	if len(names.Files) != 1111 {
		t.Errorf("found %d names, want 1111", len(names.Files))
	}
}

// A file that is full of what is replaced by a long text takes no memory: what it
// comes to is made as it is written.
func TestReplacerIsBounded(t *testing.T) {
	r := toolbox.NewReplacer(strings.NewReader(strings.Repeat("a", 64<<10)), []byte("a"), make([]byte, 1<<20))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	n, err := io.CopyN(io.Discard, r, 256<<20)
	runtime.ReadMemStats(&after)
	if made := after.TotalAlloc - before.TotalAlloc; err != nil || n != 256<<20 || made > 8<<20 {
		t.Errorf("256 MiB of 64 GiB were read as %d, %v, and took %d bytes", n, err, made)
	}
}

func FuzzReplacer(f *testing.F) {
	f.Add("aXbXXc", "X", "yy")
	f.Add(strings.Repeat("aab", 30000), "aaba", "")
	f.Add("", "x", "y")
	f.Fuzz(func(t *testing.T, text, old, replacement string) {
		if old == "" {
			return
		}
		want := strings.ReplaceAll(text, old, replacement)
		for _, r := range []io.Reader{strings.NewReader(text), iotest.OneByteReader(strings.NewReader(text)), iotest.DataErrReader(strings.NewReader(text))} {
			got, err := io.ReadAll(toolbox.NewReplacer(r, []byte(old), []byte(replacement)))
			if err != nil || string(got) != want {
				t.Errorf("replace %q in %q: %q, %v, want %q", old, text, got, err, want)
			}
		}
	})
}
