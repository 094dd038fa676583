import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { tensor } from '../../lib/index.js';
import { fromBits, type LowDType, toBits } from '../../verify/oracle/float16.js';

const infinity: Record<LowDType, number> = { float16: 0x7c00, bfloat16: 0x7f80 };

const double = new Float64Array(1);
const pattern = new BigInt64Array(double.buffer);
/** The double that lies `steps` doubles further from 0. */
function nudge(x: number, steps: bigint): number {
  double[0] = x;
  pattern[0] += steps;
  return double[0];
}

/** Doubles at, and one or a few doubles beside, every kind of place where rounding turns. */
const doubles = (dtype: LowDType): fc.Arbitrary<number> => {
  const between = fc
    .record({
      bits: fc.integer({ min: 0, max: infinity[dtype] - 1 }),
      // The value itself, and the middle to the next one: the last such middle is where overflow begins.
      middle: fc.boolean(),
      steps: fc.bigInt({ min: -2n, max: 2n }),
      far: fc.constantFrom(1n, 2n ** 20n, 2n ** 29n, 2n ** 30n),
      negative: fc.boolean(),
    })
    .map(({ bits, middle, steps, far, negative }) => {
      const low = fromBits(bits, dtype);
      const below = bits === 0 ? 0 : fromBits(bits - 1, dtype);
      const high = bits + 1 === infinity[dtype] ? 2 * low - below : fromBits(bits + 1, dtype);
      const x = middle ? (low + high) / 2 : low;
      const moved = x === 0 ? x : nudge(x, steps * far);
      return negative ? -moved : moved;
    });
  return fc.oneof({ weight: 4, arbitrary: between }, { weight: 1, arbitrary: fc.double() });
};

const isNaNPattern = (bits: number, dtype: LowDType) => (bits & 0x7fff) > infinity[dtype];

describe.each(['float16', 'bfloat16'] as const)('numbers become %s', (dtype) => {
  it('in one rounding, to nearest, ties to even', () => {
    fc.assert(
      fc.property(fc.array(doubles(dtype), { minLength: 1, maxLength: 64 }), (values) => {
        for (const data of [values, Float64Array.from(values)]) {
          using t = tensor(data, [values.length], { dtype });
          for (const [i, bits] of t.dataSync().entries()) {
            const x = values[i];
            if (Number.isNaN(x)) expect(isNaNPattern(bits, dtype)).toBe(true);
            else expect({ x, bits }).toEqual({ x, bits: toBits(x, dtype) });
          }
        }
      }),
      { numRuns: 400 },
    );
  });
});

describe('numbers that a detour by way of float32 gets wrong', () => {
  it.each([
    ['float16', 1 + 2 ** -11 + 2 ** -30, 1.0009765625],
    ['float16', 1 + 2 ** -11, 1],
    ['float16', 1 + 3 * 2 ** -11 - 2 ** -40, 1.0009765625],
    ['float16', 65519.99999, 65504],
    ['float16', 65520, Number.POSITIVE_INFINITY],
    ['float16', -65519.99999, -65504],
    ['float16', 2 ** -25, 0],
    ['float16', 2 ** -25 + 2 ** -60, 2 ** -24],
    ['float16', 3 * 2 ** -25 - 2 ** -60, 2 ** -24],
    ['float16', 2 ** -14 - 2 ** -25 + 2 ** -50, 2 ** -14],
    ['float16', 5e-324, 0],
    ['float16', 1e308, Number.POSITIVE_INFINITY],
    ['bfloat16', 1 + 2 ** -8 + 2 ** -40, 1 + 2 ** -7],
    ['bfloat16', 1 + 2 ** -8, 1],
    ['bfloat16', 1 + 3 * 2 ** -8 - 2 ** -40, 1 + 2 ** -7],
    ['bfloat16', 2 ** -134, 0],
    ['bfloat16', 2 ** -134 + 2 ** -180, 2 ** -133],
    ['bfloat16', (2 - 2 ** -8) * 2 ** 127, Number.POSITIVE_INFINITY],
    ['bfloat16', (2 - 2 ** -8 - 2 ** -40) * 2 ** 127, (2 - 2 ** -7) * 2 ** 127],
    ['bfloat16', 3.5e38, Number.POSITIVE_INFINITY],
  ] as const)('%s of %d is %d', (dtype, x, expected) => {
    using t = tensor([x], [1], { dtype });
    expect(t.toFloat32Sync()[0]).toBe(expected);
    using negative = tensor([-x], [1], { dtype });
    expect(negative.toFloat32Sync()[0]).toBe(-expected);
    t.write([-x]);
    expect(t.toFloat32Sync()[0]).toBe(-expected);
  });
});
