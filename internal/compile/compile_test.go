package compile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"berth/sandbox"
)

func TestMain(m *testing.M) {
	if code, ok := Main(os.Args); ok {
		os.Exit(code)
	}
	os.Exit(m.Run())
}

// disk is the files of a sandbox.
type disk struct {
	files map[string]string
	asked atomic.Int32
	hang  chan struct{} // not nil: Load tells it, and waits for its context
}

func (d *disk) Resolve(_ context.Context, i sandbox.Import) sandbox.Resolved {
	d.asked.Add(1)
	p := "/w/" + strings.TrimPrefix(i.Path, "./")
	if _, ok := d.files[p]; !ok {
		return sandbox.Resolved{Path: i.Path, External: true}
	}
	return sandbox.Resolved{Path: p}
}

func (d *disk) Load(ctx context.Context, path string) sandbox.Loaded {
	if d.hang != nil {
		d.hang <- struct{}{}
		<-ctx.Done()
	}
	text, ok := d.files[path]
	if !ok {
		return sandbox.Loaded{Problem: "there is no file " + path}
	}
	return sandbox.Loaded{Text: []byte(text)}
}

func newChildren(t *testing.T) *processes {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return New(exe, nil).(*processes)
}

func ts(code string) sandbox.CompileJob {
	return sandbox.CompileJob{Code: code, Language: sandbox.TypeScript, Entry: "/w/run_code.ts", Bundle: strings.Contains(code, "./")}
}

// The two implementations give the same.
func TestSame(t *testing.T) {
	c := newChildren(t)
	d := &disk{files: map[string]string{"/w/a.ts": "export const a: string = __filename", "/w/b.json": `{"b": 1}`, "/w/bad.ts": "let = = 1", "/w/é\xff.ts": "export const x = '\xff'"}}
	for _, code := range []string{
		"const n: number = 1; console.log(n)",
		"import {a} from './a.ts'; import b from './b.json'; import 'fs'; console.log(a, b)",
		"import './bad.ts'", "import './gone.ts'", "let x = ;", "import 'data:text/javascript," + strings.Repeat("1", 100_000) + "'; import './a.ts'",
	} {
		for _, lang := range []sandbox.Language{sandbox.TypeScript, sandbox.JavaScript} {
			j := ts(code)
			j.Language = lang
			want, err := InProcess().Compile(t.Context(), j, d)
			if err != nil {
				t.Fatal(err)
			}
			got, err := c.Compile(t.Context(), j, d)
			if err != nil || got != want || got.Text == "" && got.Fault == "" {
				t.Errorf("%s %.60q: got %+v, %v; want %+v", lang, code, got, err, want)
			}
		}
	}
}

// Every kind of nesting ends the child and not this process, and nothing of it
// stays; the compiler still works.
func TestNesting(t *testing.T) {
	c := newChildren(t)
	const n = 500_000
	for name, code := range map[string]string{
		"arrays":      "let x=" + strings.Repeat("[", n),
		"parentheses": "let x=" + strings.Repeat("(", n),
		"nots":        strings.Repeat("!", 1_000_000) + "1",
		"arrows":      "let x=" + strings.Repeat("a=>", 300_000) + "1",
		"ternaries":   "let x=" + strings.Repeat("a?", n) + "1",
		"types":       "let x: " + strings.Repeat("[", n),
		"generics":    "let x: " + strings.Repeat("A<", n),
		"templates":   "let x=" + strings.Repeat("`${", 300_000),
		"blocks":      strings.Repeat("{", n),
		"functions":   strings.Repeat("function f(){", 70_000),
		"classes":     "let x=" + strings.Repeat("class{[", 140_000),
		"objects":     "let x=" + strings.Repeat("{a:", 300_000),
		"else":        strings.Repeat("if(a);else ", 90_000),
		"binary":      "let x=" + strings.Repeat("a**", 300_000) + "1",
	} {
		t.Run(name, func(t *testing.T) { tooComplex(t, c, ts(code), &disk{}) })
	}
	t.Run("javascript", func(t *testing.T) {
		j := ts("let x=" + strings.Repeat("[", n))
		j.Language = sandbox.JavaScript
		tooComplex(t, c, j, &disk{})
	})
	for name, text := range map[string]string{"a.ts": strings.Repeat("(", n), "a.tsx": "let x=" + strings.Repeat("<a>", n), "a.json": strings.Repeat("[", n), "b.ts": "__filename;" + strings.Repeat("(", n)} {
		t.Run("imported_"+name, func(t *testing.T) {
			tooComplex(t, c, ts("import './"+name+"'"), &disk{files: map[string]string{"/w/" + name: text}})
		})
	}
	t.Run("many_files", func(t *testing.T) {
		d, code := &disk{files: map[string]string{}}, ""
		for i := range 250 {
			d.files[fmt.Sprintf("/w/%d.ts", i)] = "export default " + strings.Repeat("(", 15_000) + "1" + strings.Repeat(")", 15_000)
			code += fmt.Sprintf("import './%d.ts'\n", i)
		}
		if _, err := c.Compile(t.Context(), ts(code), d); err != nil && !errors.As(err, new(*sandbox.TooComplexError)) {
			t.Error(err)
		}
	})
	if res, err := c.Compile(t.Context(), ts("let n: number = 1"), &disk{}); err != nil || !strings.HasPrefix(res.Text, "let n = 1") {
		t.Errorf("afterwards: %+v, %v", res, err)
	}
}

func tooComplex(t *testing.T, c *processes, j sandbox.CompileJob, d *disk) {
	t.Helper()
	start := time.Now()
	_, err := c.Compile(t.Context(), j, d)
	if !errors.As(err, new(*sandbox.TooComplexError)) || !strings.HasPrefix(err.Error(), "it is nested too deeply or too large to be compiled (limit: 10 seconds,") {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if len(c.turns) != 0 {
		t.Error("a turn is not given back")
	}
	noChildren(t)
}

// A context that ends kills the child, and the answer is the context's.
func TestCancel(t *testing.T) {
	c := newChildren(t)
	ctx, cancel := context.WithCancel(t.Context())
	d := &disk{files: map[string]string{"/w/a.ts": ""}, hang: make(chan struct{}, 1)}
	go func() {
		<-d.hang
		cancel()
	}()
	if _, err := c.Compile(ctx, ts("import './a.ts'"), d); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	noChildren(t)
}

// At most four work at a time; a fifth waits, and gives up with its context.
func TestTurns(t *testing.T) {
	c := newChildren(t)
	ctx, cancel := context.WithCancel(t.Context())
	d := &disk{files: map[string]string{"/w/a.ts": ""}, hang: make(chan struct{})}
	var all sync.WaitGroup
	for range maxChildren {
		all.Go(func() { _, _ = c.Compile(ctx, ts("import './a.ts'"), d) })
	}
	for range maxChildren {
		<-d.hang
	}
	fifth, giveUp := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := c.Compile(fifth, ts("let n = 1"), d)
		done <- err
	}()
	select {
	case err := <-done:
		t.Errorf("it did not wait: %v", err)
	case <-time.After(100 * time.Millisecond):
	}
	giveUp()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	cancel()
	all.Wait()
	noChildren(t)
}

// A child is not believed.
func TestHostileChild(t *testing.T) {
	if _, err := exec.LookPath("/bin/sh"); err != nil {
		t.Skip("no /bin/sh")
	}
	const ready = `echo '{"ready":true}'; read job; `
	for name, script := range map[string]string{
		"endless line":  ready + `exec tr '\0' a </dev/zero`,
		"nonsense":      ready + `echo '{'`,
		"nothing":       ready + `echo '{}'`,
		"asks too much": ready + `yes '{"resolve":{"Path":"./a","Importer":"/"}}' & exec cat >/dev/null`,
		"long path":     ready + `printf '{"load":"%0100000d"}\n' 1`,
		"ends":          ready + `exit 0`,
	} {
		t.Run(strings.ReplaceAll(name, " ", "_"), func(t *testing.T) {
			c := &processes{program: fake(t, script), log: newChildren(t).log, turns: make(chan struct{}, 1)}
			d := &disk{}
			if _, err := c.Compile(t.Context(), ts("let n = 1"), d); !errors.As(err, new(*sandbox.TooComplexError)) {
				t.Errorf("got %v", err)
			}
			if n := d.asked.Load(); n > maxAsks {
				t.Errorf("it asked %d times", n)
			}
			noChildren(t)
		})
	}
	t.Run("clean", func(t *testing.T) {
		t.Setenv("SECRET", "x")
		c := &processes{program: fake(t, ready+`printf '{"result":{"Fault":"no secret: %s"}}\n' "$SECRET"`), log: newChildren(t).log, turns: make(chan struct{}, 1)}
		if res, err := c.Compile(t.Context(), ts("let n = 1"), &disk{}); err != nil || res.Fault != "no secret: " {
			t.Errorf("got %+v, %v", res, err)
		}
	})
	t.Run("not_started", func(t *testing.T) {
		c := &processes{program: fake(t, "echo broken >&2; exit 1"), log: newChildren(t).log, turns: make(chan struct{}, 1)}
		if _, err := c.Compile(t.Context(), ts("let n = 1"), &disk{}); err == nil || !strings.Contains(err.Error(), "did not start") || !strings.Contains(err.Error(), "broken") {
			t.Errorf("got %v", err)
		}
	})
}

func fake(t *testing.T, script string) string {
	t.Helper()
	p := t.TempDir() + "/child"
	if err := os.WriteFile(p, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return p
}

// The fault of a long line quotes what is near its column.
func TestFaultIsShort(t *testing.T) {
	code := "let x = '" + strings.Repeat("é", 30_000) + "' ] '" + strings.Repeat("b", 30_000) + "'"
	res, err := InProcess().Compile(t.Context(), ts(code), &disk{})
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(res.Fault, "\n")
	if len(res.Fault) > 500 || len(lines) != 3 || !strings.HasPrefix(lines[0], "run_code.ts:1:") || !strings.Contains(lines[1], "é' ] 'b") {
		t.Fatalf("got %d bytes: %.1000s", len(res.Fault), res.Fault)
	}
	if at := len([]rune(lines[2])) - 1; string([]rune(lines[1])[at]) != "]" {
		t.Errorf("the mark is not below the bracket:\n%s", res.Fault)
	}
	if res, _ = InProcess().Compile(t.Context(), ts("let "+strings.Repeat("a", 50_000)+"; let "+strings.Repeat("a", 50_000)), &disk{}); len(res.Fault) > 1000 || res.Fault == "" {
		t.Errorf("a long name: %d bytes", len(res.Fault))
	}
}
