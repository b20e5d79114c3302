// Snapshots and sandboxes of images: declared, of a Dockerfile, of a registry, of
// a sandbox. Builds that fail.
import assert from 'node:assert/strict'
import { mkdir, mkdtemp, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { daytona, Image, until } from './lib.mjs'

// Makes each run's steps new ones: what is built already is not run again, and says
// nothing in the log.
const fresh = Date.now()

// using makes a sandbox, hands it over, and deletes it and the snapshots named.
async function using(params, options, use, ...snapshots) {
  const sandbox = await daytona.create(params, options)
  try {
    await use(sandbox)
  } finally {
    await daytona.delete(sandbox, 60, true)
    await until('the end', () => daytona.get(sandbox.id).then(() => false, e => e.statusCode === 404))
    for (const name of snapshots) await daytona.snapshot.delete(await daytona.snapshot.get(name))
  }
}
const run = async (sandbox, command) => (await sandbox.process.executeCommand(command)).result

test('a declared image', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'sdk'))
  await writeFile(join(dir, 'hello'), 'hello from a file\n')
  await mkdir(join(dir, 'tree'))
  await writeFile(join(dir, 'tree', 'leaf'), 'leaf\n')
  let log = ''
  const image = Image.base('snapshot:daytona-small')
    .runCommands(`: ${fresh}; sudo mkdir -p /opt/app && echo built by $(id -un) | sudo tee /opt/app/by`)
    .addLocalFile(join(dir, 'hello'), '/opt/app/hello')
    .addLocalDir(join(dir, 'tree'), '/opt/app/tree')
    .env({ GREETING: 'good day' })
    .workdir('/opt/app')
  const made = await daytona.snapshot.create({ name: 'declared', image }, { onLogs: text => { log += text } })
  assert.equal(made.state, 'active')
  assert.match(log, /built by daytona/)
  assert.ok((await daytona.snapshot.list()).items.some(s => s.name === 'declared'))
  await using({ snapshot: 'declared' }, {}, async sandbox => {
    assert.equal(sandbox.snapshot, 'declared')
    assert.equal(await run(sandbox, 'cat /opt/app/by /opt/app/hello /opt/app/tree/leaf; echo $GREETING'), 'built by daytona\nhello from a file\nleaf\ngood day\n')
  }, 'declared')
  await assert.rejects(daytona.snapshot.get('declared'), e => e.statusCode === 404)
})

test('a Dockerfile with a context', async () => {
  const dir = await mkdtemp(join(tmpdir(), 'sdk'))
  await writeFile(join(dir, 'Dockerfile'), 'FROM daytonaio/sandbox\nUSER root\nCOPY run.sh /usr/local/bin/run\nRUN chmod 755 /usr/local/bin/run && echo built >/built\nUSER daytona\nENV WHO=world\n')
  await writeFile(join(dir, 'run.sh'), '#!/bin/sh\necho hello $WHO\n')
  let log = ''
  await daytona.snapshot.create({ name: 'of-a-dockerfile', image: Image.fromDockerfile(join(dir, 'Dockerfile')) }, { onLogs: text => { log += text } })
  assert.match(log, /RUN chmod 755/)
  await using({ snapshot: 'of-a-dockerfile' }, {}, async sandbox => {
    assert.equal(await run(sandbox, '/usr/local/bin/run; cat /built; id -un'), 'hello world\nbuilt\ndaytona\n')
  }, 'of-a-dockerfile')
})

test('an image of a registry', async () => {
  await daytona.snapshot.create({ name: 'of-an-image', image: 'node:20-slim' })
  await using({ snapshot: 'of-an-image' }, {}, async sandbox => {
    assert.equal(await run(sandbox, 'echo $NODE_VERSION; node -p "6 * 7"'), '20-slim\n42\n')
  }, 'of-an-image')
})

test('a sandbox of an image, with resources', async () => {
  let log = ''
  const image = Image.base('node:20-slim').runCommands(`echo said while building ${fresh}; echo here >/here`)
  await using({ image, language: 'javascript', resources: { cpu: 1, memory: 1, disk: 3 } }, { timeout: 60, onSnapshotCreateLogs: text => { log += text } }, async sandbox => {
    assert.equal(log.split(`said while building ${fresh}`).length > 2, true) // the step, and what it said
    assert.deepEqual([sandbox.cpu, sandbox.memory, sandbox.disk], [1, 1, 3])
    assert.equal(await run(sandbox, 'cat /here'), 'here\n')
    assert.equal((await sandbox.process.codeRun('console.log(process.version.slice(0, 1))')).result, 'v\n')
  })
})

test('a snapshot of a sandbox', async () => {
  await using({}, {}, async sandbox => {
    await run(sandbox, 'echo precious >kept')
    await sandbox._experimental_createSnapshot('of-a-sandbox')
    await using({ snapshot: 'of-a-sandbox' }, {}, async other => {
      assert.equal(await run(other, 'cat kept'), 'precious\n')
    }, 'of-a-sandbox')
  })
})

test('a build that fails', async () => {
  let log = ''
  const image = Image.base('snapshot:daytona-small').runCommands(`echo before it ${fresh}; exit 3`)
  await assert.rejects(daytona.snapshot.create({ name: 'bad', image }, { onLogs: text => { log += text } }), /exited with 3/)
  assert.match(log, /before it/)
  await daytona.snapshot.delete(await daytona.snapshot.get('bad'))
})
