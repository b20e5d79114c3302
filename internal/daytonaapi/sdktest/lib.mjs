// What the scripts share: the SDK that SDK names, and a sandbox of a script's own.
import { after, before } from 'node:test'

export const { Daytona, Image } = await import(process.env.SDK)
export const daytona = new Daytona()

// sandboxFor makes a sandbox for a script's tests, and deletes it after them. The
// object is filled in before the first test.
export function sandboxFor(params) {
  const box = {}
  before(async () => {
    box.sandbox = await daytona.create(params)
    box.run = async command => {
      const r = await box.sandbox.process.executeCommand(command)
      if (r.exitCode !== 0) throw new Error(`${command} exited with ${r.exitCode}: ${r.result}`)
      return r.result
    }
  })
  after(async () => {
    if (box.sandbox) await daytona.delete(box.sandbox, 60, true)
  })
  return box
}

// until waits for what must come.
export async function until(what, condition) {
  for (const end = Date.now() + 60_000; ; await new Promise(done => setTimeout(done, 20))) {
    if (await condition()) return
    if (Date.now() > end) throw new Error(`${what} did not come`)
  }
}

export async function collect(iterable) {
  const list = []
  for await (const x of iterable) list.push(x)
  return list
}
