/** Several devices, as the addon sees them: in processes of their own, since an emulated device is chosen once. */
import { describe, expect, it } from 'vitest';
import { runNode } from '../../support/child.js';
import { emulatorPath, hasEmulator, onEmulator } from '../../support/emulator.js';

/** Runs `body`, with the addon, `fill(context, pointer, words)` and what it prints as JSON. */
async function run(body: string, env: Record<string, string> = {}): Promise<unknown> {
  const script = `
    const addon = require(${JSON.stringify(emulatorPath)});
    const [line] = addon.description.split('\\n');
    const operations = line.split(' ').slice(1);
    const fill = (context, pointer, words, value) => {
      const params = new DataView(new ArrayBuffer(24)); // FillParams
      params.setBigUint64(0, BigInt(pointer), true);
      params.setBigInt64(8, BigInt(words), true);
      params.setUint32(16, value, true);
      context.launch(operations.indexOf('fill'), new Uint8Array(params.buffer));
    };
    const read = (context, pointer) => {
      const bytes = new Uint8Array(4);
      context.readSync(pointer, bytes);
      return new DataView(bytes.buffer).getUint32(0, true);
    };
    const attempt = (action) => {
      try {
        return action();
      } catch (error) {
        return { message: error.message, ...error };
      }
    };
    (async () => console.log(JSON.stringify(await (async () => { ${body} })())))();`;
  const { stdout, stderr } = await runNode(['--expose-gc', '--eval', script], {
    FLASHATTN_EMULATOR_DEVICES: '2',
    FLASHATTN_EMULATOR_MEMORY: String(2 ** 24),
    ...env,
  });
  expect(stderr).toBe('');
  return JSON.parse(stdout);
}

describe.skipIf(!hasEmulator)(onEmulator('several devices'), () => {
  it('are listed', async () => {
    const { devices } = (await run('return addon.devices();')) as { devices: { pciBusId: string }[] };
    expect(devices.map(({ pciBusId }) => pciBusId)).toEqual(['0000:00:00.0', '0000:00:01.0']);
  });

  it('leave the first device alone when another one is used, to its end', async () => {
    const body = `
      let context = new addon.Context(1);
      const pointer = context.allocate(64);
      fill(context, pointer, 16, 7);
      const value = read(context, pointer);
      context.allocate(128); // left to the destructor
      const before = context.memoryInfo().free;
      context = undefined;
      for (let i = 0; i < 20; i++) {
        gc();
        await new Promise(setImmediate);
      }
      const other = new addon.Context(1);
      return { value, freed: other.memoryInfo().free - before, contexts: [0, 1].map(addon.emulator.hasContext) };`;
    expect(await run(body)).toEqual({ value: 7, freed: 64 + 128, contexts: [false, true] });
  });

  it('work side by side, and see memory of the other one reported', async () => {
    const body = `
      const contexts = [new addon.Context(0), new addon.Context(1)];
      const pointers = contexts.map((context) => context.allocate(64));
      for (const round of [1, 2])
        for (const n of [0, 1]) fill(contexts[n], pointers[n], 16, 10 * round + n);
      const values = [0, 1].map((n) => read(contexts[n], pointers[n]));
      const { message } = attempt(() => fill(contexts[0], pointers[1], 16, 3));
      return { values, message, kept: read(contexts[1], pointers[1]) };`;
    expect(await run(body)).toEqual({
      values: [20, 21],
      message: expect.stringMatching(/other-device.*memory of device 1, on device 0/),
      kept: 21,
    });
  });

  it.each([
    ['0', 'fill or later', undefined],
    ['1', 'fill itself', true],
  ])('tell errors of kernels, with FLASHATTN_SYNC=%s, by %s', async (sync, _, ended) => {
    const illegalAddress = 700;
    const body = `
      const context = new addon.Context(0);
      const pointer = context.allocate(64);
      addon.emulator.failLaunch(${illegalAddress});
      const launched = attempt(() => fill(context, pointer, 16, 1));
      return { launched, read: attempt(() => read(context, pointer)) };`;
    const { launched, read } = (await run(body, { FLASHATTN_SYNC: sync })) as Record<string, object>;
    const failure = { code: 'ERR_DEVICE', cuda: 'cudaErrorIllegalAddress' };
    if (ended) expect(launched).toMatchObject({ ...failure, launch: 'fill', ended });
    else expect({ launched, read }).toMatchObject({ read: failure });
  });

  it('are waited for by a thread of their own: files can be read meanwhile, and promises are kept in order', async () => {
    const body = `
      const context = new addon.Context(0);
      const pointer = context.allocate(64);
      fill(context, pointer, 16, 9);
      addon.emulator.holdEvents(true);
      const order = [];
      const reads = Array.from({ length: 8 }, (_, n) => {
        const bytes = new Uint8Array(4);
        return context.read(pointer, bytes).then(() => order.push(n + ':' + bytes[0]));
      });
      const text = await require('node:fs/promises').readFile(process.execPath, { encoding: 'latin1', flag: 'r' });
      const before = order.length;
      addon.emulator.holdEvents(false);
      await Promise.all(reads);
      await context.synchronize();
      return { read: text.length > 0, before, order };`;
    const order = Array.from({ length: 8 }, (_, n) => `${n}:9`);
    expect(await run(body, { UV_THREADPOOL_SIZE: '1' })).toEqual({ read: true, before: 0, order });
  });

  it('are let go of by a worker that ends while it waits', async () => {
    const body = `
      const { Worker } = require('node:worker_threads');
      const program = "const addon = require(" + JSON.stringify(${JSON.stringify(emulatorPath)}) + ");" +
        "const context = new addon.Context(0); const pointer = context.allocate(64);" +
        "for (let n = 0; n < 4; n++) void context.read(pointer, new Uint8Array(64));" +
        "require('node:worker_threads').parentPort.postMessage(0);";
      const codes = [];
      for (let round = 0; round < 5; round++) {
        addon.emulator.holdEvents(true);
        const worker = new Worker(program, { eval: true });
        await new Promise((resolve) => worker.once('message', resolve));
        setTimeout(() => addon.emulator.holdEvents(false), 20);
        codes.push(await worker.terminate());
      }
      const context = new addon.Context(0);
      const pointer = context.allocate(64);
      fill(context, pointer, 16, 5);
      const bytes = new Uint8Array(4);
      await context.read(pointer, bytes);
      return { codes, value: bytes[0] };`;
    expect(await run(body)).toEqual({ codes: [1, 1, 1, 1, 1], value: 5 });
  });

  it('do not keep a process alive that awaits nothing', async () => {
    expect(await run('new addon.Context(0).synchronize(); return 1;')).toBe(1);
  });
});
