/** Windows as views: what they show, where their gradients go, and that nothing is written to those that overlap. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  add,
  conv1d,
  einsum,
  matmul,
  memory,
  noGrad,
  parameter,
  scatterAdd,
  scope,
  type Tensor,
  tensor,
  unfold,
  zeros,
} from '../../lib/index.js';
import { SGD } from '../../lib/nn/index.js';
import { repeats } from '../../lib/tensor/writable.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { expectNear, numbers, size } from '../support/samples.js';

const cases = fc.record({
  shape: fc.array(fc.integer({ min: 1, max: 9 }), { minLength: 1, maxLength: 3 }),
  axis: fc.nat({ max: 2 }),
  fromEnd: fc.boolean(),
  size: fc.integer({ min: 1, max: 9 }),
  step: fc.integer({ min: 1, max: 12 }),
  turned: fc.boolean(),
  dtype: fc.constantFrom('float32', 'float16', 'bfloat16'),
  seed: fc.nat({ max: 1000 }),
});

/** Calls `f` with the place of each element of the windows and of x. */
function forWindows(
  shape: readonly number[],
  axis: number,
  size: number,
  step: number,
  f: (to: number, from: number) => void,
) {
  const n = shape[axis] as number;
  const inner = shape.slice(axis + 1).reduce((x, y) => x * y, 1);
  const outer = shape.slice(0, axis).reduce((x, y) => x * y, 1);
  const count = Math.floor((n - size) / step) + 1;
  for (let o = 0; o < outer; o++)
    for (let i = 0; i < count; i++)
      for (let c = 0; c < inner; c++)
        for (let j = 0; j < size; j++) f(((o * count + i) * inner + c) * size + j, (o * n + i * step + j) * inner + c);
}

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('unfold'), () => {
    it('shows windows, and adds their gradients up', () => {
      const before = memory(device).tensors;
      fc.assert(
        fc.property(cases, (c) => {
          const { shape, step, dtype } = c;
          const axis = c.axis % shape.length;
          const n = shape[axis] as number;
          const length = Math.min(c.size, n);
          scope(() => {
            const last = shape.length - 1;
            const stored = [...shape];
            if (c.turned) [stored[0], stored[last]] = [shape[last] as number, shape[0] as number];
            const whole = parameter(tensor(numbers(size(shape), c.seed), stored, { dtype, device }));
            const view = (t: Tensor) => (c.turned ? t.transpose(0, last) : t);
            const x = view(whole as Tensor);
            const windows = unfold(x, c.fromEnd ? axis - shape.length : axis, length, step);
            const count = Math.floor((n - length) / step) + 1;
            expect(windows.shape).toEqual([...shape.map((m, at) => (at === axis ? count : m)), length]);
            const dOut = tensor(numbers(windows.size, c.seed + 1), windows.shape, { dtype, device }) as Tensor;
            windows.backward(dOut);
            const [data, gradient, got] = [x.toFloat32Sync(), dOut.toFloat32Sync(), windows.toFloat32Sync()];
            const wanted = new Float64Array(data.length);
            const scales = new Float64Array(data.length);
            forWindows(shape, axis, length, step, (to, from) => {
              if (got[to] !== data[from]) throw new Error(`element ${to} is ${got[to]}, not ${data[from]}`);
              (wanted[from] as number) += gradient[to] as number;
              (scales[from] as number) += Math.abs(gradient[to] as number);
            });
            expectNear('the gradient', view(whole.grad as Tensor), wanted, scales, 2);
            whole.dispose();
          });
        }),
        { numRuns: runs(300) },
      );
      expect(memory(device).tensors).toBe(before);
    });

    it('can be unfolded again, and its gradient is that of all windows', () => {
      const data = numbers(35, 1);
      const x = parameter(tensor(data, [5, 7], { device }));
      const patches = unfold(unfold(x, 0, 3, 1), 1, 3, 2);
      expect(patches.shape).toEqual([3, 3, 3, 3]);
      // [row, column, place in rows, place in columns]
      const got = patches.dataSync();
      for (let i = 0; i < 3; i++)
        for (let j = 0; j < 3; j++)
          for (let k = 0; k < 3; k++)
            for (let l = 0; l < 3; l++) expect(got[((i * 3 + j) * 3 + k) * 3 + l]).toBe(data[(i + k) * 7 + 2 * j + l]);
      add(patches, 0).backward(add(zeros([3, 3, 3, 3], { device }), 1));
      const rows = [1, 2, 3, 2, 1];
      const columns = [1, 1, 2, 1, 2, 1, 1];
      expect([...(x.grad?.dataSync() ?? [])]).toEqual(rows.flatMap((r) => columns.map((c) => r * c)));
    });

    it('is multiplied as it lies: a convolution', () => {
      for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
        const x = tensor(numbers(2 * 3 * 40, 1), [2, 3, 40], { dtype, device }) as Tensor;
        const weights = tensor(numbers(5 * 3 * 7, 2), [5, 3, 7], { dtype, device }) as Tensor;
        const scales = new Float32Array(2 * 5 * 12).fill(2 * 2 * 21);
        const exact = conv1d(x, weights, { stride: 3 });
        expectNear(
          'the product',
          einsum('ncik,ock->noi', unfold(x, 2, 7, 3), weights),
          exact.toFloat32Sync(),
          scales,
          4,
        );
      }
    });

    it('cannot be written to where windows overlap', () => {
      const x = zeros([9], { device });
      const windows = unfold(x, 0, 3, 2);
      expect(codeOf(() => (zeros([4, 3], { device }) as Tensor).copyInto(windows))).toBe('ERR_SHAPE');
      expect(codeOf(() => windows.write([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))).toBe('ERR_SHAPE');
      const [a, b] = [zeros([4, 2], { device }), zeros([2, 3], { device })];
      expect(codeOf(() => matmul(a, b, { accumulateInto: windows }))).toBe('ERR_SHAPE');
      const ids = tensor([0, 1], [2], { dtype: 'int32', device });
      expect(codeOf(() => noGrad(() => scatterAdd(windows, ids, zeros([2, 3], { device }))))).toBe('ERR_SHAPE');
      expect(codeOf(() => new SGD([parameter(windows as Tensor)], { learningRate: 1 }))).toBe('ERR_SHAPE');
      expect(codeOf(() => (zeros([3, 3], { device }) as Tensor).copyInto(unfold(x, 0, 3, 3)))).toBe('none');
      expect(codeOf(() => (zeros([2, 3], { device }) as Tensor).copyInto(unfold(x, 0, 3, 4)))).toBe('none');
    });

    it('refuses what is no window', () => {
      const x = zeros([2, 5], { device });
      const code = (axis: unknown, length: unknown, step: unknown) =>
        codeOf(() => unfold(x, axis as number, length as number, step as number));
      expect(code(1, 6, 1)).toBe('ERR_SHAPE');
      expect(code(2, 1, 1)).toBe('ERR_SHAPE');
      expect(code(1, 0, 1)).toBe('ERR_OPTION');
      expect(code(1, 2, 0)).toBe('ERR_OPTION');
      expect(code(1, 2.5, 1)).toBe('ERR_OPTION');
      expect(code(1, 5, Number.MAX_SAFE_INTEGER)).toBe('none');
      x.dispose();
      expect(code(1, 2, 1)).toBe('ERR_DISPOSED');
    });
  });
});

describe('places of a view', () => {
  it('are found to repeat as a look at all of them says', () => {
    const axes = fc.array(
      fc.record({ size: fc.integer({ min: 0, max: 4 }), stride: fc.integer({ min: 0, max: 12 }) }),
      {
        maxLength: 4,
      },
    );
    fc.assert(
      fc.property(axes, (all) => {
        const [shape, strides] = [all.map(({ size }) => size), all.map(({ stride }) => stride)];
        let places = [0];
        for (const { size, stride } of all)
          places = places.flatMap((at) => Array.from({ length: size }, (_, i) => at + i * stride));
        expect(repeats(shape, strides)).toBe(new Set(places).size < places.length);
      }),
      { numRuns: 2000 },
    );
  });
});
