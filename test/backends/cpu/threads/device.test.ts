/** Native threads as a device: what it says of itself, its queue, its memory, and environments that come and go. */
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { attention, attentionBackward, explain, memory, plan, status, tensor, zeros } from '../../../../lib/index.js';
import { distUrl, runScript } from '../../../support/child.js';
import { codeOf } from '../../../support/codeOf.js';
import { collectGarbage } from '../../../support/collectGarbage.js';
import { hasCpu, instructionSets, onCpu } from '../../../support/cpu.js';

const device = 'cpu';
/** Big enough to take tens of milliseconds. */
const big = [1, 2048, 4, 64] as const;
const noise = (n: number, seed = 1) => Float32Array.from({ length: n }, (_, i) => Math.sin(seed * (i + 1) * 1.7));

describe.skipIf(!hasCpu)(onCpu('status'), () => {
  it('says which instructions are used, and auto is this device', () => {
    expect(status('cpu')).toMatchObject({ device: 'cpu', instructionSet: instructionSets[0], reasons: [] });
    expect(status()).toMatchObject({ device: 'cpu', reasons: [{ device: 'cuda' }] });
    expect(explain({ q: [1, 64, 2, 64], device }).kernel).toBe(`cpu-${instructionSets[0]}`);
    using t = zeros([1], { device });
    expect(t.device).toBe('cpu');
    expect(codeOf(() => t.devicePointer)).toBe('ERR_DEVICE');
  });

  it('obeys FLASHATTN_CPU and FLASHATTN_THREADS', async () => {
    const show = `console.log(JSON.stringify(fa.status('cpu')))`;
    for (const instructionSet of instructionSets) {
      const { stdout } = await runScript(show, { FLASHATTN_CPU: instructionSet, FLASHATTN_THREADS: '3' });
      expect(JSON.parse(stdout)).toMatchObject({ instructionSet, threads: 3 });
    }
    const { stderr } = await runScript(show, { FLASHATTN_CPU: 'mmx' });
    expect(stderr).toContain(
      'cpu (NO_INSTRUCTION_SET): FLASHATTN_CPU is mmx, but the addon has no kernels for it: use',
    );
  });

  it('without the addon says why, and wasm is used', async () => {
    const show = `console.log(JSON.stringify(fa.status()));
      const x = fa.tensor([1, 2], [1, 1, 1, 2]);
      console.log(await fa.attention(x, x, x).out.data());`;
    const { code, stdout } = await runScript(show, { FLASHATTN_CPU_ADDON: '/nowhere/flashattn-cpu.node' });
    expect(code).toBe(0);
    const found = JSON.parse(stdout.split('\n')[0] as string);
    expect(found).toMatchObject({
      device: 'wasm',
      reasons: [{ device: 'cuda' }, { device: 'cpu', code: 'LOAD_FAILED' }],
    });
  });
});

describe.skipIf(!hasCpu)(onCpu('results'), () => {
  it('are close to those of wasm, forward and backward, in every dtype', async () => {
    const shape = [2, 70, 4, 40] as const;
    const results = async (on: 'cpu' | 'wasm', dtype: 'float32' | 'float16' | 'bfloat16') => {
      const make = (seed: number) => tensor(noise(2 * 70 * 4 * 40, seed), shape, { device: on, dtype });
      const [q, k, v, g] = [make(1), make(2), make(3), make(4)];
      const result = attention(q, k, v, { causal: true });
      const { dq, dk, dv } = attentionBackward(g, { q, k, v, ...result });
      return Promise.all([result.out, dq, dk, dv].map((t) => t.toFloat32()));
    };
    for (const [dtype, tolerance] of [
      ['float32', 1e-5],
      ['float16', 2e-2],
      ['bfloat16', 0.2],
    ] as const) {
      const [ours, theirs] = [await results('cpu', dtype), await results('wasm', dtype)];
      for (const [i, array] of ours.entries())
        expect(array.every((x, j) => Math.abs(x - (theirs[i]?.[j] as number)) < tolerance)).toBe(true);
    }
  });

  it('have the same bits on every run', () => {
    using x = tensor(noise(300 * 4 * 32), [1, 300, 4, 32], { device });
    const bits = () => {
      const result = attention(x, x, x);
      const { dq, dk, dv } = attentionBackward(x, { q: x, k: x, v: x, ...result });
      return [result.out, dq, dk, dv].map((t) => t.dataSync());
    };
    const first = bits();
    for (let i = 0; i < 10; i++)
      expect(bits().every((array, t) => array.every((x, n) => x === first[t]?.[n]))).toBe(true);
  });
});

describe.skipIf(!hasCpu)(onCpu('the queue'), () => {
  it('leaves the event loop free', async () => {
    using q = zeros(big, { device });
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const { out } = attention(q, q, q);
    await out.data();
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(2);
  });

  it('takes more launches than it has slots, in order, and reads see their own', async () => {
    using q = zeros(big, { device });
    using v = tensor([1, 2, 3, 4], [1, 4, 1, 1], { device });
    using scores = zeros([1, 4, 1, 1], { device });
    attention(q, q, q); // while this one runs, the others, which are small, have to queue up
    using steps = plan({ q: [1, 4, 1, 1], causal: true, device });
    using nothing = zeros([1, 4, 1, 1], { device });
    const reads: Promise<Float32Array>[] = [];
    for (let i = 0; i < 5000; i++) {
      const { out } = steps.run(scores, scores, i % 2 === 0 ? v : nothing);
      if (i >= 4990) reads.push(out.data());
    }
    for (const [i, read] of reads.entries())
      expect(Array.from(await read, (x) => Math.round(1000 * x) / 1000)).toEqual(
        i % 2 === 0 ? [1, 1.5, 2, 2.5] : [0, 0, 0, 0],
      );
  });

  it('wakes whoever waits, in whatever order they came', async () => {
    using q = tensor(noise(512 * 2 * 32), [1, 512, 2, 32], { device });
    const outs = Array.from({ length: 40 }, () => attention(q, q, q).out);
    const order: number[] = [];
    const waits = outs.map((out, i) => out.ready().then(() => order.push(i)));
    await Promise.all([...waits].reverse());
    expect(order).toEqual(outs.map((_, i) => i));
    const last = attention(q, q, q).out;
    const pending = last.data();
    expect(last.dataSync()).toEqual(await pending);
  });
});

describe.skipIf(!hasCpu)(onCpu('memory'), () => {
  it('is given back and used again, and running out is a typed error', async () => {
    await collectGarbage();
    const { bytesInUse, bytesLimit } = memory(device);
    expect(codeOf(() => zeros([bytesLimit], { device }))).toBe('ERR_OUT_OF_MEMORY');
    expect(memory(device).bytesInUse).toBe(bytesInUse);
    for (let i = 0; i < 100; i++) {
      using x = tensor(new Float32Array(64 * 32).fill(i), [1, 64, 1, 32], { device });
      const { out, lse } = attention(x, x, x);
      expect(Math.abs(((await out.data())[5] as number) - i)).toBeLessThan(1e-3);
      out.dispose();
      lse.dispose();
    }
    expect(memory(device).bytesInUse).toBe(bytesInUse);
  });
});

describe.skipIf(!hasCpu)(onCpu('emptyCache'), () => {
  it.skipIf(process.platform !== 'linux')('gives what nobody uses back to the system, and keeps the rest', async () => {
    const { stdout } = await runScript(`
      const resident = () => process.memoryUsage().rss / 2 ** 20;
      const kept = fa.tensor([1, 2, 3], [3], { device: 'cpu' });
      const big = fa.tensor(new Float32Array(2 ** 26).fill(1), [2 ** 26], { device: 'cpu' });
      const after = fa.tensor([4, 5, 6], [3], { device: 'cpu' });
      big.dispose();
      const before = resident();
      fa.emptyCache('cpu');
      const again = fa.tensor(new Float32Array(2 ** 20).fill(7), [2 ** 20], { device: 'cpu' });
      const values = [kept, after, again.slice(0, 0, 3)].map((t) => [...t.dataSync()]);
      console.log(JSON.stringify({ freed: before - resident(), values }));`);
    const { freed, values } = JSON.parse(stdout);
    expect(freed).toBeGreaterThan(200);
    expect(values).toEqual([
      [1, 2, 3],
      [4, 5, 6],
      [7, 7, 7],
    ]);
  });
});

describe.skipIf(!hasCpu)(onCpu('processes and environments'), () => {
  const attend = `
    const x = fa.tensor(new Float32Array(4 * 2048 * 64).fill(1), [1, 2048, 4, 64], { device: 'cpu' });
    const { out } = fa.attention(x, x, x, { causal: true });`;

  it('end by themselves, wait for reads, and can be ended at work', async () => {
    expect(await runScript(`${attend} console.log('end');`)).toEqual({ code: 0, stdout: 'end\n', stderr: '' });
    expect(await runScript(`${attend} out.data().then((d) => console.log(d.length));`)).toMatchObject({
      code: 0,
      stdout: '524288\n',
    });
    expect(await runScript(`${attend} process.exit(7);`)).toEqual({ code: 7, stdout: '', stderr: '' });
    expect(await runScript(`${attend} setTimeout(() => { throw new Error('its own'); }, 5);`)).toMatchObject({
      code: 1,
    });
  });

  const program = `
    const { parentPort } = require('node:worker_threads');
    import(${JSON.stringify(distUrl)}).then(async (fa) => {
      const x = fa.tensor(new Float32Array(256 * 2 * 32).fill(2), [1, 256, 2, 32], { device: 'cpu' });
      const { out } = fa.attention(x, x, x);
      const [value] = await out.data();
      const big = fa.zeros([1, 2048, 4, 64], { device: 'cpu' });
      fa.attention(big, big, big);
      parentPort.postMessage(value);
    });`;

  it('fifty start and stop, also at work', async () => {
    const one = async () => {
      const worker = new Worker(program, { eval: true });
      const [value] = await once(worker, 'message'); // or its error
      expect(Math.abs(value - 2)).toBeLessThan(1e-5);
      await worker.terminate();
    };
    for (let i = 0; i < 10; i++) await Promise.all(Array.from({ length: 5 }, one));
  });
});
