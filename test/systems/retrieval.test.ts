/** Exact search of neighbours, and Unlimiformer's attention to them, against sorting all scores. */
import { cast, type DeviceName, memory, noGrad, scope, type Tensor, tensor, zeros } from 'flashattn';
import { type KnnOptions, knn, unlimiformerAttention } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import * as oracle from '../../verify/oracle/memory.js';
import { normal, uniform } from '../../verify/oracle/random.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

interface Found {
  readonly values: Float32Array;
  readonly indices: Int32Array;
}

/** Queries [batch, queries, dim] and keys [batch, keys, dim]. */
interface Search {
  readonly batch: number;
  readonly queries: number;
  readonly keys: number;
  readonly dim: number;
}

const find = (device: DeviceName, d: Search, q: Float64Array, k: Float64Array, options: KnnOptions): Found => {
  const before = memory(device).tensors;
  const found = noGrad(() =>
    scope(() => {
      const queries = tensor(Float32Array.from(q), [d.batch, d.queries, d.dim], { device }) as Tensor;
      const keys = tensor(Float32Array.from(k), [d.batch, d.keys, d.dim], { device }) as Tensor;
      const { values, indices } = knn(queries, keys, options);
      return { values: values.toFloat32Sync(), indices: indices.dataSync() };
    }),
  );
  expect(memory(device).tensors).toBe(before);
  return found;
};

const dot = (q: Float64Array, k: Float64Array, i: number, j: number, dim: number, isDistance: boolean): number => {
  let total = 0;
  for (let c = 0; c < dim; c++) {
    const [x, y] = [q[i * dim + c] as number, k[j * dim + c] as number];
    total += isDistance ? -((x - y) ** 2) : x * y;
  }
  return total;
};

/** Places of the best of each query, by sorting. */
function expected(d: Search, q: Float64Array, k: Float64Array, count: number, isDistance = false, real?: boolean[]) {
  const indices: number[] = [];
  for (let i = 0; i < d.batch * d.queries; i++) {
    const b = Math.floor(i / d.queries);
    const scores = Array.from({ length: d.keys }, (_, j) =>
      real && !real[b * d.keys + j] ? Number.NEGATIVE_INFINITY : dot(q, k, i, b * d.keys + j, d.dim, isDistance),
    );
    indices.push(...oracle.largest(scores, count));
  }
  return Int32Array.from(indices);
}

/** Small whole numbers: products are exact, and many are equal. */
const whole = (size: number, seed: number): Float64Array => {
  const next = uniform(seed);
  return Float64Array.from({ length: size }, () => Math.floor(5 * next()) - 2);
};

type Case = oracle.RetrievalShape;
const cases: readonly Case[] = [
  { batch: 2, queries: 5, keys: 11, heads: 2, dim: 4, valueDim: 3, neighbours: 4 },
  { batch: 1, queries: 1, keys: 6, heads: 3, dim: 3, valueDim: 2, neighbours: 1 },
  // All of them: softmax attention.
  { batch: 1, queries: 3, keys: 5, heads: 1, dim: 2, valueDim: 2, neighbours: 5 },
];

const inputsOf = (c: Case): Inputs => ({
  q: input([c.batch, c.queries, c.heads, c.dim], 1),
  k: input([c.batch, c.keys, c.heads, c.dim], 2),
  v: input([c.batch, c.keys, c.heads, c.valueDim], 3),
});

/** Fewer real keys in the last batch entry than neighbours. */
const realOf = (c: Case): boolean[] =>
  Array.from({ length: c.batch * c.keys }, (_, i) => (i >= (c.batch - 1) * c.keys ? i % c.keys < 2 : i % 4 !== 1));

const attend = (t: Named<Tensor>, c: Case, device: DeviceName) => {
  const mask = c.real && cast(tensor(c.real.map(Number), [c.batch, c.keys], { device }) as Tensor, 'bool');
  return unlimiformerAttention(t.q as Tensor, t.k as Tensor, t.v as Tensor, {
    neighbours: c.neighbours,
    ...(mask && { mask }),
  });
};

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('retrieval'), () => {
    it.each([
      { metric: 'dot', count: 3 },
      { metric: 'euclidean', count: 7 },
    ] as const)(
      'finds what sorting all scores finds, ties by the lowest index, in tiles of any size: %j',
      (options) => {
        const d: Search = { batch: 2, queries: 5, keys: 23, dim: 3 };
        const [q, k] = [whole(d.batch * d.queries * d.dim, 1), whole(d.batch * d.keys * d.dim, 2)];
        const exact = expected(d, q, k, options.count, options.metric === 'euclidean');
        for (const scoresAtOnce of [2 ** 22, 60, 17, 8, 1]) {
          const { values, indices } = find(device, d, q, k, { ...options, scoresAtOnce });
          expect(indices).toEqual(exact);
          for (const [at, j] of indices.entries()) {
            const i = Math.floor(at / options.count);
            const row = Math.floor(i / d.queries) * d.keys + j;
            expect(values[at]).toBe(dot(q, k, i, row, d.dim, options.metric === 'euclidean') + 0);
          }
        }
      },
    );

    it('crosses the tiles of a large set of keys', () => {
      const d: Search = { batch: 1, queries: 2, keys: 20_000, dim: 4 };
      const [q, k] = [normal(d.queries * d.dim, 1).map(Math.fround), normal(d.keys * d.dim, 2).map(Math.fround)];
      const { indices } = find(device, d, q, k, { count: 6 });
      expect(indices).toEqual(expected(d, q, k, 6));
    });

    it('hides keys, also where they are NaN, and says so with -Infinity where too few are left', () => {
      const d: Search = { batch: 2, queries: 3, keys: 8, dim: 2 };
      const real = Array.from({ length: 16 }, (_, i) => (i < 8 ? i % 3 !== 0 : i === 13));
      const q = whole(12, 3);
      const k = whole(32, 4).map((x, i) => (real[Math.floor(i / 2)] ? x : Number.NaN));
      for (const scoresAtOnce of [2 ** 22, 6, 1]) {
        const found = noGrad(() =>
          scope(() => {
            const mask = cast(tensor(real.map(Number), [2, 1, 8], { device }) as Tensor, 'bool');
            const load = (data: Float64Array, n: number) =>
              tensor(Float32Array.from(data), [2, n, 2], { device }) as Tensor;
            const { values, indices } = knn(load(q, 3), load(k, 8), { count: 4, mask, scoresAtOnce });
            return { values: values.toFloat32Sync(), indices: indices.dataSync() };
          }),
        );
        const exact = expected(d, q, k, 4, false, real);
        for (const [at, value] of found.values.entries()) {
          const isHidden = at >= 12 && at % 4 > 0;
          if (isHidden) expect(value).toBe(Number.NEGATIVE_INFINITY);
          else expect(found.indices[at]).toBe(exact[at]);
        }
      }
    });

    it('NaN is larger than everything, of several the first', () => {
      const d: Search = { batch: 1, queries: 2, keys: 7, dim: 1 };
      const q = Float64Array.of(1, Number.NaN);
      const k = Float64Array.of(1, 9, Number.NaN, 3, Number.POSITIVE_INFINITY, Number.NaN, 2);
      for (const scoresAtOnce of [100, 3, 1]) {
        const { values, indices } = find(device, d, q, k, { count: 4, scoresAtOnce });
        expect([...indices]).toEqual([2, 5, 4, 1, 0, 1, 2, 3]);
        expect([...values]).toEqual([NaN, NaN, Infinity, 9, NaN, NaN, NaN, NaN]);
      }
    });

    it('takes 16 bits, axes of any number, none of them, and strided ones', () => {
      noGrad(() => {
        const before = memory(device).tensors;
        scope(() => {
          const q = tensor([1, 0, 0, 1], [2, 2], { device, dtype: 'bfloat16' }) as Tensor;
          const k = tensor([3, 5, 4, 1, 2, 9], [3, 2], { device, dtype: 'bfloat16' }) as Tensor;
          const { values, indices } = knn(q, k, { count: 2 });
          expect(values.dtype).toBe('float32');
          expect([...values.toFloat32Sync()]).toEqual([4, 3, 9, 5]);
          expect([...indices.dataSync()]).toEqual([1, 0, 2, 0]);
          const turned = tensor([3, 4, 2, 5, 1, 9], [2, 3], { device, dtype: 'bfloat16' }) as Tensor;
          expect([...knn(q, turned.transpose(0, 1), { count: 2 }).indices.dataSync()]).toEqual([1, 0, 2, 0]);
          const none = knn(q.slice(0, 0, 0), k, { count: 2 });
          expect([none.values.shape, none.indices.shape]).toEqual([
            [0, 2],
            [0, 2],
          ]);
          expect(knn(q.reshape([1, 1, 2, 2]), k.reshape([1, 1, 3, 2]), { count: 1 }).indices.shape).toEqual([
            1, 1, 2, 1,
          ]);
          const empty = zeros([0, 3, 2], { device }) as Tensor;
          expect(knn(empty, empty, { count: 2 }).indices.shape).toEqual([0, 3, 2]);
        });
        expect(memory(device).tensors).toBe(before);
      });
    });

    it.each(cases.flatMap((c) => [c, { ...c, real: realOf(c) }]))('Unlimiformer: %j', (c) => {
      // Differences must not change the choice, which has no gradient.
      const choice = new Map<string, number[]>();
      checkSystem(
        device,
        inputsOf(c),
        (t) => attend(t, c, device).out as Tensor,
        (values) => oracle.unlimiformer(c, values as unknown as oracle.XLInputs, choice),
      );
    });

    it('Unlimiformer says which keys, and hidden ones make no difference', () => {
      const c = { ...(cases[0] as Case), real: realOf(cases[0] as Case) };
      const spoilt = (value: number): Inputs =>
        Object.fromEntries(
          Object.entries(inputsOf(c)).map(([name, { shape, data }]) => {
            const row = data.length / (c.batch * c.keys);
            return [
              name,
              { shape, data: name === 'q' ? data : data.map((x, i) => (c.real[Math.floor(i / row)] ? x : value)) },
            ];
          }),
        );
      const outs = [0, 50].map((value) =>
        run(device, spoilt(value), (t) => ({ out: attend(t, c, device).out as Tensor }), {
          out: new Float64Array(c.batch * c.queries * c.heads * c.valueDim).fill(1),
        }),
      );
      expect(outs[1]).toEqual(outs[0]);
      noGrad(() =>
        scope(() => {
          const t = Object.fromEntries(
            Object.entries(inputsOf(c)).map(([name, { shape, data }]) => [
              name,
              tensor(Float32Array.from(data), shape, { device }) as Tensor,
            ]),
          );
          const choice = new Map<string, number[]>();
          oracle.unlimiformer(c, Object.fromEntries(Object.entries(inputsOf(c)).map(([name, { data }]) => [name, data])) as unknown as oracle.XLInputs, choice); // biome-ignore format: one line
          const { indices } = attend(t, c, device);
          expect(indices.shape).toEqual([c.batch, c.heads, c.queries, c.neighbours]);
          const all = indices.dataSync();
          // Those of the first batch entry, which has enough.
          for (let h = 0; h < c.heads; h++)
            for (let i = 0; i < c.queries; i++) {
              const from = (h * c.queries + i) * c.neighbours;
              expect([...all.subarray(from, from + c.neighbours)]).toEqual(choice.get(`0 ${i} ${h}`));
            }
        }),
      );
    });

    it.each(['float16', 'bfloat16'] as const)('Unlimiformer in %s', (dtype) => {
      const c = cases[0] as Case;
      noGrad(() =>
        scope(() => {
          const t = Object.fromEntries(
            Object.entries(inputsOf(c)).map(([name, { shape, data }]) => [
              name,
              tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
            ]),
          );
          const values = Object.fromEntries(
            Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
          );
          const { out } = attend(t, c, device);
          expect(out.dtype).toBe(dtype);
          const exact = oracle.unlimiformer(c, values as unknown as oracle.XLInputs);
          expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -8 : 2 ** -5);
        }),
      );
    });

    it('Unlimiformer takes no queries and no batch', () => {
      for (const empty of [{ batch: 0 }, { queries: 0 }]) {
        const c = { ...(cases[0] as Case), ...empty };
        expect(
          run(device, inputsOf(c), (t) => ({ out: attend(t, c, device).out as Tensor }), undefined).outputs.out,
        ).toHaveLength(0);
      }
    });
  });
});

describe('bad arguments', () => {
  const device: DeviceName = 'wasm';
  const made = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const [q, k] = [made(2, 3, 4), made(2, 5, 4)];
  const heads = made(1, 3, 2, 4);

  it.each<[string, () => unknown, RegExp]>([
    ['no count', () => knn(q, k, {} as never), /^ERR_OPTION: count is undefined; it must be an integer from 1 to 5/],
    ['a count beyond the keys', () => knn(q, k, { count: 6 }), /^ERR_OPTION: count is 6/],
    [
      'another dim',
      () => knn(q, made(2, 5, 3), { count: 1 }),
      /^ERR_SHAPE: queries has shape \[2, 3, 4\] and keys \[2, 5, 3\]/,
    ],
    ['another batch', () => knn(q, made(1, 5, 4), { count: 1 }), /^ERR_SHAPE/],
    [
      'no keys',
      () => knn(q, made(2, 0, 4), { count: 1 }),
      /^ERR_SHAPE: keys has shape \[2, 0, 4\]; there must be from 1 to 2\^24 keys/,
    ],
    [
      'another dtype',
      () => knn(q, zeros([2, 5, 4], { device, dtype: 'float16' }) as Tensor, { count: 1 }),
      /^ERR_DTYPE: keys is float16/,
    ],
    ['a metric', () => knn(q, k, { count: 1, metric: 'cosine' as never }), /^ERR_OPTION: metric is "cosine"/],
    ['a mask of numbers', () => knn(q, k, { count: 1, mask: made(5) as never }), /^ERR_DTYPE: mask is float32/],
    [
      'a mask of other keys',
      () => knn(q, k, { count: 1, mask: cast(made(2, 1, 4), 'bool') }),
      /^ERR_SHAPE: mask has shape \[2, 1, 4\]; it must broadcast to \[2, 1, 5\]/,
    ],
    [
      'a mask of queries',
      () => knn(q, k, { count: 1, mask: cast(made(2, 3, 5), 'bool') }),
      /^ERR_SHAPE: mask has shape \[2, 3, 5\]/,
    ],
    ['no tensor', () => knn([1] as never, k, { count: 1 }), /^ERR_OPTION: queries is/],
    [
      'neighbours',
      () => unlimiformerAttention(heads, heads, heads, { neighbours: 4 }),
      /^ERR_OPTION: neighbours is 4; it must be an integer from 1 to 3/,
    ],
    [
      'an unknown option',
      () => unlimiformerAttention(heads, heads, heads, { topk: 2 } as never),
      /^ERR_OPTION: there is no option "topk"/,
    ],
    [
      'other heads',
      () => unlimiformerAttention(heads, made(1, 3, 1, 4), made(1, 3, 1, 4), { neighbours: 1 }),
      /^ERR_SHAPE: q has 2 heads and k 1/,
    ],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
