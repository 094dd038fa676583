/** Softmax and its gradient against float64: any axis, strides and dtype, long rows, and what is not finite. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  type DeviceName,
  type FloatDType,
  logSoftmax,
  memory,
  type Shape,
  softmax,
  status,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js';
import { softmaxBackward } from '../../lib/ops/softmax.js';
import { softmax as oracle, softmaxBackward as oracleBackward } from '../../verify/oracle/softmax.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { size as elementsOf, rounding } from '../support/samples.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;
/** The smallest subnormal. */
const tiny: Record<FloatDType, number> = { float32: 1e-20, float16: 2 ** -24, bfloat16: 1e-20 };

interface Layout {
  /** Order of the axes in memory. */
  readonly order: readonly number[];
  readonly steps: readonly number[];
  readonly seed: number;
  readonly size: number;
}

/** A tensor of `shape` whose axes lie in memory in another order and with gaps. */
function make(shape: Shape, { order, steps, seed, size }: Layout, dtype: FloatDType, device: DeviceName) {
  const stored = order.map((axis) => (shape[axis] as number) * (steps[axis] as number));
  let random = seed * 2654435761;
  const values = Float32Array.from({ length: elementsOf(stored) }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return size * (random / 2 ** 31 - 1);
  });
  const whole = tensor(values, stored, { dtype, device }) as Tensor;
  let t: Tensor = whole;
  const at = [...order];
  for (const axis of shape.keys()) {
    const found = at.indexOf(axis);
    t = t.transpose(axis, found);
    [at[axis], at[found]] = [at[found] as number, at[axis] as number];
  }
  for (const [axis, n] of shape.entries()) t = t.slice(axis, 0, n * (steps[axis] as number), steps[axis]);
  return { t, whole, data: t.toFloat32Sync() };
}

const layoutOf = (rank: number) =>
  fc.record({
    order: fc.oneof(
      fc.constant([...Array(rank).keys()]),
      fc.shuffledSubarray([...Array(rank).keys()], { minLength: rank }),
    ),
    steps: fc.array(fc.constantFrom(1, 1, 1, 2), { minLength: rank, maxLength: rank }),
    seed: fc.integer({ min: 1, max: 1000 }),
    size: fc.constantFrom(0.1, 4, 80),
  });

const shapes = fc.oneof(
  fc.array(fc.oneof(fc.integer({ min: 1, max: 5 }), fc.integer({ min: 0, max: 40 })), { minLength: 1, maxLength: 3 }),
  fc.array(fc.integer({ min: 1, max: 3 }), { minLength: 4, maxLength: 7 }),
  fc.tuple(fc.integer({ min: 1, max: 3 }), fc.integer({ min: 100, max: 1300 }), fc.integer({ min: 1, max: 3 })),
  fc.tuple(fc.integer({ min: 1, max: 600 }), fc.integer({ min: 1, max: 20 })),
);

const cases = shapes.chain((shape) =>
  fc.record({
    shape: fc.constant(shape as number[]),
    axis: fc.integer({ min: -shape.length, max: shape.length - 1 }),
    x: layoutOf(shape.length),
    dOut: layoutOf(shape.length),
    dtype: fc.constantFrom(...dtypes),
    log: fc.boolean(),
  }),
);
interface Case {
  readonly shape: readonly number[];
  readonly axis: number;
  readonly x: Layout;
  readonly dOut: Layout;
  readonly dtype: FloatDType;
  readonly log: boolean;
}

function expectNear(
  got: ArrayLike<number>,
  wanted: ArrayLike<number>,
  tolerance: (wanted: number, at: number) => number,
) {
  expect(got.length).toBe(wanted.length);
  for (let at = 0; at < wanted.length; at++) {
    const [a, b] = [got[at] as number, wanted[at] as number];
    if (Object.is(a, b) || (Number.isNaN(a) && Number.isNaN(b))) continue;
    if (!(Math.abs(a - b) <= tolerance(b, at)) && a !== b)
      throw new Error(`element ${at} is ${a}, not ${b} within ${tolerance(b, at)}`);
  }
}

function check(device: DeviceName, { shape, axis, dtype, log, ...layouts }: Case): void {
  const along = axis < 0 ? axis + shape.length : axis;
  const x = make(shape, layouts.x, dtype, device);
  const out = (log ? logSoftmax : softmax)(x.t, axis);
  expect([out.shape, out.dtype, out.isContiguous]).toEqual([shape, dtype, true]);
  const unit = rounding[dtype];
  // Exponents are rounded to float32: an exponential is off by so many units as its exponent is large.
  const spread = 2 * layouts.x.size;
  const relative = 2 ** -23 * (8 + 2 * spread) + unit;
  expectNear(out.toFloat32Sync(), oracle({ shape, data: x.data }, along, log), (wanted) =>
    log ? (4 * 2 ** -24 + unit) * (Math.abs(wanted) + spread) + 1e-6 : relative * wanted + tiny[dtype],
  );

  const dOut = make(shape, { ...layouts.dOut, size: 2 }, dtype, device);
  const dX = softmaxBackward(out, dOut.t, axis, log);
  expect([dX.shape, dX.dtype, dX.isContiguous]).toEqual([shape, dtype, true]);
  const y = { shape, data: out.toFloat32Sync() };
  const terms = log ? 2 * (shape[along] as number) : 2;
  expectNear(dX.toFloat32Sync(), oracleBackward(y, dOut.data, along, log), (wanted, at) => {
    const share = log ? Math.exp(y.data[at] as number) : (y.data[at] as number);
    return (
      unit * Math.abs(wanted) +
      2 ** -21 * share * (terms + 2) +
      2 ** -22 * Math.abs(wanted) +
      2 ** -22 * (log ? 2 : 0) +
      tiny[dtype]
    );
  });
  for (const t of [x.t, x.whole, out, dOut.t, dOut.whole, dX]) t.dispose();
}

const plain = (shape: Shape, seed = 3, size = 4): Layout => ({
  order: [...shape.keys()],
  steps: shape.map(() => 1),
  seed,
  size,
});

for (const { device, present, title, runs, isSlow } of testDevices)
  describe.skipIf(!present)(title('softmax'), () => {
    it('is that of float64 up to rounding, along any axis of any strides, and so is its gradient', () => {
      fc.assert(
        fc.property(cases, (c) => check(device, c)),
        { numRuns: runs(isSlow ? 320 : 160) },
      );
    });

    it('handles rows that the workspace or a warp does not hold', () => {
      const shapes = [
        [[3, 8192], 1],
        [[2, 8193], 1],
        [[1, 50257], 1],
        [[20000, 3], 0],
        [[2, 700, 33], 1],
        [[513, 16], 0],
      ] as const;
      const short = [
        [[2, 1104], 1],
        [[1, 2051], 1],
        [[150, 40], 0],
      ] as const;
      for (const [shape, axis] of isSlow ? short : shapes)
        for (const log of [false, true])
          for (const dtype of dtypes)
            check(device, { shape, axis, dtype, log, x: plain(shape), dOut: plain(shape, 5) });
    });

    it('adds up a row of many as exactly as one of few', () => {
      const n = isSlow ? 1 << 14 : 1 << 20;
      using x = zeros([n], { device });
      using out = softmax(x);
      using dOut = tensor(
        Float32Array.from({ length: n }, (_, i) => 1 + (i % 7)),
        [n],
        { device },
      );
      using dX = softmaxBackward(out, dOut, 0, true);
      expect(out.toFloat32Sync().every((y) => Math.abs(y * n - 1) < 3e-7)).toBe(true);
      const sum = Array.from({ length: n }, (_, i) => 1 + (i % 7)).reduce((a, b) => a + b);
      const [first] = dX.toFloat32Sync();
      expect(Math.abs((first as number) - (1 - Math.exp(1 / n) * sum)) / sum).toBeLessThan(3e-7);
    });

    it('gives what PyTorch gives of what is not finite', () => {
      const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN];
      const values = [
        [-inf, -inf, -inf],
        [-inf, 0, -inf],
        [inf, 0, 1],
        [nan, 0, 1],
        [-inf, nan, 1],
        [3.4e38, -3.4e38, 0],
      ];
      const softmaxes = [
        [nan, nan, nan],
        [0, 1, 0],
        [nan, nan, nan],
        [nan, nan, nan],
        [nan, nan, nan],
        [1, 0, 0],
      ];
      const logs = [
        [nan, nan, nan],
        [-inf, 0, -inf],
        [nan, nan, nan],
        [nan, nan, nan],
        [nan, nan, nan],
        [0, -inf, Math.fround(-3.4e38)],
      ];
      using given = tensor(Float32Array.from(values.flat()), [6, 3], { device });
      for (const axis of [1, 0]) {
        // Rows side by side, too.
        const turn = (t: Tensor) => (axis === 1 ? t : t.transpose(0, 1));
        using x = turn(given as Tensor).contiguous();
        using out = softmax(x, axis);
        using logarithm = logSoftmax(x, axis);
        expect([...turn(out).toFloat32Sync()]).toEqual(softmaxes.flat());
        expect([...turn(logarithm).toFloat32Sync()]).toEqual(logs.flat());
      }
    });

    it('keeps no memory, and says the same bits every time', () => {
      const x = make(
        [2, 3, 2, 3, 2, 3, 2],
        { ...plain(Array(7).fill(2)), order: [6, 2, 4, 0, 1, 5, 3] },
        'float32',
        device,
      );
      softmax(x.t, 2).dispose(); // what is set up once
      const before = memory(device).bytesInUse;
      const results = Array.from({ length: 4 }, () => softmax(x.t, 2));
      const [first, ...rest] = results.map((t) => t.toFloat32Sync());
      for (const other of rest) expect(other).toEqual(first);
      for (const t of results) t.dispose();
      expect(memory(device).bytesInUse).toBe(before);
    });

    it('takes what is empty', () => {
      for (const shape of [[0], [3, 0], [0, 3], [2, 0, 4]])
        for (const axis of shape.keys()) {
          using x = zeros(shape, { device }) as Tensor;
          using out = softmax(x, axis);
          using dX = softmaxBackward(out, x, axis, true);
          expect([out.shape, dX.shape]).toEqual([shape, shape]);
        }
    });

    it('refuses what does not fit, before it computes anything', () => {
      const before = memory(device).bytesInUse;
      {
        using x = zeros([4, 5], { device }) as Tensor;
        using scalar = zeros([], { device }) as Tensor;
        using other = zeros([5, 4], { device }) as Tensor;
        using half = zeros([4, 5], { device, dtype: 'float16' }) as Tensor;
        expect(() => softmax(x, 2)).toThrow('axis 2 must lie within [-2, 2) for [4, 5]');
        expect(() => logSoftmax(x, -3)).toThrow('axis -3 must lie within [-2, 2) for [4, 5]');
        expect(() => softmax(x, 0.5)).toThrow('axis 0.5 must lie within [-2, 2) for [4, 5]');
        expect(() => softmax(scalar)).toThrow('axis -1 but there are no axes in []');
        expect(codeOf(() => softmax(x, 2))).toBe('ERR_SHAPE');
        expect(codeOf(() => softmax([1, 2] as never))).toBe('ERR_OPTION');
        expect(() => softmaxBackward(x, other, 1, false)).toThrow(
          'dOut has shape [5, 4]; it must be [4, 5], that of out',
        );
        expect(codeOf(() => softmaxBackward(x, half, 1, false))).toBe('ERR_DTYPE');
        other.dispose();
        expect(codeOf(() => softmax(other))).toBe('ERR_DISPOSED');
        const elsewhere = device === 'wasm' ? 'cpu' : 'wasm';
        if (status(elsewhere).device === elsewhere) {
          using far = zeros([4, 5], { device: elsewhere }) as Tensor;
          expect(codeOf(() => softmaxBackward(x, far, 1, false))).toBe('ERR_DEVICE');
        }
      }
      expect(memory(device).bytesInUse).toBe(before);
    });
  });
