/** Attention with a list of key blocks for each position, against its definition. */
import { memory, type Tensor, tensor } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { selectedAttention } from '../../lib/systems/selectedAttention.js';
import { maxError } from '../../verify/oracle/compare.js';
import type { Heads } from '../../verify/oracle/nsa.js';
import { type SelectedCase, selected } from '../../verify/oracle/selected.js';
import { distUrl, runScript } from '../support/child.js';
import { hasCpu } from '../support/cpu.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

const base: SelectedCase = {
  ...{ batch: 2, seq: 23, heads: 4, kvHeads: 2, dim: 5, valueDim: 3, size: 4, slots: 3, scale: 0.4 },
};

const cases: readonly SelectedCase[] = [
  base,
  // As many query heads as a vector has lanes, and as it has not; logits that grow.
  { ...base, batch: 1, heads: 16, kvHeads: 1, scale: 1.2 },
  { ...base, batch: 1, heads: 7, kvHeads: 1, slots: 1 },
  // More query heads than a tile has columns.
  { ...base, batch: 1, seq: 9, heads: 35, kvHeads: 1 },
  // Blocks that are no longer than a token; one that is longer than a tile of keys, and the sequence shorter than it.
  { ...base, seq: 11, size: 1 },
  { ...base, batch: 1, seq: 150, heads: 2, kvHeads: 1, size: 140, slots: 2 },
  { ...base, size: 64 },
];

const inputsOf = (c: SelectedCase): Inputs => ({
  q: input([c.batch, c.seq, c.heads, c.dim], 1),
  k: input([c.batch, c.seq, c.kvHeads, c.dim], 2),
  v: input([c.batch, c.seq, c.kvHeads, c.valueDim], 3),
});

/** Blocks that come twice, that lie behind the position, and that are none; the own one first where `own` is given. */
function listsOf(c: SelectedCase, own: boolean): Int32Array {
  const count = Math.ceil(c.seq / c.size);
  return Int32Array.from({ length: c.batch * c.seq * c.kvHeads * c.slots }, (_, at) => {
    const i = Math.floor(at / c.slots / c.kvHeads) % c.seq;
    if (own && at % c.slots === 0) return Math.floor(i / c.size);
    return ((at * 7919 + Math.floor(at / 3) * 104729) % (count + 2)) - 1;
  });
}

const processors = testDevices.filter(({ device }) => device === 'wasm' || device === 'cpu');

describe.each(processors)('$device', ({ device, present, title }) => {
  const runOn = (t: Named<Tensor>, c: SelectedCase, lists: Int32Array) =>
    selectedAttention(
      t.q as Tensor,
      t.k as Tensor,
      t.v as Tensor,
      tensor(lists, [c.batch, c.seq, c.kvHeads, c.slots], { device, dtype: 'int32' }),
      c,
    );

  describe.skipIf(!present)(title('attention to selected blocks'), () => {
    it.each(cases)('%j', (c) => {
      const lists = listsOf(c, false);
      checkSystem(
        device,
        inputsOf(c),
        (t) => runOn(t, c, lists).out,
        (values) => selected(c, values as unknown as Heads, lists).out,
      );
    });

    it('has an lse, with a gradient', () => {
      const lists = listsOf(base, true);
      checkSystem(
        device,
        inputsOf(base),
        (t) => runOn(t, base, lists).lse,
        (values) => selected(base, values as unknown as Heads, lists).lse,
      );
    });

    it('is zero where nothing is seen, as are the gradients', () => {
      const lists = new Int32Array(base.batch * base.seq * base.kvHeads * base.slots).fill(-1);
      const cotangent = { out: new Float64Array(base.batch * base.seq * base.heads * base.valueDim).fill(1) };
      const { outputs, gradients } = run(
        device,
        inputsOf(base),
        (t) => ({ out: runOn(t, base, lists).out }),
        cotangent,
      );
      for (const all of [outputs.out, ...Object.values(gradients)]) expect(all?.every((x) => x === 0)).toBe(true);
    });

    it('does not see NaN in keys that are not selected or lie behind the position', () => {
      const c = { ...base, batch: 1, seq: 20 };
      // Nobody selects block 1, and of block 3 positions up to 13 see nothing of the last two keys.
      const lists = Int32Array.from({ length: c.seq * c.kvHeads * c.slots }, (_, at) => {
        const own = Math.floor(Math.floor(at / c.slots / c.kvHeads) / c.size);
        return [own === 1 ? 0 : own, 0, own >= 2 ? 2 : 0][at % c.slots] as number;
      });
      const clean = inputsOf(c);
      const spoil = ({ shape, data }: Inputs[string]) => {
        const rest = data.length / c.seq;
        return { shape, data: data.map((x, at) => ([5, 6, 14, 15].includes(Math.floor(at / rest)) ? Number.NaN : x)) };
      };
      const spoiled = { ...clean, k: spoil(clean.k as Inputs[string]), v: spoil(clean.v as Inputs[string]) };
      const seen = c.seq * c.heads * c.valueDim;
      // Only positions 14 and later see some NaN: their gradient is left out.
      const weights = Float64Array.from({ length: seen }, (_, at) => Math.cos(at));
      const of = (inputs: Inputs) => run(device, inputs, (t) => ({ out: runOn(t, c, lists).out }), { out: weights });
      const [a, b] = [of(clean), of(spoiled)];
      const end = 14 * c.heads * c.valueDim;
      expect(maxError(b.outputs.out?.subarray(0, end) ?? [], a.outputs.out?.subarray(0, end) ?? [])).toBeLessThan(1e-6);
      const ends = { q: 14 * c.heads * c.dim };
      expect(maxError(b.gradients.q?.subarray(0, ends.q) ?? [], a.gradients.q?.subarray(0, ends.q) ?? [])).toBeLessThan(
        1e-6,
      );
      // Keys of block 1, which nobody sees.
      const unseen = (t: Float64Array | undefined, dim: number) =>
        t?.subarray(4 * c.kvHeads * dim, 8 * c.kvHeads * dim).every((x) => x === 0);
      expect([unseen(b.gradients.k, c.dim), unseen(b.gradients.v, c.valueDim)]).toEqual([true, true]);
    });

    it('is finite where sums of values overflow before they are divided', () => {
      const c = { ...base, batch: 1, size: 16, slots: 2 };
      const inputs = inputsOf(c);
      const v = {
        shape: [1, c.seq, c.kvHeads, c.valueDim],
        data: new Float64Array(c.seq * c.kvHeads * c.valueDim).fill(3e38),
      };
      const { outputs } = run(device, { ...inputs, v }, (t) => ({ out: runOn(t, c, listsOf(c, true)).out }), undefined);
      for (const x of outputs.out ?? []) expect(Math.abs(x / 3e38 - 1)).toBeLessThan(1e-5);
    });

    it('leaves nothing behind', () => {
      const before = memory(device);
      const lists = listsOf(base, true);
      run(device, inputsOf(base), (t) => ({ out: runOn(t, base, lists).out }), undefined);
      expect(memory(device).tensors).toBe(before.tensors);
    });
  });
});

describe.skipIf(!hasCpu)('native sparse attention', () => {
  it('gives the same bits for any number of threads', async () => {
    const body = `
      const { nativeSparseAttention } = await import(${JSON.stringify(new URL('systems.js', distUrl).href)});
      const options = (seed) => ({ seed, device: 'cpu' });
      const [q, k, v] = [8, 4, 4].map((heads, at) => fa.parameter(fa.normal([1, 700, heads, 16], options(at))));
      const [compressed, selected, sliding] = [4, 5, 6].map((seed) => fa.uniform([1, 700, 8], options(seed)));
      const { out } = nativeSparseAttention(q, k, v, {
        ...{ gates: { compressed, selected, sliding }, blockSize: 16, blockCount: 6, window: 40 },
      });
      fa.sum(fa.mul(out, out)).backward();
      for (const t of [out, q.grad, k.grad, v.grad]) {
        let hash = 0;
        for (const bits of new Uint32Array((await t.data()).buffer)) hash = (Math.imul(hash, 31) + bits) >>> 0;
        console.log(hash);
      }`;
    const [one, two] = await Promise.all(['1', '2'].map((FLASHATTN_THREADS) => runScript(body, { FLASHATTN_THREADS })));
    expect(one).toMatchObject({ code: 0, stderr: '' });
    expect(two?.stdout).toBe(one?.stdout);
  });
});
