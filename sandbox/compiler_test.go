//go:build unix

package sandbox_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"berth/sandbox"
)

// asking is a Compiler that does what a hostile child might.
type asking func(context.Context, sandbox.Imports) (sandbox.Compiled, error)

func (a asking) Compile(ctx context.Context, _ sandbox.CompileJob, i sandbox.Imports) (sandbox.Compiled, error) {
	return a(ctx, i)
}

// What is asked for files is bounded, whoever asks.
func TestImportsAreBounded(t *testing.T) {
	var problems []string
	m, _ := newFake(t, sandbox.Options{Compiler: asking(func(ctx context.Context, i sandbox.Imports) (sandbox.Compiled, error) {
		problems = append(problems, i.Load(ctx, "/etc/passwd").Problem)
		problems = append(problems, i.Resolve(ctx, sandbox.Import{Path: "./a\x00b", Importer: "/"}).Problem)
		problems = append(problems, i.Resolve(ctx, sandbox.Import{Path: "/" + strings.Repeat("a", 9000), Importer: "/"}).Problem)
		return sandbox.Compiled{}, &sandbox.TooComplexError{Limits: "none"}
	})})
	_, err := m.RunCode(ctxOf(t), key, sandbox.RunCodeRequest{Language: sandbox.TypeScript, Code: "import './0.json'"})
	if err == nil || err.Error() != "code: it is nested too deeply or too large to be compiled (limit: none); simplify it, or run it from a file with execute_command; nothing was run" {
		t.Errorf("got %v", err)
	}
	if len(problems) != 3 || !strings.Contains(problems[0], "no file /etc/passwd") || !strings.Contains(problems[1], "is no path") || !strings.Contains(problems[2], "is no path") {
		t.Errorf("got %q", problems)
	}
}

// Files that are resolved are held in memory before any is loaded.
func TestImportsHeld(t *testing.T) {
	var texts int
	var last string
	m, _ := newFake(t, sandbox.Options{Compiler: asking(func(ctx context.Context, i sandbox.Imports) (sandbox.Compiled, error) {
		var found []string
		for n := range 8 {
			r := i.Resolve(ctx, sandbox.Import{Path: fmt.Sprintf("/home/agent/%d.json", n), Importer: "/", Kind: sandbox.ImportStatement})
			if r.Problem != "" {
				return sandbox.Compiled{Fault: r.Problem}, nil
			}
			found = append(found, r.Path)
		}
		for _, p := range found {
			l := i.Load(ctx, p)
			texts += len(l.Text)
			last = l.Problem
		}
		return sandbox.Compiled{Fault: "done"}, nil
	})})
	sh(t, m, `for i in 0 1 2 3 4 5 6 7; do head -c 1900000 /dev/zero >$i.json; done; pwd`)
	_, err := m.RunCode(ctxOf(t), key, sandbox.RunCodeRequest{Language: sandbox.TypeScript, Code: "import './0.json'"})
	if err == nil || texts > 8<<20 || texts < 7_000_000 || !strings.Contains(last, "too much is imported") {
		t.Errorf("%d bytes, last %q, %v", texts, last, err)
	}
}
