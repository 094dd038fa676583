/** Layer norm and RMS norm with their gradients against float64: any shape, strides and dtypes, residuals, long rows. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type DeviceName,
  type FloatDType,
  layerNorm,
  memory,
  rmsNorm,
  type Shape,
  status,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js';
import { normBackward, normForward } from '../../lib/ops/norm.js';
import { norm as oracle, normBackward as oracleBackward } from '../../verify/oracle/norm.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { size as elementsOf, rounding } from '../support/samples.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;

interface Made {
  readonly t: Tensor;
  readonly data: Float32Array;
}

interface MakeOptions {
  readonly dtype?: FloatDType;
  readonly seed?: number;
  readonly size?: number;
  readonly shift?: number;
  /** How the tensor lies in memory: whole, in part of longer rows, or with its first and last axis swapped. */
  readonly layout?: 'whole' | 'part' | 'swapped';
}

function make(
  device: DeviceName,
  shape: Shape,
  { dtype = 'float32', seed = 1, size = 1, shift = 0, layout = 'whole' }: MakeOptions = {},
): Made {
  const stored = [...shape];
  const last = shape.length - 1;
  if (layout === 'part') stored[last] = (shape[last] as number) + 3;
  if (layout === 'swapped') [stored[0], stored[last]] = [shape[last] as number, shape[0] as number];
  let random = seed * 2654435761;
  const values = Float32Array.from({ length: elementsOf(stored) }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return shift + size * (random / 2 ** 31 - 1);
  });
  const whole = tensor(values, stored, { dtype, device }) as Tensor;
  let t: Tensor = whole;
  if (layout === 'part') t = whole.slice(last, 1, 1 + (shape[last] as number));
  if (layout === 'swapped') t = whole.transpose(0, last);
  if (t !== whole) whole.dispose();
  return { t, data: t.toFloat32Sync() };
}

const sameBits = (a: Tensor, b: Tensor) => Buffer.from(a.dataSync().buffer).equals(Buffer.from(b.dataSync().buffer));

const layouts = fc.constantFrom('whole' as const, 'whole' as const, 'part' as const, 'swapped' as const);

const cases = fc.record({
  shape: fc.oneof(
    fc.tuple(fc.integer({ min: 0, max: 150 }), fc.integer({ min: 1, max: 40 })),
    fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 0, max: 4 }), fc.integer({ min: 1, max: 700 })),
    fc.tuple(fc.integer({ min: 1, max: 900 })),
  ),
  seed: fc.integer({ min: 1, max: 1000 }),
  dtype: fc.constantFrom(...dtypes),
  centered: fc.boolean(),
  size: fc.constantFrom(1, 1, 100),
  shift: fc.constantFrom(0, 0, 3),
  x: layouts,
  residual: fc.option(layouts),
  gain: fc.option(fc.constantFrom(...dtypes)),
  bias: fc.option(fc.constantFrom(...dtypes)),
  wanted: fc.record({ x: fc.boolean(), gain: fc.boolean(), bias: fc.boolean() }),
});
type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

function expectNear(name: string, got: Tensor, wanted: ArrayLike<number>, absolute: number | ((at: number) => number)) {
  const data = got.toFloat32Sync();
  expect(data.length).toBe(wanted.length);
  const unit = rounding[got.dtype];
  for (let at = 0; at < wanted.length; at++) {
    const [a, b] = [data[at] as number, wanted[at] as number];
    const tolerance = (typeof absolute === 'number' ? absolute : absolute(at)) + (unit + 2 ** -22) * Math.abs(b);
    if (!(Math.abs(a - b) <= tolerance) && !Object.is(a, b))
      throw new Error(`element ${at} of ${name} is ${a}, not ${b} within ${tolerance}`);
  }
}

function check(device: DeviceName, c: Case): void {
  const { dtype, centered, seed } = c;
  const shape = c.shape as readonly number[];
  const dim = shape[shape.length - 1] as number;
  const rows = elementsOf(shape.slice(0, -1));
  const epsilon = 1e-4;
  const like = { dtype, size: c.size, shift: c.shift };
  const x = make(device, shape, { ...like, seed, layout: c.x });
  const residual = c.residual ? make(device, shape, { ...like, seed: seed + 1, layout: c.residual }) : undefined;
  const gain = c.gain ? make(device, [dim], { dtype: c.gain, seed: seed + 2, shift: 1 }) : undefined;
  const bias = c.bias && centered ? make(device, [dim], { dtype: c.bias, seed: seed + 3 }) : undefined;
  const options = { gain: gain?.t, bias: bias?.t, residual: residual?.t, epsilon, centered };
  const { out, sum, mean, rstd } = normForward(x.t, options, true);
  expect([out.shape, out.dtype, out.isContiguous]).toEqual([shape, dtype, true]);
  if (residual) {
    const added = x.data.map((value, at) => value + (residual.data[at] as number));
    expectNear('sum', sum as Tensor, added, dtype === 'float16' ? 2 ** -25 : 0);
  }
  const normed = sum ?? x.t;
  const problem = {
    ...{ rows, dim, epsilon, centered, x: normed.toFloat32Sync() },
    ...{ gain: gain?.data, bias: bias?.data },
  };
  // What rounding the mean changes counts as often as the deviation goes into the mean.
  const around = Math.abs(c.shift) * (residual ? 2 : 1) + c.size;
  const rstds = rstd?.toFloat32Sync() as Float32Array;
  const blur = (at: number) => 2 ** -21 * (1 + around * (rstds[Math.floor(at / dim)] ?? 0));
  expectNear('out', out, oracle(problem), (at) => 4 * blur(at));
  // The same bits without what is kept for gradients.
  const again = centered
    ? layerNorm(x.t, gain?.t, bias?.t, { epsilon, ...(residual && { residual: residual.t }) } as { epsilon: number })
    : rmsNorm(x.t, gain?.t, { epsilon, ...(residual && { residual: residual.t }) } as { epsilon: number });
  const bare = residual ? (again as unknown as { out: Tensor; sum: Tensor }) : { out: again, sum: undefined };
  expect(sameBits(bare.out, out)).toBe(true);

  const dOut = make(device, shape, { dtype, seed: seed + 4, layout: c.x });
  const dSum = residual ? make(device, shape, { dtype, seed: seed + 5, layout: c.x }) : undefined;
  const tensors = { gain: gain?.t, bias: bias?.t, mean, rstd: rstd as Tensor<'float32'>, dSum: dSum?.t };
  const { dX, dGain, dBias } = normBackward({ x: normed, ...tensors, dOut: dOut.t, wanted: c.wanted });
  expect([dX?.shape, dGain?.dtype, dBias?.dtype]).toEqual([
    c.wanted.x ? shape : undefined,
    c.wanted.gain && gain ? gain.t.dtype : undefined,
    c.wanted.bias && bias ? bias.t.dtype : undefined,
  ]);
  const expected = oracleBackward(problem, dOut.data, dSum?.data);
  if (dX)
    expectNear(
      'dX',
      dX,
      expected.dX,
      (at) => 32 * blur(at) * (rstds[Math.floor(at / dim)] as number) + (dtype === 'float16' ? 2 ** -24 : 0),
    );
  const mostBlur = rstds.reduce((most, _, r) => Math.max(most, blur(r * dim)), 0);
  if (dGain) expectNear('dGain', dGain, expected.dGain, 8 * rows * mostBlur);
  if (dBias) expectNear('dBias', dBias, expected.dBias, rows * 2 ** -24);
  for (const made of [x, residual, gain, bias, dOut, dSum]) made?.t.dispose();
  for (const t of [out, sum, mean, rstd, bare.out, bare.sum, dX, dGain, dBias]) t?.dispose();
}

const plain: Omit<Case, 'shape'> = {
  ...{ seed: 3, dtype: 'float32', centered: true, size: 1, shift: 0, x: 'whole', residual: 'whole' },
  ...{ gain: 'float32', bias: 'float32', wanted: { x: true, gain: true, bias: true } },
};

for (const { device, present, title, runs, isSlow } of testDevices)
  describe.skipIf(!present)(title('norms'), () => {
    it('are those of float64 up to rounding, and so are their gradients', () => {
      fc.assert(
        fc.property(cases, (c) => check(device, c)),
        { numRuns: runs(isSlow ? 320 : 160) },
      );
    });

    it('handle rows that the workspace, a warp or registers do not hold, and many rows', () => {
      const shapes = [
        [3, 8192],
        [2, 8193],
        [1, 20011],
        [1100, 17],
        [300, 200],
      ] as const;
      const short = [
        [2, 1100],
        [1, 8300],
        [1, 8201],
      ] as const;
      for (const shape of (isSlow ? short : shapes) as readonly (readonly [number, number])[])
        for (const centered of [true, false])
          for (const dtype of dtypes) check(device, { ...plain, shape: [...shape], centered, dtype });
    });

    it('add up the gradients of many rows as exactly as those of few', () => {
      const rows = isSlow ? 3000 : 200_000;
      const values = Float32Array.from({ length: rows }, (_, r) => 1 + (r % 16) / 16);
      using gain = tensor([1, 1], [2], { device });
      using x = tensor(new Float32Array(rows * 2).fill(1), [rows, 2], { device });
      using dOut = tensor(
        Float32Array.from({ length: 2 * rows }, (_, at) => values[at >> 1] as number),
        [rows, 2],
        { device },
      );
      using mean = zeros([rows], { device });
      using rstd = tensor(new Float32Array(rows).fill(1), [rows], { device });
      const { dGain, dBias } = normBackward({
        ...{ x, gain: gain as Tensor, bias: gain as Tensor, mean: mean as never, rstd: rstd as never, dOut },
        wanted: { x: false, gain: true, bias: true },
      });
      const sum = values.reduce((a, b) => a + b, 0);
      for (const gradient of [dGain, dBias])
        for (const value of gradient?.toFloat32Sync() ?? []) expect(Math.abs(value / sum - 1)).toBeLessThan(1.2e-7);
      dGain?.dispose();
      dBias?.dispose();
    });

    it('say the same bits every time, and keep no memory', () => {
      const x = make(device, [500, 96], { layout: 'swapped' });
      const gain = make(device, [96], { shift: 1 });
      const run = () => {
        const { out, mean, rstd } = normForward(
          x.t,
          { gain: gain.t, bias: undefined, residual: undefined, epsilon: 1e-5, centered: true },
          true,
        );
        const { dX, dGain } = normBackward({
          ...{ x: x.t, gain: gain.t, bias: undefined, mean, rstd: rstd as Tensor<'float32'>, dOut: x.t },
          wanted: { x: true, gain: true, bias: false },
        });
        const all = [out, dX as Tensor, dGain as Tensor].map((t) =>
          Buffer.from(t.dataSync().buffer).toString('base64'),
        );
        for (const t of [out, mean, rstd, dX, dGain]) t?.dispose();
        return all;
      };
      const first = run();
      const before = memory(device).bytesInUse;
      for (let round = 0; round < 4; round++) expect(run()).toEqual(first);
      expect(memory(device).bytesInUse).toBe(before);
      x.t.dispose();
      gain.t.dispose();
    });

    it('take squares beyond the range of float32', () => {
      for (const shape of [
        [2, 40],
        [1, 9000],
      ]) {
        if (isSlow && elementsOf(shape) > 1000) continue;
        const x = make(device, shape, { size: 2 ** 125, shift: 2 ** 124 });
        for (const centered of [true, false]) {
          using out = centered ? layerNorm(x.t) : rmsNorm(x.t);
          const [rows, dim] = shape as [number, number];
          expectNear('out', out, oracle({ rows, dim, x: x.data, epsilon: 1e-5, centered }), 1e-5);
        }
        x.t.dispose();
      }
    });

    it('let NaN and Infinity through, within their rows', () => {
      const values = new Float32Array(4 * 20).fill(1).map((_, at) => at % 7);
      values[25] = Number.NaN;
      values[45] = Number.POSITIVE_INFINITY;
      using x = tensor(values, [4, 20], { device });
      const expected = [false, true, true, false];
      using layer = layerNorm(x);
      const rowsOf = (t: Tensor) =>
        Array.from({ length: 4 }, (_, r) => [...t.toFloat32Sync().subarray(20 * r, 20 * r + 20)]);
      expect(rowsOf(layer).map((row) => row.every(Number.isNaN))).toEqual(expected);
      using rms = rmsNorm(x);
      // As in PyTorch: 1 / Infinity is 0, and Infinity times that is NaN.
      expect(rowsOf(rms)[1]?.every(Number.isNaN)).toBe(true);
      expect(rowsOf(rms)[2]).toEqual(Array.from({ length: 20 }, (_, i) => (i === 5 ? Number.NaN : 0)));
      expect(rowsOf(rms)[3]?.every(Number.isFinite)).toBe(true);
    });

    it('take what is empty', () => {
      for (const shape of [[0, 5], [3, 0], [0], [2, 0, 4]]) {
        const dim = shape.at(-1) as number;
        using x = zeros(shape, { device }) as Tensor;
        using gain = zeros([dim], { device }) as Tensor;
        const { out, mean, rstd } = normForward(
          x,
          { gain, bias: gain, residual: undefined, epsilon: 1e-5, centered: true },
          true,
        );
        expect(out.shape).toEqual(shape);
        const { dX, dGain, dBias } = normBackward({
          ...{ x, gain, bias: gain, mean, rstd: rstd as Tensor<'float32'>, dOut: x },
          wanted: { x: true, gain: true, bias: true },
        });
        expect(dX?.shape).toEqual(shape);
        expect([...(dGain?.toFloat32Sync() ?? [])]).toEqual(Array(dim).fill(0));
        expect([...(dBias?.toFloat32Sync() ?? [])]).toEqual(Array(dim).fill(0));
        for (const t of [out, mean, rstd, dX, dGain, dBias]) t?.dispose();
      }
    });

    it('refuse what does not fit, before anything is computed', () => {
      const before = memory(device).bytesInUse;
      {
        const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
        using x = of(3, 4);
        using gain = of(4);
        using wrong = of(3);
        using wide = of(1, 4);
        using scalar = of();
        using half = zeros([3, 4], { device, dtype: 'float16' }) as Tensor;
        expect(() => layerNorm(x, wrong)).toThrow('gain has shape [3]; it must be [4], the last axis of x');
        expect(() => layerNorm(x, gain, wide)).toThrow('bias has shape [1, 4]; it must be [4], the last axis of x');
        expect(() => rmsNorm(x, wrong)).toThrow('gain has shape [3]; it must be [4]');
        expect(() => layerNorm(scalar)).toThrow('x has shape []; it needs an axis to be normalised along');
        expect(() => rmsNorm(x, gain, { residual: gain })).toThrow(
          'residual has shape [4]; it must be [3, 4], that of x',
        );
        expect(() => rmsNorm(x, gain, { residual: half })).toThrow('residual is float16; it must be float32 as x is');
        for (const epsilon of [0, -1, Number.NaN, 1e-60, '1' as never])
          expect(codeOf(() => layerNorm(x, gain, undefined, { epsilon }))).toBe('ERR_OPTION');
        expect(() => rmsNorm(x, gain, { epsilon: -1 })).toThrow('epsilon is -1; it must be a number above 0');
        expect(() => layerNorm(x, gain, gain, { epsilom: 1 } as object)).toThrow('did you mean "epsilon"?');
        expect(codeOf(() => layerNorm(x, [1] as never))).toBe('ERR_OPTION');
        wrong.dispose();
        using gone = of(4);
        gone.dispose();
        expect(codeOf(() => layerNorm(x, gone))).toBe('ERR_DISPOSED');
        const elsewhere = device === 'wasm' ? 'cpu' : 'wasm';
        if (status(elsewhere).device === elsewhere) {
          using far = zeros([4], { device: elsewhere }) as Tensor;
          expect(codeOf(() => layerNorm(x, far))).toBe('ERR_DEVICE');
        }
      }
      expect(memory(device).bytesInUse).toBe(before);
    });
  });
