/** Pooling and its gradients against float64. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  avgPool1d,
  avgPool2d,
  maxPool1d,
  maxPool2d,
  memory,
  parameter,
  scope,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js';
import { avgPool, maxPool, type OracleWindow } from '../../verify/oracle/conv.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { expectNear, numbers, size } from '../support/samples.js';

const axis = fc
  .record({
    length: fc.integer({ min: 1, max: 9 }),
    size: fc.integer({ min: 1, max: 5 }),
    step: fc.integer({ min: 1, max: 6 }),
    dilation: fc.integer({ min: 1, max: 2 }),
    padding: fc.integer({ min: 0, max: 2 }),
  })
  .map((a) => ({ ...a, padding: Math.min(a.padding, Math.floor(a.size / 2)) }));

type Axis = typeof axis extends fc.Arbitrary<infer T> ? T : never;

const cases = fc.record({
  batch: fc.integer({ min: 0, max: 3 }),
  channels: fc.integer({ min: 0, max: 3 }),
  rows: axis,
  columns: axis,
  flat: fc.boolean(),
  countPadding: fc.boolean(),
  turned: fc.boolean(),
  special: fc.boolean(),
  dtype: fc.constantFrom('float32', 'float16', 'bfloat16'),
  seed: fc.nat({ max: 1000 }),
});

function windowOf({ length, size, dilation, step, padding: before }: Axis): OracleWindow | undefined {
  const room = 2 * before + length - (size - 1) * dilation - 1;
  return room < 0 ? undefined : { length, size, dilation, step, before, count: Math.floor(room / step) + 1 };
}

const noAxis: Axis = { length: 1, size: 1, step: 1, dilation: 1, padding: 0 };
const absolute = (values: ArrayLike<number>) => Float64Array.from(values, Math.abs);

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('pooling'), () => {
    it.each(['max', 'avg'] as const)('%s is what float64 says, with its gradient', (kind) => {
      const before = memory(device).tensors;
      fc.assert(
        fc.property(cases, (c) => {
          const isMax = kind === 'max';
          const own = (a: Axis) => windowOf(isMax ? a : { ...a, dilation: 1 });
          const rows = own(c.flat ? noAxis : c.rows);
          const columns = own(c.columns);
          fc.pre(rows !== undefined && columns !== undefined);
          const both = (name: 'step' | 'before' | 'dilation' | 'size') =>
            c.flat ? columns[name] : ([rows[name], columns[name]] as const);
          const shape = [c.batch, c.channels, ...(c.flat ? [] : [rows.length]), columns.length];
          const options = {
            stride: both('step'),
            padding: both('before'),
            ...(isMax ? { dilation: both('dilation') } : { countPadding: c.countPadding }),
          };
          scope(() => {
            const values = numbers(size(shape), c.seed).map((x, i) =>
              c.special && isMax && i % 7 === 0 ? Number.NaN : x,
            );
            const stored = c.turned ? [shape[1] as number, shape[0] as number, ...shape.slice(2)] : shape;
            const whole = parameter(tensor(values, stored, { dtype: c.dtype, device }));
            const view = (t: Tensor) => (c.turned ? t.transpose(0, 1) : t);
            const x = view(whole as Tensor);
            const pool = isMax ? (c.flat ? maxPool1d : maxPool2d) : c.flat ? avgPool1d : avgPool2d;
            const out = (pool as (x: Tensor, size: unknown, options: object) => Tensor)(x, both('size'), options);
            expect(out.shape).toEqual([c.batch, c.channels, ...(c.flat ? [] : [rows.count]), columns.count]);
            expect(out.dtype).toBe(c.dtype);
            const dOut = tensor(numbers(out.size, c.seed + 3), out.shape, { dtype: c.dtype, device }) as Tensor;
            out.backward(dOut);
            const problem = {
              x: x.toFloat32Sync(),
              gradient: dOut.toFloat32Sync(),
              axes: [rows, columns] as const,
              images: c.batch * c.channels,
            };
            const run = (p: typeof problem) => (isMax ? maxPool(p) : avgPool(p, c.countPadding));
            const exact = run(problem);
            const positive = { ...problem, gradient: absolute(problem.gradient) } as unknown as typeof problem;
            expectNear('out', out, exact.out, avgPool({ ...problem, x: absolute(problem.x) }, true).out, isMax ? 0 : 4);
            expectNear('the gradient', view(whole.grad as Tensor), exact.dX, run(positive).dX, 4);
            // Without a gradient no places are kept.
            const alone = (pool as (x: Tensor, size: unknown, options: object) => Tensor)(
              x.detach(),
              both('size'),
              options,
            );
            expect(alone.toFloat32Sync()).toEqual(out.toFloat32Sync());
            whole.dispose();
          });
        }),
        { numRuns: runs(200) },
      );
      expect(memory(device).tensors).toBe(before);
    });

    it('goes through large windows in several passes', () => {
      const data = numbers(2 * 7 * 11, 3);
      const x = parameter(tensor(data, [1, 2, 7, 11], { dtype: 'bfloat16', device }));
      const out = maxPool2d(x, [7, 11]);
      const parts = [0, 1].map((c) => Math.max(...data.subarray(77 * c, 77 * c + 77)));
      expect([...out.toFloat32Sync()]).toEqual(parts);
      out.backward(tensor([3, 5], [1, 2, 1, 1], { dtype: 'bfloat16', device }));
      const wanted = new Float32Array(154);
      for (const [c, most] of parts.entries())
        wanted[77 * c + data.subarray(77 * c, 77 * c + 77).indexOf(most)] = 3 + 2 * c;
      expect(x.grad?.toFloat32Sync()).toEqual(wanted);
    });

    it('refuses what does not fit', () => {
      const x = zeros([2, 4, 9], { device });
      const max = (size: unknown, options: object = {}) => codeOf(() => maxPool1d(x, size as number, options));
      expect(max(3)).toBe('none');
      expect(max(0)).toBe('ERR_OPTION');
      expect(max(undefined)).toBe('ERR_OPTION');
      expect(max(10)).toBe('ERR_SHAPE');
      expect(max(3, { padding: 2 })).toBe('ERR_OPTION');
      expect(max(3, { padding: 'same' })).toBe('ERR_OPTION');
      expect(max(3, { stride: 0 })).toBe('ERR_OPTION');
      expect(max(3, { dilation: 5 })).toBe('ERR_SHAPE');
      expect(max(3, { countPadding: true })).toBe('ERR_OPTION');
      expect(codeOf(() => avgPool1d(x, 3, { countPadding: 1 as unknown as boolean }))).toBe('ERR_OPTION');
      expect(codeOf(() => maxPool2d(x, 3))).toBe('ERR_SHAPE');
      expect(codeOf(() => avgPool2d(zeros([1, 1, 4, 4], { device }), [2, 2, 2]))).toBe('ERR_OPTION');
    });
  });
});
