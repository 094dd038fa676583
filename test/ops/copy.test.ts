/** Copies on the device: any strides and dtypes, against plain loops. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { concat, type DeviceName, type Tensor, tensor, zeros } from '../../lib/index.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';

const dtypes = ['float32', 'float16', 'bfloat16'] as const;
interface Described {
  readonly sizes: readonly number[];
  /** Order of the axes in memory. */
  readonly order: readonly number[];
  readonly steps: readonly number[];
}

const arrays = (sizes: readonly number[]): fc.Arbitrary<Described> =>
  fc.record({
    sizes: fc.constant(sizes),
    order: fc.shuffledSubarray([...sizes.keys()], { minLength: sizes.length }),
    steps: fc.array(fc.integer({ min: 1, max: 2 }), { minLength: sizes.length, maxLength: sizes.length }),
  });

/** A view of the described sizes over memory in another order and with gaps. */
function viewOf(whole: Tensor, { sizes, order, steps }: Described): Tensor {
  let view: Tensor = whole;
  const at = [...order];
  for (const axis of sizes.keys()) {
    const found = at.indexOf(axis);
    view = view.transpose(axis, found);
    [at[axis], at[found]] = [at[found] as number, at[axis] as number];
  }
  return sizes.reduce((t, n, axis) => t.slice(axis, 0, n * (steps[axis] as number), steps[axis]), view);
}

const memoryShape = ({ sizes, order, steps }: Described) =>
  order.map((axis) => (sizes[axis] as number) * (steps[axis] as number));

const cases = fc
  .array(fc.integer({ min: 1, max: 4 }), { minLength: 1, maxLength: 8 })
  .chain((sizes) =>
    fc.record({
      from: arrays(sizes),
      to: arrays(sizes),
      fromDtype: fc.constantFrom(...dtypes),
      toDtype: fc.constantFrom(...dtypes),
      accumulate: fc.boolean(),
      seed: fc.integer({ min: 0, max: 1000 }),
    }),
  )
  .filter(({ from }) => from.sizes.reduce((a, b) => a * b, 1) <= 4096);

const filled = (shape: readonly number[], dtype: (typeof dtypes)[number], seed: number, device: DeviceName) => {
  const count = shape.reduce((a, b) => a * b, 1);
  // Eighths below 16: exact in every dtype, and so are sums of two.
  const values = Float32Array.from({ length: count }, (_, i) => (((i * 37 + seed * 11) % 127) - 63) / 8);
  return tensor(values, shape as number[], { dtype, device }) as Tensor;
};

for (const { device, present, title, runs } of testDevices)
  describe.skipIf(!present)(title('copyInto'), () => {
    it('moves every element to its place and nothing else', () => {
      fc.assert(
        fc.property(cases, ({ from, to, fromDtype, toDtype, accumulate, seed }) => {
          const source = filled(memoryShape(from), fromDtype, seed, device);
          const target = filled(memoryShape(to), toDtype, seed + 1, device);
          const [read, written] = [viewOf(source, from), viewOf(target, to)];
          const before = written.toFloat32Sync();
          const memoryBefore = target.toFloat32Sync();
          read.copyInto(written, { accumulate });
          const expected = read.toFloat32Sync().map((x, i) => (accumulate ? x + (before[i] as number) : x));
          expect([...written.toFloat32Sync()]).toEqual([...expected]);
          // Gaps are as they were: writing the old values back gives the old memory.
          const old = tensor(before, from.sizes as number[], { device });
          old.copyInto(written as never);
          expect([...target.toFloat32Sync()]).toEqual([...memoryBefore]);
          for (const t of [source, target, read, written, old]) t.dispose();
        }),
        { numRuns: runs(200), seed: 5 },
      );
    });

    it('keeps the bits of NaN and rounds once', () => {
      const bits = Uint16Array.from([0x7e01, 0xfe00, 0x7c01, 0x0001]);
      const halves = tensor(bits, [4], { dtype: 'float16', device });
      const same = zeros([4], { dtype: 'float16', device });
      halves.copyInto(same);
      if (device !== ('emulator' as string)) expect([...same.dataSync()]).toEqual([...bits]);
      const fine = tensor([1 + 2 ** -9 + 2 ** -11, 65520], [2], { device });
      const rounded = zeros([2], { dtype: 'float16', device });
      fine.copyInto(rounded);
      expect([...rounded.toFloat32Sync()]).toEqual([1 + 2 ** -9, Number.POSITIVE_INFINITY]);
      for (const t of [halves, same, fine, rounded]) t.dispose();
    });
  });

describe('copyInto', () => {
  it('refuses what cannot be right', () => {
    using a = zeros([2, 3]);
    using b = zeros([3, 2]);
    using view = a.slice(0, 0, 1);
    expect(codeOf(() => a.copyInto(b as never))).toBe('ERR_SHAPE');
    expect(codeOf(() => a.copyInto(a))).toBe('ERR_OPTION');
    expect(codeOf(() => view.copyInto(view))).toBe('ERR_OPTION');
    expect(codeOf(() => a.copyInto(null as never))).toBe('ERR_OPTION');
    expect(codeOf(() => a.copyInto(a, { acumulate: true } as never))).toBe('ERR_OPTION');
    using parts = zeros([4, 3]);
    // Different parts of one memory are no overlap.
    parts.slice(0, 0, 2).copyInto(parts.slice(0, 2, 4));
  });

  it('queues in order: later writes do not reach it', async () => {
    using a = tensor([1, 2], [2]);
    using b = zeros([2]);
    a.copyInto(b);
    a.write([7, 7]);
    expect([...(await b.data())]).toEqual([1, 2]);
  });
});

describe('concat and contiguous', () => {
  it('lay tensors behind one another along any axis', () => {
    using a = tensor([1, 2, 3, 4], [2, 2]);
    using b = tensor([5, 6], [2, 1]);
    using c = concat<'float32'>([a, b], 1);
    expect(c.shape).toEqual([2, 3]);
    expect([...c.dataSync()]).toEqual([1, 2, 5, 3, 4, 6]);
    using t = a.transpose(0, 1);
    using d = t.contiguous();
    expect(d.isContiguous).toBe(true);
    expect([...d.dataSync()]).toEqual([1, 3, 2, 4]);
    using empty = zeros([0, 2]);
    using e = concat<'float32'>([empty, a, t], 0);
    expect([...e.dataSync()]).toEqual([1, 2, 3, 4, 1, 3, 2, 4]);
  });

  it('refuse what does not fit', () => {
    using a = zeros([2, 2]);
    using b = zeros([3, 3]);
    using c = zeros([2, 2], { dtype: 'float16' });
    expect(codeOf(() => concat([]))).toBe('ERR_OPTION');
    expect(codeOf(() => concat([a, b]))).toBe('ERR_SHAPE');
    expect(codeOf(() => concat<never>([a, c] as never))).toBe('ERR_DTYPE');
    expect(codeOf(() => concat([a, a], 2))).toBe('ERR_SHAPE');
  });
});
