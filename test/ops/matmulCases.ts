/** Products of matrices with everything that may stand beside them, against float64. */
import fc from 'fast-check';
import { expect } from 'vitest';
import { type FloatDType, matmul, type Tensor, tensor } from '../../lib/index.js';
import { activations } from '../../verify/oracle/activation.js';
import { type OracleArray, matmul as oracle } from '../../verify/oracle/matmul.js';

export type Device = 'wasm' | 'cpu';
const dtypes = ['float32', 'float16', 'bfloat16'] as const;
/** Half a unit in the last place, relative. */
const rounding: Record<FloatDType, number> = { float32: 2 ** -24, float16: 2 ** -11, bfloat16: 2 ** -8 };

/** A tensor of `shape` whose last two axes lie in memory in either order, with gaps of `step`, and its elements. */
export function make(
  shape: readonly number[],
  { dtype = 'float32' as FloatDType, transposed = false, step = 1, seed = 1, device = 'wasm' as Device } = {},
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

const factor = fc.record({
  transposed: fc.boolean(),
  step: fc.constantFrom(1, 1, 1, 2),
  seed: fc.integer({ min: 1, max: 1000 }),
});

export const casesOf = (sizes: fc.Arbitrary<number>, inner: fc.Arbitrary<number>, axes: number) =>
  fc.record({
    rows: sizes,
    columns: sizes,
    inner,
    batch: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: axes }),
    /** Which axes of the batch a factor has to broadcast along. */
    aOnce: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
    bOnce: fc.array(fc.boolean(), { minLength: 3, maxLength: 3 }),
    a: factor,
    b: factor,
    dtype: fc.constantFrom(...dtypes),
    alpha: fc.constantFrom(1, 1, -0.5),
    bias: fc.constantFrom('none', 'columns', 'rows', 'whole' as const),
    biasDtype: fc.constantFrom(...dtypes),
    /** Where nothing is added up. */
    activation: fc.constantFrom(undefined, 'gelu', 'geluTanh', 'silu', 'relu' as const),
    into: fc.option(fc.record({ dtype: fc.constantFrom(...dtypes), transposed: fc.boolean() })),
  });

export type Case = ReturnType<typeof casesOf> extends fc.Arbitrary<infer T> ? T : never;

/** @throws where the product of a case is not what float64 gives, within what rounding explains */
export function check(device: Device, c: Case): void {
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
  const bias = c.bias === 'none' ? undefined : make(biasShape, { device, seed: 7, dtype: c.biasDtype });
  const into = c.into ? make(shape, { ...c.into, device, seed: 9 }) : undefined;
  const before = into?.array.data;
  const activation = into ? undefined : c.activation;
  const out = matmul(a.t, b.t, {
    alpha,
    ...(activation && { activation }),
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
    const sum = wanted + biasAt(at);
    const whole = activation ? activations[activation](sum) : sum + (before ? (before[at] as number) : 0);
    // Products of values that are exact in their dtype: only sums are rounded, 256 of them in a row at most.
    const tolerance =
      2 ** -24 * (300 * (bound[at] as number) * 0.1 + 8 + 4 * Math.abs(sum)) + unit * (Math.abs(whole) + 2 ** -10);
    if (!(Math.abs((got[at] as number) - whole) <= tolerance))
      throw new Error(`element ${at} of ${shape} is ${got[at]}, not ${whole} within ${tolerance}`);
  }
  for (const made of [a, b, bias, into]) {
    made?.t.dispose();
    made?.whole.dispose();
  }
  out.dispose();
}
