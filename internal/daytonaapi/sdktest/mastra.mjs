// What the page of Mastra's DaytonaSandbox shows, with its unmodified package;
// model calls left out; mounts.mjs has its buckets.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Agent } from '@mastra/core/agent'
import { Workspace } from '@mastra/core/workspace'
import { DaytonaSandbox } from '@mastra/daytona'
import { Daytona, Image } from '@daytonaio/sdk'

async function until(what, condition) {
  for (const end = Date.now() + 60_000; ; await new Promise(done => setTimeout(done, 20))) {
    if (await condition()) return
    if (Date.now() > end) throw new Error(`${what} did not come`)
  }
}

async function using(options, use) {
  const sandbox = new DaytonaSandbox(options)
  await sandbox._start()
  try {
    await use(sandbox)
  } finally {
    await sandbox._destroy()
  }
}
const sh = async (sandbox, script) => (await sandbox.executeCommand('sh', ['-c', script])).stdout

test('a workspace of an agent', async () => {
  const sandbox = new DaytonaSandbox({ language: 'typescript', timeout: 120_000 })
  const workspace = new Workspace({ sandbox })
  const agent = new Agent({ id: 'code-agent', name: 'Code Agent', instructions: 'You are a coding assistant working in this workspace.', model: 'anthropic/claude-sonnet-4-6', workspace })
  assert.equal(agent.id, 'code-agent')
  await workspace.init()
  try {
    assert.equal(await sh(sandbox, 'echo "Hello, world!"; pwd'), 'Hello, world!\n/home/daytona\n')
  } finally {
    await workspace.destroy()
  }
})

test('streaming, processes, direct access', () => using({ language: 'typescript', env: { A: '1' } }, async sandbox => {
  const chunks = { out: '', err: '' }
  const r = await sandbox.executeCommand('bash', ['-c', 'for i in 1 2 3; do echo "line $i"; done; echo "e $A" >&2; exit 3'], {
    onStdout: chunk => { chunks.out += chunk }, onStderr: chunk => { chunks.err += chunk },
  })
  assert.deepEqual([r.exitCode, r.success, r.stdout, r.stderr], [3, false, 'line 1\nline 2\nline 3\n', 'e 1\n'])
  assert.deepEqual(chunks, { out: r.stdout, err: r.stderr })

  let live = ''
  const handle = await sandbox.processes.spawn('node -e \'process.stdin.on("data", d => console.log("got " + d + process.env.PORT))\'', { env: { PORT: '3000' }, onStdout: data => { live += data } })
  await handle.sendStdin('input\n')
  await until('the answer', () => handle.stdout.includes('got input\n3000\n'))
  assert.equal(live, handle.stdout)
  assert.equal(await handle.kill(), true)

  await sandbox.instance.fs.uploadFile(Buffer.from('hello'), '/tmp/hello.txt')
  assert.equal((await sandbox.executeCommand('cat', ['/tmp/hello.txt'])).stdout, 'hello')
}))

test('reconnection', async () => {
  const first = new DaytonaSandbox({ id: 'my-persistent-sandbox' })
  await first._start()
  assert.equal((await first.executeCommand('sh', ['-c', 'echo "session 1" > kept'])).exitCode, 0)
  await first._stop()
  await using({ id: 'my-persistent-sandbox' }, async again => {
    assert.equal((await again.executeCommand('cat', ['kept'])).stdout, 'session 1\n')
  })
})

test('an ephemeral sandbox', () => using({ ephemeral: true, language: 'python' }, async sandbox => {
  assert.equal(sandbox.instance.autoDeleteInterval, 0)
  assert.equal(await sh(sandbox, 'python3 -c "print(6 * 7)"'), '42\n')
}))

test('an image with resources', () => using({ image: 'node:20-slim', resources: { cpu: 2, memory: 4, disk: 6 }, language: 'typescript' }, async sandbox => {
  assert.deepEqual([sandbox.instance.cpu, sandbox.instance.memory, sandbox.instance.disk], [2, 4, 6])
  assert.equal(await sh(sandbox, 'node -p "6 * 7"; echo $NODE_VERSION'), '42\n20-slim\n')
}))

test('network isolation', () => using({ networkBlockAll: true, networkAllowList: '10.0.0.0/8,192.168.0.0/16' }, async sandbox => {
  assert.equal(sandbox.instance.networkBlockAll, true)
}))

test('a snapshot', async () => {
  const daytona = new Daytona()
  let log = ''
  await daytona.snapshot.create({ name: 'my-snapshot-id', image: Image.base('snapshot:daytona-small').runCommands('echo prebaked | sudo tee /prebaked') }, { onLogs: text => { log += text } })
  assert.match(log, /prebaked/)
  await using({ snapshot: 'my-snapshot-id', timeout: 60_000 }, async sandbox => {
    assert.equal(await sh(sandbox, 'cat /prebaked'), 'prebaked\n')
  })
  await until('the sandbox to let go of the snapshot', () => daytona.snapshot.get('my-snapshot-id').then(s => daytona.snapshot.delete(s)).then(() => true, e => {
    if (e.statusCode !== 409) throw e
    return false
  }))
})
