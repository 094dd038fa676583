import { createContext, runInContext } from 'node:vm';
import fc from 'fast-check';
import { afterAll, beforeAll, describe, expect, it } from 'vitest';
import { fromDevicePointer, memory, plan, type Tensor, tensor, zeros } from '../../lib/index.js';
import { codeOf } from '../support/codeOf.js';

const before = memory();
const guard = tensor(
  Float32Array.from({ length: 64 }, (_, i) => i + 1),
  [4, 16],
);
const intact = () => guard.dataSync().every((x, i) => x === i + 1);

beforeAll(() => {
  // Something to find in memory that nobody wrote.
  for (let i = 0; i < 4; i++) tensor(new Float32Array(4096).fill(7e7), [4096]).dispose();
});
afterAll(() => {
  expect(intact()).toBe(true);
  guard.dispose();
  expect(memory().tensors).toBe(before.tensors);
});

const strange = fc.constantFrom<unknown>(
  -1,
  -2,
  -4,
  0.5,
  1.5,
  Number.NaN,
  Number.POSITIVE_INFINITY,
  Number.NEGATIVE_INFINITY,
  2 ** 53,
  1e300,
  '2',
  '',
  null,
  undefined,
  true,
  2n,
  [],
  [2],
  {},
  { valueOf: () => 2 },
  Symbol('2'),
);

/** An array with at least one entry that is no dim. */
const strangeAxes = fc
  .tuple(fc.array(fc.oneof(fc.integer({ min: 0, max: 5 }), strange), { maxLength: 4 }), strange, fc.nat())
  .map(([axes, bad, at]) => axes.toSpliced(at % (axes.length + 1), 0, bad));

/** An array whose entries change between one read and the next. */
const shifting = (first: unknown[], then: unknown[]): number[] => {
  const reads = new Map<PropertyKey, number>();
  return new Proxy(first, {
    get(target, name, receiver) {
      const count = (reads.get(name) ?? 0) + 1;
      reads.set(name, count);
      return Reflect.get(count > 1 ? then : target, name, receiver);
    },
  }) as number[];
};

const notShapes = fc.oneof(
  strangeAxes,
  fc.constantFrom<unknown>(undefined, null, 4, '4', {}, new Int32Array([4]), new Set([4]), { length: 1, 0: 4 }),
  fc.constantFrom<unknown>(new Array(2), Object.assign([], { length: 3 })),
  fc.constantFrom<unknown>(
    new Array(65).fill(1),
    [2 ** 26, 2 ** 26],
    [0, 2 ** 40, 2 ** 40],
    new Array(20).fill(2 ** 52),
  ),
);

describe('what is not a shape', () => {
  it('makes no tensor and no plan', () => {
    fc.assert(
      fc.property(notShapes, (shape) => {
        const bad = shape as number[];
        expect(codeOf(() => zeros(bad))).toBe('ERR_SHAPE');
        expect(codeOf(() => tensor([1, 2, 3, 4], bad))).toBe('ERR_SHAPE');
        expect(codeOf(() => fromDevicePointer(4096n, bad))).toBe('ERR_SHAPE');
        expect(codeOf(() => plan({ q: bad }))).toBe('ERR_SHAPE');
        expect(codeOf(() => plan({ q: [1, 1, 1, 4], k: (bad as never) ?? null }))).toBe('ERR_SHAPE');
      }),
      { numRuns: 300 },
    );
    expect(intact()).toBe(true);
  });

  it('is no shape to view a tensor in', () => {
    fc.assert(
      fc.property(notShapes, (shape) => {
        const bad = shape as number[];
        const inferred =
          Array.isArray(bad) &&
          bad.filter((n) => n === -1).length === 1 &&
          Array.from(bad).every((n) => Number.isInteger(n) && n >= -1);
        const view = () => guard.reshape(bad).dispose();
        if (!inferred) expect(codeOf(view)).toBe('ERR_SHAPE');
        else expect(['none', 'ERR_SHAPE']).toContain(codeOf(view));
      }),
      { numRuns: 300 },
    );
  });

  it.each([
    [[-4, -16]],
    [[-1, -1]],
    [[0.5, 128]],
    [['64']],
    [[64, '1']],
    [[0, -1]],
    [[3, -1]],
    [new Array(2)],
    [[63]],
    [[8, 8, 2]],
  ])('reshape refuses %j', (shape) => {
    expect(codeOf(() => guard.reshape(shape as number[]))).toBe('ERR_SHAPE');
    const gone = zeros([64]);
    gone.dispose();
    expect(codeOf(() => gone.reshape(shape as number[]))).toBe('ERR_DISPOSED');
  });

  it('is refused at its first hole, however long it is', () => {
    expect(codeOf(() => zeros(new Array(2 ** 32 - 1)))).toBe('ERR_SHAPE');
    expect(codeOf(() => tensor(new Array(2 ** 32 - 1), [1]))).toBe('ERR_SHAPE');
  });

  it('is read once: an array that changes afterwards changes nothing', () => {
    using a = zeros(shifting([2, 2], [1000, 1000]));
    expect(a.shape).toEqual([2, 2]);
    using b = guard.reshape(shifting([8, 8], [1000, 1000]));
    expect(b.dataSync()).toEqual(guard.dataSync());
    const shape = [2, 2];
    using c = zeros(shape);
    shape[0] = 1000;
    expect(c.shape).toEqual([2, 2]);
    expect(Object.isFrozen(c.shape) && Object.isFrozen(c.strides) && Object.isFrozen(b.shape)).toBe(true);
    using made = plan({ q: shifting([1, 2, 1, 4], [1, 2000, 1, 4]), k: [1, 2, 1, 4], v: [1, 2, 1, 4] });
    using q = zeros([1, 2, 1, 4]);
    expect(made.run(q, q, q).out.shape).toEqual([1, 2, 1, 4]);
  });

  it('may come from another realm', () => {
    using t = zeros(runInContext('[2, 3]', createContext({})) as number[]);
    expect([...t.shape]).toEqual([2, 3]);
  });

  it('is asked for memory that no device has', () => {
    expect(codeOf(() => zeros([2 ** 50]))).toBe('ERR_OUT_OF_MEMORY');
    using empty = zeros([2 ** 25, 0, 2 ** 25]);
    expect(empty.dataSync()).toHaveLength(0);
  });
});

describe('axes, indices and steps that are none', () => {
  const inside = (n: unknown, most: number) => Number.isInteger(n) && (n as number) >= 0 && (n as number) <= most;
  const anything = fc.oneof(strange, fc.integer({ min: -2, max: 20 }));
  it('are refused, and all others read what they name', () => {
    fc.assert(
      fc.property(anything, anything, anything, anything, (axis, start, end, step) => {
        // Axes below 0 count from the end.
        const isAxisOf2 = (n: unknown) => inside(n, 1) || n === -1 || n === -2;
        const isAxis = isAxisOf2(axis);
        const length = guard.shape[axis === -1 ? 1 : axis === -2 ? 0 : (axis as 0)];
        const fits = isAxis && inside(start, length) && inside(end, length) && (start as number) <= (end as number);
        const steps = Number.isSafeInteger(step) && (step as number) >= 1;
        const valid = fits && (steps || step === undefined);
        const slice = () => guard.slice(axis as number, start as number, end as number, step as number).dispose();
        expect(codeOf(slice)).toBe(valid ? 'none' : 'ERR_SHAPE');
        const select = () => guard.select(axis as number, start as number).dispose();
        expect(codeOf(select)).toBe(isAxis && inside(start, length - 1) ? 'none' : 'ERR_SHAPE');
        const transpose = () => guard.transpose(axis as number, start as number).dispose();
        expect(codeOf(transpose)).toBe(isAxis && isAxisOf2(start) ? 'none' : 'ERR_SHAPE');
      }),
      { numRuns: 500 },
    );
  });
});

/** An array in plain JavaScript: its shape, and its elements by index. */
interface Model {
  readonly shape: readonly number[];
  readonly at: (index: readonly number[]) => number;
}

/** All elements in row-major order. */
function elements({ shape, at }: Model, index: readonly number[] = []): number[] {
  if (index.length === shape.length) return [at(index)];
  return Array.from({ length: shape[index.length] }, (_, i) => elements({ shape, at }, [...index, i])).flat();
}

const fromList = (shape: readonly number[], list: readonly number[]): Model => ({
  shape,
  at: (index) => list[index.reduce((position, i, axis) => position * shape[axis] + i, 0)],
});

/** One random view of a tensor and of its model; `r` are random numbers from 0 to below 1. */
function viewOf(t: Tensor, model: Model, kind: string, r: readonly number[]): [Tensor, Model] {
  const { shape, at } = model;
  const rank = shape.length;
  const pick = (of: number, from: number) => Math.floor(r[from] * of);
  if (kind === 'reshape' && t.isContiguous) {
    const list = elements(model);
    const divisors = Array.from({ length: list.length }, (_, i) => i + 1).filter((n) => list.length % n === 0);
    const rows = divisors[pick(divisors.length, 0)] ?? 1;
    if (list.length === 0) return [t.reshape([3, 0]), fromList([3, 0], [])];
    return [t.reshape([rows, -1]), fromList([rows, list.length / rows], list)];
  }
  if (rank === 0) return [t.reshape([1]), fromList([1], elements(model))];
  const axis = pick(rank, 0);
  if (kind === 'transpose') {
    const other = pick(rank, 1);
    const swap = (list: readonly number[]) => list.with(axis, list[other]).with(other, list[axis]);
    return [t.transpose(axis, other), { shape: swap(shape), at: (index) => at(swap(index)) }];
  }
  if (kind === 'select' && shape[axis] > 0) {
    const i = pick(shape[axis], 1);
    return [t.select(axis, i), { shape: shape.toSpliced(axis, 1), at: (index) => at(index.toSpliced(axis, 0, i)) }];
  }
  const start = pick(shape[axis] + 1, 1);
  const end = start + pick(shape[axis] - start + 1, 2);
  const step = 1 + pick(4, 3);
  const count = Math.ceil((end - start) / step);
  return [
    t.slice(axis, start, end, step),
    { shape: shape.with(axis, count), at: (index) => at(index.with(axis, start + index[axis] * step)) },
  ];
}

describe('views of views', () => {
  const unit = fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true });
  const step = fc.record({
    kind: fc.constantFrom('reshape', 'transpose', 'select', 'slice'),
    r: fc.array(unit, { minLength: 4, maxLength: 4 }),
  });
  it('read the elements that their index names', async () => {
    await fc.assert(
      fc.asyncProperty(
        fc.array(fc.integer({ min: 0, max: 5 }), { maxLength: 4 }),
        fc.array(step, { maxLength: 6 }),
        fc.constantFrom('float32' as const, 'bfloat16' as const),
        async (shape, steps, dtype) => {
          const count = shape.reduce((product, n) => product * n, 1);
          const list = Array.from({ length: count }, (_, i) => i % 256);
          let t: Tensor = tensor(list, shape, { dtype });
          let model = fromList(shape, list);
          for (const { kind, r } of steps) {
            const parent = t;
            [t, model] = viewOf(t, model, kind, r);
            parent.dispose();
          }
          expect(t.shape).toEqual(model.shape);
          expect([...t.toFloat32Sync()]).toEqual(elements(model));
          expect([...(await t.toFloat32())]).toEqual(elements(model));
          t.dispose();
        },
      ),
      { numRuns: 300 },
    );
  });
});
