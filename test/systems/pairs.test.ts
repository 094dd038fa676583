/** Systems with weights of pairs of their own, where no golden file covers them. */
import { type FloatDType, memory, noGrad, parameter, scope, sum, type Tensor, tensor, zeros } from 'flashattn';
import {
  aftFull,
  flashQuadAttention,
  forgettingAttention,
  type GatedAttentionWeights,
  gatedAttentionUnit,
  kernelAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { activations } from '../../verify/oracle/activation.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { type Arrays, compareTaped } from './compareTaped.js';
import { attend, data, dot, range, rowOf, sumOf } from './regroup.js';

const [batch, seq, heads, dim, valueDim] = [2, 6, 2, 3, 4];
const shapes = {
  q: [batch, seq, heads, dim],
  k: [batch, seq, heads, dim],
  v: [batch, seq, heads, valueDim],
} as const;
const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

type Row = ArrayLike<number>;
type Weigh = (q: Row, k: Row) => number;

const squared = (q: Row, k: Row) => sumOf(Array.from(q, (x, d) => (x - (k[d] ?? NaN)) ** 2));
const absolute = (q: Row, k: Row) => sumOf(Array.from(q, (x, d) => Math.abs(x - (k[d] ?? NaN))));

/** Sums over all pairs; hidden positions have no weight as keys and are zeros as queries. */
function kernelRows(
  { q, k, v }: Arrays<typeof shapes>,
  weigh: Weigh,
  normalize: boolean,
  mask?: readonly number[],
): number[] {
  const real = (b: number, i: number) => mask === undefined || mask[b * seq + i] === 1;
  return range(batch).flatMap((b) =>
    range(seq).flatMap((i) =>
      range(heads).flatMap((h) => {
        const query = real(b, i) ? rowOf(q, shapes.q, b, i, h) : new Float64Array(dim);
        const weights = range(seq).map((j) => (real(b, j) ? weigh(query, rowOf(k, shapes.k, b, j, h)) : 0));
        const divisor = normalize ? sumOf(weights) || 1 : 1;
        return range(valueDim).map(
          (d) => sumOf(weights.map((w, j) => w * (rowOf(v, shapes.v, b, j, h)[d] ?? NaN))) / divisor,
        );
      }),
    ),
  );
}

describe.each(testDevices)('$device', ({ device, present, title, isSlow }) => {
  describe.skipIf(!present)(title('kernel attention'), () => {
    const bits = [1, 1, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0];
    const kernels = [
      [
        'gaussian',
        (sigma: number): Weigh =>
          (q, k) =>
            Math.exp(-squared(q, k) / (2 * sigma ** 2)),
        dim ** 0.25,
      ],
      [
        'laplacian',
        (sigma: number): Weigh =>
          (q, k) =>
            Math.exp(-absolute(q, k) / sigma),
        Math.sqrt(dim),
      ],
    ] as const;
    const cases = kernels.flatMap(([kernel, weighOf, own]) =>
      [true, false].flatMap((normalize) =>
        [undefined, bits].map((mask) => ({ kernel, weighOf, own, normalize, mask })),
      ),
    );
    it.each(cases)('$kernel, normalised $normalize, mask $mask', ({ kernel, weighOf, own, normalize, mask }) => {
      for (const sigma of [undefined, 0.7]) {
        const hidden = mask && tensor(Uint8Array.from(mask), [batch, seq], { dtype: 'bool', device });
        compareTaped({
          device,
          shapes,
          exact: (x) => kernelRows(x, weighOf(sigma ?? own), normalize, mask),
          run: ({ q, k, v }) =>
            kernelAttention(q, k, v, {
              kernel,
              normalize,
              ...(sigma !== undefined && { sigma }),
              ...(hidden && { mask: hidden }),
            }),
        });
        hidden?.dispose();
      }
    });

    it.skipIf(isSlow)('takes queries block by block: the same bits as each alone, within little memory', () => {
      const long = [1, 400, 2, 64];
      scope(() => {
        const [q, k, v, dOut] = range(4).map((n) => tensor(data(size(long), 70 + n), long, { device }) as Tensor) as [
          Tensor,
          Tensor,
          Tensor,
          Tensor,
        ];
        const leaves = [q, k, v].map((t) => parameter(t)) as [Tensor, Tensor, Tensor];
        const once = () => kernelAttention(...leaves, { kernel: 'laplacian' });
        once().dispose(); // the first launch of a device makes room for its threads
        const before = memory(device).bytesInUse;
        const out = once();
        out.detach().dataSync(); // what launches hold until they have run counts too
        expect(memory(device).bytesInUse - before).toBeLessThan(12 * 4 * size(long));
        const part = noGrad(() => kernelAttention(q.slice(1, 390, 400), k, v, { kernel: 'laplacian' }));
        const tail = out.detach().slice(1, 390, 400).toFloat32Sync();
        for (const [n, x] of part.toFloat32Sync().entries()) expect(Math.abs(x - (tail[n] ?? NaN))).toBeLessThan(1e-6);
        out.backward(dOut);
        // Moving q and k together changes nothing, and weights that sum up to 1 hand on what they are given.
        const total = (t: Tensor | undefined) => sum(t as Tensor).toFloat32Sync()[0] ?? NaN;
        expect(Math.abs(total(leaves[0].grad) + total(leaves[1].grad))).toBeLessThan(1e-2);
        expect(Math.abs(total(leaves[2].grad) - total(dOut))).toBeLessThan(1e-2);
        for (const t of leaves) t.dispose();
      });
    });

    it('keeps apart what is far away', () => {
      scope(() => {
        const far = tensor([0, 1000], [1, 2, 1, 1], { device }) as Tensor;
        for (const kernel of ['gaussian', 'laplacian'] as const)
          expect([...kernelAttention(far, far, far, { kernel }).toFloat32Sync()]).toEqual([0, 1000]);
      });
    });

    it.each(['float16', 'bfloat16'] as const)('in %s', (dtype) => {
      const coarse = (n: number) =>
        data(size([batch, seq, heads, valueDim]), 80 + n).map((x) => Math.round(x * 16) / 16);
      for (const [kernel, weighOf, own] of kernels)
        for (const normalize of [true, false])
          compareTaped({
            device,
            shapes,
            dtype,
            values: { q: coarse(0).slice(0, size(shapes.q)), k: coarse(1).slice(0, size(shapes.k)), v: coarse(2) },
            exact: (x) => kernelRows(x, weighOf(own), normalize),
            run: ({ q, k, v }) => kernelAttention(q, k, v, { kernel, normalize }),
            tolerance: dtype === 'float16' ? 2 ** -8 : 2 ** -5,
          });
    });
  });

  describe.skipIf(!present)(title('forgetting attention'), () => {
    const own = {
      q: [1, 7, 4, 3],
      k: [1, 7, 2, 3],
      v: [1, 7, 2, 5],
      g: [1, 7, 4],
    } as const;
    const exact = ({ q, k, v, g }: Arrays<typeof own>, scale: number) =>
      range(7).flatMap((i) =>
        range(4).flatMap((h) => {
          const kvHead = Math.floor(h / 2);
          const keys = range(i + 1).map((j) => ({
            row: rowOf(k, own.k, 0, j, kvHead),
            value: rowOf(v, own.v, 0, j, kvHead),
            bias: sumOf(
              range(7)
                .filter((t) => t > j && t <= i)
                .map((t) => g[t * 4 + h] ?? NaN),
            ),
          }));
          return attend(rowOf(q, own.q, 0, i, h), keys, scale).out;
        }),
      );
    const gates = (at: (t: number, h: number) => number) =>
      Float64Array.from({ length: 28 }, (_, n) => at(Math.floor(n / 4), n % 4));
    it.each([
      ['mild', gates((t, h) => -0.1 * ((t * 3 + h) % 5)), undefined],
      ['open', gates(() => 0), 0.5],
      ['extreme', gates((t, h) => ((t + h) % 3 === 0 ? -50 : t % 2 === 0 ? 0 : -0.25)), undefined],
      ['far away', gates((t, h) => (t === 3 ? -200_000 : -0.125 * (h + 1))), 1],
    ])('with %s gates', (_, g, scale) => {
      compareTaped({
        device,
        shapes: own,
        values: { g },
        exact: (x) => exact(x, scale ?? 3 ** -0.5),
        run: ({ q, k, v, g: gate }) =>
          forgettingAttention(q, k, v, gate as Tensor<'float32'>, scale === undefined ? {} : { scale }),
      });
    });

    it('keeps near gates apart where their sums are far from 0', () => {
      // Alone, sums of -200,000 are rounded to 1/64.
      const length = 40;
      const g = Float32Array.from({ length }, (_, t) => (t < 10 ? -20_000.3 : -0.013));
      scope(() => {
        const row = zeros([1, length, 1, 1], { device });
        const values = tensor(
          Float32Array.from({ length }, (_, t) => t),
          [1, length, 1, 1],
          { device },
        );
        const out = forgettingAttention(row, row, values, tensor(g, [1, length, 1], { device })).toFloat32Sync();
        for (const i of range(length)) {
          const weights = range(i + 1).map((j) => Math.exp(sumOf(Array.from(g.subarray(j + 1, i + 1)))));
          const mean = sumOf(weights.map((w, j) => w * j)) / sumOf(weights);
          expect(Math.abs((out[i] ?? NaN) - mean), `row ${i}`).toBeLessThan(1e-4);
        }
      });
    });

    it('forgets all at -Infinity, with a gradient that is finite', () => {
      scope(() => {
        const row = zeros([1, 4, 1, 1], { device });
        const values = tensor([1, 2, 3, 4], [1, 4, 1, 1], { device });
        const g = parameter(tensor([0, 0, -Infinity, 0], [1, 4, 1], { device })) as Tensor<'float32', never>;
        const out = forgettingAttention(row, row, values, g);
        expect([...out.toFloat32Sync()]).toEqual([1, 1.5, 3, 3.5]);
        sum(out).backward();
        expect([...((g as Tensor).grad?.toFloat32Sync() ?? [])].every(Number.isFinite)).toBe(true);
        (g as Tensor).dispose();
      });
    });

    it.each(['float16', 'bfloat16'] as const)('takes float32 gates with %s', (dtype) => {
      scope(() => {
        const [q, k, v] = (['q', 'k', 'v'] as const).map(
          (name, n) => tensor(data(size(own[name]), 60 + n), own[name], { device, dtype }) as Tensor,
        ) as [Tensor, Tensor, Tensor];
        const g = parameter(
          tensor(
            gates(() => -0.5),
            own.g,
            { device },
          ),
        ) as Tensor<'float32', never>;
        const out = forgettingAttention(q, k, v, g);
        expect(out.dtype).toBe(dtype);
        const wide = [q, k, v].map((t) => Float64Array.from(t.toFloat32Sync()));
        const wanted = exact(
          { q: wide[0] as Float64Array, k: wide[1] as Float64Array, v: wide[2] as Float64Array, g: gates(() => -0.5) },
          3 ** -0.5,
        );
        for (const [n, x] of out.toFloat32Sync().entries())
          expect(Math.abs(x - (wanted[n] ?? NaN))).toBeLessThan(dtype === 'float16' ? 4e-3 : 3e-2);
        sum(out).backward();
        expect((g as Tensor).grad?.dtype).toBe('float32');
        (g as Tensor).dispose();
      });
    });
  });

  describe.skipIf(!present)(title('AFT'), () => {
    const own = { q: [2, 5, 3], k: [2, 5, 3], v: [2, 5, 3], w: [5, 5] } as const;
    const exact = ({ q, k, v, w }: Arrays<typeof own>, causal: boolean) =>
      range(2).flatMap((b) =>
        range(5).flatMap((i) =>
          range(3).map((d) => {
            const at = (t: Float64Array, j: number) => t[(b * 5 + j) * 3 + d] ?? NaN;
            const logits = range(causal ? i + 1 : 5).map((j) => at(k, j) + (w[i * 5 + j] ?? NaN));
            const most = Math.max(...logits);
            const weights = logits.map((x) => Math.exp(x - most));
            const mean = sumOf(weights.map((x, j) => x * at(v, j))) / sumOf(weights);
            return mean / (1 + Math.exp(-at(q, i)));
          }),
        ),
      );
    for (const causal of [false, true]) {
      it.each([false, true])(`causal ${causal}, exact %s`, (precise) => {
        compareTaped({
          device,
          shapes: own,
          exact: (x) => exact(x, causal),
          run: ({ q, k, v, w }) => aftFull(q, k, v, w, { causal, exact: precise }),
        });
      });
    }

    it('does not overflow, and is exact over any range where it is told to be', () => {
      // Each position has keys 150 above those before it.
      const k = Float64Array.from({ length: 30 }, (_, n) => 150 * (Math.floor(n / 3) % 5));
      const w = data(25, 7);
      for (const precise of [false, true])
        compareTaped({
          device,
          shapes: own,
          values: { k, w },
          exact: (x) => exact(x, precise),
          run: ({ q, k: key, v, w: bias }) => aftFull(q, key, v, bias, { causal: precise, exact: precise }),
        });
    });
  });

  describe.skipIf(!present)(title('gated attention'), () => {
    const [n, model, hidden, s] = [7, 6, 5, 4];
    const weightShapes = (rows: number) =>
      ({
        normWeight: [model],
        normBias: [model],
        hiddenWeight: [2 * hidden, model],
        hiddenBias: [2 * hidden],
        qkWeight: [s, model],
        qkBias: [s],
        gamma: [rows, s],
        beta: [rows, s],
        relativeBias: [8, 1],
        outWeight: [model, hidden],
        outBias: [model],
      }) as const;

    it.each([
      { causal: false, laplace: true },
      { causal: true, laplace: true },
      { causal: true, laplace: false },
    ])('%j', (options) => {
      compareTaped({
        device,
        shapes: { x: [2, n, model], ...weightShapes(2) },
        exact: (inputs) => gated(inputs, { n, model, hidden, s, ...options }),
        run: ({ x, ...weights }) => gatedAttentionUnit(x, weights, options),
        tolerance: 1e-3,
      });
    });

    it('FLASH of one group is its two parts', () => {
      for (const causal of [false, true])
        compareTaped({
          device,
          shapes: { x: [2, n, model], ...weightShapes(4) },
          exact: (inputs) => gated(inputs, { n, model, hidden, s, causal, laplace: false, flash: n }),
          run: ({ x, ...weights }) => flashQuadAttention(x, weights, { causal, groupSize: n }),
          tolerance: 1e-3,
        });
    });

    it('runs in 16 bits', () => {
      scope(() => {
        for (const dtype of ['float16', 'bfloat16'] as const) {
          const of = (shape: readonly number[], k: number) =>
            tensor(
              data(size(shape), k).map((x) => x / 2),
              shape,
              { device, dtype },
            ) as Tensor;
          const weights = Object.fromEntries(
            Object.entries(weightShapes(4)).map(([name, shape], k) => [name, of(shape, 20 + k)]),
          ) as unknown as GatedAttentionWeights;
          const out = flashQuadAttention(of([1, n, model], 3), weights, { groupSize: 3, causal: true });
          expect(out.dtype).toBe(dtype);
          expect(out.toFloat32Sync().every(Number.isFinite)).toBe(true);
        }
      });
    });
  });
});

interface GatedCase {
  readonly n: number;
  readonly model: number;
  readonly hidden: number;
  readonly s: number;
  readonly causal: boolean;
  readonly laplace: boolean;
  /** Of FLASH: the size of the only group. */
  readonly flash?: number;
}

/** P(X <= x) of a normal X. */
const normalCdf = (x: number) => (x === 0 ? 0.5 : activations.gelu(x) / x);

type Weights = Readonly<Record<keyof GatedAttentionWeights | 'x', Float64Array>>;

/** Both units, pair by pair. */
function gated(t: Weights, { n, model, hidden, s, causal, laplace, flash }: GatedCase): number[] {
  const silu = (x: number) => x / (1 + Math.exp(-x));
  const linear = (row: Row, weight: Float64Array, bias: Float64Array) =>
    Array.from(bias, (offset, o) => offset + dot(row, weight.subarray(o * row.length, (o + 1) * row.length)));
  const bucketOf = (i: number, j: number) => {
    const count = causal ? 8 : 4;
    const distance = causal ? Math.max(i - j, 0) : Math.abs(i - j);
    const half = count / 2;
    const far = half + Math.floor((Math.log(distance / half) / Math.log(128 / half)) * half + 1e-9);
    return (!causal && j > i ? 4 : 0) + (distance < half ? distance : Math.min(count - 1, far));
  };
  return range(2).flatMap((b) => {
    const rows = range(n).map((i) => t.x.subarray((b * n + i) * model, (b * n + i + 1) * model));
    const made = rows.map((x) => {
      const mean = sumOf(Array.from(x)) / model;
      const variance = sumOf(Array.from(x, (value) => (value - mean) ** 2)) / model;
      const normal = Array.from(
        x,
        (value, d) => ((value - mean) / Math.sqrt(variance + 1e-5)) * (t.normWeight[d] ?? NaN) + (t.normBias[d] ?? NaN),
      );
      const both = linear(normal, t.hiddenWeight, t.hiddenBias).map(silu);
      const z = linear(normal, t.qkWeight, t.qkBias).map(silu);
      const head = (at: number) =>
        z.map((value, d) => value * (t.gamma[at * s + d] ?? NaN) + (t.beta[at * s + d] ?? NaN));
      return { v: both.slice(0, hidden), gate: both.slice(hidden), head };
    });
    const [qAt, kAt] = flash ? [0, 2] : [0, 1];
    return made.flatMap(({ gate, head }, i) => {
      const weights = made.map((other, j) => {
        if (causal && j > i) return 0;
        const bias = (t.relativeBias[bucketOf(i, j)] ?? NaN) * Math.sqrt(flash ? s : model);
        const product = dot(head(qAt), other.head(kAt));
        const x = flash ? product / flash + bias : (product + bias) / n;
        return laplace ? normalCdf((x - Math.SQRT1_2) * Math.sqrt(4 * Math.PI)) : Math.max(x, 0) ** 2;
      });
      // The only group has none before it.
      const linearWeights = made.map((other) => (flash && !causal ? dot(head(1), other.head(3)) / n : 0));
      const mixed = range(hidden).map((d) =>
        sumOf(made.map(({ v }, j) => ((weights[j] ?? NaN) + (linearWeights[j] ?? NaN)) * (v[d] ?? NaN))),
      );
      const out = linear(
        mixed.map((value, d) => value * (gate[d] ?? NaN)),
        t.outWeight,
        t.outBias,
      );
      return out.map((value, d) => value + (rows[i]?.[d] ?? NaN));
    });
  });
}

describe('systems of pairs refuse', () => {
  it('what they cannot do, before anything is made', () => {
    const made: Tensor[] = [];
    const of = (shape: readonly number[], dtype: FloatDType = 'float32') => {
      const t = zeros(shape, { device: 'wasm', dtype }) as Tensor;
      made.push(t);
      return t;
    };
    const [q, fewer, longer, g] = [of([2, 4, 4, 3]), of([2, 4, 2, 3]), of([2, 6, 4, 3]), of([2, 4, 4])];
    const mask = zeros([2, 4], { device: 'wasm', dtype: 'bool' });
    const [x, w] = [of([2, 4, 6]), of([4, 4])];
    const weights: GatedAttentionWeights = {
      normWeight: of([6]),
      normBias: of([6]),
      hiddenWeight: of([10, 6]),
      hiddenBias: of([10]),
      qkWeight: of([3, 6]),
      qkBias: of([3]),
      gamma: of([2, 3]),
      beta: of([2, 3]),
      relativeBias: of([32, 1]),
      outWeight: of([6, 5]),
      outBias: of([6]),
    };
    const four = { ...weights, gamma: of([4, 3]), beta: of([4, 3]) };
    const [flat, ofTwo, halfX] = [of([4, 3]), of([2, 2]), of([2, 4, 6], 'float16')];
    const before = memory('wasm').tensors;
    const gate = g as Tensor<'float32'>;
    const refused: [string, () => unknown][] = [
      ['ERR_SHAPE', () => kernelAttention(q, fewer, fewer)],
      ['ERR_OPTION', () => kernelAttention(q, q, q, { kernel: 'cauchy' as never })],
      ['ERR_OPTION', () => kernelAttention(q, q, q, { sigma: -1 })],
      ['ERR_OPTION', () => kernelAttention(q, q, q, { normalise: false } as never)],
      ['ERR_DTYPE', () => kernelAttention(q, q, q, { mask: w as never })],
      ['ERR_SHAPE', () => kernelAttention(longer, longer, longer, { mask })],
      ['ERR_SHAPE', () => kernelAttention(q, longer, longer, { mask })],
      ['ERR_SHAPE', () => forgettingAttention(q, longer, longer, gate)],
      ['ERR_SHAPE', () => forgettingAttention(fewer, q, q, gate)],
      ['ERR_SHAPE', () => forgettingAttention(q, q, q, x as Tensor<'float32'>)],
      ['ERR_DTYPE', () => forgettingAttention(q, q, q, halfX as never)],
      ['ERR_OPTION', () => forgettingAttention(q, q, q, gate, { causal: false } as never)],
      ['ERR_SHAPE', () => aftFull(q, q, q, w)],
      ['ERR_SHAPE', () => aftFull(x, x, x, ofTwo)],
      ['ERR_DTYPE', () => aftFull(x, halfX as never, x, w)],
      ['ERR_OPTION', () => aftFull(x, x, x, w, { exact: 1 as never })],
      ['ERR_SHAPE', () => gatedAttentionUnit(flat, weights)],
      ['ERR_SHAPE', () => gatedAttentionUnit(x, four)],
      ['ERR_SHAPE', () => flashQuadAttention(x, weights)],
      ['ERR_DTYPE', () => gatedAttentionUnit(halfX, weights as never)],
      ['ERR_OPTION', () => gatedAttentionUnit(x, { ...weights, outBias: undefined } as never)],
      ['ERR_OPTION', () => gatedAttentionUnit(x, weights, { groupSize: 2 } as never)],
      ['ERR_OPTION', () => flashQuadAttention(x, four, { groupSize: 0 })],
      ['ERR_DTYPE', () => flashQuadAttention(x, four, { mask: w as never })],
    ];
    for (const [code, call] of refused) expect(codeOf(call), String(call)).toBe(code);
    expect(memory('wasm').tensors).toBe(before);
    mask.dispose();
    for (const t of made) t.dispose();
  });
});
