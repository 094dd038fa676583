/** Attention over a cache in blocks, against pairs in float64; and that bits of a row depend on nothing but the row. */
import { describe, expect, it } from 'vitest';
import { type DeviceName, memory, parameter, type Tensor, tensor } from '../../lib/index.js';
import { attentionWithCache, type CachedAttentionOptions, type KvCache, kvCache } from '../../lib/inference/index.js';
import { attendCached, type CachedProblem } from '../../verify/oracle/cache.js';
import { normal } from '../../verify/oracle/random.js';
import { devicesWith } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

interface Shape {
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim?: number;
  readonly blockSize: number;
  /** Of each sequence: how many positions come in each step. */
  readonly steps: readonly (readonly number[])[];
  readonly causal?: boolean;
  readonly window?: readonly [number, number];
  readonly softcap?: number;
  readonly alibi?: readonly number[];
  readonly sink?: readonly number[];
}

const cases: readonly Shape[] = [
  { heads: 4, kvHeads: 2, dim: 16, blockSize: 8, steps: [[37], [5], [24]] },
  {
    heads: 4,
    kvHeads: 2,
    dim: 16,
    blockSize: 4,
    steps: [
      [10, 1, 1],
      [3, 1, 1],
      [0, 5, 1],
    ],
  },
  {
    heads: 8,
    kvHeads: 1,
    dim: 32,
    valueDim: 20,
    blockSize: 1,
    steps: [
      [40, 7],
      [13, 2],
    ],
  },
  {
    heads: 6,
    kvHeads: 6,
    dim: 24,
    blockSize: 256,
    steps: [
      [300, 1],
      [517, 1],
    ],
  },
  {
    heads: 4,
    kvHeads: 1,
    dim: 64,
    blockSize: 16,
    steps: [
      [600, 3, 1],
      [129, 20, 1],
    ],
    window: [100, 0],
  },
  {
    heads: 3,
    kvHeads: 3,
    dim: 7,
    blockSize: 3,
    steps: [
      [20, 1],
      [9, 1],
    ],
    softcap: 2,
    sink: [0.5, -1, 3],
  },
  {
    heads: 4,
    kvHeads: 2,
    dim: 16,
    blockSize: 16,
    steps: [
      [50, 1],
      [33, 17],
    ],
    alibi: [0.5, 0.25, 0.125, 0.0625],
  },
  {
    heads: 2,
    kvHeads: 1,
    dim: 16,
    blockSize: 5,
    steps: [
      [11, 4],
      [8, 4],
    ],
    causal: false,
  },
  // Positions of pieces that are not the last.
  {
    heads: 2,
    kvHeads: 1,
    dim: 16,
    blockSize: 5,
    steps: [
      [7, 40],
      [30, 5],
    ],
    causal: false,
    alibi: [0.5, 0.1],
  },
  { heads: 2, kvHeads: 2, dim: 16, blockSize: 4, steps: [[60], [9, 20]], causal: false, window: [6, 3] },
  {
    heads: 40,
    kvHeads: 1,
    dim: 16,
    blockSize: 16,
    steps: [
      [35, 1],
      [2, 1],
    ],
  },
];

/** Tables that share nothing, in an order of no meaning. */
function tables({ steps, blockSize }: Shape, blocks: number): number[][] {
  const order = Array.from({ length: blocks }, (_, i) => (i * 7 + 3) % blocks);
  return steps.map((each) => order.splice(0, Math.max(1, Math.ceil(each.reduce((sum, n) => sum + n, 0) / blockSize))));
}

function blocksOf({ steps, blockSize }: Shape): number {
  const wanted = steps.reduce(
    (sum, each) => sum + Math.max(1, Math.ceil(each.reduce((a, b) => a + b, 0) / blockSize)),
    0,
  );
  let blocks = wanted + 2;
  while (blocks % 7 === 0) blocks++; // 7 steps around all of them
  return blocks;
}

interface Data {
  readonly q: Float64Array[];
  readonly k: Float64Array[];
  readonly v: Float64Array[];
}

function dataOf(shape: Shape): Data[] {
  const { heads, kvHeads, dim, valueDim = dim } = shape;
  return shape.steps.map((each, s) => {
    const length = each.reduce((sum, n) => sum + n, 0);
    const rows = (width: number, seed: number) => {
      const numbers = normal(length * width, seed * 31 + s).map(Math.fround);
      return Array.from({ length }, (_, i) => Float64Array.from(numbers.slice(i * width, (i + 1) * width)));
    };
    return { q: rows(heads * dim, 1), k: rows(kvHeads * dim, 2), v: rows(kvHeads * valueDim, 3) };
  });
}

const optionsOf = ({ causal, window, softcap, alibi, sink }: Shape, device: DeviceName) => ({
  ...(causal !== undefined && { causal }),
  ...(window && { window: window as [number, number] }),
  ...(softcap && { softcap }),
  ...(alibi && { alibi }),
  ...(sink && { sink: tensor([...sink], [sink.length], { device }) }),
});

const pack = (rows: readonly Float64Array[], heads: number, dim: number, device: DeviceName) =>
  tensor(Float32Array.from(rows.flatMap((row) => [...row])), [rows.length, heads, dim], { device });

/** Rows of out of every sequence, step after step, with the sequences of `together` in one call each. */
function run(shape: Shape, data: readonly Data[], device: DeviceName, together: readonly (readonly number[])[]) {
  const { heads, kvHeads, dim, valueDim = dim, blockSize, steps } = shape;
  const blocks = blocksOf(shape);
  const own = tables(shape, blocks);
  const results = steps.map(() => ({ out: [] as Float32Array[], lse: [] as Float32Array[] }));
  using cache = kvCache({ layers: 1, blocks, blockSize, kvHeads, dim, valueDim, device });
  const lengths = steps.map(() => 0);
  for (let step = 0; step < Math.max(...steps.map((each) => each.length)); step++)
    for (const group of together) {
      const counts = group.map((s) => steps[s]?.[step] ?? 0);
      const rows = (of: keyof Data) =>
        group.flatMap(
          (s, at) => data[s]?.[of].slice(lengths[s], (lengths[s] as number) + (counts[at] as number)) ?? [],
        );
      const [q, k, v] = [
        pack(rows('q'), heads, dim, device),
        pack(rows('k'), kvHeads, dim, device),
        pack(rows('v'), kvHeads, valueDim, device),
      ];
      for (const [at, s] of group.entries()) lengths[s] = (lengths[s] as number) + (counts[at] as number);
      const sequences = group.map((s) => ({ table: own[s] as number[], length: lengths[s] as number }));
      const options = optionsOf(shape, device);
      const { out, lse } = attentionWithCache(q as Tensor, cache as KvCache, {
        layer: 0,
        sequences,
        counts,
        k,
        v,
        ...options,
      });
      const [values, sums] = [out.toFloat32Sync(), lse.toFloat32Sync()];
      const total = q.shape[0];
      let row = 0;
      for (const [at, s] of group.entries())
        for (let i = 0; i < (counts[at] as number); i++, row++) {
          results[s]?.out.push(values.slice(row * heads * valueDim, (row + 1) * heads * valueDim));
          results[s]?.lse.push(Float32Array.from({ length: heads }, (_, h) => sums[h * total + row] as number));
        }
      for (const t of [q, k, v, out, lse, options.sink]) t?.dispose();
    }
  return results;
}

function expectClose(found: readonly ArrayLike<number>[], wanted: readonly ArrayLike<number>[], what: string) {
  expect(found.length, what).toBe(wanted.length);
  let worst = 0;
  for (const [i, row] of wanted.entries())
    for (let d = 0; d < row.length; d++) {
      const error = Math.abs((found[i]?.[d] as number) - (row[d] as number));
      if (!(error <= worst)) worst = error;
    }
  expect(worst, what).toBeLessThan(3e-5);
}

for (const { device, present, title } of devicesWith('gather'))
  describe.skipIf(!present)(title('attention with a cache'), () => {
    it.each(cases)('%j', (shape) => {
      const before = memory(device).tensors;
      const data = dataOf(shape);
      const { heads, kvHeads, dim, valueDim = dim, causal = true, steps } = shape;
      const p: CachedProblem = {
        ...shape,
        heads,
        kvHeads,
        dim,
        valueDim,
        causal,
        scale: 1 / Math.sqrt(dim),
      } as CachedProblem;
      const found = run(shape, data, device, [steps.map((_, s) => s)]);
      for (const [s, { q, k, v }] of data.entries()) {
        const wanted = { out: [] as Float64Array[], lse: [] as Float64Array[] };
        let length = 0;
        for (const count of steps[s] as readonly number[]) {
          length += count;
          const { out, lse } = attendCached(p, q.slice(length - count, length), k.slice(0, length), v.slice(0, length));
          wanted.out.push(...out);
          wanted.lse.push(...lse);
        }
        expectClose(found[s]?.out ?? [], wanted.out, `out of sequence ${s}`);
        expectClose(found[s]?.lse ?? [], wanted.lse, `lse of sequence ${s}`);
      }
      expect(memory(device).tensors).toBe(before);
    });
  });

/** The first `most` positions of each sequence, `size` at a time. */
const inPieces = (shape: Shape, size: number, most: number): Shape => ({
  ...shape,
  steps: shape.steps.map((each) => {
    const length = Math.min(
      most,
      each.reduce((a, b) => a + b, 0),
    );
    return Array.from({ length: Math.ceil(length / size) }, (_, i) => Math.min(size, length - i * size));
  }),
});

const processors = devicesWith('gather').filter(({ device }) => device !== ('emulator' as DeviceName));
for (const { device, present, title } of processors)
  describe.skipIf(!present)(title('bits of a row with a cache'), () => {
    it.each(cases.filter(({ causal }) => causal !== false))(
      'are the same alone, together, in pieces and at once: %j',
      (shape) => {
        const data = dataOf(shape);
        const all = shape.steps.map((_, s) => s);
        const together = run(shape, data, device, [all]);
        expect(
          run(
            shape,
            data,
            device,
            all.map((s) => [s]),
          ),
          'alone',
        ).toEqual(together);
        expect(run(shape, data, device, [[...all].reverse()]), 'in another order').toEqual(together);
        for (const size of [1, 5, 64, 4096]) {
          const most = size === 1 ? 60 : Number.POSITIVE_INFINITY;
          const pieces = run(inPieces(shape, size, most), data, device, [all]);
          const same = together.map(({ out, lse }) => ({ out: out.slice(0, most), lse: lse.slice(0, most) }));
          expect(pieces, `in pieces of ${size}`).toEqual(same);
        }
      },
    );
  });

describe('attention with a cache refuses what does not fit, and leaves the cache as it is', () => {
  const device = 'wasm';
  const rows = (shape: number[]) =>
    tensor(new Float32Array(shape.reduce((a, b) => a * b)).fill(0.5), shape, { device });
  const cache = kvCache({ layers: 2, blocks: 6, blockSize: 4, kvHeads: 2, dim: 8, device });
  const [q, k] = [rows([2, 1, 4, 8]), rows([2, 1, 2, 8])];
  const sequences = [
    { table: [0, 1], length: 5 },
    { table: [2, 3], length: 8 },
  ];
  const good: CachedAttentionOptions = { layer: 0, sequences, k, v: k };
  const angles = (n: number) => ({ cos: rows([n, 4]), sin: rows([n, 4]) });
  type Bad = readonly [name: string, options: object, code: string, message: RegExp, query: Tensor | undefined];
  const refused: readonly (readonly [string, object, string, RegExp, Tensor?])[] = [
    ['a layer', { layer: 2 }, 'ERR_OPTION', /layer is 2; the cache has 2/],
    [
      'a block',
      { sequences: [{ table: [0, 6], length: 5 }, sequences[1]] },
      'ERR_OPTION',
      /sequences\[0\]\.table\[1\] is 6; blocks are from 0 to 5/,
    ],
    [
      'a block that is no number',
      { sequences: [{ table: ['0'], length: 1 }, sequences[1]] },
      'ERR_OPTION',
      /table\[0\] is "0"/,
    ],
    [
      'two writers',
      { sequences: [sequences[0], { table: [2, 1], length: 8 }] },
      'ERR_OPTION',
      /sequences\[1\] and sequences\[0\] both write to block 1/,
    ],
    [
      'a length past the table',
      { sequences: [{ table: [0, 1], length: 9 }, sequences[1]] },
      'ERR_OPTION',
      /length is 9; its table has 2 blocks of 4, for 8 positions/,
    ],
    [
      'more queries than positions',
      { sequences: [{ table: [], length: 0 }, sequences[1]] },
      'ERR_OPTION',
      /length is 0 and q has 1 queries/,
    ],
    [
      'too few sequences',
      { sequences: [sequences[0]] },
      'ERR_SHAPE',
      /sequences has 1 entries; q has the queries of 2/,
    ],
    ['k alone', { v: undefined }, 'ERR_OPTION', /k and v belong together/],
    ['heads of k', { k: rows([2, 1, 4, 8]) }, 'ERR_SHAPE', /k has shape \[2, 1, 4, 8\]; it must be \[2, 1, 2, 8\]/],
    ['heads of q', {}, 'ERR_SHAPE', /query heads must be a positive multiple/, rows([2, 1, 3, 8])],
    ['the dim of q', {}, 'ERR_SHAPE', /the keys of the cache have 8 dims/, rows([2, 1, 4, 6])],
    ['the rank of q', {}, 'ERR_SHAPE', /with counts/, rows([2, 4, 8])],
    ['positions past the angles', { rope: angles(7) }, 'ERR_SHAPE', /rope\.cos has shape \[7, 4\]/],
    ['counts', { counts: [1, 2] }, 'ERR_SHAPE', /with counts|counts/],
    ['an option', { mask: 1 }, 'ERR_OPTION', /no option "mask"/],
    [
      'a gradient',
      {},
      'ERR_AUTOGRAD',
      /q needs a gradient, and a cache has none/,
      parameter(rows([2, 1, 4, 8])) as Tensor,
    ],
  ];

  const bad = refused.map(([name, options, code, message, query]): Bad => [name, options, code, message, query]);
  it.each(bad)('%s', async (_, options, code, message, query) => {
    const before = memory(device);
    const content = () => [...cache.keys, ...cache.values].map((t) => t.toFloat32Sync());
    const held = content();
    await expectFailure(
      () =>
        attentionWithCache(query ?? (q as Tensor), cache as KvCache, { ...good, ...options } as CachedAttentionOptions),
      code,
      message,
    );
    expect(content()).toEqual(held);
    expect(memory(device).tensors).toBe(before.tensors);
  });

  it('takes what is right', () => {
    const { out } = attentionWithCache(q as Tensor, cache as KvCache, good);
    expect(out.shape).toEqual([2, 1, 4, 8]);
    expect(out.toFloat32Sync().every(Number.isFinite)).toBe(true);
  });
});
