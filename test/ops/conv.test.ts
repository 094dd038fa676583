/** Convolutions and their gradients against float64, over all that can be asked of them. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { conv1d, conv2d, memory, parameter, scope, type Tensor, tensor, zeros } from '../../lib/index.js';
import { type OracleWindow, conv as oracle } from '../../verify/oracle/conv.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { expectNear, numbers, size } from '../support/samples.js';

const axis = fc.record({
  length: fc.integer({ min: 1, max: 9 }),
  size: fc.integer({ min: 1, max: 4 }),
  step: fc.integer({ min: 1, max: 3 }),
  dilation: fc.integer({ min: 1, max: 2 }),
  padding: fc.integer({ min: 0, max: 3 }),
});

type Axis = typeof axis extends fc.Arbitrary<infer T> ? T : never;

const cases = fc.record({
  batch: fc.integer({ min: 0, max: 3 }),
  groups: fc.integer({ min: 1, max: 4 }),
  /** Channels of x and of the result, of each group. */
  perGroup: fc.integer({ min: 1, max: 3 }),
  outPerGroup: fc.integer({ min: 1, max: 6 }),
  rows: axis,
  columns: axis,
  flat: fc.boolean(),
  padding: fc.constantFrom('numbers', 'same', 'valid', 'causal'),
  hasBias: fc.boolean(),
  turned: fc.boolean(),
  dtype: fc.constantFrom('float32', 'float32', 'float16', 'bfloat16'),
  seed: fc.nat({ max: 1000 }),
});

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

/** Undefined where no window fits. */
function windowOf({ length, size, dilation, ...axis }: Axis, padding: Case['padding']): OracleWindow | undefined {
  const span = (size - 1) * dilation;
  const before = { numbers: axis.padding, same: Math.floor(span / 2), valid: 0, causal: span }[padding];
  const after = { numbers: axis.padding, same: span - before, valid: 0, causal: 0 }[padding];
  const step = padding === 'same' ? 1 : axis.step;
  const room = before + length + after - span - 1;
  return room < 0 ? undefined : { length, size, dilation, step, before, count: Math.floor(room / step) + 1 };
}

const noAxis: Axis = { length: 1, size: 1, step: 1, dilation: 1, padding: 0 };
const absolute = (values: ArrayLike<number>) => Float64Array.from(values, Math.abs);

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('convolutions'), () => {
    it.each([false, true])('are what float64 says, with their gradients; depthwise: %s', (depthwise) => {
      const before = memory(device).tensors;
      fc.assert(
        fc.property(cases, (c) => {
          const padding = c.padding === 'causal' && !c.flat ? 'same' : c.padding;
          const rows = windowOf(c.flat ? noAxis : c.rows, padding);
          const columns = windowOf(c.columns, padding);
          fc.pre(rows !== undefined && columns !== undefined);
          const channels = c.groups * (depthwise ? 1 : c.perGroup);
          const outChannels = c.groups * c.outPerGroup;
          const spatial = c.flat ? [columns.length] : [rows.length, columns.length];
          const xShape = [c.batch, channels, ...spatial];
          const weightShape = [
            outChannels,
            channels / c.groups,
            ...(c.flat ? [columns.size] : [rows.size, columns.size]),
          ];
          const options = {
            stride: c.flat ? columns.step : [rows.step, columns.step],
            dilation: c.flat ? columns.dilation : [rows.dilation, columns.dilation],
            padding: padding === 'numbers' ? (c.flat ? columns.before : [rows.before, columns.before]) : padding,
            groups: c.groups,
          };
          scope(() => {
            const { dtype } = c;
            const stored = c.turned ? [xShape[1] as number, xShape[0] as number, ...xShape.slice(2)] : xShape;
            const whole = parameter(tensor(numbers(size(xShape), c.seed), stored, { dtype, device }));
            const view = (t: Tensor) => (c.turned ? t.transpose(0, 1) : t);
            const x = view(whole as Tensor);
            const weights = parameter(tensor(numbers(size(weightShape), c.seed + 1), weightShape, { dtype, device }));
            const bias = c.hasBias
              ? parameter(tensor(numbers(outChannels, c.seed + 2), [outChannels], { device }))
              : undefined;
            const all = { ...options, ...(bias && { bias }) };
            const run = c.flat ? conv1d : conv2d;
            const out = (run as (x: Tensor, weights: Tensor, options: object) => Tensor)(x, weights as Tensor, all);
            expect(out.shape).toEqual([
              c.batch,
              outChannels,
              ...(c.flat ? [columns.count] : [rows.count, columns.count]),
            ]);
            expect(out.dtype).toBe(dtype);
            const dOut = tensor(numbers(out.size, c.seed + 3), out.shape, { dtype, device }) as Tensor;
            out.backward(dOut);
            const problem = {
              x: x.toFloat32Sync(),
              weights: weights.toFloat32Sync(),
              ...(bias && { bias: bias.toFloat32Sync() }),
              gradient: dOut.toFloat32Sync(),
              axes: [rows, columns] as const,
              batch: c.batch,
              channels,
              outChannels,
              groups: c.groups,
            };
            const exact = oracle(problem);
            const scales = oracle({
              ...problem,
              x: absolute(problem.x),
              weights: absolute(problem.weights),
              ...(problem.bias && { bias: absolute(problem.bias) }),
              gradient: absolute(problem.gradient),
            });
            expectNear('out', out, exact.out, scales.out, 8);
            expectNear('the gradient of x', view(whole.grad as Tensor), exact.dX, scales.dX, 8);
            expectNear('the gradient of the weights', weights.grad as Tensor, exact.dWeights, scales.dWeights, 8);
            if (bias) expectNear('the gradient of the bias', bias.grad as Tensor, exact.dBias, scales.dBias, 8);
            for (const t of [whole, weights, bias]) t?.dispose();
          });
        }),
        { numRuns: runs(200) },
      );
      expect(memory(device).tensors).toBe(before);
    });

    it('let no element see what comes after it where padding is causal', () => {
      const data = numbers(2 * 3 * 10, 1);
      const weights = tensor(numbers(3 * 4, 2), [3, 1, 4], { device });
      const run = (values: Float32Array) =>
        conv1d(tensor(values, [2, 3, 10], { device }), weights, { padding: 'causal', groups: 3, dilation: 2 });
      const changed = data.map((x, i) => (i % 10 >= 6 ? x + 1 : x));
      const [a, b] = [run(data), run(changed)];
      expect(a.shape).toEqual([2, 3, 10]);
      expect([...a.slice(2, 0, 6).dataSync()]).toEqual([...b.slice(2, 0, 6).dataSync()]);
      expect([...a.dataSync()]).not.toEqual([...b.dataSync()]);
    });

    it('write out windows of a few entries of a large batch at a time', () => {
      if (device !== 'wasm') return;
      // 2^24 elements are the windows of 5.7 entries.
      const [batch, channels, length, k] = [7, 32, 1024, 90];
      const x = tensor(numbers(batch * channels * length, 1), [batch, channels, length], { device });
      const weights = parameter(tensor(numbers(2 * channels * k, 2), [2, channels, k], { device }));
      const out = conv1d(x, weights, { padding: 'causal' });
      const parts = [0, 6].map((n) => conv1d(x.slice(0, n, n + 1), weights, { padding: 'causal' }));
      for (const [i, n] of [0, 6].entries()) expect(out.slice(0, n, n + 1).dataSync()).toEqual(parts[i]?.dataSync());
      out.backward(out.detach());
      const sum = weights.grad?.dataSync() as Float32Array;
      weights.grad = undefined;
      for (let n = 0; n < batch; n++) {
        const one = conv1d(x.slice(0, n, n + 1), weights, { padding: 'causal' });
        one.backward(one.detach());
      }
      const added = (weights.grad as Tensor | undefined)?.dataSync() as Float32Array;
      for (const [at, value] of sum.entries())
        expect(Math.abs(value - (added[at] as number))).toBeLessThan(1e-4 * Math.max(1, Math.abs(value)) + 1);
    });

    it('refuse what does not fit', () => {
      const x = zeros([2, 4, 9], { device });
      const image = zeros([2, 4, 9, 9], { device });
      const weights = zeros([6, 4, 3], { device });
      const kernel = zeros([6, 4, 3, 3], { device });
      const code = (options: object, w: Tensor = weights) => codeOf(() => conv1d(x as Tensor, w, options));
      expect(code({})).toBe('none');
      expect(code({ groups: 3 })).toBe('ERR_OPTION');
      expect(code({ groups: 2 })).toBe('ERR_SHAPE');
      expect(code({ groups: 0 })).toBe('ERR_OPTION');
      expect(code({ stride: 0 })).toBe('ERR_OPTION');
      expect(code({ stride: 1.5 })).toBe('ERR_OPTION');
      expect(code({ stride: [1, 2] })).toBe('ERR_OPTION');
      expect(code({ padding: -1 })).toBe('ERR_OPTION');
      expect(code({ padding: 'full' })).toBe('ERR_OPTION');
      expect(code({ padding: 'same', stride: 2 })).toBe('ERR_OPTION');
      expect(code({ dilation: 5 })).toBe('ERR_SHAPE');
      expect(code({ pading: 1 })).toBe('ERR_OPTION');
      expect(code({ bias: zeros([5], { device }) })).toBe('ERR_SHAPE');
      expect(code({ bias: [1] })).toBe('ERR_OPTION');
      expect(code({}, zeros([6, 4, 0], { device }))).toBe('ERR_SHAPE');
      expect(code({}, kernel)).toBe('ERR_SHAPE');
      expect(code({}, zeros([6, 4, 3], { dtype: 'float16', device }) as unknown as Tensor)).toBe('ERR_DTYPE');
      expect(codeOf(() => conv1d(image, weights))).toBe('ERR_SHAPE');
      expect(codeOf(() => conv2d(image, kernel, { padding: 'causal' as 'same' }))).toBe('ERR_OPTION');
      expect(codeOf(() => conv2d(image, kernel, { padding: [1, 2] }))).toBe('none');
      weights.dispose();
      expect(code({})).toBe('ERR_DISPOSED');
    });
  });
});
