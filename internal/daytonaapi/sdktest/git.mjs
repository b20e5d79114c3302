// Git, with a server of the sandbox's own.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { sandboxFor, until } from './lib.mjs'

const box = sandboxFor({})
const url = 'git://127.0.0.1/repo.git'

test('a server', async () => {
  const { sandbox: { process }, run } = box
  await run(`git init -q --bare --initial-branch=main srv/repo.git && git init -q --initial-branch=main seed && cd seed && echo one >a &&
    git add a && git -c user.name=s -c user.email=s@x commit -qm first && git push -q ../srv/repo.git main && git push -q ../srv/repo.git main:side`)
  await process.createSession('git')
  await process.executeSessionCommand('git', { command: 'exec git daemon --reuseaddr --export-all --enable=receive-pack --listen=127.0.0.1 --base-path=srv srv', runAsync: true })
  await until('the git server', async () => (await process.executeCommand(`git ls-remote ${url}`)).exitCode === 0)
})

test('clone', async () => {
  const { sandbox: { git }, run } = box
  await git.clone(url, 'r')
  assert.equal(await run('cat r/a'), 'one\n')
  await git.clone(url, 'other')
  await git.clone(url, 'side', 'side')
  assert.equal((await git.status('side')).currentBranch, 'side')
  await assert.rejects(git.clone('git://127.0.0.1/none.git', 'none'))
  await assert.rejects(git.clone(url, 'none', 'none'), e => e.statusCode === 404)
})

test('commit, push, pull', async () => {
  const { sandbox: { fs, git }, run } = box
  await fs.uploadFile(Buffer.from('two\n'), 'r/b')
  let status = await git.status('r')
  assert.deepEqual([status.currentBranch, status.fileStatus.map(f => f.name)], ['main', ['b']])
  await git.add('r', ['b'])
  const { sha } = await git.commit('r', 'second', 'Ada', 'ada@example.com')
  assert.equal(await run('git -C r log -1 --format="%H %an %ae %s"'), `${sha} Ada ada@example.com second\n`)
  status = await git.status('r')
  assert.deepEqual([status.ahead, status.fileStatus.length], [1, 0])
  await git.push('r')
  assert.equal((await run('git -C srv/repo.git rev-parse main')).trim(), sha)
  await git.pull('other')
  assert.equal(await run('cat other/b'), 'two\n')
})

test('branches', async () => {
  const { git } = box.sandbox
  await git.createBranch('r', 'work')
  await git.checkoutBranch('r', 'main')
  assert.deepEqual((await git.branches('r')).branches.filter(b => !b.includes('/')).sort(), ['main', 'work'])
  await git.deleteBranch('r', 'work')
  assert.ok(!(await git.branches('r')).branches.includes('work'))
})
