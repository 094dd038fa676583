/** Whole numbers in words and their products: exact, and the same bits on every device and for every number of threads. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { type Tensor, tensor } from '../../lib/index.js';
import { type CodeFormat, wordsOf } from '../../lib/kernels/quantise.js';
import { type Codes, codeMatmul, quantiseRows } from '../../lib/ops/codes.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';

type Device = (typeof testDevices)[number]['device'];

/** Numbers that are codes already, in a pattern that follows from a seed. */
function wholeNumbers(count: number, seed: number, format: CodeFormat, extreme: boolean): Float32Array {
  const [least, most] = format === 'trits' ? [-1, 1] : [-128, 127];
  let state = seed * 2654435761 + 1;
  return Float32Array.from({ length: count }, () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    if (extreme) return state % 10 === 0 ? most : least;
    return least + ((state >>> 8) % (most - least + 1));
  });
}

const codesOf = (values: Float32Array, shape: readonly number[], format: CodeFormat, device: Device): Codes => {
  const x = tensor(values, shape, { device }) as Tensor;
  const scale = tensor([1], [1], { device }) as Tensor<'float32', readonly number[]>;
  const codes = quantiseRows(x, { format, scale });
  x.dispose();
  scale.dispose();
  return codes;
};

const disposeAll = (...all: readonly Codes[]) => {
  for (const { words, scale } of all) {
    words.dispose();
    scale.dispose();
  }
};

interface Case {
  readonly batch: number;
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
  readonly format: CodeFormat;
  readonly extreme: boolean;
  readonly seed: number;
}

function multiply(device: Device, c: Case): Float32Array {
  const { batch, rows, columns, inner, format, extreme, seed } = c;
  const a = codesOf(wholeNumbers(batch * rows * inner, seed, 'bytes', extreme), [batch, rows, inner], 'bytes', device);
  const b = codesOf(
    wholeNumbers(batch * columns * inner, seed + 1, format, extreme),
    [batch, columns, inner],
    format,
    device,
  );
  const out = codeMatmul(a, b, 'float32');
  const result = out.toFloat32Sync();
  disposeAll(a, b);
  out.dispose();
  return result;
}

/** In float64, where all of these sums are exact. */
function oracle({ batch, rows, columns, inner, format, extreme, seed }: Case): Float32Array {
  const a = wholeNumbers(batch * rows * inner, seed, 'bytes', extreme);
  const b = wholeNumbers(batch * columns * inner, seed + 1, format, extreme);
  return Float32Array.from({ length: batch * rows * columns }, (_, at) => {
    const [j, i] = [at % columns, Math.floor(at / columns)];
    const e = Math.floor(i / rows);
    let sum = 0;
    for (let k = 0; k < inner; k++) sum += a[i * inner + k] * b[(e * columns + j) * inner + k];
    return sum;
  });
}

const caseOf = (most: number): fc.Arbitrary<Case> =>
  fc.record({
    batch: fc.integer({ min: 1, max: 2 }),
    rows: fc.integer({ min: 0, max: most }),
    columns: fc.integer({ min: 0, max: most }),
    inner: fc.oneof(fc.integer({ min: 0, max: 140 }), fc.constantFrom(1, 3, 4, 15, 16, 17, 63, 64, 65, 1024, 1027)),
    format: fc.constantFrom<CodeFormat>('bytes', 'trits'),
    extreme: fc.boolean(),
    seed: fc.integer({ min: 1, max: 1000 }),
  });

/** Reads words back, as the docstring of `Codes` has them. */
function unpack(words: Int32Array, rows: number, inner: number, format: CodeFormat): number[] {
  const width = wordsOf(inner, format);
  return Array.from({ length: rows * inner }, (_, at) => {
    const [row, k] = [Math.floor(at / inner), at % inner];
    const word = (index: number) => words[row * width + index];
    if (format === 'bytes') return (word(k >> 2) << (24 - 8 * (k & 3))) >> 24;
    return ((word(k >> 4) >>> (8 * (k & 3) + 2 * ((k & 15) >> 2))) & 3) - 1;
  });
}

it('have the same bits on every device, with scales of rows', () => {
  const [rows, columns, inner] = [7, 21, 300];
  const bits = testDevices
    .filter(({ present }) => present)
    .map(({ device }) => {
      const [x, w] = [rows, columns].map((n, seed) => {
        const values = wholeNumbers(n * inner, seed + 11, 'bytes', false).map((value, at) => value / (3 + (at % 7)));
        return tensor(values, [n, inner], { device }) as Tensor;
      });
      const [a, b] = [quantiseRows(x), quantiseRows(w)];
      const out = codeMatmul(a, b, 'float32');
      const result = [a.words.dataSync(), b.words.dataSync(), out.toFloat32Sync()];
      disposeAll(a, b);
      for (const t of [x, w, out]) t.dispose();
      return result;
    });
  for (const each of bits) expect(each).toEqual(bits[0]);
});

describe.each(testDevices)('$device', ({ device, present, title, runs, isSlow }) => {
  describe.skipIf(!present)(title('products of whole numbers'), () => {
    it('are exact, for all shapes, formats and extremes', () => {
      fc.assert(
        fc.property(caseOf(isSlow ? 20 : 70), (c) => {
          expect(multiply(device, c)).toEqual(oracle(c));
        }),
        { numRuns: runs(100) },
      );
    });

    it('are exact where sums leave what float32 holds', () => {
      const c: Case = { batch: 1, rows: 2, columns: 3, inner: 100_003, format: 'bytes', extreme: true, seed: 5 };
      expect(multiply(device, c)).toEqual(oracle(c));
    });

    it('are divided by the scales of rows and columns, and get a bias, in any dtype', () => {
      const [rows, columns, inner] = [5, 18, 40];
      const x = tensor(
        wholeNumbers(rows * inner, 3, 'bytes', false).map((n) => n / 50),
        [rows, inner],
        { device },
      ) as Tensor;
      const w = tensor(
        wholeNumbers(columns * inner, 4, 'bytes', false).map((n) => n / 50),
        [columns, inner],
        { device },
      ) as Tensor;
      const bias = tensor(
        Float32Array.from({ length: columns }, (_, j) => j / 4),
        [columns],
        { device },
      ) as Tensor<'float32', readonly number[]>;
      const [a, b] = [quantiseRows(x), quantiseRows(w)];
      const [codesA, codesB] = [a, b].map(({ words }, i) =>
        unpack(words.dataSync(), i === 0 ? rows : columns, inner, 'bytes'),
      );
      const [scaleA, scaleB] = [a, b].map(({ scale }) => scale.toFloat32Sync());
      for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
        const out = codeMatmul(a, b, dtype, bias);
        const tolerance = { float32: 1e-6, float16: 1e-3, bfloat16: 8e-3 }[dtype];
        for (const [at, value] of out.toFloat32Sync().entries()) {
          const [i, j] = [Math.floor(at / columns), at % columns];
          let sum = 0;
          for (let k = 0; k < inner; k++) sum += codesA[i * inner + k] * codesB[j * inner + k];
          const wanted = sum / scaleA[i] / scaleB[j] + j / 4;
          expect(Math.abs(value - wanted)).toBeLessThanOrEqual(tolerance * Math.max(1, Math.abs(wanted)) * 4);
        }
        out.dispose();
      }
      disposeAll(a, b);
      for (const t of [x, w, bias]) t.dispose();
    });

    it('have words as documented, rounded to even within their bounds', () => {
      for (const inner of [1, 5, 16, 63, 200])
        for (const format of ['bytes', 'trits'] as const) {
          const values = Float32Array.from({ length: 3 * inner }, (_, at) => ((at * 37) % 301) / 2 - 75);
          const x = tensor(values, [3, inner], { device }) as Tensor;
          const scale = tensor([format === 'trits' ? 0.01 : 1], [1], { device }) as Tensor<
            'float32',
            readonly number[]
          >;
          const codes = quantiseRows(x, { format, scale });
          const even = (v: number) => {
            const down = Math.floor(v);
            return v - down > 0.5 || (v - down === 0.5 && down % 2 !== 0) ? down + 1 : down;
          };
          const most = format === 'trits' ? 1 : 127;
          const wanted = Array.from(values, (v) => {
            const scaled = format === 'trits' ? Math.fround(v * Math.fround(0.01)) : v;
            return Math.max(-most - (format === 'trits' ? 0 : 1), Math.min(most, even(scaled))) + 0;
          });
          const words = codes.words.dataSync();
          expect(unpack(words, 3, inner, format)).toEqual(wanted);
          if (format === 'bytes')
            for (let row = 0; row < 3; row++)
              expect(words[row * wordsOf(inner, format) + Math.ceil(inner / 4)]).toBe(
                wanted.slice(row * inner, (row + 1) * inner).reduce((sum, code) => sum + code, 0),
              );
          disposeAll(codes);
          for (const t of [x, scale]) t.dispose();
        }
    });

    it('of rows with a number that is not finite are NaN, and others are not', () => {
      for (const odd of [Number.NaN, Number.POSITIVE_INFINITY, Number.NEGATIVE_INFINITY]) {
        const values = wholeNumbers(3 * 20, 7, 'bytes', false);
        values[25] = odd;
        const x = tensor(values, [3, 20], { device }) as Tensor;
        const a = quantiseRows(x);
        const b = codesOf(wholeNumbers(4 * 20, 8, 'trits', false), [4, 20], 'trits', device);
        const out = codeMatmul(a, b, 'float32');
        const missing = Array.from(out.toFloat32Sync(), Number.isNaN);
        expect(missing).toEqual(Array.from({ length: 12 }, (_, at) => at >= 4 && at < 8));
        disposeAll(a, b);
        for (const t of [x, out]) t.dispose();
      }
    });

    it('refuse what does not fit', () => {
      const a = codesOf(new Float32Array(12), [3, 4], 'bytes', device);
      const b = codesOf(new Float32Array(10), [2, 5], 'bytes', device);
      const trits = codesOf(new Float32Array(12), [3, 4], 'trits', device);
      expect(codeOf(() => codeMatmul(a, b, 'float32'))).toBe('ERR_SHAPE');
      expect(codeOf(() => codeMatmul(trits, a, 'float32'))).toBe('ERR_DTYPE');
      const line = tensor([1, 2], [2], { device }) as Tensor;
      const two = line as unknown as Tensor<'float32', readonly number[]>;
      expect(codeOf(() => quantiseRows(line))).toBe('ERR_SHAPE');
      expect(codeOf(() => codeMatmul(a, a, 'float32', two))).toBe('ERR_SHAPE');
      disposeAll(a, b, trits);
      line.dispose();
    });
  });
});
