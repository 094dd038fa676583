/** Rows by their index against float64: any shapes, views and dtypes; ids that are no rows; the same bits every time. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cast, type DeviceName, embedding, memory, scatterAdd, tensor, zeros } from '../../lib/index.js';
import { addRows, takeRows } from '../../verify/oracle/embedding.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { rounding } from '../support/samples.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;

function numbers(count: number, seed: number): Float32Array {
  let random = seed * 2654435761;
  return Float32Array.from({ length: count }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return random / 2 ** 31 - 1;
  });
}

/** Ids as an operation makes them: nobody has looked at them. */
const unseen = (ids: readonly number[], shape: readonly number[], device: DeviceName) =>
  cast(tensor(ids, shape as number[], { device }), 'int32');

const cases = fc.record({
  rows: fc.integer({ min: 1, max: 30 }),
  width: fc.oneof(fc.integer({ min: 0, max: 20 }), fc.constantFrom(8, 64, 100, 264)),
  shape: fc.array(fc.integer({ min: 0, max: 9 }), { maxLength: 3 }),
  dtype: fc.constantFrom(...dtypes),
  to: fc.constantFrom(...dtypes),
  seed: fc.integer({ min: 1, max: 1000 }),
  known: fc.boolean(),
  strided: fc.boolean(),
});

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('embedding'), () => {
    it('takes rows of any table by ids of any shape, NaN for what an operation made of no row', () => {
      fc.assert(
        fc.property(cases, ({ rows, width, shape, dtype, seed, known, strided }) => {
          const whole = tensor(numbers(rows * width * 2, seed), [rows, 2, width], { dtype, device });
          // Every second row of a table twice as tall, or a table by its columns.
          const table = strided ? whole.select(1, 1) : whole.select(1, 0).transpose(0, 1).contiguous().transpose(0, 1);
          const count = shape.reduce((product, n) => product * n, 1);
          const ids = Array.from(numbers(count, seed + 1), (x) => Math.floor(((x + 1) / 2) * rows));
          if (!known && count > 2) ids.splice(0, 2, -1, rows);
          const t = known ? tensor(ids, shape, { dtype: 'int32', device }) : unseen(ids, shape, device);
          const out = embedding(table, t);
          expect(out.shape).toEqual([...shape, width]);
          expect(out.dtype).toBe(dtype);
          expect([...out.toFloat32Sync()]).toEqual([...takeRows(table.toFloat32Sync(), width, ids)]);
          for (const made of [whole, table, t, out]) made.dispose();
        }),
        { numRuns: runs(120) },
      );
    });

    it('takes ids by a view, and rows of several axes', () => {
      const table = tensor(numbers(5 * 6, 1), [5, 2, 3], { device });
      const ids = tensor([9, 0, 1, 4, 9, 2, 3, 4], [2, 4], { dtype: 'int32', device });
      const out = embedding(table, ids.slice(1, 1, 4));
      expect(out.shape).toEqual([2, 3, 2, 3]);
      expect([...out.dataSync()]).toEqual([...takeRows(table.dataSync(), 6, [0, 1, 4, 2, 3, 4])]);
    });

    it('adds rows up, in float32, the adjoint of taking them', () => {
      fc.assert(
        fc.property(cases, fc.boolean(), ({ rows, width, shape, dtype, to, seed, known, strided }, into) => {
          const count = shape.reduce((product, n) => product * n, 1);
          const ids = Array.from(numbers(count, seed + 1), (x) => Math.floor(((x + 1) / 2) ** 2 * rows));
          if (!known && count > 2) ids.splice(0, 2, -1, rows);
          const t = known ? tensor(ids, shape, { dtype: 'int32', device }) : unseen(ids, shape, device);
          const wide = tensor(numbers(count * width * 2, seed), [...shape, 2, width], { dtype, device });
          const source = strided ? wide.select(shape.length, 1) : wide.select(shape.length, 0).contiguous();
          const target = into
            ? tensor(numbers(rows * width, seed + 2), [rows, width], { dtype: to, device })
            : undefined;
          const before = target?.toFloat32Sync().slice();
          const out = target ? scatterAdd(target, t, source) : scatterAdd(rows, t, source, { dtype: to });
          expect(out.shape).toEqual([rows, width]);
          expect(out.dtype).toBe(to);
          const wanted = addRows(rows, width, ids, source.toFloat32Sync(), before);
          for (const [at, x] of out.toFloat32Sync().entries()) {
            const exact = wanted[at] as number;
            const tolerance = (1.01 * rounding[to] + 2 ** -23) * Math.abs(exact) + 2 ** -22;
            if (!(Math.abs(x - exact) <= tolerance)) throw new Error(`element ${at} is ${x}, not ${exact}`);
          }
          for (const made of [t, wide, source, out]) made.dispose();
        }),
        { numRuns: runs(120) },
      );
    });

    it('loses nothing of long sums', () => {
      // 2^-13 is less than half a unit of the last place of 4096: added one by one, none of them would count.
      const count = device === 'wasm' || device === 'cpu' ? 40000 : 3000;
      const values = new Float32Array(count * 2).fill(2 ** -13);
      values[0] = values[1] = 4096;
      const source = tensor(values, [count, 2], { device });
      const ids = tensor(new Int32Array(count).fill(3), [count], { device });
      const out = scatterAdd(5, ids, source);
      const sum = Math.fround(4096 + (count - 1) * 2 ** -13);
      expect([...out.dataSync()]).toEqual([0, 0, 0, 0, 0, 0, sum, sum, 0, 0]);
      const half = scatterAdd(zeros([5, 2], { device, dtype: 'float16' }), ids, source);
      expect(half.toFloat32Sync()[6]).toBe(4096 + 4 * Math.round((sum - 4096) / 4));
    });

    it('gives the same bits every time, and keeps no memory', () => {
      const [rows, count, width] = device === 'wasm' || device === 'cpu' ? [1000, 9000, 48] : [50, 300, 16];
      const source = tensor(numbers(count * width, 4), [count, width], { device, dtype: 'bfloat16' });
      const ids = tensor(
        numbers(count, 5).map((x) => Math.floor(((x + 1) / 2) ** 3 * rows)),
        [count],
        { device },
      );
      const indices = cast(ids, 'int32');
      const first = scatterAdd(rows, indices, source, { dtype: 'float32' });
      const before = memory(device).bytesInUse;
      for (let n = 0; n < 4; n++) {
        using again = scatterAdd(rows, indices, source, { dtype: 'float32' });
        expect(Buffer.compare(Buffer.from(again.dataSync().buffer), Buffer.from(first.dataSync().buffer))).toBe(0);
      }
      using strided = source.slice(1, 0, width, 2);
      scatterAdd(rows, indices, strided).dispose();
      expect(memory(device).bytesInUse).toBe(before);
    });

    it('refuses ids that are no rows where the host has written them, by their place', () => {
      const table = zeros([10, 4], { device });
      const ids = tensor([1, 2, 3, 4, 10, 6], [2, 3], { dtype: 'int32', device });
      expect(() => embedding(table, ids)).toThrow('ids[1, 1] is 10; it must be a row of the table, from 0 to 9');
      expect(codeOf(() => embedding(table, ids))).toBe('ERR_OPTION');
      // What lies beside a view does not matter.
      expect(embedding(table, ids.slice(0, 0, 1)).shape).toEqual([1, 3, 4]);
      ids.write([0, 1, 2, 3, 4, 5]);
      expect(embedding(table, ids).shape).toEqual([2, 3, 4]);
      ids.slice(0, 1, 2).write([-7, 0, 0]);
      expect(() => embedding(table, ids)).toThrow('ids[1, 0] is -7');
      expect(() => scatterAdd(10, ids, zeros([2, 3, 4], { device }))).toThrow('ids[1, 0] is -7');
      // An operation has written some: nobody knows, and nothing out of bounds is read.
      unseen([99, 1, 2], [1, 3], device).copyInto(ids.slice(0, 0, 1));
      expect([...embedding(table, ids).dataSync()].map((x) => (Number.isNaN(x) ? 1 : 0))).toEqual(
        [1, 0, 0, 1, 0, 0].flatMap((bad) => [bad, bad, bad, bad]),
      );
      expect(() => embedding(zeros([0, 4], { device }), tensor([0], [1], { dtype: 'int32', device }))).toThrow(
        'ids[0] is 0; it must be of a table that has rows',
      );
    });

    it('refuses what does not fit, before anything is allocated', () => {
      const table = zeros([10, 4], { device });
      const ids = tensor([1, 2], [2], { dtype: 'int32', device });
      const source = zeros([2, 4], { device });
      const before = memory(device).bytesInUse;
      expect(codeOf(() => embedding(zeros([], { device }), ids))).toBe('ERR_SHAPE');
      expect(codeOf(() => embedding(table, source as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => embedding(ids as never, ids))).toBe('ERR_DTYPE');
      expect(codeOf(() => embedding([] as never, ids))).toBe('ERR_OPTION');
      expect(codeOf(() => scatterAdd(3, ids, zeros([3, 4], { device })))).toBe('ERR_SHAPE');
      expect(codeOf(() => scatterAdd(-1, ids, source))).toBe('ERR_OPTION');
      expect(codeOf(() => scatterAdd(zeros([10, 5], { device }), ids, source))).toBe('ERR_SHAPE');
      expect(codeOf(() => scatterAdd(zeros([4, 10], { device }).transpose(0, 1), ids, source))).toBe('ERR_SHAPE');
      expect(codeOf(() => scatterAdd(10, ids, source, { dtype: 'int32' as never }))).toBe('ERR_DTYPE');
      expect(codeOf(() => scatterAdd(10, ids, source, { dtpye: 'float32' } as object))).toBe('ERR_OPTION');
      expect(codeOf(() => scatterAdd(source, ids, source))).toBe('ERR_OPTION');
      expect(memory(device).bytesInUse).toBeGreaterThanOrEqual(before);
      ids.dispose();
      expect(codeOf(() => embedding(table, ids))).toBe('ERR_DISPOSED');
    });
  });
});
