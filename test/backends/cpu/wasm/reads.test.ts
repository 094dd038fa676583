/** A read gives what the launches before it made, whatever is written, launched, freed or reused after it. */
import * as fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { wasmBackend } from '../../../../lib/backends/cpu/wasm/device.js';
import { attention, memory, plan, synchronize, type Tensor, tensor, zeros } from '../../../../lib/index.js';
import type { DeviceBuffer } from '../../../../lib/kernels/memory.js';
import { collectGarbage } from '../../../support/collectGarbage.js';

/** Attention over one key is that key's value: v is copied to out. Big ones are left to the threads. */
const big = { q: [1, 1 << 17, 1, 4], v: [1, 1, 1, 4] } as const;
const small = { q: [1, 2, 1, 4], v: [1, 1, 1, 4] } as const;

describe('a read', () => {
  it('comes before a write after it', async () => {
    using t = tensor([1, 1], [2]);
    const read = t.data();
    t.write([2, 2]);
    expect([...(await read)]).toEqual([1, 1]);
    expect([...t.dataSync()]).toEqual([2, 2]);
  });

  it('comes before a write after it, also when its launch was pending', async () => {
    using q = zeros(big.q);
    using v = tensor([1, 2, 3, 4], big.v);
    const { out, lse } = attention(q, v, v);
    const reads = [out.data(), out.slice(1, 5, 7).toFloat32(), out.select(3, 2).data()];
    out.write(new Float32Array(out.size).fill(9));
    const [whole, rows, column] = (await Promise.all(reads)) as [Float32Array, Float32Array, Float32Array];
    expect([...whole.subarray(-4)]).toEqual([1, 2, 3, 4]);
    expect([...rows]).toEqual([1, 2, 3, 4, 1, 2, 3, 4]);
    expect(column.every((x) => x === 3)).toBe(true);
    expect(out.dataSync()[0]).toBe(9);
    out.dispose();
    lse.dispose();
  });

  it.each([
    ['small', small],
    ['big', big],
  ] as const)('of a plan comes before later runs: %s', async (_, { q: shape, v: valueShape }) => {
    using q = zeros(shape);
    using p = plan({ q: shape, k: valueShape, v: valueShape });
    const values = [1, 2, 3, 4].map((x) => tensor([x, x, x, x], valueShape));
    await collectGarbage();
    const before = memory().bytesInUse;
    const reads = values.map((v) => p.run(q, v, v).out.data());
    for (const [i, read] of reads.entries()) expect((await read).every((x) => x === i + 1)).toBe(true);
    expect(memory().bytesInUse).toBe(before);
    for (const v of values) v.dispose();
  });

  it('of 16-bit elements at odd offsets comes before later runs', async () => {
    const shape = [1, 1 << 16, 1, 3] as const;
    using q = zeros(shape, { dtype: 'float16' });
    using p = plan({ q: shape, k: [1, 1, 1, 3], dtype: 'float16' });
    const [a, b] = [tensor([1, 2, 3], [1, 1, 1, 3], { dtype: 'float16' }), q.slice(1, 0, 1)];
    const read = p.run(q, a, a).out.slice(1, 1, 4).toFloat32();
    p.run(q, b, b);
    expect([...(await read)]).toEqual([1, 2, 3, 1, 2, 3, 1, 2, 3]);
    expect((await p.run(q, b, b).out.data())[0]).toBe(0);
    a.dispose();
    b.dispose();
  });

  it('goes on when the tensor is disposed and its memory is asked for again', async () => {
    using q = zeros(big.q);
    using v = tensor([5, 6, 7, 8], big.v);
    await collectGarbage();
    const before = memory().bytesInUse;
    const { out, lse } = attention(q, v, v);
    lse.dispose();
    const read = out.data();
    out.dispose();
    const other = attention(q, q.slice(1, 0, 1), q.slice(1, 0, 1));
    const others = [tensor(new Float32Array(q.size).fill(9), [q.size]), zeros([q.size]), other.out, other.lse];
    expect([...(await read).subarray(-4)]).toEqual([5, 6, 7, 8]);
    for (const t of others) t.dispose();
    await synchronize();
    expect(memory().bytesInUse).toBe(before);
  });

  it('without memory for a copy waits', async () => {
    using q = zeros(big.q);
    using v = tensor([1, 2, 3, 4], big.v);
    using p = plan({ q: big.q, k: big.v });
    const backend = wasmBackend();
    const rest: DeviceBuffer[] = [];
    for (let bytes = 2 ** 32; bytes >= 65536; ) {
      try {
        rest.push(backend.allocate(bytes, 'deviceWritten'));
      } catch {
        bytes /= 2;
      }
    }
    const read = p.run(q, v, v).out.data();
    p.run(q, q.slice(1, 0, 1), q.slice(1, 0, 1));
    for (const buffer of rest) backend.free(buffer);
    expect([...(await read).subarray(-4)]).toEqual([1, 2, 3, 4]);
  });
});

describe('any sequence of operations', () => {
  type Step = { readonly kind: 'write' | 'run' | 'read' | 'readPart' | 'dispose' | 'turn'; readonly at: number };
  const kinds = ['write', 'run', 'run', 'read', 'read', 'readPart', 'dispose', 'turn'] as const;
  const step = fc.record({ kind: fc.constantFrom(...kinds), at: fc.nat(2) });
  /** Many enough that the launches are left to the threads, not run in the call. */
  const rows = 1 << 19;

  it('reads what a model in JavaScript says', async () => {
    await collectGarbage();
    const before = memory().bytesInUse;
    await fc.assert(
      fc.asyncProperty(fc.array(step, { maxLength: 40 }), async (steps: Step[]) => {
        using q = zeros([1, rows, 1, 1]);
        using key = zeros([1, 1, 1, 1]);
        const plans = [0, 1, 2].map(() => plan({ q: [1, rows, 1, 1], k: [1, 1, 1, 1] }));
        // What each tensor holds: the same number everywhere.
        const results: { t: Tensor; value: number }[] = [];
        const checks: Promise<void>[] = [];
        let next = 0;
        const expectAll = async (read: Promise<Float32Array>, value: number, length: number) => {
          const data = await read;
          expect([data.length, data.every((x) => x === value)]).toEqual([length, true]);
        };
        for (const { kind, at } of steps) {
          const result = results[at % Math.max(1, results.length)];
          if (kind === 'run') {
            next++;
            using v = tensor([next], [1, 1, 1, 1]);
            if (at === 0) {
              const { out, lse } = attention(q, key, v);
              lse.dispose();
              results.push({ t: out, value: next });
            } else {
              const { out } = (plans[at] as (typeof plans)[0]).run(q, key, v);
              const t = out.reshape([rows]);
              for (const other of results)
                if (other.t.shape.length === 1 && owners.get(other.t) === at) other.value = next;
              owners.set(t, at);
              results.push({ t, value: next });
            }
          } else if (kind === 'turn') await new Promise((resolve) => setImmediate(resolve));
          else if (!result) continue;
          else if (kind === 'read') checks.push(expectAll(result.t.toFloat32(), result.value, rows));
          else if (kind === 'readPart') {
            using part = result.t.slice(result.t.shape.length === 1 ? 0 : 1, 3, 99);
            checks.push(expectAll(part.toFloat32(), result.value, 96));
          } else if (kind === 'write') {
            result.t.write(new Float32Array(rows).fill(++next));
            const owner = owners.get(result.t);
            for (const other of results)
              if (other === result || (owner !== undefined && owners.get(other.t) === owner)) other.value = next;
          } else {
            result.t.dispose();
            results.splice(results.indexOf(result), 1);
          }
        }
        await Promise.all(checks);
        for (const { t } of results) t.dispose();
        for (const p of plans) p.dispose();
      }),
      { numRuns: 25 },
    );
    await synchronize();
    expect(memory().bytesInUse).toBe(before);
  });

  /** Which plan's memory a view shows. */
  const owners = new WeakMap<Tensor, number>();
});
