/** Products of matrices: every tile of the kernels, every way in which factors lie, and what the last step adds. */
import { matmul, type Tensor } from 'flashattn';
import { roundTo } from '../cases/case.js';
import type { CaseDType } from '../cases/views.js';
import { make } from '../cases/views.js';
import { activations } from '../oracle/activation.js';
import { ulp } from '../oracle/float16.js';
import { matmul as exactProduct } from '../oracle/matmul.js';
import { normal } from '../oracle/random.js';
import { type Check, ensure, type Settings } from './check.js';
import { DTYPES } from './grid.js';
import { ensureClose, owning } from './tensors.js';

type Sizes = readonly [batch: number, rows: number, inner: number, columns: number];

/** Relative to the largest element, of sums of numbers whose squares average 1. */
const PRODUCT_TOLERANCE = 4e-6;
/** Of long sums in float32 of 16-bit numbers: tensor cores cut what lies below the last bit of a sum, 2,048 terms long. */
const CUT_TOLERANCE = 2e-5;
const toleranceOf = (dtype: CaseDType) => PRODUCT_TOLERANCE + (dtype === 'float32' ? 0 : ulp(1, dtype));

interface Lie {
  /** Whether the last axis of each factor is the one that is not contiguous. */
  readonly a?: boolean;
  readonly b?: boolean;
  /** Columns that lie in memory behind those of a row. */
  readonly gap?: number;
}

/** A tensor and its values, which the dtype holds exactly; NaN lies between its rows. */
function matrices(
  own: <T extends Tensor>(t: T) => T,
  [batch, rows, columns]: readonly [number, number, number],
  {
    dtype,
    device,
    seed,
  }: { readonly dtype: CaseDType; readonly device: Parameters<typeof make>[3]; readonly seed: number },
  turned = false,
  gap = 0,
): { readonly t: Tensor; readonly data: Float64Array } {
  const data = roundTo(normal(batch * rows * columns, seed), dtype);
  const [outer, inner] = turned ? [columns, rows] : [rows, columns];
  const stored = new Float64Array(batch * outer * (inner + gap)).fill(Number.NaN);
  for (const [n, x] of data.entries()) {
    const [i, j] = [Math.floor(n / columns) % rows, n % columns];
    const entry = Math.floor(n / (rows * columns));
    const [o, k] = turned ? [j, i] : [i, j];
    stored[(entry * outer + o) * (inner + gap) + k] = x;
  }
  const whole = own(make(stored, [batch, outer, inner + gap], dtype, device));
  const part = own(whole.slice(2, 0, inner));
  return { t: turned ? own(part.transpose(1, 2)) : part, data };
}

const product = (dtype: CaseDType, [batch, rows, inner, columns]: Sizes, lie: Lie): Check => ({
  name: `a product of ${batch} x [${rows}, ${inner}] and [${inner}, ${columns}]${lie.a ? ', a turned' : ''}${lie.b ? ', b turned' : ''}${lie.gap ? `, ${lie.gap} between rows` : ''}, ${dtype}`,
  run: (device) =>
    owning((own) => {
      const a = matrices(own, [batch, rows, inner], { dtype, device, seed: 1 }, lie.a, lie.gap);
      const b = matrices(own, [batch, inner, columns], { dtype, device, seed: 2 }, lie.b, lie.gap);
      const shape = [batch, rows, columns];
      const out = own(matmul(a.t, b.t));
      const again = own(matmul(a.t, b.t));
      ensureClose(
        'the product',
        out,
        exactProduct(
          { shape: [batch, rows, inner], data: a.data },
          { shape: [batch, inner, columns], data: b.data },
          shape,
        ),
        toleranceOf(dtype),
      );
      const bits = again.dataSync();
      ensure(
        out.dataSync().every((x, n) => Object.is(x, bits[n])),
        'the same product has other bits',
      );
    }),
});

const finished = (dtype: CaseDType, result: CaseDType): Check => ({
  name: `bias, activation and accumulation of a product, ${dtype} to ${result}`,
  run: (device) =>
    owning((own) => {
      const [batch, rows, inner, columns] = [2, 37, 50, 29];
      const a = matrices(own, [batch, rows, inner], { dtype, device, seed: 3 });
      const b = matrices(own, [1, inner, columns], { dtype, device, seed: 4 });
      const bias = matrices(own, [1, 1, columns], { dtype: result, device, seed: 5 });
      const shape = [batch, rows, columns];
      const sums = exactProduct(
        { shape: [batch, rows, inner], data: a.data },
        { shape: [1, inner, columns], data: b.data },
        shape,
        0.125,
      ).map((x, n) => x + (bias.data[n % columns] as number));
      for (const [name, f] of Object.entries(activations)) {
        const activation = name as keyof typeof activations;
        const out = own(matmul(a.t, b.t, { alpha: 0.125, bias: bias.t, activation }));
        ensureClose(name, out, sums.map(f), toleranceOf(dtype));
      }
      const { t, data } = matrices(own, [batch, rows, columns], { dtype: result, device, seed: 6 }, true, 3);
      matmul(a.t, b.t, { alpha: 0.125, bias: bias.t, accumulateInto: t });
      ensureClose(
        'what is added up',
        t,
        sums.map((x, n) => x + (data[n] as number)),
        toleranceOf(result),
      );
    }),
});

/** More terms of one sign than float32 adds up one by one without losing what shows. */
const long = (dtype: CaseDType, terms: number): Check => ({
  name: `a product of ${terms} terms of one sign, ${dtype}`,
  run: (device) =>
    owning((own) => {
      const data = roundTo(normal(3 * terms, 7).map(Math.abs), dtype);
      const a = own(make(data, [3, terms], dtype, device));
      const into = own(make(new Float64Array(9), [3, 3], 'float32', device));
      matmul(a, own(a.transpose(0, 1)), { accumulateInto: into });
      const turned = Float64Array.from(data, (_, n) => data[(n % 3) * terms + Math.floor(n / 3)] as number);
      const exact = exactProduct({ shape: [3, terms], data }, { shape: [terms, 3], data: turned }, [3, 3]);
      ensureClose('the product', into, exact, dtype === 'float32' ? PRODUCT_TOLERANCE : CUT_TOLERANCE);
    }),
});

export function productChecks({ large }: Settings): Check[] {
  const sizes: Sizes[] = [
    [1, 1, 1, 1],
    [1, 5, 300, 70], // thin tiles
    [3, 70, 90, 80], // small ones
    [4, 130, 70, 140], // large ones, of the emulator
    ...(large
      ? ([
          [200, 130, 70, 140],
          [1, 1500, 700, 2100],
          [8, 8, 4096, 4096],
        ] as const)
      : []),
  ];
  const lies: Lie[] = [{}, { a: true }, { b: true }, { a: true, b: true }, { gap: 1 }, { a: true, gap: 2 }];
  return [
    ...DTYPES.flatMap((dtype) => sizes.flatMap((size) => lies.map((lie) => product(dtype, size, lie)))),
    ...DTYPES.flatMap((dtype) => DTYPES.map((result) => finished(dtype, result))),
    ...DTYPES.map((dtype) => long(dtype, large ? 1_000_000 : 20_000)),
  ];
}
