/** Whole numbers and conditions as elements: written, read, viewed, copied and converted, on every device. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cast, type DType, tensor, zeros } from '../../lib/index.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';

const toInt = (x: number) => (Number.isNaN(x) ? 0 : Math.max(-(2 ** 31), Math.min(2 ** 31 - 1, Math.trunc(x))));

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('int32 and bool'), () => {
    it('keep every number, also those that are no float32', async () => {
      const values = [0, -1, 2 ** 31 - 1, -(2 ** 31), 16777217, -16777219, 7, 8, 9, 10, 11, 12];
      const t = tensor(values, [3, 4], { dtype: 'int32', device });
      expect(t.dtype).toBe('int32');
      expect([...(await t.data())]).toEqual(values);
      expect([...t.transpose(0, 1).contiguous().dataSync()]).toEqual(
        [0, 1, 2, 3].flatMap((j) => [0, 1, 2].map((i) => values[i * 4 + j])),
      );
      expect([...t.slice(1, 1, 3).dataSync()]).toEqual([0, 1, 2].flatMap((i) => values.slice(i * 4 + 1, i * 4 + 3)));
      expect(t.byteLength).toBe(48);
    });

    it('take typed arrays and lists of conditions', () => {
      expect(tensor(new Int32Array([1, 2]), [2], { device }).dtype).toBe('int32');
      expect([...tensor(new Uint16Array([1, 65535]), [2], { dtype: 'int32', device }).dataSync()]).toEqual([1, 65535]);
      const conditions = tensor([true, false, true, true, false], [5], { dtype: 'bool', device });
      expect([...conditions.dataSync()]).toEqual([1, 0, 1, 1, 0]);
      expect([...conditions.slice(0, 1, 5, 2).contiguous().dataSync()]).toEqual([0, 1]);
      expect(conditions.byteLength).toBe(5);
      expect([...zeros([3], { dtype: 'bool', device }).dataSync()]).toEqual([0, 0, 0]);
    });

    it('are converted as documented', () => {
      fc.assert(
        fc.property(fc.array(fc.float(), { maxLength: 70 }), fc.boolean(), (values, strided) => {
          const x = tensor(new Float32Array(values), [values.length], { device });
          const some = strided && values.length > 1 ? x.slice(0, 0, values.length, 2) : x;
          const expected = [...some.dataSync()];
          expect([...cast(some, 'int32').dataSync()]).toEqual(expected.map((v) => toInt(v) + 0));
          expect([...cast(some, 'bool').dataSync()]).toEqual(expected.map((v) => (v !== 0 ? 1 : 0)));
          const back = cast(cast(some, 'int32'), 'float32').dataSync();
          expect([...back]).toEqual(expected.map((v) => Math.fround(toInt(v)) + 0));
        }),
        { numRuns: runs(60) },
      );
    });

    it('say what does not fit', () => {
      expect(codeOf(() => tensor([1.5], [1], { dtype: 'int32', device }))).toBe('ERR_OPTION');
      expect(codeOf(() => tensor([2 ** 31], [1], { dtype: 'int32', device }))).toBe('ERR_OPTION');
      expect(codeOf(() => tensor([2], [1], { dtype: 'bool', device }))).toBe('ERR_OPTION');
      expect(codeOf(() => tensor(new Float32Array(1) as never, [1], { dtype: 'int32', device }))).toBe('ERR_DTYPE');
      expect(codeOf(() => tensor([1], [2], { dtype: 'int32', device }))).toBe('ERR_SHAPE');
      const x = zeros([2], { device });
      expect(codeOf(() => cast(x, 'int8' as DType))).toBe('ERR_DTYPE');
      expect(codeOf(() => zeros([2], { dtype: 'int32', device }).copyInto(x, { accumulate: true }))).toBe('ERR_DTYPE');
    });
  });
});
