/** The cross entropy and its gradient against float64: reductions, smoothing, z-loss, ignored rows, extremes, in place. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { cast, crossEntropy, type DeviceName, memory, type Tensor, tensor, zeros } from '../../lib/index.js';
import { crossEntropyBackward, crossEntropyForward } from '../../lib/ops/crossEntropy.js';
import { crossEntropy as oracle } from '../../verify/oracle/crossEntropy.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { rounding } from '../support/samples.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;

function numbers(count: number, seed: number, size = 1): Float32Array {
  let random = seed * 2654435761;
  return Float32Array.from({ length: count }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return size * (random / 2 ** 31 - 1);
  });
}

/** Targets as an operation makes them: nobody has looked at them. */
const unseen = (ids: readonly number[], device: DeviceName) => cast(tensor(ids, [ids.length], { device }), 'int32');

function expectNear(
  name: string,
  got: ArrayLike<number>,
  wanted: ArrayLike<number>,
  absolute: number,
  relative: number,
) {
  expect(got.length).toBe(wanted.length);
  for (let at = 0; at < wanted.length; at++) {
    const [x, exact] = [got[at] as number, wanted[at] as number];
    const isNear = Number.isNaN(exact)
      ? Number.isNaN(x)
      : x === exact || Math.abs(x - exact) <= absolute + relative * Math.abs(exact);
    if (!isNear) throw new Error(`${name}[${at}] is ${x}, not ${exact}`);
  }
}

const cases = fc.record({
  rows: fc.integer({ min: 0, max: 20 }),
  classes: fc.oneof(fc.integer({ min: 1, max: 20 }), fc.constantFrom(100, 257, 1000, 2300)),
  dtype: fc.constantFrom(...dtypes),
  size: fc.constantFrom(1, 10, 60),
  labelSmoothing: fc.constantFrom(0, 0, 0.1, 1),
  zLoss: fc.constantFrom(0, 0, 1e-2),
  reduction: fc.constantFrom('none', 'sum', 'mean' as const),
  ignoreIndex: fc.constantFrom(undefined, 0, -1),
  view: fc.constantFrom('whole', 'rows', 'columns', 'batch' as const),
  into: fc.constantFrom('new', 'logits', 'other' as const),
  seed: fc.integer({ min: 1, max: 1000 }),
});

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

function logitsOf({ rows, classes, dtype, size, view, seed }: Case, device: DeviceName): Tensor {
  const data = numbers(rows * classes * 2, seed, size);
  if (view === 'rows')
    return tensor(data, [rows, 2 * classes], { dtype, device }).slice(1, classes, 2 * classes) as Tensor;
  const one = data.subarray(0, rows * classes);
  if (view === 'columns') return tensor(one, [classes, rows], { dtype, device }).transpose(0, 1) as Tensor;
  return tensor(one, view === 'batch' ? [1, rows, classes] : [rows, classes], { dtype, device }) as Tensor;
}

function check(c: Case, device: DeviceName): void {
  const { rows, classes, reduction, labelSmoothing, zLoss, seed } = c;
  const ignoreIndex = c.ignoreIndex ?? -100;
  const logits = logitsOf(c, device);
  const ids = Array.from(numbers(rows, seed + 1), (x, row) =>
    row % 5 === 3 ? ignoreIndex : Math.floor(((x + 1) / 2) * classes),
  );
  const targets = tensor(ids, logits.shape.slice(0, -1), { dtype: 'int32', device });
  const options = { ...(c.ignoreIndex !== undefined && { ignoreIndex }), labelSmoothing, zLoss, reduction } as object;
  const values = logits.toFloat32Sync().slice();
  const wanted = oracle(values, classes, ids, { ignoreIndex, labelSmoothing, zLoss });
  const result = crossEntropyForward(logits, targets, options);
  const total = wanted.losses.reduce((sum, loss) => sum + loss, 0);
  const loss = { none: [...wanted.losses], sum: [total], mean: [total / wanted.count] }[reduction];
  expect(result.loss.shape).toEqual(reduction === 'none' ? targets.shape : []);
  // Half a unit of what was added up: logits are exact.
  const tolerance = 2 ** -22 * (1 + c.size + zLoss * c.size ** 2) * (reduction === 'sum' ? Math.max(1, rows) : 1);
  expectNear('loss', result.loss.dataSync(), loss, tolerance, 2 ** -21);
  const dLoss = numbers(reduction === 'none' ? rows : 1, seed + 2);
  const d = tensor(dLoss, reduction === 'none' ? targets.shape : [], { device }) as Tensor<'float32'>;
  const inPlace = c.into === 'logits' && c.view !== 'columns';
  const into = inPlace
    ? logits
    : c.into === 'other'
      ? (zeros(logits.shape, { dtype: c.dtype, device }) as Tensor)
      : undefined;
  const { lse, count } = result;
  const dLogits = crossEntropyBackward({ logits, targets, lse, count, dLoss: d, into }, options);
  if (into) expect(dLogits).toBe(into);
  const gradients = wanted.gradients.map((g, at) => {
    const own = dLoss[reduction === 'none' ? Math.floor(at / classes) : 0] as number;
    return ids[Math.floor(at / classes)] === ignoreIndex ? 0 : (g * own) / (reduction === 'mean' ? wanted.count : 1);
  });
  expectNear(
    'dLogits',
    dLogits.toFloat32Sync(),
    gradients,
    2 ** -19 + (c.dtype === 'float16' ? 2 ** -25 : 0),
    1.1 * rounding[c.dtype] + 2 ** -18,
  );
  for (const made of [logits, targets, d, dLogits, lse, result.loss]) made.dispose();
  count?.dispose();
}

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('crossEntropy'), () => {
    it('is what it is in float64, and so is its gradient', () => {
      fc.assert(
        fc.property(cases, (c) => check(c, device)),
        { numRuns: runs(200) },
      );
    });

    it.skipIf(device === ('emulator' as DeviceName))('reads rows of a whole vocabulary', () => {
      const plain = { rows: 6, dtype: 'bfloat16', size: 10, labelSmoothing: 0.1, zLoss: 1e-2, seed: 3 } as const;
      check(
        { ...plain, classes: 50257, reduction: 'mean', ignoreIndex: undefined, view: 'whole', into: 'logits' },
        device,
      );
    });

    it('is right where the target has nearly everything, and where logits are huge', () => {
      const near = tensor([20, 0, 0, 0], [1, 4], { device });
      using confident = crossEntropy(near, tensor([0], [1], { dtype: 'int32', device }));
      const exact = Math.log1p(3 * Math.exp(-20));
      expect(Math.abs((confident.dataSync()[0] as number) - exact)).toBeLessThan(2e-7);

      const targets = tensor([1, 1], [2], { dtype: 'int32', device });
      const huge = tensor([1e6, 1e6 - 1, 1e6 - 2, -3e38, -3e38, -3e38], [2, 3], { device });
      const { loss, lse, count } = crossEntropyForward(huge, targets, { reduction: 'none' });
      const sum = Math.log(1 + Math.exp(-1) + Math.exp(-2));
      expectNear('loss', loss.dataSync(), [1 + sum, Math.log(3)], 1e-6, 0);
      const dLoss = tensor([1, 1], [2], { device });
      const d = crossEntropyBackward({ logits: huge, targets, lse, count, dLoss }, { reduction: 'none' });
      const softmax = [0, -1, -2].map((x) => Math.exp(x - sum));
      expectNear(
        'dLogits',
        d.dataSync(),
        [softmax[0], (softmax[1] as number) - 1, softmax[2], 1 / 3, 1 / 3 - 1, 1 / 3] as number[],
        2e-7,
        0,
      );
    });

    it('hides what is -Infinity, and lets NaN and Infinity through to their rows alone', () => {
      const [inf, nan] = [Number.POSITIVE_INFINITY, Number.NaN];
      const rows = [
        [0, -inf, 0],
        [nan, 0, 0],
        [inf, 0, 0],
        [-inf, -inf, -inf],
        [0, -inf, 0],
        [0, 0, 0],
      ];
      const logits = tensor(rows.flat(), [6, 3], { device });
      const targets = tensor([0, 1, 1, 1, 1, -100], [6], { dtype: 'int32', device });
      const { loss, lse, count } = crossEntropyForward(logits, targets, { reduction: 'none' });
      expectNear('loss', loss.dataSync(), [Math.log(2), nan, nan, nan, inf, 0], 1e-7, 0);
      const dLoss = tensor([1, 1, 1, 1, 1, 1], [6], { device });
      const d = crossEntropyBackward({ logits, targets, lse, count, dLoss }, { reduction: 'none' });
      const wanted = [
        [-0.5, 0, 0.5],
        [nan, nan, nan],
        [nan, nan, nan],
        [nan, nan, nan],
        [0.5, -1, 0.5],
        [0, 0, 0],
      ];
      expectNear('dLogits', d.dataSync(), wanted.flat(), 1e-7, 0);
    });

    it('is NaN for targets that are no class, where an operation has made them', () => {
      const logits = zeros([3, 4], { device });
      const targets = unseen([1, 4, -1], device);
      const { loss, lse, count } = crossEntropyForward(logits, targets, { reduction: 'none' });
      expectNear('loss', loss.dataSync(), [Math.log(4), Number.NaN, Number.NaN], 1e-7, 0);
      const dLoss = tensor([2, 2, 2], [3], { device });
      const d = crossEntropyBackward({ logits, targets, lse, count, dLoss }, { reduction: 'none' });
      const n = Number.NaN;
      expectNear('dLogits', d.dataSync(), [0.5, -1.5, 0.5, 0.5, n, n, n, n, n, n, n, n], 1e-7, 0);
      expect(crossEntropy(logits, targets).dataSync()[0]).toBeNaN();
    });

    it('is NaN as the mean of no rows, 0 as their sum; gradients are zeros', () => {
      const logits = zeros([2, 3], { device });
      const targets = tensor([-100, -100], [2], { dtype: 'int32', device });
      const { loss, lse, count } = crossEntropyForward(logits, targets);
      expect(loss.dataSync()[0]).toBeNaN();
      expect(count?.dataSync()[0]).toBe(0);
      const d = crossEntropyBackward({ logits, targets, lse, count, dLoss: tensor([1], [], { device }) });
      expect([...d.dataSync()]).toEqual([0, 0, 0, 0, 0, 0]);
      expect(crossEntropy(logits, targets, { reduction: 'sum' }).dataSync()[0]).toBe(0);
      const none = zeros([0, 3], { device });
      const no = tensor([], [0], { dtype: 'int32', device });
      expect(crossEntropy(none, no).dataSync()[0]).toBeNaN();
      expect(crossEntropy(none, no, { reduction: 'sum' }).dataSync()[0]).toBe(0);
      expect(crossEntropy(none, no, { reduction: 'none' }).shape).toEqual([0]);
    });

    it('gives the same bits every time, and keeps no memory', () => {
      const [rows, classes] = device === 'wasm' || device === 'cpu' ? [300, 700] : [20, 70];
      const logits = tensor(numbers(rows * classes, 1, 5), [rows, classes], { device, dtype: 'float16' });
      const targets = tensor(
        Int32Array.from({ length: rows }, (_, row) => row % classes),
        [rows],
        { device },
      );
      const first = crossEntropy(logits, targets).dataSync()[0];
      const before = memory(device).bytesInUse;
      for (let n = 0; n < 4; n++) {
        using again = crossEntropy(logits, targets);
        expect(again.dataSync()[0]).toBe(first);
      }
      expect(memory(device).bytesInUse).toBe(before);
    });

    it('refuses what does not fit, naming it', () => {
      const logits = zeros([4, 10], { device });
      const targets = tensor([1, 2, -100, 9], [4], { dtype: 'int32', device });
      expect(crossEntropy(logits, targets).shape).toEqual([]);
      expect(() => crossEntropy(logits, targets, { ignoreIndex: 3 })).toThrow(
        'targets[2] is -100; it must be a class, below 10, or ignoreIndex, 3',
      );
      expect(codeOf(() => crossEntropy(zeros([4, 9], { device }), targets))).toBe('ERR_OPTION');
      expect(codeOf(() => crossEntropy(zeros([5, 10], { device }), targets))).toBe('ERR_SHAPE');
      expect(codeOf(() => crossEntropy(zeros([], { device }), targets))).toBe('ERR_SHAPE');
      expect(codeOf(() => crossEntropy(logits, zeros([4], { device }) as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => crossEntropy(logits, targets, { labelSmoothing: 1.5 }))).toBe('ERR_OPTION');
      expect(codeOf(() => crossEntropy(logits, targets, { zLoss: -1 }))).toBe('ERR_OPTION');
      expect(codeOf(() => crossEntropy(logits, targets, { reduction: 'median' as never }))).toBe('ERR_OPTION');
      expect(codeOf(() => crossEntropy(logits, targets, { smoothing: 0.1 } as object))).toBe('ERR_OPTION');
      const { lse, count } = crossEntropyForward(logits, targets);
      const dLoss = tensor([1], [], { device });
      const inputs = { logits, targets, lse, count, dLoss };
      const backward = (changed: object) => () => crossEntropyBackward({ ...inputs, ...changed });
      expect(codeOf(backward({ dLoss: zeros([4], { device }) }))).toBe('ERR_SHAPE');
      expect(codeOf(backward({ count: undefined }))).toBe('ERR_OPTION');
      expect(codeOf(backward({ into: zeros([4, 9], { device }) }))).toBe('ERR_SHAPE');
      expect(codeOf(backward({ into: zeros([4, 10], { device, dtype: 'float16' }) }))).toBe('ERR_DTYPE');
      const wide = zeros([5, 10], { device });
      expect(codeOf(backward({ logits: wide.slice(0, 0, 4), into: wide.slice(0, 1, 5) }))).toBe('ERR_OPTION');
    });
  });
});
