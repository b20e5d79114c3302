package sandbox

import (
	"context"
	"encoding/json"
	"fmt"
	"net/url"
	"path"
	"regexp"
	"strconv"
	"strings"
)

// maxArgCode is how long a program may be that node gets as an argument.
const maxArgCode = 100 << 10

// RunCode runs a program in a fresh interpreter and waits like ExecuteCommand.
// Nothing is kept between calls. The program sees the working directory as if
// it were a file there: relative imports and packages resolve from it.
func (m *Manager) RunCode(ctx context.Context, key Key, r RunCodeRequest) (*RunResult, error) {
	var f faults
	r.check(&f, false)
	m.checkUser(ctx, key, r.User, &f)
	if r.Command != "" || len(r.Argv) > 0 {
		f.add("command", "run_code has none", "code", "")
	}
	f.code(r.Language, r.Code)
	wait := parseSpan(&f, "wait_seconds", r.Wait, MaxWait)
	if err := f.err(); err != nil {
		return nil, err
	}
	return m.foreground(ctx, key, r.RunRequest, wait, func(ctx context.Context, b *box) (Command, error) {
		return m.program(ctx, b, &r.RunRequest, r.Language, r.Code, nil)
	})
}

// code checks a program.
func (f *faults) code(lang Language, text string) {
	switch lang {
	case "", Python, JavaScript, TypeScript, Bash:
	default:
		f.add("language", fmt.Sprintf("%.40q is not known", lang), "python, javascript, typescript, bash", "execute_command runs other interpreters")
	}
	switch {
	case strings.TrimSpace(text) == "":
		f.add("code", "it is missing", "the text of a program", "")
	case len(text) > MaxCommand:
		f.add("code", fmt.Sprintf("it has %d bytes", len(text)), "at most 1,048,576", "write it with write_file and run that")
	}
	f.noNUL("code", text)
}

func (r *SpawnRequest) checkCode(f *faults) {
	if r.Command != "" || len(r.Argv) > 0 {
		f.add("command", "code is given too", "one of command and code", "")
	}
	f.code(r.Language, r.Code)
	args := RunRequest{Argv: append([]string{"program"}, r.Args...)}
	args.check(f, true)
}

// program makes the command that runs a program in the sandbox b.
func (m *Manager) program(ctx context.Context, b *box, r *RunRequest, lang Language, text string, args []string) (Command, error) {
	info := b.info
	if lang == "" {
		lang = info.Spec.Language
	}
	if lang == "" {
		lang = TypeScript
	}
	program, ok := info.Runtimes[lang]
	if !ok && lang != Bash {
		return Command{}, missing(lang, info)
	}
	code := source{Compiled: Compiled{Text: text}, args: args}
	if lang == JavaScript || lang == TypeScript {
		var err error
		cwd := resolve(info, r.Cwd)
		if code.Compiled, err = m.prepare(ctx, b.inst.Files(), cwd, text, lang); err != nil {
			return Command{}, err
		}
		code.file = programFile(cwd, lang)
	}
	c, err := program2command(lang, program, code, r.Stdin)
	c.Display = "run_code " + string(lang)
	return c, err
}

// source is a program as its interpreter gets it.
type source struct {
	Compiled
	file string   // what JavaScript is told it is; nothing is there
	args []string // of the program
}

// programFile is the file that a program of run_code would be.
func programFile(cwd string, lang Language) string {
	if lang == TypeScript {
		return path.Join(cwd, "run_code.ts")
	}
	return path.Join(cwd, "run_code.js")
}

// literal is s as JavaScript writes it.
func literal(s string) string {
	t, err := json.Marshal(s)
	if err != nil {
		panic(err) // a string always can be
	}
	return string(t)
}

// program2command makes the command that runs code. Its stdin is complete only
// when it is not empty; the caller's is then part of it.
func program2command(lang Language, program string, code source, stdin *string) (Command, error) {
	switch lang {
	case Bash:
		if len(code.args) > 0 {
			return Command{Argv: append([]string{"bash", "-c", code.Text, "run_code.sh"}, code.args...)}, nil
		}
		return Command{Shell: code.Text}, nil
	case Python:
		input := code.Text
		if stdin != nil {
			input += *stdin
		}
		return Command{Argv: append([]string{program, "-u", "-c", pythonRunner, strconv.Itoa(len(code.Text))}, code.args...), Stdin: []byte(input)}, nil
	default:
		return node(program, code, stdin)
	}
}

// pythonRunner reads as many bytes of stdin as its argument says, and runs them
// as the main module; the rest of stdin is the program's. The source is made
// known to linecache, so that tracebacks quote it; the runner's own frame is
// left out of them. The name __file__ is a builtin and no attribute of the
// main module, since multiprocessing would run the file that is named there.
const pythonRunner = `import sys
def run():
    import os, linecache, traceback, builtins
    left = int(sys.argv[1])
    sys.argv[:2] = ['run_code.py']
    parts = []
    while left > 0:
        part = os.read(0, left)
        if not part:
            break
        parts.append(part)
        left -= len(part)
    text = b''.join(parts).decode('utf-8', 'replace')
    linecache.cache['run_code.py'] = (len(text), None, text.splitlines(True), 'run_code.py')
    def hook(kind, error, tb):
        while tb is not None and tb.tb_frame.f_code.co_filename != 'run_code.py':
            tb = tb.tb_next
        traceback.print_exception(kind, error, tb)
    sys.excepthook = hook
    builtins.__file__ = os.path.join(os.getcwd(), 'run_code.py')
    main = sys.modules['__main__'].__dict__
    del main['run'], main['sys']
    exec(compile(text, 'run_code.py', 'exec'), main)
run()
`

// nodeGlobals gives an ES module what a CommonJS one has. It is a module of its
// own, imported by a line after the program, so that no line or column moves;
// imports come before all code wherever they stand.
const nodeGlobals = `import {createRequire} from "node:module";
const d = process.cwd(), m = {exports: {}};
Object.assign(globalThis, {require: createRequire(d + "/"), module: m, exports: m.exports, __dirname: d, __filename: `

// node makes the command that runs JavaScript. A program with imports, exports
// or await at its top is an ES module, any other CommonJS, where old code runs
// as it always did; require works in both.
func node(program string, code source, stdin *string) (Command, error) {
	argv := []string{program}
	if code.Mapped {
		argv = append(argv, "--enable-source-maps")
	}
	kind, text, name := "commonjs", code.Text, code.file
	switch {
	case code.Module:
		kind, name = "module", (&url.URL{Scheme: "file", Path: code.file}).String()
		text += "\n;import " + strconv.Quote("data:text/javascript,"+url.PathEscape(nodeGlobals+literal(code.file)+"});")) + ";"
	case strings.Contains(text, "__filename") || strings.Contains(text, "__dirname"):
		text = placedScript(text, code.file)
	}
	if !code.Mapped {
		text += "\n//# sourceURL=" + sourceURL.Replace(name) // for traces
	}
	argv = append(argv, "--input-type="+kind)
	if len(text) <= maxArgCode {
		argv = append(argv, "--eval", text)
		if len(code.args) > 0 { // after what is the program's name to it
			argv = append(append(argv, "--", code.file), code.args...)
		}
		return Command{Argv: argv}, nil
	}
	if stdin != nil {
		return Command{}, &FieldError{Field: "code", Problem: fmt.Sprintf("it has %d bytes, with what it imports, and stdin is given too", len(text)),
			Allowed: "at most 102,400 bytes with stdin", Hint: "write it with write_file and run that"}
	}
	return Command{Argv: append(append(argv, "-"), code.args...), Stdin: []byte(text)}, nil
}

// sourceURL takes out of a name what would end it.
var sourceURL = strings.NewReplacer(" ", "%20", "\n", "%0A", "\r", "%0D", "\t", "%09", "'", "%27", `"`, "%22", "\u2028", "%E2%80%A8", "\u2029", "%E2%80%A9")

// strict begins a script that is strict as a whole.
var strict = regexp.MustCompile(`^\s*(?:(?:/\*(?s:.*?)\*/|//[^\n]*\n)\s*)*["']use strict["']`)

// placedScript makes a script say where it is: the names are global to it, and
// node gives them those of its option. It is done in the first line, so that
// no line moves, and before all that the script may declare.
func placedScript(text, file string) string {
	if strings.HasPrefix(text, "#!") {
		return text
	}
	first := ""
	if strict.MatchString(text) {
		first = `"use strict";`
	}
	return first + "globalThis.__filename=" + literal(file) + ";globalThis.__dirname=" + literal(path.Dir(file)) + ";" + text
}

// missing names an interpreter that is not there, and what helps.
func missing(lang Language, info Info) error {
	program, remedy := "node", "sudo apt-get install nodejs"
	if lang == Python {
		program, remedy = "python3", "sudo apt-get install python3"
	}
	return &UserError{Err: ErrUnsupported, Text: fmt.Sprintf(
		"run_code %s needs %s, which is not in the sandbox; install it (%s; where there is no network, on the host), or use another language: %s. Nothing was run",
		lang, program, remedy, interpreters(info))}
}
