//go:build unix

package sandbox_test

import (
	"os/exec"
	"strings"
	"testing"

	"berth/sandbox"
)

func TestRunCode(t *testing.T) {
	m, _ := newFake(t, sandbox.Options{})
	sh(t, m, `mkdir -p node_modules/esmpkg node_modules/cjspkg sub
		echo '{"name":"esmpkg","type":"module","exports":"./i.js"}' >node_modules/esmpkg/package.json
		echo 'export default 42' >node_modules/esmpkg/i.js
		echo 'module.exports = {a: 7}' >node_modules/cjspkg/index.js
		echo 'export const near = 1' >near.mjs
		echo 'module.exports = 5' >near.cjs
		echo 'value = 6' >nearpy.py`)
	long := strings.Repeat("// filler of a long program\n", 5000)
	for _, c := range []struct {
		name     string
		language sandbox.Language
		code     string
		stdin    *string
		exit     int
		out      string
		err      []string // parts of stderr
	}{
		{name: "python", language: sandbox.Python, code: "print('hi')", out: "hi\n"},
		{name: "python stdin", language: sandbox.Python, code: "import sys\nprint(sys.stdin.read())", stdin: ptr("a\nb"), out: "a\nb\n"},
		{name: "python no stdin", language: sandbox.Python, code: "import sys\nprint(repr(sys.stdin.read()))", out: "''\n"},
		{name: "python import", language: sandbox.Python, code: "import nearpy\nprint(nearpy.value, __name__)", out: "6 __main__\n"},
		{name: "python traceback", language: sandbox.Python, code: "def f():\n    1/0\n\nf()", exit: 1,
			err: []string{`File "run_code.py", line 4`, `File "run_code.py", line 2`, "    1/0", "ZeroDivisionError"}},
		{name: "python syntax", language: sandbox.Python, code: "x = 1\ny = = 2", exit: 1, err: []string{`File "run_code.py", line 2`, "SyntaxError"}},
		{name: "python file", language: sandbox.Python, out: "True run_code.py\n",
			code: "import os\nprint(os.path.dirname(os.path.abspath(__file__)) == os.getcwd(), os.path.basename(__file__))"},
		{name: "python children", language: sandbox.Python, out: "[1, 2]\n",
			code: "import multiprocessing as m\nwith m.get_context('spawn').Pool(1) as p: print(p.map(len, ['a', 'bc']))"},
		{name: "python exit", language: sandbox.Python, code: "import sys; sys.exit(7)", exit: 7},
		{name: "python unicode", language: sandbox.Python, code: "print('é€')", out: "é€\n"},
		{name: "python long", language: sandbox.Python, code: strings.Repeat("# filler\n", 50000) + "print(1)", out: "1\n"},
		{name: "js mixed", language: sandbox.JavaScript, out: "42 1 7 5 function\n",
			code: "import e from 'esmpkg'\nimport {near} from './near.mjs'\nconst c = require('cjspkg')\nawait null\nconsole.log(e, near, c.a, require('./near.cjs'), typeof require('fs').readFileSync)"},
		{name: "js own require", language: sandbox.JavaScript, code: "import {createRequire} from 'module'\nconst require = createRequire(process.cwd() + '/')\nconsole.log(require('./near.cjs'))", out: "5\n"},
		{name: "js sloppy", language: sandbox.JavaScript, code: "x = 4\nconsole.log(x, require('cjspkg').a)", out: "4 7\n"},
		{name: "js await only", language: sandbox.JavaScript, code: "const v = await Promise.resolve(3)\nconsole.log(v)", out: "3\n"},
		{name: "js error line", language: sandbox.JavaScript, code: "await null\n\nfunction f() { throw new Error('boom') }\nf()", exit: 1, err: []string{":3:", ":4:", "boom"}},
		{name: "js syntax", language: sandbox.JavaScript, code: "console.log(1)\nconst a = ;", exit: 1, err: []string{":2", "SyntaxError"}},
		{name: "js stdin", language: sandbox.JavaScript, code: "process.stdin.pipe(process.stdout)", stdin: ptr("abc"), out: "abc"},
		{name: "js long", language: sandbox.JavaScript, code: long + "await null; console.log(require('cjspkg').a)", out: "7\n"},
		{name: "js comment end", language: sandbox.JavaScript, code: "await null; console.log(1) // end", out: "1\n"},
		{name: "ts types", language: sandbox.TypeScript, code: "interface P { n: number }\nenum E { A = 3 }\nconst p: P = {n: 1}\nconst fs = require('fs')\nimport e from 'esmpkg'\nawait null\nconsole.log(p.n, E.A, e, typeof fs.readFileSync)", out: "1 3 42 function\n"},
		{name: "ts error line", language: sandbox.TypeScript, code: "interface P {\n  n: number\n}\n\nfunction f(p: P): never {\n  throw new Error('boom')\n}\nf({n: 1})", exit: 1, err: []string{"run_code.ts:6", "run_code.ts:8", "boom"}},
		{name: "ts error line module", language: sandbox.TypeScript, code: "interface P {\n  n: number\n}\nawait null\nfunction f(p: P): never {\n  throw new Error('boom')\n}\nf({n: 1})", exit: 1, err: []string{"run_code.ts:6", "run_code.ts:8", "boom"}},
		{name: "js place", language: sandbox.JavaScript, out: "true true 3\n",
			code: "console.log(__filename === process.cwd() + '/run_code.js', __dirname === process.cwd(), (x = 3))"},
		{name: "js place strict", language: sandbox.JavaScript, exit: 1, err: []string{"/run_code.js:2", "x is not defined"},
			code: "/* a */ 'use strict'; const process = require('process'), __dirname = 1\nx = __filename"},
		{name: "js module place", language: sandbox.JavaScript, out: "true true true\n",
			code: "import {pathToFileURL as u} from 'url'\nconst at = process.cwd() + '/run_code.js'\nconsole.log(__filename === at, import.meta.url === u(at).href, new Error().stack.includes('run_code.js:3:'))"},
		{name: "js trace", language: sandbox.JavaScript, exit: 1, err: []string{"/run_code.js:2:", "/run_code.js:3:"}, code: "await null\nfunction f() { throw new Error('boom') }\nf()"},
		{name: "js script trace", language: sandbox.JavaScript, exit: 1, err: []string{"/run_code.js:1:", "/run_code.js:2:"}, code: "function f() { throw new Error('boom') }\nf()"},
		{name: "ts place", language: sandbox.TypeScript, out: "true true true\n",
			code: "import {pathToFileURL as u} from 'url'\nconst at: string = process.cwd() + '/run_code.ts'\nconsole.log(__filename === at, import.meta.url === u(at).href, new Error().stack!.includes('run_code.ts:3:'))"},
		{name: "default language", code: "const n: number = 2; console.log(n)", out: "2\n"},
		{name: "bash", language: sandbox.Bash, code: "for i in 1 2; do echo $i; done\nexit 5", exit: 5, out: "1\n2\n"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			program := map[sandbox.Language]string{sandbox.Python: "python3", sandbox.Bash: "bash"}[c.language]
			if program == "" {
				program = "node"
			}
			if _, err := exec.LookPath(program); err != nil {
				t.Skipf("%s is not on this machine", program)
			}
			res, err := m.RunCode(ctxOf(t), key, sandbox.RunCodeRequest{Language: c.language, Code: c.code, RunRequest: sandbox.RunRequest{Stdin: c.stdin}})
			if err != nil {
				t.Fatal(err)
			}
			if exit(res) != c.exit || c.out != "" && res.Stdout.Head != c.out || c.exit == 0 && res.Stderr.Head != "" {
				t.Errorf("got exit %d, stdout %q, stderr %q; want exit %d, stdout %q", exit(res), res.Stdout.Head, res.Stderr.Head, c.exit, c.out)
			}
			for _, part := range c.err {
				if !strings.Contains(res.Stderr.Head, part) {
					t.Errorf("stderr lacks %q:\n%s", part, res.Stderr.Head)
				}
			}
		})
	}
}
