/** Operations along one axis: sorting, the largest, picking by index and adding up again, sums up to each element. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  argmax,
  cast,
  cumsum,
  type DeviceName,
  memory,
  sort,
  type Tensor,
  takeAlongAxis,
  tensor,
  topK,
  zeros,
} from '../../lib/index.js';
import { takeAlongAxisBackward } from '../../lib/ops/alongAxis.js';
import { addAlong, cumulativeSum, sortIndices, takeAlong } from '../../verify/oracle/lines.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { rounding } from '../support/samples.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;
const isSmall = (device: DeviceName) => device === ('emulator' as DeviceName);

/** Numbers of which many come several times; 2^-5 steps are exact in every dtype. */
function numbers(count: number, seed: number, special = false): Float32Array {
  let random = seed * 2654435761;
  const next = () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return random / 2 ** 32;
  };
  const odd = [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, 0, -0];
  return Float32Array.from({ length: count }, () => {
    const x = Math.floor(next() * 128 - 64) / 32;
    return special && next() < 0.1 ? (odd[Math.floor(next() * 5)] as number) : x;
  });
}

const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

const cases = fc.record({
  shape: fc.array(fc.oneof(fc.integer({ min: 0, max: 6 }), fc.integer({ min: 1, max: 70 })), {
    minLength: 1,
    maxLength: 3,
  }),
  axis: fc.nat({ max: 2 }),
  fromEnd: fc.boolean(),
  dtype: fc.constantFrom(...dtypes),
  turned: fc.boolean(),
  seed: fc.integer({ min: 1, max: 1000 }),
});

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

/** A tensor, row-major or turned over; its elements; an axis as it is given and as it is. */
function make({ shape, dtype, turned, seed, ...c }: Case, device: DeviceName, special: boolean) {
  const axis = c.axis % shape.length;
  const last = shape.length - 1;
  const stored = [...shape];
  if (turned) [stored[0], stored[last]] = [shape[last] as number, shape[0] as number];
  const whole = tensor(numbers(size(shape), seed, special), stored, { dtype, device }) as Tensor;
  const x = turned ? whole.transpose(0, last) : whole;
  return { x, data: x.toFloat32Sync().slice(), axis, given: c.fromEnd ? axis - shape.length : axis };
}

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('along an axis'), () => {
    it('sort, topK and argmax order as PyTorch does: stable, NaN the largest', () => {
      fc.assert(
        fc.property(cases, fc.boolean(), fc.double({ min: 0, max: 1, noNaN: true }), (c, descending, part) => {
          const { x, data, axis, given } = make(c, device, true);
          const { shape } = x;
          const length = shape[axis] as number;
          const expectSorted = ({ values, indices }: ReturnType<typeof sort>, order: number[], count: number) => {
            const kept = shape.map((n, at) => (at === axis ? count : n));
            expect(values.shape).toEqual(kept);
            expect(indices.shape).toEqual(kept);
            expect(values.dtype).toBe(c.dtype);
            expect([...indices.dataSync()]).toEqual(order);
            expect([...values.toFloat32Sync()]).toEqual(takeAlong(data, shape, axis, order, count));
            values.dispose();
            indices.dispose();
          };
          expectSorted(sort(x, given, { descending }), sortIndices(data, shape, axis, length, descending), length);
          const k = Math.round(part * length);
          expectSorted(topK(x, k, given), sortIndices(data, shape, axis, k, true), k);
          if (length > 0) {
            using largest = argmax(x, given);
            expect(largest.shape).toEqual(shape.filter((_, at) => at !== axis));
            expect([...largest.dataSync()]).toEqual(sortIndices(data, shape, axis, 1, true));
          }
          x.dispose();
        }),
        { numRuns: runs(100) },
      );
    });

    it('sort long lines, and many of them with bounded scratch memory', () => {
      for (const [lines, length, k] of isSmall(device)
        ? ([[2, 2500, 2100]] as const)
        : ([
            [40, 5000, 70],
            [1, 300000, 299000],
          ] as const)) {
        const data = numbers(lines * length, 5, true).map((x, i) => x + (i % 977) / 4096);
        using x = tensor(data, [lines, length], { device });
        const { values, indices } = topK(x, k);
        const order = sortIndices(x.dataSync(), [lines, length], 1, k, true);
        expect(Buffer.from(indices.dataSync().buffer).equals(Buffer.from(Int32Array.from(order).buffer))).toBe(true);
        values.dispose();
        indices.dispose();
      }
    });

    it('takeAlongAxis picks by index, NaN where an operation made an index that is no place; its adjoint adds up', () => {
      fc.assert(
        fc.property(cases, fc.integer({ min: 0, max: 20 }), fc.boolean(), (c, count, known) => {
          const { x, data, axis, given } = make(c, device, false);
          const { shape } = x;
          const length = shape[axis] as number;
          const taken = shape.map((n, at) => (at === axis ? count : n));
          const places = Array.from(numbers(size(taken), c.seed + 1), (v) => Math.floor(((v + 2) / 4) * length));
          if (length === 0 && size(taken) > 0) {
            expect(codeOf(() => takeAlongAxis(x, zeros(taken, { dtype: 'int32', device }), given))).toBe('none');
            return;
          }
          if (!known && places.length > 1) places.splice(0, 2, -1, length);
          const indices = known
            ? tensor(places, taken, { dtype: 'int32', device })
            : cast(tensor(places, taken, { device }), 'int32');
          const out = takeAlongAxis(x, indices, given);
          expect(out.shape).toEqual(taken);
          expect([...out.toFloat32Sync()]).toEqual(takeAlong(data, shape, axis, places, count));
          const dOut = tensor(numbers(size(taken), c.seed + 2), taken, { dtype: c.dtype, device });
          const dX = takeAlongAxisBackward(dOut, indices, given, length);
          expect(dX.shape).toEqual(shape);
          const wanted = addAlong(dOut.toFloat32Sync(), shape, axis, places, count);
          for (const [at, got] of dX.toFloat32Sync().entries()) {
            const exact = wanted[at] as number;
            if (!(Math.abs(got - exact) <= rounding[c.dtype] * Math.abs(exact)))
              throw new Error(`element ${at} is ${got}, not ${exact}`);
          }
          for (const t of [x, indices, out, dOut, dX]) t.dispose();
        }),
        { numRuns: runs(100) },
      );
    });

    it('cumsum adds up in float64, from either end', () => {
      fc.assert(
        fc.property(cases, fc.boolean(), (c, reverse) => {
          const { x, data, axis, given } = make(c, device, false);
          using sums = cumsum(x, given, { reverse });
          expect(sums.shape).toEqual(x.shape);
          expect(sums.dtype).toBe(c.dtype);
          const wanted = cumulativeSum(data, x.shape, axis, reverse);
          for (const [at, got] of sums.toFloat32Sync().entries()) {
            const exact = wanted[at] as number;
            if (!(Math.abs(got - exact) <= rounding[c.dtype] * Math.abs(exact)))
              throw new Error(`element ${at} is ${got}, not ${exact}`);
          }
          x.dispose();
        }),
        { numRuns: runs(100) },
      );
      // Float32 sums would stay at 2^24.
      const length = isSmall(device) ? 5000 : 100000;
      const ones = new Float32Array(length).fill(1);
      ones[0] = 2 ** 24;
      using long = cumsum(tensor(ones, [length], { device }));
      expect(long.dataSync()[length - 1]).toBe(Math.fround(2 ** 24 + length - 1));
      using last = cumsum(tensor([1, Number.NaN, 2], [3], { device }));
      expect([...last.dataSync()]).toEqual([1, Number.NaN, Number.NaN]);
    });

    it('keep no memory, and refuse what does not fit, naming it', () => {
      const x = tensor(numbers(60, 1), [3, 20], { device });
      const turned = x.transpose(0, 1);
      const ids = tensor([0, 19, 20], [3, 1], { dtype: 'int32', device });
      const run = () => {
        for (const t of [
          argmax(turned),
          cumsum(turned),
          ...Object.values(topK(turned, 2, 0)),
          ...Object.values(sort(x, 0)),
        ])
          t.dispose();
      };
      run();
      const before = memory(device).bytesInUse;
      run();
      expect(() => takeAlongAxis(x, ids)).toThrow('indices[2, 0] is 20; it must be a place on axis 1, from 0 to 19');
      expect(codeOf(() => takeAlongAxis(x, ids, 0))).toBe('ERR_SHAPE');
      expect(codeOf(() => takeAlongAxis(x, x as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => argmax(ids as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => argmax(x, 2))).toBe('ERR_SHAPE');
      expect(codeOf(() => argmax(x, -3))).toBe('ERR_SHAPE');
      expect(codeOf(() => topK(x, 21))).toBe('ERR_OPTION');
      expect(codeOf(() => topK(x, 1.5))).toBe('ERR_OPTION');
      expect(codeOf(() => sort(x, 0, { descending: 1 as never }))).toBe('ERR_OPTION');
      expect(codeOf(() => cumsum(x, 0, { backwards: true } as object))).toBe('ERR_OPTION');
      expect(codeOf(() => takeAlongAxisBackward(x, ids, 1, 20))).toBe('ERR_OPTION');
      expect(memory(device).bytesInUse).toBe(before);
      expect(codeOf(() => argmax(zeros([2, 0], { device })))).toBe('ERR_SHAPE');
      expect(argmax(zeros([0, 2], { device })).shape).toEqual([0]);
      expect(codeOf(() => argmax(zeros([], { device })))).toBe('ERR_SHAPE');
    });
  });
});
