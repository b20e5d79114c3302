// The official Daytona SDK as a contender: for each line on stdin it runs true in
// the sandbox that SANDBOX names, and writes a line.
import { createInterface } from 'node:readline'
import { Daytona } from '@daytonaio/sdk'

const sandbox = await new Daytona().get(process.env.SANDBOX)
console.log('ready')
for await (const _ of createInterface({ input: process.stdin })) {
  const r = await sandbox.process.executeCommand('true')
  console.log(r.exitCode === 0 ? 'ok' : `true exited with ${r.exitCode}`)
}
process.exit(0)
