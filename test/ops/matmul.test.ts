/** Products of matrices against float64: shapes, strides, batches that broadcast, dtypes, what is added. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type DType, matmul, memory, status, type Tensor, tensor, zeros } from '../../lib/index.js';
import { type OracleArray, matmul as oracle } from '../../verify/oracle/matmul.js';
import { codeOf } from '../support/codeOf.js';

const hasCpu = status('cpu').device === 'cpu';
const devices = [
  { device: 'wasm' as const, runs: 120 },
  { device: 'cpu' as const, runs: hasCpu ? 240 : 0 },
];
const dtypes = ['float32', 'float16', 'bfloat16'] as const;
/** Half a unit in the last place, relative. */
const rounding: Record<DType, number> = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };

/** A tensor of `shape` whose last two axes lie in memory in either order, with gaps of `step`, and its elements. */
function make(
  shape: readonly number[],
  { dtype = 'float32' as DType, transposed = false, step = 1, seed = 1, device = 'wasm' as 'wasm' | 'cpu' } = {},
): { t: Tensor; array: OracleArray & { readonly data: Float32Array }; whole: Tensor } {
  const rank = shape.length;
  const stored = [...shape];
  if (transposed) [stored[rank - 2], stored[rank - 1]] = [shape[rank - 1] as number, shape[rank - 2] as number];
  stored[rank - 1] = (stored[rank - 1] as number) * step;
  let random = seed * 2654435761;
  const values = new Float32Array(stored.reduce((x, n) => x * n, 1));
  for (let at = 0; at < values.length; at++) {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    values[at] = random / 2 ** 31 - 1;
  }
  const whole = tensor(values, stored as number[], { dtype, device }) as Tensor;
  let t: Tensor = whole;
  if (step > 1) t = t.slice(rank - 1, 0, stored[rank - 1] as number, step);
  if (transposed) t = t.transpose(rank - 2, rank - 1);
  return { t, whole, array: { shape, data: t.toFloat32Sync() } };
}

const sizes = fc.oneof(fc.integer({ min: 0, max: 20 }), fc.integer({ min: 1, max: 150 }));
const factor = fc.record({
  transposed: fc.boolean(),
  step: fc.constantFrom(1, 1, 1, 2),
  seed: fc.integer({ min: 1, max: 1000 }),
});

const cases = fc.record({
  rows: sizes,
  columns: sizes,
  inner: fc.oneof(sizes, fc.constantFrom(256, 257, 600)),
  batch: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 3 }),
  /** Which axes of the batch a factor has to broadcast along. */
  aOnce: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
  bOnce: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
  a: factor,
  b: factor,
  dtype: fc.constantFrom(...dtypes),
  alpha: fc.constantFrom(1, 1, -0.5),
  bias: fc.constantFrom('none', 'columns', 'rows', 'whole' as const),
  into: fc.option(fc.record({ dtype: fc.constantFrom(...dtypes), transposed: fc.boolean() })),
});

type Case = typeof cases extends fc.Arbitrary<infer T> ? T : never;

function check(device: 'wasm' | 'cpu', c: Case): void {
  const { rows, columns, inner, dtype, alpha } = c;
  const batchOf = (once: readonly boolean[]) => c.batch.map((n, axis) => (once[axis] ? 1 : n));
  const a = make([...batchOf(c.aOnce), rows, inner], { ...c.a, dtype, device });
  const b = make([...batchOf(c.bOnce), inner, columns], { ...c.b, dtype, device });
  const batch = c.batch.map((n, axis) => (c.aOnce[axis] && c.bOnce[axis] ? 1 : n));
  const shape = [...batch, rows, columns];
  const biasShape = { none: [], columns: [columns], rows: [rows, 1], whole: shape }[c.bias];
  const biasAt = (at: number) => {
    if (!bias) return 0;
    const place = { none: 0, columns: at % columns, rows: Math.floor(at / columns) % rows, whole: at }[c.bias];
    return bias.array.data[place] as number;
  };
  const bias = c.bias === 'none' ? undefined : make(biasShape, { device, seed: 7 });
  const into = c.into ? make(shape, { ...c.into, device, seed: 9 }) : undefined;
  const before = into?.array.data;
  const out = matmul(a.t, b.t, {
    alpha,
    ...(bias && { bias: bias.t }),
    ...(into && { accumulateInto: into.t }),
  } as object);
  expect(out.shape).toEqual(shape);
  expect(out.dtype).toBe(c.into?.dtype ?? dtype);
  const expected = oracle(a.array, b.array, shape, alpha);
  const bound = oracle(
    { ...a.array, data: a.array.data.map(Math.abs) },
    { ...b.array, data: b.array.data.map(Math.abs) },
    shape,
  );
  const got = out.toFloat32Sync();
  const unit = rounding[out.dtype];
  for (const [at, wanted] of expected.entries()) {
    const whole = wanted + biasAt(at) + (before ? (before[at] as number) : 0);
    // Products of values that are exact in their dtype: only sums are rounded, 256 of them in a row at most.
    const tolerance = 2 ** -24 * (300 * (bound[at] as number) * 0.1 + 8) + unit * (Math.abs(whole) + 2 ** -10);
    if (!(Math.abs((got[at] as number) - whole) <= tolerance))
      throw new Error(`element ${at} of ${shape} is ${got[at]}, not ${whole} within ${tolerance}`);
  }
  for (const made of [a, b, bias, into]) {
    made?.t.dispose();
    made?.whole.dispose();
  }
  out.dispose();
}

describe.each(devices)('matmul on $device', ({ device, runs }) => {
  const test = it.skipIf(runs === 0);

  test('is the product in float64 up to rounding, for all shapes, strides, dtypes and additions', () => {
    fc.assert(
      fc.property(cases, (c) => check(device, c)),
      { numRuns: runs },
    );
  });

  test('gives the same as for matrices of any size where factors are packed beforehand', () => {
    const plain = { transposed: false, step: 1 as const, seed: 3 };
    const other = {
      aOnce: [],
      bOnce: [],
      alpha: 1 as const,
      bias: 'none' as const,
      into: null,
      dtype: 'float32' as const,
    };
    for (const [rows, columns, inner] of [
      [300, 300, 300],
      [130, 260, 17],
      [1, 700, 300],
      [700, 1, 300],
      [65, 129, 513],
    ] as const)
      for (const transposed of [false, true])
        check(device, {
          ...other,
          batch: [2],
          rows,
          columns,
          inner,
          a: { ...plain, transposed },
          b: { ...plain, transposed },
        });
  });

  test('cuts what needs much scratch memory into several launches: by its batch, or by rows and columns', () => {
    const plain = { transposed: false, step: 1 as const, seed: 3 };
    const other = { aOnce: [], bOnce: [], alpha: 1 as const, bias: 'none' as const, into: null };
    for (const [batch, inner] of [
      [2, 33000],
      [1, 65000],
    ] as const)
      check(device, {
        ...other,
        dtype: 'float32',
        batch: [batch],
        rows: 66,
        columns: 130,
        inner,
        a: plain,
        b: plain,
      });
  });

  test('takes batches of more axes than a launch has, and those that cannot be joined', () => {
    const shape = [2, 1, 2, 3, 2, 2, 4, 5];
    const a = make(shape, { device, seed: 3 });
    const turned = a.t.transpose(0, 4).transpose(2, 3);
    const b = make([3, 2, 1, 1, 5, 3], { device, seed: 4 });
    const out = matmul(turned, b.t);
    const expected = oracle({ shape: turned.shape, data: turned.toFloat32Sync() }, b.array, out.shape);
    expect(out.shape).toEqual([2, 1, 3, 2, 2, 2, 4, 3]);
    const got = out.toFloat32Sync();
    for (const [at, x] of expected.entries()) expect(got[at]).toBeCloseTo(x, 5);
    for (const t of [a.t, turned, b.t, out]) t.dispose();
  });

  test('says the same bits every time, and keeps no memory', () => {
    const a = make([200, 300], { device });
    const b = make([300, 200], { device });
    matmul(a.t, b.t).dispose(); // what is set up once
    const before = memory(device).bytesInUse;
    const results = Array.from({ length: 8 }, () => matmul(a.t, b.t));
    const [first, ...rest] = results.map((t) => t.toFloat32Sync());
    for (const other of rest) expect(other).toEqual(first);
    for (const t of results) t.dispose();
    expect(memory(device).bytesInUse).toBe(before);
    a.t.dispose();
    b.t.dispose();
  });

  test('lets NaN and Infinity through to the elements that they belong to, and no others', () => {
    const values = new Float32Array(70 * 40).fill(1);
    values[3 * 40 + 5] = Number.NaN;
    values[69 * 40] = Number.POSITIVE_INFINITY;
    const a = tensor(values, [70, 40], { device });
    const b = tensor(new Float32Array(40 * 90).fill(0.5), [40, 90], { device });
    using product = matmul(a, b);
    const got = product.toFloat32Sync();
    for (let i = 0; i < 70; i++)
      for (let j = 0; j < 90; j++)
        expect(got[i * 90 + j]).toBe(i === 3 ? Number.NaN : i === 69 ? Number.POSITIVE_INFINITY : 20);
    a.dispose();
    b.dispose();
  });

  test('refuses what does not fit, before it computes anything', () => {
    const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
    const [a, b, half] = [of(4, 5), of(5, 6), zeros([5, 6], { device, dtype: 'float16' }) as Tensor];
    const code = (f: () => unknown) => codeOf(f);
    expect(() => matmul(a, a)).toThrow(
      'a has shape [4, 5] and b [4, 5]; the last axis of a, 5, must be the last but one of b, 4',
    );
    expect(() => matmul(of(2, 4, 5), of(3, 5, 6))).toThrow('the batch axes must be equal or 1, but 2 meets 3');
    expect(code(() => matmul(a, half))).toBe('ERR_DTYPE');
    expect(() => matmul(of(5), b)).toThrow('a has shape [5]; it must be a matrix');
    expect(() => matmul(a, b, { bias: of(4) })).toThrow('bias has shape [4]; it must broadcast to [4, 6]');
    expect(() => matmul(a, b, { accumulateInto: of(6, 4) })).toThrow(
      'accumulateInto has shape [6, 4]; the product has [4, 6]',
    );
    const square = of(5, 5);
    expect(() => matmul(square, of(5, 5), { accumulateInto: square.transpose(0, 1) })).toThrow(
      'a overlaps accumulateInto, which this call writes; it must lie in memory of its own',
    );
    expect(code(() => matmul(a, b, { alpha: Number.NaN }))).toBe('ERR_OPTION');
    expect(code(() => matmul(a, b, { alhpa: 1 } as object))).toBe('ERR_OPTION');
    expect(code(() => matmul([] as never, b))).toBe('ERR_OPTION');
    half.dispose();
    expect(code(() => matmul(half, half))).toBe('ERR_SHAPE');
    b.dispose();
    expect(code(() => matmul(a, b))).toBe('ERR_DISPOSED');
  });
});
