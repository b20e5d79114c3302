// Files: up and down, one, many and streamed; lists, search, change.
import assert from 'node:assert/strict'
import { randomBytes } from 'node:crypto'
import { mkdtemp, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { sandboxFor } from './lib.mjs'

const box = sandboxFor({})

test('up and down', async () => {
  const { sandbox: { fs }, run } = box
  await fs.createFolder('d', '750')
  await fs.uploadFile(Buffer.from('hello\0ü'), 'd/a')
  assert.equal((await fs.downloadFile('d/a')).toString(), 'hello\0ü')
  assert.equal(await run('stat -c "%a %U" d'), '750 daytona\n')
  // From a file of ours to one of ours, large enough for many pieces.
  const dir = await mkdtemp(join(tmpdir(), 'sdk'))
  const content = randomBytes(5_000_003)
  await writeFile(join(dir, 'up'), content)
  await fs.uploadFile(join(dir, 'up'), '/tmp/big')
  await fs.downloadFile('/tmp/big', join(dir, 'down'))
  assert.ok((await readFile(join(dir, 'down'))).equals(content))
  const pieces = []
  for await (const piece of await fs.downloadFileStream('/tmp/big')) pieces.push(piece)
  assert.ok(Buffer.concat(pieces).equals(content))
})

test('many at once', async () => {
  const { fs } = box.sandbox
  await fs.uploadFiles([
    { source: Buffer.from('needle 1\nx\n'), destination: 'many/b.txt' },
    { source: Buffer.from('needle 2\n'), destination: 'many/deep/c.txt' },
  ])
  const [b, none] = await fs.downloadFiles([{ source: 'many/b.txt' }, { source: 'many/none' }])
  assert.equal(b.result.toString(), 'needle 1\nx\n')
  assert.ok(none.error && !none.result)
})

test('lists and search', async () => {
  const { fs } = box.sandbox
  assert.deepEqual((await fs.listFiles('many')).map(f => [f.name, f.isDir]).sort(), [['b.txt', false], ['deep', true]])
  const info = await fs.getFileDetails('many/b.txt')
  assert.deepEqual([info.name, info.size, info.isDir], ['b.txt', 11, false])
  const found = await fs.findFiles('many', 'needle')
  assert.deepEqual(found.map(m => [m.file.split('/').at(-1), m.line, m.content]).sort(), [['b.txt', 1, 'needle 1'], ['c.txt', 1, 'needle 2']])
  assert.deepEqual((await fs.searchFiles('many', '*.txt')).files.map(f => f.split('/').at(-1)).sort(), ['b.txt', 'c.txt'])
})

test('change', async () => {
  const { sandbox: { fs }, run } = box
  const [r] = await fs.replaceInFiles(['many/b.txt'], 'needle', 'pin')
  assert.equal(r.success, true)
  assert.equal(await run('cat many/b.txt'), 'pin 1\nx\n')
  await fs.setFilePermissions('many/b.txt', { mode: '600' })
  assert.equal(await run('stat -c %a many/b.txt'), '600\n')
  await fs.moveFiles('many/b.txt', 'moved')
  assert.equal(await run('cat moved; ls many'), 'pin 1\nx\ndeep\n')
  await fs.deleteFile('moved')
  await assert.rejects(fs.deleteFile('many'))
  await fs.deleteFile('many', true)
  await assert.rejects(fs.getFileDetails('many'), e => e.statusCode === 404)
  await assert.rejects(fs.downloadFile('moved'), e => e.statusCode === 404)
})
