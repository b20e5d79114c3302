// Buckets as the page of Mastra's DaytonaSandbox mounts them, with its unmodified
// package, which installs s3fs in the sandbox by apt-get.
import assert from 'node:assert/strict'
import { test } from 'node:test'
import { Workspace } from '@mastra/core/workspace'
import { DaytonaSandbox } from '@mastra/daytona'
import { GCSFilesystem } from '@mastra/gcs'
import { S3Filesystem } from '@mastra/s3'
import { Daytona, Image } from '@daytonaio/sdk'

// The bucket is on this machine, which has another address inside than outside.
class Bucket extends S3Filesystem {
  getMountConfig() {
    return { ...super.getMountConfig(), endpoint: super.getMountConfig().endpoint.replace('127.0.0.1', '10.0.2.2') }
  }
}
const s3 = options => new Bucket({
  bucket: process.env.S3_BUCKET,
  region: 'us-east-1',
  accessKeyId: process.env.S3_ACCESS_KEY_ID,
  secretAccessKey: process.env.S3_SECRET_ACCESS_KEY,
  endpoint: process.env.S3_ENDPOINT,
  ...options,
})
// What the key of a service account looks like; it is nobody's.
const gcs = () => new GCSFilesystem({ bucket: 'my-bucket', projectId: 'my-project-id', credentials: { type: 'service_account', client_email: 'nobody@my-project-id.iam.gserviceaccount.com', private_key: 'none' } })

// The internet, and the loopback of this machine, where the bucket is.
const network = '0.0.0.0/0,127.0.0.1/32'
const sh = async (sandbox, script) => {
  const r = await sandbox.executeCommand('sh', ['-c', script])
  assert.equal(r.exitCode, 0, `${script}: ${r.stdout}${r.stderr}`)
  return r.stdout
}

async function using(options, use) {
  const sandbox = new DaytonaSandbox({ networkAllowList: network, ...options })
  await sandbox._start()
  try {
    await use(sandbox)
  } finally {
    await sandbox._destroy()
  }
}

// The machine's own programs show in a sandbox: without them it is as the cloud's.
const bare = 'sudo dpkg --purge --force-depends s3fs fuse fuse3 >/dev/null 2>&1; ! command -v s3fs'

test('an S3 bucket, with s3fs installed at mount time', () => using({ language: 'python' }, async sandbox => {
  await sh(sandbox, bare)
  const r = await sandbox.mount(s3(), '/data')
  assert.deepEqual(r, { success: true, mountPath: '/data' })
  await sh(sandbox, 'mountpoint -q /data && mkdir /data/dir && echo "from inside" >/data/dir/file && mv /data/dir/file /data/file')
  // Not the same mount: the bucket itself.
  assert.equal(await s3().readFile('file', { encoding: 'utf8' }), 'from inside\n')
  await s3().writeFile('outside', 'from outside')
  assert.equal(await sh(sandbox, 'cat /data/outside; stat -c %U /data/outside'), 'from outsidedaytona\n')
  assert.equal(sandbox.getInstructions().includes('1 filesystem(s) mounted via FUSE'), true)

  // Again is no work, and another file system in its place is refused.
  assert.equal((await sandbox.mount(s3(), '/data')).success, true)
  await sh(sandbox, 'mkdir -p "$HOME/full" && touch "$HOME/full/x"')
  assert.match((await sandbox.mount(s3(), '/home/daytona/full')).error, /not empty/)

  // One that cannot be written, beside it.
  assert.equal((await sandbox.mount(s3({ readOnly: true }), '/ro')).success, true)
  assert.equal(await sh(sandbox, 'cat /ro/file; if echo x >/ro/new; then echo written; fi 2>/dev/null'), 'from inside\n')

  await sandbox.unmount('/ro')
  await sandbox.unmount('/data')
  await sh(sandbox, '! mountpoint -q /data && ! test -e /data && for i in $(seq 100); do grep -qs s3fs /proc/[0-9]*/comm || exit 0; sleep 0.1; done; exit 1')
  // Packages can be upgraded afterwards as well.
  await sh(sandbox, 'sudo apt-get install -y --reinstall sudo fuse >/dev/null 2>&1 && sudo dpkg --audit && test "$(sudo id -u)" = 0')
}))

test('wrong keys, and a bucket that is not reached', () => using({}, async sandbox => {
  await sh(sandbox, 'command -v s3fs || { sudo apt-get update -qq && sudo apt-get install -y s3fs; } >/dev/null 2>&1')
  const secret = 'wrong-secret-0Kz'
  const r = await sandbox.mount(s3({ secretAccessKey: secret }), '/data')
  // What s3fs says after it went to the background, it says to nobody.
  if (r.success) await sh(sandbox, 'for i in $(seq 100); do mountpoint -q /data || exit 0; sleep 0.1; done; ! ls /data')
  assert.equal(JSON.stringify(r).includes(secret), false)
  const closed = await sandbox.mount(s3({ endpoint: 'http://127.0.0.1:9' }), '/other')
  assert.equal(closed.success, false)
  assert.match(closed.error, /Cannot reach http:\/\/10\.0\.2\.2:9/)
}))

test('mounts of a workspace, and of a stopped sandbox', async () => {
  const id = 'with-mounts'
  const options = () => ({ id, language: 'python', networkAllowList: network })
  const first = new DaytonaSandbox(options())
  const workspace = new Workspace({ mounts: { '/s3-data': s3(), '/gcs-data': gcs() }, sandbox: first })
  await workspace.init()
  try {
    await sh(first, 'mountpoint -q /s3-data && echo kept >/s3-data/kept')
    // Google's packages and its service are not here: one that fails stops nothing, and is told.
    const g = first.mounts.get('/gcs-data')
    if (g.state !== 'mounted') {
      assert.equal(g.state, 'error')
      assert.match(g.error, /Google Cloud Storage|gcsfuse|GCS/)
      console.log(`GCS: ${g.error}`)
    }
    await first._stop()
    const again = new Workspace({ mounts: { '/s3-data': s3() }, sandbox: new DaytonaSandbox(options()) })
    await again.init()
    assert.equal(await sh(again.sandbox, 'cat /s3-data/kept'), 'kept\n')
  } finally {
    await new Daytona().get(id).then(s => s.delete())
  }
})

test('s3fs prebaked in a snapshot', async () => {
  const daytona = new Daytona()
  const image = Image.base('snapshot:daytona-small')
    .runCommands(`${bare}; sudo apt-get update -qq`)
    .runCommands('sudo apt-get install -y s3fs')
  await daytona.snapshot.create({ name: 'cloud-fs-mounting', image }, { onLogs: () => {} })
  await using({ snapshot: 'cloud-fs-mounting' }, async sandbox => {
    const before = await sh(sandbox, 'stat -c %Y /var/lib/dpkg/status')
    assert.equal((await sandbox.mount(s3(), '/data')).success, true)
    await sh(sandbox, 'echo prebaked >/data/prebaked')
    assert.equal(await sh(sandbox, 'stat -c %Y /var/lib/dpkg/status'), before) // nothing was installed
    assert.equal(await s3().readFile('prebaked', { encoding: 'utf8' }), 'prebaked\n')
  })
  for (const end = Date.now() + 60_000; ; await new Promise(done => setTimeout(done, 20))) {
    try {
      await daytona.snapshot.delete(await daytona.snapshot.get('cloud-fs-mounting'))
      break
    } catch (e) {
      if (e.statusCode !== 409 || Date.now() > end) throw e
    }
  }
})
