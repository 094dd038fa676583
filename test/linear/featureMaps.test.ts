/** Feature maps against their formulas in float64, with gradients. */
import { type DeviceName, max, type Tensor, tensor, zeros } from 'flashattn';
import {
  cosineReweighting,
  eluPlusOne,
  exponential,
  favorHyperbolic,
  favorPositive,
  generalizedRelu,
  randomFourier,
  reluFeatures,
  softmaxFeatures,
  softmaxSequence,
  squaredRelu,
  taylorSecondOrder,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { compareTaped } from '../systems/compareTaped.js';
import { dot, range, sumOf } from '../systems/regroup.js';

const [batch, seq, heads, dim] = [2, 5, 3, 4];
const shapes = { x: [batch, seq, heads, dim] };

/** [batch][seq][head] -> row, flattened again after `f` has seen all rows of its batch entry and head. */
function byRow(
  x: Float64Array,
  f: (row: Float64Array, at: number, all: readonly Float64Array[]) => readonly number[],
  width = dim,
): number[] {
  const row = (b: number, i: number, h: number) => {
    const at = ((b * seq + i) * heads + h) * width;
    return x.subarray(at, at + width);
  };
  return range(batch).flatMap((b) =>
    range(seq).flatMap((i) =>
      range(heads).flatMap((h) => {
        const all = range(seq).map((j) => row(b, j, h));
        return f(row(b, i, h), i, all);
      }),
    ),
  );
}

const elements = (f: (x: number) => number) => (x: Float64Array) => Array.from(x, f);
const columns = (matrix: Float64Array, width: number): number[][] =>
  range(width).map((c) => range(matrix.length / width).map((r) => matrix[r * width + c] ?? NaN));
const rowsOf = (matrix: Float64Array, width: number): Float64Array[] =>
  range(matrix.length / width).map((r) => matrix.subarray(r * width, (r + 1) * width));

const simple = [
  ['eluPlusOne', eluPlusOne, elements((x) => (x > 0 ? x + 1 : Math.exp(x)))],
  ['relu', reluFeatures, elements((x) => Math.max(x, 0))],
  ['squaredRelu', squaredRelu, elements((x) => Math.max(x, 0) ** 2)],
  ['exponential', exponential, elements(Math.exp)],
  [
    'softmaxFeatures',
    softmaxFeatures,
    (x: Float64Array) =>
      byRow(x, (row) => Array.from(row, (value) => Math.exp(value) / sumOf(Array.from(row, Math.exp)))),
  ],
  [
    'softmaxSequence',
    softmaxSequence,
    (x: Float64Array) =>
      byRow(x, (row, _, all) =>
        Array.from(row, (value, d) => Math.exp(value) / sumOf(all.map((other) => Math.exp(other[d] ?? NaN)))),
      ),
  ],
  [
    'taylorSecondOrder',
    taylorSecondOrder,
    (x: Float64Array) =>
      byRow(x, (row) => [
        1,
        ...Array.from(row, (value) => value / dim ** 0.25),
        ...Array.from(row).flatMap((a) => Array.from(row, (b) => (a * b) / Math.sqrt(2 * dim))),
      ]),
  ],
] as const;

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('feature maps'), () => {
    it.each(simple)('%s', (_, map, exact) => {
      compareTaped({ device, shapes, exact: ({ x }) => exact(x), run: ({ x }) => map(x) });
      // Any strides.
      compareTaped({
        device,
        shapes: { x: [batch, heads, seq, dim] },
        exact: ({ x }) => exact(transposed(x)),
        run: ({ x }) => map(x.transpose(1, 2)),
      });
    });

    it.each(['position', 'head', 'none'] as const)('favorPositive, stabilized by %s', (stabilizer) => {
      const m = 6;
      const formula = (x: Float64Array, projection: Float64Array, most?: (rows: Float64Array[]) => number) =>
        byRow(x, (row, _, all) => {
          const u = (of: Float64Array) => rowsOf(projection, dim).map((p) => dot(of, p) / dim ** 0.25);
          const c = most ? most(stabilizer === 'position' ? [row] : [...all]) : 0;
          return u(row).map((value) => (Math.exp(value - dot(row, row) / (2 * Math.sqrt(dim)) - c) + 1e-4) / m ** 0.5);
        });
      // What stabilizes is a constant: differences must not move it.
      let constants: ((rows: Float64Array[]) => number) | undefined;
      compareTaped({
        device,
        shapes: { x: shapes.x, projection: [m, dim] },
        exact: ({ x, projection }) => {
          if (stabilizer === 'none') return formula(x, projection);
          const most = (rows: Float64Array[]) =>
            Math.max(...rows.flatMap((row) => rowsOf(projection, dim).map((p) => dot(row, p) / dim ** 0.25)));
          if (!constants) {
            const known = new Map<string, number>();
            byRow(x, (row, i, all) => {
              const { byteOffset } = (stabilizer === 'position' ? row : all[0]) as Float64Array;
              known.set(`${byteOffset - x.byteOffset}`, most(stabilizer === 'position' ? [row] : [...all]));
              return [i];
            });
            const origin = () => x.byteOffset;
            constants = (rows) => known.get(`${(rows[0]?.byteOffset ?? NaN) - origin()}`) ?? NaN;
          }
          return formula(x, projection, constants);
        },
        run: ({ x, projection }) => favorPositive(x, { projection: projection as Tensor<'float32'>, stabilizer }),
      });
    });

    it('favorPositive stays finite where exponents do not', () => {
      const large = tensor(new Float64Array(2 * 4).fill(300), [1, 2, 1, 4], { device });
      const projection = tensor(new Float64Array(8).fill(1), [2, 4], { device });
      for (const stabilizer of ['position', 'head'] as const) {
        const features = favorPositive(large, { projection, stabilizer });
        expect(features.toFloat32Sync().every((value) => Number.isFinite(value) && value > 0)).toBe(true);
        features.dispose();
      }
      for (const t of [large, projection]) t.dispose();
    });

    it.each([false, true])('favorHyperbolic, stabilized: %s', (stabilize) => {
      const [count, t] = [3, 0.3];
      compareTaped({
        device,
        shapes: { x: shapes.x, omega: [dim, count] },
        exact: ({ x, omega }) =>
          byRow(x, (row, _, all) => {
            const squares = (of: Float64Array) => t * dot(of, of);
            const offset = squares(row) / 2 + (stabilize ? Math.max(...all.map(squares)) : 0);
            const u = columns(omega, count).map((w) => Math.sqrt(t) * dot(row, w));
            return [...u, ...u.map((value) => -value)].map((value) => Math.exp(value - offset) / Math.sqrt(2 * count));
          }),
        run: ({ x, omega }) => favorHyperbolic(x, { omega: omega as Tensor<'float32'>, softmaxTemp: t, stabilize }),
      });
    });

    it('generalizedRelu', () => {
      const m = 6;
      compareTaped({
        device,
        shapes: { x: shapes.x, projection: [m, dim] },
        exact: ({ x, projection }) =>
          byRow(x, (row) => rowsOf(projection, dim).map((p) => Math.max(dot(row, p) / dim ** 0.25, 0) + 1e-3)),
        run: ({ x, projection }) => generalizedRelu(x, { projection: projection as Tensor<'float32'> }),
      });
    });

    it.each([undefined, 0.5])('randomFourier, smoothed by %s', (smoothing) => {
      const [count, t] = [3, 0.7];
      compareTaped({
        device,
        shapes: { x: shapes.x, omega: [dim, count] },
        exact: ({ x, omega }) =>
          byRow(x, (row) => {
            const u = columns(omega, count).map((w) => Math.sqrt(t) * dot(row, w));
            const pairs = [...u.map(Math.cos), ...u.map(Math.sin)].map((value) => value / Math.sqrt(count));
            return smoothing === undefined ? pairs : [...pairs, smoothing];
          }),
        run: ({ x, omega }) =>
          randomFourier(x, {
            omega: omega as Tensor<'float32'>,
            softmaxTemp: t,
            ...(smoothing !== undefined && { smoothing }),
          }),
      });
    });

    it('cosineReweighting', () => {
      const length = 7;
      compareTaped({
        device,
        shapes,
        exact: ({ x }) =>
          byRow(x, (row, i) => {
            const angle = (Math.PI * (i + 1)) / (2 * length);
            return [
              ...Array.from(row, (value) => value * Math.sin(angle)),
              ...Array.from(row, (v) => v * Math.cos(angle)),
            ];
          }),
        run: ({ x }) => cosineReweighting(x, { length }),
      });
    });

    it('keeps NaN and Infinity, and the gradient of elu + 1 where e^x overflows', () => {
      const x = tensor([NaN, Infinity, -Infinity, 1000], [1, 1, 1, 4], { device });
      const features = eluPlusOne(x);
      expect([...features.toFloat32Sync()]).toEqual([NaN, Infinity, 0, 1001]);
      for (const t of [x, features]) t.dispose();
      compareTaped({
        device,
        shapes: { x: [1, 1, 1, 3] },
        values: { x: Float64Array.of(120, -120, 5) },
        exact: ({ x: values }) => Array.from(values, (value) => (value > 0 ? value + 1 : Math.exp(value))),
        run: ({ x: t }) => eluPlusOne(t),
      });
    });

    it('widens 16 bits, and takes what is empty', () => {
      for (const dtype of ['float16', 'bfloat16'] as const) {
        const x = zeros([1, 2, 1, 4], { dtype, device });
        const empty = zeros([0, 2, 1, 4], { dtype, device });
        for (const map of [eluPlusOne, squaredRelu, softmaxFeatures, softmaxSequence, taylorSecondOrder]) {
          const [features, none] = [map(x), map(empty)];
          expect([features.dtype, none.size]).toEqual(['float32', 0]);
          for (const t of [features, none]) t.dispose();
        }
        for (const t of [x, empty]) t.dispose();
      }
    });
  });
});

/** [batch, heads, seq, dim] -> [batch, seq, heads, dim] */
function transposed(x: Float64Array): Float64Array {
  const result = new Float64Array(x.length);
  for (const b of range(batch))
    for (const i of range(seq))
      for (const h of range(heads))
        for (const d of range(dim))
          result[((b * seq + i) * heads + h) * dim + d] = x[((b * heads + h) * seq + i) * dim + d] ?? NaN;
  return result;
}

describe('feature maps refuse', () => {
  const wasm: { device: DeviceName } = { device: 'wasm' };
  it('what is not theirs', () => {
    const x = zeros([1, 2, 1, 4], wasm);
    const projection = zeros([3, 4], wasm);
    const omega = zeros([4, 3], wasm);
    const half = zeros([3, 4], { ...wasm, dtype: 'float16' }) as Tensor as Tensor<'float32'>;
    const before = zeros([1], wasm);
    const cases: [string, () => unknown][] = [
      ['ERR_SHAPE', () => eluPlusOne(projection)],
      ['ERR_OPTION', () => eluPlusOne([1] as never)],
      ['ERR_SHAPE', () => favorPositive(x, { projection: omega, stabilizer: 'none' })],
      ['ERR_DTYPE', () => favorPositive(x, { projection: half, stabilizer: 'none' })],
      ['ERR_OPTION', () => favorPositive(x, { projection, stabilizer: 'row' as never })],
      ['ERR_OPTION', () => favorPositive(x, { projection, stabilizer: 'none', epsilon: NaN })],
      ['ERR_OPTION', () => favorPositive(x, { projection, stabiliser: 'none' } as never)],
      ['ERR_SHAPE', () => favorHyperbolic(x, { omega: projection })],
      ['ERR_OPTION', () => favorHyperbolic(x, { omega, softmaxTemp: 0 })],
      ['ERR_OPTION', () => favorHyperbolic(x, { omega, stabilize: 1 as never })],
      ['ERR_SHAPE', () => generalizedRelu(x, { projection: omega })],
      ['ERR_OPTION', () => cosineReweighting(x, { length: 1 })],
      ['ERR_OPTION', () => randomFourier(x, { omega, smoothing: Infinity })],
      ['ERR_OPTION', () => randomFourier(x, { omega: undefined as never })],
    ];
    for (const [code, call] of cases) expect(codeOf(call), String(call)).toBe(code);
    for (const t of [x, projection, omega, half, before]) t.dispose();
    expect(codeOf(() => max(x))).toBe('ERR_DISPOSED');
  });
});
