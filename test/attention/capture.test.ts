/** What a plan has captured computes what the plan does, over what its tensors hold by then. */
import {
  attention,
  attentionBackward,
  type Captured,
  type FloatDType,
  masks,
  memory,
  plan,
  Tensor,
  tensor,
  zeros,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { instantiate } from '../../verify/cases/case.js';
import { lseShape, optionsOf, shapeOf } from '../../verify/cases/library.js';
import { make } from '../../verify/cases/views.js';
import { codeOf } from '../support/codeOf.js';
import { collectGarbage } from '../support/collectGarbage.js';
import { testDevice } from '../support/device.js';
import { CASES } from '../support/references.js';

const dataOf = (results: object): unknown[] =>
  Object.entries(results).flatMap(([name, t]) => (t instanceof Tensor ? [[name, t.dataSync()]] : []));

const device = testDevice;
const shape = [1, 40, 2, 8] as const;
const size = 640;
const values = (seed: number) => Float32Array.from({ length: size }, (_, i) => Math.sin(seed + i * (seed + 1)));
const made = (seed: number) => tensor(values(seed), shape, { device });

const captured = ['plain', 'packed, causal, with everything', 'dense, with everything', 'lengths of zero'] as const;

describe('captured', () => {
  it.each(captured)('%s: bit-equal to attention, whatever is written meanwhile', (name) => {
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const { problem: p, dOut, dLse } = instantiate({ ...CASES[name], dtype });
      const options = optionsOf(p, dtype, (t) => t);
      const q = make(p.query, shapeOf(p, 'query'), dtype).contiguous();
      const k = make(p.key, shapeOf(p, 'key'), dtype);
      const v = make(p.value, shapeOf(p, 'value'), dtype);
      const g = make(dOut, shapeOf(p, 'out'), dtype);
      const gLse = dLse && (make(dLse, lseShape(p), 'float32') as Tensor<'float32'>);
      using planned = plan<FloatDType>({
        q: q.shape,
        k: k.shape,
        v: v.shape,
        dtype,
        device,
        ...options,
        backward: true,
      });
      using graph = planned.capture(q, k, v, g, gLse);
      for (const factor of [1, -0.5]) {
        q.write(Float32Array.from(q.toFloat32Sync(), (x) => factor * x));
        const result = attention(q, k, v, options);
        const gradients = attentionBackward(g, { q, k, v, ...result }, gLse && { dLse: gLse });
        const replayed = graph.replay();
        expect(dataOf(replayed)).toEqual(dataOf({ ...result, ...gradients }));
        expect(Object.keys(replayed)).toContain('options');
      }
    }
  });

  it('backward alone goes with the pass that was run or replayed last', () => {
    const [a, b, g] = [made(1), made(2), made(3)];
    using planned = plan({ q: shape, device, backward: true });
    using first = planned.capture(a, a, b);
    using firstBackward = planned.captureBackward(g);
    using second = planned.capture(b, a, a);
    const expected = (q: Tensor<'float32'>, k: Tensor<'float32'>, v: Tensor<'float32'>) =>
      dataOf(attentionBackward(g, { q, k, v, ...attention(q, k, v) }));
    first.replay();
    expect(dataOf(firstBackward.replay())).toEqual(expected(a, a, b));
    second.replay();
    expect(dataOf(planned.runBackward(g))).toEqual(expected(b, a, a));
    first.replay();
    expect(dataOf(planned.runBackward(g))).toEqual(expected(a, a, b));
  });

  it('reads in between see their own replay', async () => {
    const [q, k, v] = [made(4), made(5), made(6)];
    using planned = plan({ q: shape, device });
    using graph = planned.capture(q, k, v);
    const reads = [1, 2, 3, 4].map((factor) => {
      v.write(values(6).map((x) => factor * x));
      return graph.replay().out.data();
    });
    const [one, ...others] = await Promise.all(reads);
    for (const [at, other] of others.entries()) {
      const wanted = (one as Float32Array).map((x) => (at + 2) * x);
      for (const [i, x] of other.entries()) expect(Math.abs(x - wanted[i])).toBeLessThan(1e-5);
    }
  });

  it('allocates nothing when it is replayed, and gives its memory back', async () => {
    await collectGarbage();
    const [q, g] = [made(7), made(8)];
    const before = memory(device);
    const planned = plan({ q: shape, device, backward: true });
    const graph = planned.capture(q, q, q, g);
    const { bytesInUse, tensors } = memory(device);
    for (let i = 0; i < 20; i++) graph.replay();
    expect(memory(device)).toMatchObject({ bytesInUse, tensors });
    graph.dispose();
    graph.dispose();
    planned.dispose();
    expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
  });

  it('keeps the mask that it was captured with, whatever caches let go of', async () => {
    await collectGarbage();
    const q = made(9);
    const mask = masks.or(masks.slidingWindow(4, 0), masks.globalTokens([0, 17]));
    using planned = plan({ q: shape, mask, device });
    const graph = planned.capture(q, q, q);
    const expected = graph.replay().out.dataSync();
    for (let n = 1; n <= 40; n++) {
      using x = zeros([1, n, 2, 8], { device });
      const { out, lse } = attention(x, x, x, { mask });
      for (const t of [out, lse]) t.dispose();
    }
    expect(graph.replay().out.dataSync()).toEqual(expected);
    const { bytesInUse } = memory(device);
    graph.dispose();
    expect(memory(device).bytesInUse).toBeLessThan(bytesInUse); // nobody else had it any more
  });

  it('refuses what it cannot be', () => {
    const [q, k, v, g] = [made(10), made(11), made(12), made(13)];
    using forward = plan({ q: shape, device });
    expect(() => forward.capture(q, k, v, g)).toThrow('backward: true');
    expect(() => forward.capture(q, k, g.slice(1, 0, 3))).toThrow('v has shape');
    expect(codeOf(() => forward.capture(q, k, null as never))).toBe('ERR_OPTION');
    const planned = plan({ q: shape, device, backward: true });
    expect(() => planned.captureBackward(g)).toThrow('a run before it');
    expect(() => planned.capture(q, k, v, undefined as never, zeros([1, 2, 40], { device }))).toThrow('dOut');
    const all: Captured<unknown>[] = [planned.capture(q, k, v, g), planned.captureBackward(g)];
    const once = planned.capture(q, k, v);
    once.dispose();
    expect(codeOf(() => once.replay())).toBe('ERR_DISPOSED');
    v.dispose();
    for (const graph of all) expect(() => graph.replay()).toThrow('v has been disposed');
    planned.dispose();
    for (const graph of all) expect(codeOf(() => graph.replay())).toBe('ERR_DISPOSED');
    expect(codeOf(() => planned.capture(q, k, k))).toBe('ERR_DISPOSED');
  });
});
