/** Products of matrices against float64: shapes, strides, batches that broadcast, dtypes, what is added. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { matmul, memory, status, type Tensor, tensor, zeros } from '../../lib/index.js';
import { activations } from '../../verify/oracle/activation.js';
import { matmul as oracle } from '../../verify/oracle/matmul.js';
import { codeOf } from '../support/codeOf.js';
import { hasEmulator } from '../support/emulator.js';
import { casesOf, check, type Device, make } from './matmulCases.js';

const hasCpu = status('cpu').device === 'cpu';
const devices: readonly { readonly device: Device; readonly runs: number }[] = [
  { device: 'wasm', runs: 120 },
  { device: 'cpu', runs: hasCpu ? 240 : 0 },
  { device: 'emulator' as never, runs: hasEmulator ? 100 : 0 },
];
const isSlow = (device: string) => device === 'emulator';
const few = fc.integer({ min: 0, max: 20 });
const many = fc.oneof(few, fc.integer({ min: 1, max: 150 }));
const cases = casesOf(many, fc.oneof(many, fc.constantFrom(256, 257, 600)), 3);
const slowCases = casesOf(
  fc.oneof(few, fc.integer({ min: 1, max: 70 })),
  fc.oneof(few, fc.integer({ min: 1, max: 140 })),
  2,
);
/** Batches that make blocks enough for large tiles on four multiprocessors. */
const largeCases = casesOf(fc.integer({ min: 120, max: 140 }), fc.integer({ min: 1, max: 70 }), 1);

describe.each(devices)('matmul on $device', ({ device, runs }) => {
  const test = it.skipIf(runs === 0);

  test('is the product in float64 up to rounding, for all shapes, strides, dtypes and additions', () => {
    fc.assert(
      fc.property(isSlow(device) ? slowCases : cases, (c) => check(device, c)),
      { numRuns: runs },
    );
    if (isSlow(device))
      fc.assert(
        fc.property(largeCases, (c) => check(device, c)),
        { numRuns: 12 },
      );
  });

  test('gives the same as for matrices of any size where factors are packed beforehand', () => {
    const plain = { transposed: false, step: 1 as const, seed: 3 };
    const other = {
      aOnce: [],
      bOnce: [],
      alpha: 1 as const,
      bias: 'none' as const,
      biasDtype: 'float32' as const,
      into: null,
      activation: undefined,
      dtype: 'float32' as const,
    };
    const sizes = [
      [130, 260, 17],
      [1, 700, 300],
      [700, 1, 300],
      ...(isSlow(device)
        ? [[3, 5, 5000]]
        : [
            [300, 300, 300],
            [65, 129, 513],
          ]),
    ] as [number, number, number][];
    for (const [rows, columns, inner] of sizes)
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

  it.skipIf(runs === 0 || isSlow(device))(
    'cuts what needs much scratch memory into several launches: by its batch, by the inner dim, or by rows and columns',
    () => {
      const plain = { transposed: false, step: 1 as const, seed: 3 };
      const other = {
        ...{ aOnce: [], bOnce: [], into: null },
        ...({ alpha: 1, bias: 'none', biasDtype: 'float32', activation: undefined } as const),
        ...({ dtype: 'float32', a: plain, b: plain, columns: 130 } as const),
      };
      const long = { ...other, batch: [], rows: 8, inner: 330_000 };
      check(device, { ...other, batch: [2], rows: 66, inner: 50_000 });
      check(device, { ...long, bias: 'columns', alpha: -0.5, into: { dtype: 'float32', transposed: true } });
      check(device, { ...long, bias: 'rows', activation: 'silu' });
    },
  );

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
    const [m, k] = isSlow(device) ? [70, 90] : [200, 300];
    const a = make([m, k], { device });
    const b = make([k, m], { device });
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

  test('applies activations to float32 accuracy, in their tails too', () => {
    const points: number[] = [];
    for (let x = -40; x < 40; x += 0.037) points.push(Math.fround(x), Math.fround(x / 1000));
    const x = tensor(points, [points.length, 1], { device }) as Tensor;
    const one = tensor([1], [1, 1], { device });
    for (const activation of ['gelu', 'geluTanh', 'silu', 'relu'] as const) {
      using out = matmul(x, one, { activation });
      const got = out.toFloat32Sync();
      for (const [at, point] of points.entries()) {
        const wanted = activations[activation](point);
        // By its definition, 1 + tanh(u) loses what lies far below 1.
        const lost = activation === 'geluTanh' ? 2 ** -50 * Math.abs(point) : 0;
        const error = Math.abs((got[at] as number) - wanted);
        if (!(error <= 2e-5 * Math.abs(wanted) + lost + 1e-22) || !(error <= 4e-7 * Math.max(0.2, Math.abs(wanted))))
          throw new Error(`${activation}(${point}) is ${got[at]}, not ${wanted}`);
      }
    }
    for (const t of [x, one]) t.dispose();
  });

  test('lets NaN through activations, and gives their limits at both ends', () => {
    const x = tensor([Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY, -1e38, 1e38, 0], [6, 1], {
      device,
    });
    const one = tensor([1], [1, 1], { device });
    for (const activation of ['gelu', 'geluTanh', 'silu', 'relu'] as const) {
      using out = matmul(x as Tensor, one, { activation });
      const got = [...out.toFloat32Sync()].map((value) => value + 0); // no sign of 0
      const large = got[4] as number;
      expect(got, activation).toEqual([Number.NaN, Number.POSITIVE_INFINITY, 0, 0, large, 0]);
      expect(large / 1e38, activation).toBeCloseTo(1, 6);
    }
    for (const t of [x, one]) t.dispose();
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
    expect(() => matmul(a, b, { activation: 'tanh' as 'relu' })).toThrow(
      `activation is "tanh"; it must be 'gelu', 'geluTanh', 'silu' or 'relu'`,
    );
    const both = { activation: 'relu', accumulateInto: of(4, 6) } as object;
    expect(code(() => matmul(a, b, both))).toBe('ERR_OPTION');
    expect(() => matmul(a, b, both)).toThrow('activation is "relu" and accumulateInto a tensor');
    expect(code(() => matmul(a, b, { alhpa: 1 } as object))).toBe('ERR_OPTION');
    expect(code(() => matmul([] as never, b))).toBe('ERR_OPTION');
    half.dispose();
    expect(code(() => matmul(half, half))).toBe('ERR_SHAPE');
    b.dispose();
    expect(code(() => matmul(a, b))).toBe('ERR_DISPOSED');
  });
});
