/** Linear attention without an order, and the systems that are one with features of their own. */
import { type FloatDType, memory, scope, type Tensor, tensor, zeros } from 'flashattn';
import {
  cosformerAttention,
  efficientAttention,
  eluPlusOne,
  type LinearAttentionOptions,
  linearAttention,
  orthogonalProjection,
  performerAttention,
  performerHyperbolicAttention,
  randomFeatureAttention,
  randomFrequencies,
  softmaxFeatures,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { codeOf, errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { type Arrays, compareTaped } from './compareTaped.js';
import { data, dot, range, rowOf, sumOf } from './regroup.js';

const [batch, queries, keys, heads, kvHeads, dim, valueDim] = [2, 5, 7, 4, 2, 3, 5];
const shapes = {
  q: [batch, queries, heads, dim],
  k: [batch, keys, kvHeads, dim],
  v: [batch, keys, kvHeads, valueDim],
} as const;

type Row = ArrayLike<number>;
type Divide = (sum: number, phiQ: Row) => number;

/** Row by row, over the pairs themselves. */
function pairs(
  { q, k, v }: Arrays<typeof shapes>,
  phi: (row: Row) => number[],
  { divide = (sum) => sum + 1e-6, lens = [] }: { divide?: Divide; lens?: readonly number[] } = {},
): number[] {
  return range(batch).flatMap((b) =>
    range(queries).flatMap((i) =>
      range(heads).flatMap((h) => {
        const own = Math.floor(h / (heads / kvHeads));
        const phiQ = phi(rowOf(q, shapes.q, b, i, h));
        const weights = range(lens[b] ?? keys).map((j) => dot(phiQ, phi(rowOf(k, shapes.k, b, j, own))));
        const divisor = divide(sumOf(weights), phiQ);
        return range(valueDim).map(
          (d) => sumOf(weights.map((w, j) => w * (rowOf(v, shapes.v, b, j, own)[d] ?? NaN))) / divisor,
        );
      }),
    ),
  );
}

const elu = (row: Row) => Array.from(row, (x) => (x > 0 ? x + 1 : Math.exp(x)));
const softmax = (row: Row) => Array.from(row, (x) => Math.exp(x) / sumOf(Array.from(row, Math.exp)));

describe.each(testDevices)('$device', ({ device, present, title, isSlow }) => {
  describe.skipIf(!present)(title('linear attention'), () => {
    const cases: [string, LinearAttentionOptions, (inputs: Arrays<typeof shapes>) => number[]][] = [
      ['as it is', {}, (x) => pairs(x, elu)],
      ['not normalised', { normalize: false }, (x) => pairs(x, elu, { divide: () => 1 })],
      ['with an epsilon', { epsilon: 0.5 }, (x) => pairs(x, elu, { divide: (sum) => sum + 0.5 })],
      [
        'with epsilon in the keys',
        { epsilon: 0.5, epsilonIn: 'keys' },
        (x) => pairs(x, elu, { divide: (sum, phiQ) => sum + 0.5 * sumOf(Array.from(phiQ)) }),
      ],
      [
        'with a least divisor',
        { epsilon: 30, epsilonIn: 'floor' },
        (x) => pairs(x, elu, { divide: (sum) => Math.max(sum, 30) }),
      ],
      ['with another feature map', { featureMap: softmaxFeatures }, (x) => pairs(x, softmax)],
      ['with fewer keys', { kLens: [7, 2] }, (x) => pairs(x, elu, { lens: [7, 2] })],
      ['without keys', { kLens: [0, 7] }, (x) => pairs(x, elu, { lens: [0, 7] })],
    ];
    it.each(cases)('%s', (_, options, exact) => {
      compareTaped({
        device,
        shapes,
        exact,
        run: ({ q, k, v }) => linearAttention(q, k, v, options),
      });
    });

    it('reads any strides', () => {
      compareTaped({
        device,
        shapes: { q: [queries, heads, batch, dim], k: shapes.k, v: shapes.v },
        exact: ({ q, k, v }) => pairs({ q: batchFirst(q), k, v }, elu),
        run: ({ q, k, v }) => linearAttention(q.permute([2, 0, 1, 3]) as Tensor, k, v),
      });
    });

    it.each(['float16', 'bfloat16'] as const)('widens %s, also where sums leave its range', (dtype) => {
      compareTaped({
        device,
        shapes,
        dtype,
        values: rounded(),
        exact: (x) => pairs(x, elu),
        run: ({ q, k, v }) => linearAttention(q, k, v),
        tolerance: dtype === 'float16' ? 2 ** -9 : 2 ** -6,
      });
      const large = isSlow ? 300 : 3000;
      scope(() => {
        const t = tensor(new Float32Array(large * 4).fill(30), [1, large, 1, 4], { dtype, device });
        const out = linearAttention(t, t, t).toFloat32Sync();
        expect(out.every((x) => Math.abs(x - 30) < 0.2)).toBe(true);
      });
    });

    it('does not see what lies behind the lengths', () => {
      scope(() => {
        const [q, k, v] = (['q', 'k', 'v'] as const).map((name, n) => data(size(shapes[name]), 40 + n)) as [
          Float64Array,
          Float64Array,
          Float64Array,
        ];
        const run = (fill?: number) => {
          const poisoned = (values: Float64Array, row: number) =>
            values.map((x, at) => (fill !== undefined && Math.floor(at / row) % keys >= 4 ? fill : x));
          return linearAttention(
            tensor(q, shapes.q, { device }) as Tensor,
            tensor(poisoned(k, kvHeads * dim), shapes.k, { device }) as Tensor,
            tensor(poisoned(v, kvHeads * valueDim), shapes.v, { device }) as Tensor,
            { kLens: [4, 4] },
          ).dataSync();
        };
        expect(run(NaN)).toEqual(run());
        expect(run(Infinity)).toEqual(run());
      });
    });

    it('takes what is empty', () => {
      scope(() => {
        const [none, some] = [zeros([0, 3, 2, 4], { device }), zeros([1, 3, 2, 4], { device })];
        const noKeys = zeros([1, 0, 2, 4], { device });
        expect(linearAttention(none, none, none).shape).toEqual([0, 3, 2, 4]);
        expect([...linearAttention(some, noKeys, noKeys).dataSync()]).toEqual(new Array(24).fill(0));
        expect(cosformerAttention(none, none, none).size).toBe(0);
        expect(efficientAttention(none, none, none).size).toBe(0);
      });
    });

    it('performer, with few and no real keys', () => {
      const projection = data(6 * dim, 80);
      const features = (row: Row) =>
        range(6).map((m) => Math.max(dot(projection.subarray(m * dim, (m + 1) * dim), row) / dim ** 0.25, 0) + 1e-3);
      const p = tensor(projection, [6, dim], { device }) as Tensor as Tensor<'float32'>;
      compareTaped({
        device,
        shapes,
        exact: (x) => pairs(x, features, { divide: (sum) => sum || 1, lens: [7, 0] }),
        run: ({ q, k, v }) => performerAttention(q, k, v, { projection: p, kernel: 'relu', kLens: [7, 0] }),
      });
      p.dispose();
    });

    it('performer estimates softmax attention', () => {
      scope(() => {
        const count = isSlow ? 256 : 4096;
        const projection = orthogonalProjection({ features: count, dim: 4, seed: 5, device });
        const small = { q: [1, 3, 1, 4], k: [1, 6, 1, 4], v: [1, 6, 1, 4] };
        const [q, k, v] = Object.values(small).map((shape, n) => {
          const values = data(size(shape), 90 + n).map((x) => x / 2);
          return { values, t: tensor(values, shape, { device }) as Tensor };
        }) as [Loaded, Loaded, Loaded];
        const out = performerAttention(q.t, k.t, v.t, { projection }).toFloat32Sync();
        const rows = (values: Float64Array) => range(values.length / 4).map((i) => values.subarray(4 * i, 4 * i + 4));
        const exact = rows(q.values).flatMap((query) => {
          const weights = rows(k.values).map((key) => Math.exp(dot(query, key) / 2));
          return range(4).map(
            (d) => sumOf(rows(v.values).map((row, j) => (row[d] ?? NaN) * (weights[j] ?? NaN))) / sumOf(weights),
          );
        });
        for (const [n, x] of exact.entries()) expect(Math.abs((out[n] ?? NaN) - x)).toBeLessThan(isSlow ? 0.1 : 0.03);
      });
    });

    it('draws projections whose rows are orthogonal in blocks', () => {
      scope(() => {
        const [features, dim] = [11, 4];
        const rows = orthogonalProjection({ features, dim, seed: 3, device }).toFloat32Sync();
        const row = (i: number) => rows.subarray(i * dim, (i + 1) * dim);
        for (const i of range(features))
          for (const j of range(i))
            if (Math.floor(i / dim) === Math.floor(j / dim)) expect(Math.abs(dot(row(i), row(j)))).toBeLessThan(1e-4);
        // As long as rows of normal numbers: dim is the mean of their squares.
        const many = orthogonalProjection({ features: 2000, dim, seed: 4, device }).toFloat32Sync();
        expect(Math.abs(dot(many, many) / 2000 - dim)).toBeLessThan(0.3);
        expect(Math.abs(sumOf(Array.from(many)) / many.length)).toBeLessThan(0.05);
      });
    });

    it('random features of both kernels estimate them', () => {
      scope(() => {
        const count = isSlow ? 2 ** 12 : 2 ** 15;
        const [x, y] = [
          [0.3, -0.2, 0.5],
          [-0.1, 0.4, 0.2],
        ];
        for (const kernel of ['gaussian', 'laplacian'] as const) {
          const omega = randomFrequencies({ dim: 3, count, kernel, seed: 11, device });
          const largest = Math.max(...omega.toFloat32Sync().map(Math.abs));
          if (kernel === 'laplacian') expect(largest).toBe(20);
          const q = tensor(x as number[], [1, 1, 1, 3], { device }) as Tensor;
          const k = tensor(y as number[], [1, 1, 1, 3], { device }) as Tensor;
          const one = tensor([1], [1, 1, 1, 1], { device }) as Tensor;
          // With a value of 1 and an epsilon far above, out is the weight over it.
          const estimate =
            (randomFeatureAttention(q, k, one, { omega, softmaxTemp: 1, epsilon: 2 ** 20 }).dataSync()[0] ?? NaN) *
            2 ** 20;
          const differences = range(3).map((d) => (x?.[d] ?? NaN) - (y?.[d] ?? NaN));
          const exact =
            kernel === 'gaussian'
              ? Math.exp(-dot(differences, differences) / 2)
              : Math.exp(-sumOf(differences.map(Math.abs)));
          expect(Math.abs(estimate - exact)).toBeLessThan(isSlow ? 0.05 : 0.02);
        }
      });
    });

    it('cosformer: small queries, and rows whose divisor is epsilon', () => {
      const c = (inputs: Arrays<typeof shapes>) => {
        const { q, k, v } = inputs;
        return range(batch).flatMap((b) =>
          range(queries).flatMap((i) =>
            range(heads).flatMap((h) => {
              const own = Math.floor(h / (heads / kvHeads));
              const relu = (row: Row) => Array.from(row, (x) => Math.max(x, 0));
              const weights = range(keys).map(
                (j) =>
                  dot(relu(rowOf(q, shapes.q, b, i, h)), relu(rowOf(k, shapes.k, b, j, own))) *
                  Math.cos((Math.PI * (i - j)) / (2 * keys)),
              );
              const divisor = Math.max(sumOf(weights), 0.25);
              return range(valueDim).map(
                (d) => sumOf(weights.map((w, j) => w * (rowOf(v, shapes.v, b, j, own)[d] ?? NaN))) / divisor,
              );
            }),
          ),
        );
      };
      const q = data(size(shapes.q), 33).map((x, at) => (at % 4 === 0 ? -Math.abs(x) : at % 3 === 0 ? x / 64 : x));
      compareTaped({
        device,
        shapes,
        values: { q },
        exact: c,
        run: ({ q: query, k, v }) => cosformerAttention(query, k, v, { epsilon: 0.25 }),
      });
    });
  });
});

interface Loaded {
  readonly values: Float64Array;
  readonly t: Tensor;
}

const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

/** Numbers that both 16-bit dtypes hold. */
const rounded = () => {
  const coarse = (count: number, seed: number) => data(count, seed).map((x) => Math.round(x * 32) / 32);
  return { q: coarse(size(shapes.q), 50), k: coarse(size(shapes.k), 51), v: coarse(size(shapes.v), 52) };
};

/** [queries, heads, batch, dim] -> [batch, queries, heads, dim] */
function batchFirst(q: Float64Array): Float64Array {
  const result = new Float64Array(q.length);
  for (const b of range(batch))
    for (const i of range(queries))
      for (const h of range(heads))
        for (const d of range(dim))
          result[((b * queries + i) * heads + h) * dim + d] = q[((i * heads + h) * batch + b) * dim + d] ?? NaN;
  return result;
}

describe('linear attention refuses', () => {
  it('what it cannot do, before anything is made', () => {
    const of = (shape: readonly number[], dtype: FloatDType = 'float32') =>
      zeros(shape, { device: 'wasm', dtype }) as Tensor;
    const [q, k, v] = [of([2, 4, 4, 3]), of([2, 4, 2, 3]), of([2, 4, 2, 5])];
    const [half, flat, three, long] = [of([2, 4, 2, 3], 'float16'), of([4, 3]), of([2, 4, 3, 3]), of([2, 6, 4, 3])];
    const projection = of([6, 3]) as Tensor<'float32'>;
    const omega = of([3, 6]) as Tensor<'float32'>;
    const before = memory('wasm').tensors;
    const refused: [string, () => unknown][] = [
      ['ERR_OPTION', () => linearAttention(1 as never, k, v)],
      ['ERR_SHAPE', () => linearAttention(flat, k, v)],
      ['ERR_SHAPE', () => linearAttention(three, k, v)],
      ['ERR_SHAPE', () => linearAttention(q, v, k)],
      ['ERR_DTYPE', () => linearAttention(q, half as never, v)],
      ['ERR_SHAPE', () => linearAttention(long, k, v, { causal: true })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { causal: 1 as never })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { normalize: 'yes' as never })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { epsilon: NaN })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { epsilonIn: 'sum' as never })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { featureMap: 'elu' as never })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { featuremap: eluPlusOne } as never)],
      ['ERR_OPTION', () => linearAttention(q, k, v, { qMap: () => 3 as never })],
      ['ERR_SHAPE', () => linearAttention(q, k, v, { qMap: (x) => eluPlusOne(x.transpose(0, 1)) })],
      ['ERR_SHAPE', () => linearAttention(q, k, v, { kMap: (x) => eluPlusOne(x.slice(3, 0, 2)) })],
      ['ERR_OPTION', () => linearAttention(q, k, v, { kLens: [5, 1] })],
      ['ERR_SHAPE', () => linearAttention(q, k, v, { kLens: [4] })],
      ['ERR_OPTION', () => performerAttention(q, k, v, { projection, kernel: 'exp' as never })],
      ['ERR_SHAPE', () => performerAttention(q, k, v, { projection: omega })],
      ['ERR_SHAPE', () => performerHyperbolicAttention(q, k, v, { omega: projection })],
      ['ERR_OPTION', () => randomFeatureAttention(q, k, v, {} as never)],
      ['ERR_OPTION', () => cosformerAttention(q, k, v, { epsilon: 0 })],
      ['ERR_OPTION', () => efficientAttention(q, k, v, { epsilon: 1 } as never)],
      ['ERR_OPTION', () => orthogonalProjection({ features: 4, dim: 257, seed: 1 })],
      ['ERR_OPTION', () => randomFrequencies({ dim: 0, count: 1, kernel: 'gaussian', seed: 1 })],
      ['ERR_OPTION', () => randomFrequencies({ dim: 1, count: 1, kernel: 'cosine' as never, seed: 1 })],
    ];
    for (const [code, call] of refused) expect(codeOf(call), String(call)).toBe(code);
    expect(errorOf(() => linearAttention(q, k, v, { kLens: [5, 1] }))).toContain('kLens[0] is 5');
    expect(memory('wasm').tensors).toBe(before);
    for (const t of [q, k, v, half, flat, three, long, projection, omega]) t.dispose();
    expect(codeOf(() => linearAttention(q, k, v))).toBe('ERR_DISPOSED');
  });
});
