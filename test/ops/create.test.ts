/** Tensors of known numbers, and triangles of matrices. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  arange,
  cast,
  full,
  memory,
  oneHot,
  ones,
  onesLike,
  parameter,
  scope,
  type Tensor,
  tensor,
  tril,
  triu,
  zeros,
  zerosLike,
} from '../../lib/index.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { numbers, size } from '../support/samples.js';

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('known numbers'), () => {
    it('full, ones, onesLike and zerosLike are of one number', () => {
      expect([...full([2, 3], 1.5, { device }).dataSync()]).toEqual(new Array(6).fill(1.5));
      expect([...full([2], Number.NEGATIVE_INFINITY, { device, dtype: 'bfloat16' }).toFloat32Sync()]).toEqual([
        -Infinity,
        -Infinity,
      ]);
      expect([...ones([3], { device, dtype: 'float16' }).toFloat32Sync()]).toEqual([1, 1, 1]);
      expect(full([0, 3], 1, { device }).shape).toEqual([0, 3]);
      for (const dtype of ['float32', 'float16', 'bfloat16', 'int32', 'bool'] as const) {
        const t = zeros([3, 2], { device, dtype }).transpose(0, 1);
        for (const [made, value] of [
          [onesLike(t), 1],
          [zerosLike(t), 0],
        ] as const) {
          expect([made.dtype, made.shape, made.isContiguous]).toEqual([dtype, [2, 3], true]);
          expect([...made.toFloat32Sync()]).toEqual(new Array(6).fill(value));
        }
      }
    });

    it('arange counts', () => {
      expect([...arange(5, { device }).dataSync()]).toEqual([0, 1, 2, 3, 4]);
      expect([...arange(3, { device, dtype: 'bfloat16' }).toFloat32Sync()]).toEqual([0, 1, 2]);
      expect(arange(0, { device }).shape).toEqual([0]);
    });

    it('oneHot has 1 at ids, and nothing where an operation made one that is no class', () => {
      const ids = tensor([2, 0, 1, 2], [2, 2], { dtype: 'int32', device });
      const hot = oneHot(ids, 3, { dtype: 'bfloat16' });
      expect([hot.dtype, hot.shape]).toEqual(['bfloat16', [2, 2, 3]]);
      expect([...hot.toFloat32Sync()]).toEqual([0, 0, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]);
      const made = cast(tensor([-1, 1, 3, 16777217], [4], { device }), 'int32');
      expect([...oneHot(made, 3).dataSync()]).toEqual([0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
      expect(codeOf(() => oneHot(ids, 2))).not.toBe('none');
    });

    it('tril and triu keep a triangle, and its gradient', () => {
      const before = memory(device).tensors;
      const cases = fc.record({
        batch: fc.array(fc.integer({ min: 0, max: 2 }), { maxLength: 2 }),
        rows: fc.integer({ min: 0, max: 7 }),
        columns: fc.integer({ min: 0, max: 7 }),
        diagonal: fc.integer({ min: -9, max: 9 }),
        isLower: fc.boolean(),
        dtype: fc.constantFrom('float32', 'float16', 'bfloat16'),
        turned: fc.boolean(),
      });
      fc.assert(
        fc.property(cases, ({ batch, rows, columns, diagonal, isLower, dtype, turned }) => {
          scope(() => {
            const shape = [...batch, rows, columns];
            const data = numbers(size(shape), 1).map((x, i) => (i % 5 === 0 ? Number.NaN : x));
            const keeps = (i: number) => {
              const offset = (i % columns) - (Math.floor(i / columns) % rows);
              return isLower ? offset <= diagonal : offset >= diagonal;
            };
            const stored = turned ? [...batch, columns, rows] : shape;
            const whole = parameter(tensor(data, stored, { dtype, device }));
            const view = (t: Tensor) => (turned ? t.transpose(-2, -1) : t);
            const x = view(whole as Tensor);
            const out = (isLower ? tril : triu)(x, diagonal);
            expect([out.shape, out.dtype]).toEqual([shape, dtype]);
            expect([...out.toFloat32Sync()]).toEqual([...x.toFloat32Sync()].map((y, i) => (keeps(i) ? y : 0)));
            const gradient = numbers(size(shape), 2);
            out.backward(tensor(gradient, shape, { dtype, device }));
            const got = view(whole.grad as Tensor).toFloat32Sync();
            expect([...got]).toEqual([...gradient].map((y, i) => (keeps(i) ? y : 0)));
            whole.dispose();
          });
        }),
        { numRuns: runs(100) },
      );
      expect(memory(device).tensors).toBe(before);
    });

    it('refuse what is none', () => {
      expect(codeOf(() => full([2], '1' as unknown as number, { device }))).toBe('ERR_OPTION');
      expect(codeOf(() => full([2], 1e300, { device }))).toBe('ERR_OPTION');
      expect(codeOf(() => full([-1], 1, { device }))).toBe('ERR_SHAPE');
      expect(codeOf(() => full([2], 1, { device, dtype: 'int32' as 'float32' }))).toBe('ERR_DTYPE');
      expect(codeOf(() => arange(2.5, { device }))).toBe('ERR_OPTION');
      expect(codeOf(() => arange(-1, { device }))).toBe('ERR_OPTION');
      expect(codeOf(() => oneHot(zeros([2], { device }) as never, 3))).toBe('ERR_DTYPE');
      expect(codeOf(() => tril(zeros([3], { device })))).toBe('ERR_SHAPE');
      expect(codeOf(() => triu(zeros([3, 3], { device }), 0.5))).toBe('ERR_OPTION');
      expect(codeOf(() => onesLike([1] as unknown as Tensor))).toBe('ERR_OPTION');
    });
  });
});
