//go:build unix

package sandbox_test

import (
	"os/exec"
	"strings"
	"testing"

	"berth/sandbox"
)

// Local files that node cannot load by itself.
func TestRunCodeImports(t *testing.T) {
	if _, err := exec.LookPath("node"); err != nil {
		t.Skip("node is not on this machine")
	}
	m, _ := newFake(t, sandbox.Options{})
	sh(t, m, `mkdir -p lib node_modules/pkg "odd # dir"
		echo '{"name":"pkg","type":"module","exports":"./i.js"}' >node_modules/pkg/package.json
		echo 'export default 42' >node_modules/pkg/i.js
		printf '%s\n' 'export interface P { n: number }' 'export const two: number = 2' 'export enum E { A = 3 }' >util.ts
		printf '%s\n' 'import {two} from "../util.js"' 'import pkg from "pkg"' 'import {count} from "../state.mjs"' 'count.n++' 'export default (n: number) => n * two + pkg' >lib/index.ts
		printf '%s\n' 'export const count = {n: 0}' >state.mjs
		printf '%s\n' 'import {basename, dirname} from "path"' 'export const at: string = [basename(import.meta.url), basename(__filename), basename(dirname(__filename)), basename(__dirname)].join(" ")' >lib/place.ts
		printf '%s\n' 'import {fileURLToPath} from "url"' 'const __filename = fileURLToPath(import.meta.url)' 'export const own: string = __filename.split("/").slice(-2).join("/")' >lib/own.ts
		printf '%s\n' 'interface Q {' '  n: number' '}' 'export function fail(q: Q): never {' '  throw new Error("deep " + q.n)' '}' >lib/fail.ts
		printf '%s\n' 'export const late: string = await Promise.resolve("late")' >late.ts
		printf '%s\n' 'const x: = 1' >broken.ts
		printf '%s\n' 'import "./gone"' 'export {}' >dangling.ts
		printf '%s\n' 'export const el = (h: any) => <b/>' 'declare const React: any' >el.tsx
		printf '%s\n' 'export let a: string = "a"; import {b} from "./cycle_b"; export const ab = () => a + b' >cycle_a.ts
		printf '%s\n' 'import {a} from "./cycle_a"; export const b: string = "b"; export const ba = () => b + a' >cycle_b.ts
		echo 'module.exports = 5' >near.cjs
		echo 'export const odd: number = 9' >'odd # dir/odd.ts'
		echo 'module.exports = "odd js"' >'odd # dir/odd.cjs'
		echo '{"name": "data", "n": 1}' >data.json
		mkfifo pipe.ts; head -c 3000000 /dev/zero >big.ts`)
	long := strings.Repeat("// filler of a long program\n", 5000)
	ts, js := sandbox.TypeScript, sandbox.JavaScript
	for _, c := range []struct {
		name     string
		language sandbox.Language
		code     string
		cwd      string
		stdin    *string
		exit     int
		out      string
		err      []string // parts of stderr
		fault    []string // parts of the refusal
	}{
		{name: "extensionless", language: ts, code: "import {two, E, type P} from './util'\nconst p: P = {n: two}\nconsole.log(p.n, E.A)", out: "2 3\n"},
		{name: "with extension", language: ts, code: "import {two} from './util.ts'\nconsole.log(two)", out: "2\n"},
		{name: "as it is compiled", language: ts, code: "import {two} from './util.js'\nconsole.log(two)", out: "2\n"},
		{name: "from javascript", language: js, code: "import {two} from './util'\nimport {E} from './util.ts'\nconsole.log(two, E.A)", out: "2 3\n"},
		{name: "required", language: js, code: "const {two} = require('./util.ts')\nconsole.log(two, require('./near.cjs'), require('./data.json').n)", out: "2 5 1\n"},
		{name: "dynamic", language: ts, code: "const {two} = await import('./util')\nconsole.log(two)", out: "2\n"},
		{name: "directory, package, one instance", language: ts, out: "46 1\n",
			code: "import f from './lib'\nimport {count} from './state.mjs'\nimport pkg from 'pkg'\nimport * as fs from 'node:fs'\nif (pkg !== 42 || !fs.readFileSync) throw 1\nconsole.log(f(2), count.n)"},
		{name: "top-level await", language: ts, code: "import {late} from './late'\nconsole.log(await late)", out: "late\n"},
		{name: "json", language: ts, code: "import data, {name} from './data.json'\nconsole.log(data.n, name)", out: "1 data\n"},
		{name: "json with attributes", language: js, code: "import data from './data.json' with {type: 'json'}\nconsole.log(data.n)", out: "1\n"},
		{name: "places", language: ts, code: "import {at} from './lib/place'\nimport {own} from './lib/own'\nconsole.log(at, own)", out: "place.ts place.ts lib lib lib/own.ts\n"},
		{name: "own place", language: ts, code: "import {two} from './util'\nimport {fileURLToPath} from 'url'\nconst dir = fileURLToPath(new URL('.', import.meta.url))\nconsole.log(two, dir === process.cwd() + '/', __dirname === process.cwd(), require('./near.cjs'))", out: "2 true true 5\n"},
		{name: "place of the program", language: ts, code: "import {two} from './util'\nconsole.log(two, import.meta.url === 'file://' + process.cwd() + '/run_code.ts', __filename === process.cwd() + '/run_code.ts')", out: "2 true true\n"},
		{name: "cycle", language: ts, code: "import {ab} from './cycle_a'\nimport {ba} from './cycle_b'\nconsole.log(ab(), ba())", out: "ab ba\n"},
		{name: "other directory", language: ts, cwd: "lib", code: "import f from './index'\nimport {two} from '../util'\nconsole.log(f(two))", out: "46\n"},
		{name: "odd names", language: ts, code: "import {odd} from './odd # dir/odd'\nconsole.log(odd, require('./odd # dir/odd.cjs'))", out: "9 odd js\n"},
		{name: "types only", language: ts, code: "import {P} from './nowhere'\nconst p: P = {n: 1} as any\nconsole.log(1)", out: "1\n"},
		{name: "stdin", language: ts, code: "import {two} from './util'\nconsole.log(two, require('fs').readFileSync(0, 'utf8'))", stdin: ptr("in"), out: "2 in\n"},
		{name: "long", language: ts, code: long + "import {two} from './util'\nconst n: number = 1\nconsole.log(two + n)", out: "3\n"},
		{name: "optional and absent", language: ts, code: "let a = 0\ntry { require('./absent') } catch { a++ }\ntry { await import('./absent.ts') } catch { a++ }\nconsole.log(a)", out: "2\n"},
		{name: "text that looks like one", language: js, code: "x = './util.ts'\nconsole.log(x)", out: "./util.ts\n"},
		{name: "trace", language: ts, code: "import {fail} from './lib/fail'\n\ninterface R { n: number }\nconst r: R = {n: 7}\nfail(r)", exit: 1,
			err: []string{"deep 7", "lib/fail.ts:5:", "run_code.ts:5:"}},
		{name: "trace of javascript", language: js, code: "import {fail} from './lib/fail'\n\nfunction f() {\n  fail({n: 8})\n}\nf()", exit: 1,
			err: []string{"deep 8", "lib/fail.ts:5:", "run_code.js:4:", "run_code.js:6:"}},
		{name: "syntax of javascript", language: js, code: "import {two} from './util'\nconst a = ;", exit: 1, err: []string{"SyntaxError"}},
		{name: "missing", language: ts, code: "const a = 1\nimport {x} from './nope'\nconsole.log(x)", fault: []string{"code: run_code.ts:2:17: ", "there is no file ", "/nope, nor that with .ts", "nothing was run"}},
		{name: "missing deep", language: ts, code: "import './dangling'", fault: []string{"/dangling.ts:1:8: ", "/gone"}},
		{name: "directory without index", language: ts, code: "import './node_modules'", fault: []string{"no index file"}},
		{name: "syntax", language: ts, code: "import './broken'", fault: []string{"/broken.ts:1:10: ", "const x: = 1"}},
		{name: "fifo", language: ts, code: "import './pipe'", fault: []string{"FIFO"}},
		{name: "large", language: ts, code: "import './big'", fault: []string{"3000000 bytes"}},
		{name: "no such name", language: ts, code: "import {nope} from './util'\nconsole.log(nope)", fault: []string{"run_code.ts:1:", "nope"}},
		{name: "no directory", language: ts, cwd: "absent", code: "import './util'", fault: []string{"cwd: ", "absent"}},
	} {
		t.Run(strings.NewReplacer(" ", "_", ",", "").Replace(c.name), func(t *testing.T) {
			res, err := m.RunCode(ctxOf(t), key, sandbox.RunCodeRequest{Language: c.language, Code: c.code, RunRequest: sandbox.RunRequest{Stdin: c.stdin, Cwd: c.cwd}})
			if err != nil {
				if c.fault == nil {
					t.Fatal(err)
				}
				for _, part := range c.fault {
					if !strings.Contains(err.Error(), part) {
						t.Errorf("the refusal lacks %q:\n%v", part, err)
					}
				}
				return
			}
			if c.fault != nil {
				t.Fatalf("not refused: exit %d, %s %s", exit(res), res.Stdout.Head, res.Stderr.Head)
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
