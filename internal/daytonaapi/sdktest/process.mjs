// Commands, programs in three languages, sessions, terminals, the interpreter.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { daytona, sandboxFor, until } from './lib.mjs'

const box = sandboxFor({ language: 'python', envVars: { FROM: 'create' } })

test('commands', async () => {
  const { process } = box.sandbox
  const r = await process.executeCommand('echo "$FROM $X"; pwd; echo err >&2; exit 3', '/usr', { X: 'y z' })
  assert.equal(r.exitCode, 3)
  assert.equal(r.result, 'create y z\n/usr\nerr\n')
  await assert.rejects(process.executeCommand('sleep 100', undefined, undefined, 1), e => e.statusCode === 408)
  const big = await process.executeCommand('head -c 300000 /dev/zero | tr "\\0" x')
  assert.equal(big.result.length, 300000)
})

test('python', async () => {
  const { process } = box.sandbox
  const r = await process.codeRun('import os, sys\nprint("sum", 1 + 2, sys.argv[1:], os.environ["X"])', { argv: ['a b'], env: { X: 'y' } })
  assert.equal(r.exitCode, 0)
  assert.equal(r.result, "sum 3 ['a b'] y\n")
  const bad = await process.codeRun('raise ValueError("no")')
  assert.equal(bad.exitCode, 1)
  assert.match(bad.result, /ValueError: no/)
})

for (const [language, code, want] of [
  ['typescript', 'interface P { n: number }\nconst p: P = { n: 20 }\nconsole.log(p.n + 1, process.argv.slice(2))', "21 [ 'a b' ]\n"],
  ['javascript', 'console.log([1, 2].map(n => n * 2), process.argv.slice(2))', "[ 2, 4 ] [ 'a b' ]\n"],
]) {
  test(language, async () => {
    const other = await daytona.create({ language })
    try {
      const r = await other.process.codeRun(code, { argv: ['a b'] })
      assert.equal(r.result, want)
      assert.equal(r.exitCode, 0)
    } finally {
      await daytona.delete(other, 60, true)
    }
  })
}

test('sessions', async () => {
  const { process } = box.sandbox
  await process.createSession('s')
  const first = await process.executeSessionCommand('s', { command: 'cd /usr; export A=1; echo out; echo err >&2' })
  assert.deepEqual([first.exitCode, first.stdout, first.stderr], [0, 'out\n', 'err\n'])
  const next = await process.executeSessionCommand('s', { command: 'echo $A $PWD; false' })
  assert.deepEqual([next.exitCode, next.stdout], [1, '1 /usr\n'])

  // One that runs on, is followed, and is given input.
  const { cmdId } = await process.executeSessionCommand('s', { command: 'echo first; read x; echo "got $x"; echo e >&2; exit 4', runAsync: true, suppressInputEcho: true })
  assert.equal((await process.getSessionCommand('s', cmdId)).exitCode ?? null, null)
  let out = '', err = ''
  const logs = process.getSessionCommandLogs('s', cmdId, text => { out += text }, text => { err += text })
  await until('output while it runs', () => out === 'first\n')
  await process.sendSessionCommandInput('s', cmdId, 'ü')
  await logs
  assert.deepEqual([out, err], ['first\ngot ü\n', 'e\n'])
  assert.equal((await process.getSessionCommand('s', cmdId)).exitCode, 4)
  const kept = await process.getSessionCommandLogs('s', cmdId)
  assert.deepEqual([kept.stdout, kept.stderr], ['first\ngot ü\n', 'e\n'])

  assert.deepEqual((await process.getSession('s')).commands.map(c => c.exitCode), [0, 1, 4])
  assert.ok((await process.listSessions()).some(s => s.sessionId === 's'))
  await process.deleteSession('s')
  await assert.rejects(process.getSession('s'), e => e.statusCode === 404)
})

test('terminals', async () => {
  const { process } = box.sandbox
  let text = ''
  const decoder = new TextDecoder()
  const pty = await process.createPty({ id: 'p', cols: 100, rows: 30, envs: { T: 'x' }, onData: data => { text += decoder.decode(data, { stream: true }) } })
  await pty.waitForConnection()
  await pty.sendInput('echo "[$T]"; stty size\n')
  await until('what it prints', () => text.includes('[x]') && text.includes('30 100'))
  const info = await process.resizePtySession('p', 120, 40)
  assert.deepEqual([info.cols, info.rows], [120, 40])
  await pty.sendInput('stty size\n')
  await until('the new size', () => text.includes('40 120'))
  assert.deepEqual((await process.listPtySessions()).map(s => s.id), ['p'])
  await pty.sendInput('exit 5\n')
  assert.equal((await pty.wait()).exitCode, 5)
})

test('interpreter', async () => {
  const { codeInterpreter } = box.sandbox
  await codeInterpreter.runCode('x = 20')
  const r = await codeInterpreter.runCode('print(x + 1)\n1/0')
  assert.equal(r.stdout, '21\n')
  assert.equal(r.error.name, 'ZeroDivisionError')
})
