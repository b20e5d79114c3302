// The life of a sandbox, labels, intervals, volumes, previews.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { collect, daytona, sandboxFor, until } from './lib.mjs'

const box = sandboxFor({ name: 'life', language: 'python', envVars: { FROM: 'create' }, labels: { team: 'a' }, autoStopInterval: 60 })

test('create', async () => {
  const { sandbox, run } = box
  assert.equal(sandbox.state, 'started')
  assert.equal(sandbox.name, 'life')
  assert.equal(sandbox.user, 'daytona')
  assert.equal(sandbox.autoStopInterval, 60)
  assert.equal(await run('echo $FROM; id -un; pwd'), 'create\ndaytona\n/home/daytona\n')
  assert.equal(await sandbox.getUserHomeDir(), '/home/daytona')
  assert.equal(await sandbox.getWorkDir(), '/home/daytona')
  await assert.rejects(daytona.create({ name: 'life' }), e => e.statusCode === 409 && /life/.test(e.message))
})

test('get and list', async () => {
  const { sandbox } = box
  assert.equal((await daytona.get(sandbox.id)).name, 'life')
  assert.equal((await daytona.get('life')).id, sandbox.id)
  await assert.rejects(daytona.get('nobody'), e => e.statusCode === 404)
  assert.deepEqual((await collect(daytona.list({ labels: { team: 'a' } }))).map(s => s.id), [sandbox.id])
  assert.deepEqual(await collect(daytona.list({ labels: { team: 'b' } })), [])
})

test('labels and intervals', async () => {
  const { sandbox } = box
  await sandbox.setLabels({ team: 'b', stage: 'test' })
  await sandbox.setAutostopInterval(30)
  await sandbox.setAutoArchiveInterval(120)
  await sandbox.setAutoDeleteInterval(240)
  await sandbox.refreshActivity()
  await sandbox.refreshData()
  assert.deepEqual({ ...sandbox.labels }, { team: 'b', stage: 'test' })
  assert.deepEqual([sandbox.autoStopInterval, sandbox.autoArchiveInterval, sandbox.autoDeleteInterval], [30, 120, 240])
  assert.equal((await collect(daytona.list({ labels: { team: 'b', stage: 'test' } }))).length, 1)
})

test('preview', async () => {
  const { sandbox, run } = box
  await run('mkdir -p www && echo hello from inside >www/index.html')
  await sandbox.process.createSession('www')
  await sandbox.process.executeSessionCommand('www', { command: 'cd www && exec python3 -m http.server --bind 127.0.0.1 8000', runAsync: true })
  await until('the server inside', async () => (await sandbox.process.executeCommand('curl -fsS http://127.0.0.1:8000/')).exitCode === 0)
  const link = await sandbox.getPreviewLink(8000)
  assert.equal((await fetch(link.url)).status, 401)
  const page = await fetch(link.url, { headers: { 'x-daytona-preview-token': link.token } })
  assert.equal(await page.text(), 'hello from inside\n')
  await sandbox.process.deleteSession('www')
})

test('stop, start, archive', async () => {
  const { sandbox, run } = box
  await run('echo precious >kept')
  await sandbox.stop()
  assert.equal(sandbox.state, 'stopped')
  await assert.rejects(sandbox.process.executeCommand('true'))
  await sandbox.start()
  assert.equal(sandbox.state, 'started')
  assert.equal(await run('cat kept; id -un'), 'precious\ndaytona\n')
  await sandbox.stop()
  await sandbox.archive()
  await until('the archive', async () => {
    await sandbox.refreshData()
    return sandbox.state === 'archived'
  })
  await sandbox.start()
  assert.equal(await run('cat kept; pwd'), 'precious\n/home/daytona\n')
})

test('delete', async () => {
  const other = await daytona.create({ name: 'short', ephemeral: true })
  assert.equal(other.autoDeleteInterval, 0)
  await daytona.delete(other, 60, true)
  await until('the end', () => daytona.get(other.id).then(() => false, e => e.statusCode === 404))
})

test('volumes', async () => {
  const volume = await daytona.volume.get('shared', true)
  assert.equal((await daytona.volume.list()).filter(v => v.name === 'shared').length, 1)
  const volumes = [{ volumeId: volume.id, mountPath: '/data' }]
  const one = await daytona.create({ volumes })
  try {
    assert.equal((await one.process.executeCommand('echo kept >/data/f')).exitCode, 0)
  } finally {
    await daytona.delete(one, 60, true)
  }
  const two = await daytona.create({ volumes })
  try {
    assert.equal((await two.process.executeCommand('cat /data/f')).result, 'kept\n')
  } finally {
    await daytona.delete(two, 60, true)
  }
  await until('the sandbox to let go of the volume', () => daytona.volume.delete(volume).then(() => true, e => {
    if (e.statusCode !== 409) throw e
    return false
  }))
  await assert.rejects(daytona.volume.get('shared'), e => e.statusCode === 404)
})
