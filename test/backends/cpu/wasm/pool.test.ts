import type { Worker } from 'node:worker_threads';
import { describe, expect, it } from 'vitest';
import { wasmBackend } from '../../../../lib/backends/cpu/wasm/device.js';
import { attention, memory, plan, tensor, zeros } from '../../../../lib/index.js';
import { distUrl, runScript } from '../../../support/child.js';
import { collectGarbage } from '../../../support/collectGarbage.js';
import { withoutCpu } from '../../../support/cpu.js';

Object.assign(process.env, withoutCpu); // here and in children

/** Big enough to take tens of milliseconds. */
const big = [1, 2048, 4, 64] as const;

describe('the event loop', () => {
  it('stays free while attention runs', async () => {
    using q = zeros(big);
    let ticks = 0;
    const timer = setInterval(() => ticks++, 1);
    const { out, lse } = attention(q, q, q);
    await out.data();
    clearInterval(timer);
    expect(ticks).toBeGreaterThan(2);
    out.dispose();
    lse.dispose();
  });

  it('dataSync gives what data gives', async () => {
    using q = tensor(
      Float32Array.from({ length: 64 }, (_, i) => Math.sin(i)),
      [1, 8, 1, 8],
    );
    const { out, lse } = attention(q, q, q);
    expect(out.dataSync()).toEqual(await out.data());
    out.dispose();
    lse.dispose();
  });
});

describe('the queue', () => {
  it('takes more launches than it has slots, in order', async () => {
    using q = zeros(big);
    using v = tensor([1, 2, 3, 4], [1, 4, 1, 1]);
    using scores = zeros([1, 4, 1, 1]);
    // While this one runs, the others, which are small, have to queue up.
    const { out, lse } = attention(q, q, q);
    using steps = plan({ q: [1, 4, 1, 1], causal: true });
    using averaged = zeros([1, 4, 1, 1]);
    const reads: Promise<Float32Array>[] = [];
    for (let i = 0; i < 5000; i++) {
      // The last row sees all: the mean of what is visible, another one each time.
      const result = steps.run(scores, scores, i % 2 === 0 ? v : averaged);
      if (i >= 4990) reads.push(result.out.data());
    }
    for (const [i, read] of reads.entries())
      expect(Array.from(await read, (x) => Math.round(1000 * x) / 1000)).toEqual(
        i % 2 === 0 ? [1, 1.5, 2, 2.5] : [0, 0, 0, 0],
      );
    out.dispose();
    lse.dispose();
  });

  it('reuses freed memory without harm to pending launches', async () => {
    await collectGarbage();
    const before = memory().bytesInUse;
    const rows = [];
    for (let i = 0; i < 200; i++) {
      // Written, used and freed before the launches have run.
      using x = tensor(new Float32Array(256 * 32).fill(i), [1, 256, 1, 32]);
      const { out, lse } = attention(x, x, x);
      lse.dispose();
      rows.push(out);
    }
    for (const [i, out] of rows.entries()) {
      expect((await out.data()).every((value) => Math.abs(value - i) <= 1e-4 * i)).toBe(true);
      out.dispose();
    }
    expect(memory().bytesInUse).toBe(before);
  });
});

describe('memory of pending launches', () => {
  it("is not the host's to write, however often it changed hands", async () => {
    const backend = wasmBackend();
    using q = zeros(big);
    const { out, lse } = attention(q, q, q);
    const { byteLength } = out;
    out.dispose(); // before it was written
    const taken = backend.allocate(byteLength, 'deviceWritten');
    backend.free(taken);
    const forHost = backend.allocate(byteLength, 'hostWritten');
    expect(forHost.address).not.toBe(taken.address);
    await lse.ready();
    backend.free(forHost);
    lse.dispose();
  });
});

describe('plans', () => {
  it('allocate nothing when they run', async () => {
    using q = zeros([2, 100, 4, 16]);
    using bias = zeros([1, 4, 100, 1], { dtype: 'float16' });
    using p = plan({ q: q.shape, kLens: [100, 50], bias, backward: true });
    const run = async () => {
      const { out } = p.run(q, q, q);
      const { dq } = p.runBackward(out);
      await dq.data();
    };
    await run();
    const { bytesInUse, bytesPeak, tensors } = memory();
    for (let i = 0; i < 5; i++) await run();
    expect(memory()).toMatchObject({ bytesInUse, bytesPeak, tensors });
  });

  it('say what they need', () => {
    using q = zeros([1, 4, 1, 8]);
    using other = zeros([1, 5, 1, 8]);
    using p = plan({ q: [1, 4, 1, 8] });
    expect(() => p.run(other, q, q)).toThrow('q has shape [1, 5, 1, 8]; it must be [1, 4, 1, 8]');
    expect(() => p.runBackward(q)).toThrow('backward: true');
    using both = plan({ q: [1, 4, 1, 8], backward: true });
    expect(() => both.runBackward(q)).toThrow('needs a run before it');
    both.dispose();
    expect(() => both.run(q, q, q)).toThrow('disposed');
  });
});

describe('a worker that dies', () => {
  // Node tells of every thread that this one starts.
  const threads = new Set<Worker>();
  process.on('worker', (thread) => {
    threads.add(thread);
    thread.once('exit', () => threads.delete(thread));
  });

  /** Ends a thread of the pool at work, as a crash would. */
  async function killOneWorker(): Promise<void> {
    // Threads are told of a turn after they were started, and work some time later.
    await expect.poll(() => threads.size, { timeout: 30_000 }).toBeGreaterThan(0);
    for (const thread of [...threads].slice(0, 1)) await thread.terminate();
  }

  it('rejects pending reads, and later calls work', async () => {
    using q = zeros([1, 8192, 4, 64]);
    using small = tensor([1, 2], [1, 1, 1, 2]);
    const begun = attention(q, q, q);
    await begun.out.ready();
    const lost = attention(q, q, q);
    const pending = lost.out.data();
    const waiting = expect(pending).rejects.toMatchObject({
      code: 'ERR_WORKER',
      message: expect.stringContaining('the thread ended with exit code 1'),
      cause: expect.any(Error),
    });
    await killOneWorker();
    await waiting;
    expect(() => lost.out.dataSync()).toThrow('never computed');
    expect(() => attention(lost.out, lost.out, lost.out)).toThrow('q was never computed');
    const { out, lse } = attention(small, small, small);
    expect([...(await out.data())]).toEqual([1, 2]);
    for (const t of [begun.out, begun.lse, lost.out, lost.lse, out, lse]) t.dispose();
  });

  it('gives its memory back', async () => {
    using x = zeros(big);
    const alive = async () => {
      const { out, lse } = attention(x, x, x);
      await out.data().catch(() => undefined);
      out.dispose();
      lse.dispose();
      return memory().bytesInUse;
    };
    // Threads of pools that tests before this one broke end on their own time, and then their memory is free.
    await alive();
    await expect.poll(() => threads.size, { timeout: 30_000 }).toBeLessThanOrEqual(wasmBackend().threads);
    const before = await alive();
    for (let i = 0; i < 3; i++) {
      await killOneWorker();
      await alive();
    }
    await expect.poll(alive, { timeout: 30_000 }).toBe(before);
  });
});

describe('processes and threads', () => {
  const attend = `
    const x = fa.tensor(new Float32Array(4 * 1024 * 64).fill(1), [1, 1024, 4, 64]);
    const { out } = fa.attention(x, x, x, { causal: true });`;

  it('a process that never disposes ends by itself', async () => {
    expect(await runScript(`${attend} console.log((await out.data())[5]);`)).toEqual({
      code: 0,
      stdout: '1\n',
      stderr: '',
    });
  });

  it('a process with a launch that nobody reads ends by itself', async () => {
    expect(await runScript(`${attend} console.log('end');`)).toEqual({ code: 0, stdout: 'end\n', stderr: '' });
  });

  it('a process waits for a read without anything else to keep it alive', async () => {
    expect(await runScript(`${attend} out.data().then((d) => console.log(d.length));`)).toMatchObject({
      stdout: '262144\n',
    });
  });

  it('runs inside worker_threads, in many at once', async () => {
    const worker = `
      import { parentPort } from 'node:worker_threads';
      const fa = await import(${JSON.stringify(distUrl)});
      ${attend}
      parentPort.postMessage((await out.data())[7] + out.dataSync()[8]);`;
    const result = await runScript(
      `import { Worker } from 'node:worker_threads';
       const url = new URL('data:text/javascript,' + encodeURIComponent(${JSON.stringify(worker)}));
       const answers = Array.from({ length: 12 }, () => new Promise((resolve, reject) => {
         const w = new Worker(url);
         w.once('message', resolve);
         w.once('error', reject);
       }));
       console.log((await Promise.all(answers)).join());`,
    );
    expect(result).toEqual({ code: 0, stdout: `${Array(12).fill(2).join()}\n`, stderr: '' });
  });

  it('the plain SIMD build can be chosen and agrees', async () => {
    const script = `
      const data = Float32Array.from({ length: 4096 }, (_, i) => Math.sin(i * i));
      const x = fa.tensor(data, [1, 64, 2, 32]);
      const { out, lse } = fa.attention(x, x, x, { causal: true });
      const { dq } = fa.attentionBackward(x, { q: x, k: x, v: x, out, lse }, { causal: true });
      console.log(JSON.stringify({ simd: fa.status().simd, values: [...await out.data(), ...await dq.data()] }));`;
    const [plain, preferred] = await Promise.all([
      runScript(script, { FLASHATTN_RELAXED_SIMD: '0' }),
      runScript(script),
    ]);
    const a = JSON.parse(plain.stdout) as { simd: string; values: number[] };
    const b = JSON.parse(preferred.stdout) as { simd: string; values: number[] };
    expect([a.simd, b.simd]).toEqual(['plain', 'relaxed']);
    expect(Math.max(...a.values.map((x, i) => Math.abs(x - b.values[i])))).toBeLessThan(1e-5);
    expect(plain.stderr + preferred.stderr).toBe('');
  });

  it('FLASHATTN_THREADS sets the number of threads', async () => {
    const script = 'console.log(fa.status().threads)';
    expect((await runScript(script, { FLASHATTN_THREADS: '3' })).stdout).toBe('3\n');
    const bad = { FLASHATTN_THREADS: 'many' };
    const message = 'FLASHATTN_THREADS is "many"; it must be an integer from 1 to 256';
    const used = await runScript("fa.zeros([1], { device: 'wasm' })", bad);
    expect(used).toMatchObject({ code: 1, stderr: expect.stringContaining(message) });
    const asked = await runScript('console.log(JSON.stringify(fa.status().reasons.at(-1)))', bad);
    expect(JSON.parse(asked.stdout)).toEqual({
      device: 'wasm',
      code: 'ERR_OPTION',
      hint: expect.stringContaining(message),
    });
  });

  it('the garbage collector frees what was never disposed', async () => {
    const { stdout } = await runScript(
      `for (let i = 0; i < 50; i++) fa.zeros([1 << 18]);
       const before = fa.memory();
       await fa.synchronize();
       for (let i = 0; i < 20 && fa.memory().tensors > 0; i++) { gc(); await new Promise((r) => setTimeout(r, 10)); }
       console.log(before.tensors, fa.memory().tensors);`,
      {},
      ['--expose-gc'],
    );
    expect(stdout).toBe('50 0\n');
  });
});
