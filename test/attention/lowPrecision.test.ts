/** The 16-bit formats, and the rule that 16-bit results are held to. */
import { describe, expect, it } from 'vitest';
import { instantiate } from '../../verify/cases/case.js';
import { fromBits, type LowDType, largestFinite, round, toBits, ulp } from '../../verify/oracle/float16.js';
import { judge, unfused } from '../../verify/oracle/lowPrecision.js';
import { normal } from '../../verify/oracle/random.js';
import { solve } from '../../verify/oracle/sensitivity.js';
import { CASES } from '../support/references.js';

const DTYPES: readonly LowDType[] = ['float16', 'bfloat16'];

describe('formats', () => {
  it.each(DTYPES)('every %s survives a round trip', (dtype) => {
    for (let bits = 0; bits < 65536; bits++) {
      const value = fromBits(bits, dtype);
      if (Number.isNaN(value)) expect(fromBits(toBits(value, dtype), dtype)).toBeNaN();
      else if (toBits(value, dtype) !== bits) expect.fail(`${bits} -> ${value} -> ${toBits(value, dtype)}`);
    }
  });

  it.each([
    [1, 0x3c00, 0x3f80],
    [-2, 0xc000, 0xc000],
    [0.1, 0x2e66, 0x3dcd],
    [65504, 0x7bff, 0x4780],
    [65519.99, 0x7bff, 0x4780],
    [65520, 0x7c00, 0x4780],
    [-1e6, 0xfc00, 0xc974],
    [2 ** -24, 0x0001, 0x3380],
    [2 ** -25, 0x0000, 0x3300],
    [1.5 * 2 ** -25, 0x0001, 0x3340],
    [2 ** -14 - 2 ** -25, 0x0400, 0x3880],
    [1e-45, 0x0000, 0x0000],
    [3.4e38, 0x7c00, 0x7f80],
    [Infinity, 0x7c00, 0x7f80],
    [-0, 0x8000, 0x8000],
  ])('%f is %i in float16 and %i in bfloat16', (value, half, brain) => {
    expect(toBits(value, 'float16')).toBe(half);
    expect(toBits(value, 'bfloat16')).toBe(brain);
  });

  it.each(DTYPES)('%s ties go to even and nothing is nearer', (dtype) => {
    for (let bits = 0x0001; bits < toBits(largestFinite(dtype), dtype); bits += 7) {
      const [low, high] = [fromBits(bits, dtype), fromBits(bits + 1, dtype)];
      const middle = (low + high) / 2;
      if (round(middle, dtype) !== (bits % 2 === 0 ? low : high)) expect.fail(`tie above ${low}`);
      if (round(middle - ulp(low, dtype) / 8, dtype) !== low) expect.fail(`below the tie above ${low}`);
      if (round(middle + ulp(low, dtype) / 8, dtype) !== high) expect.fail(`beyond the tie above ${low}`);
    }
  });
});

describe('unfused reference', () => {
  it.each(Object.entries(CASES))('%s is within rounding of the exact result', (_, c) => {
    for (const dtype of DTYPES) {
      const { problem, dOut, dLse } = instantiate({ ...c, dtype });
      const reference = unfused(problem, dtype, dOut, dLse);
      for (const [name, exact] of Object.entries(solve(problem, dOut, dLse))) {
        const values = reference[name] ?? new Float64Array(0);
        const size = exact.reduce((max, x) => (Number.isFinite(x) ? Math.max(max, Math.abs(x)) : max), 1);
        const error = exact.reduce(
          (max, x, n) => Math.max(max, x === values[n] ? 0 : Math.abs(x - (values[n] ?? NaN))),
          0,
        );
        expect(error / size, `${dtype} ${name}`).toBeLessThan(32 * ulp(1, dtype));
        if (name === 'out' && problem.headDim > 1) expect(values.every((x) => x === round(x, dtype))).toBe(true);
      }
    }
  });
});

describe('rule', () => {
  const { problem, dOut } = instantiate({
    seed: 5,
    layout: 'bhsd',
    dtype: 'bfloat16',
    queryLength: 96,
    keyLength: 96,
    kvHeads: 2,
    headDim: 32,
  });
  const exact = solve(problem, dOut).out ?? new Float64Array(0);
  const reference = unfused(problem, 'bfloat16', dOut).out ?? new Float64Array(0);

  it('accepts the exact result rounded once, and the reference itself', () => {
    expect(
      judge(
        'bfloat16',
        exact.map((x) => round(x, 'bfloat16')),
        exact,
        [reference],
      ).ok,
    ).toBe(true);
    expect(judge('bfloat16', reference, exact, [reference]).ok).toBe(true);
  });

  it('rejects a mean error of 1.3 times that of the reference', () => {
    const worse = exact.map((x, n) => x + 1.3 * ((reference[n] ?? 0) - x));
    expect(judge('bfloat16', worse, exact, [reference]).ok).toBe(false);
  });

  it('rejects one wrong element, a NaN and a missing element', () => {
    const rounded = exact.map((x) => round(x, 'bfloat16'));
    expect(judge('bfloat16', rounded.with(7, (rounded[7] ?? 0) + 0.1), exact, [reference]).ok).toBe(false);
    expect(judge('bfloat16', rounded.with(7, NaN), exact, [reference]).ok).toBe(false);
    expect(judge('bfloat16', rounded.slice(1), exact, [reference]).ok).toBe(false);
  });

  it('wants overflow to be infinite', () => {
    const huge = normal(4, 1).map((x) => Math.abs(x) * 1e6 + 1e6);
    expect(
      judge(
        'float16',
        huge.map(() => Infinity),
        huge,
        [huge],
      ).ok,
    ).toBe(true);
    expect(
      judge(
        'float16',
        huge.map(() => 65504),
        huge,
        [huge],
      ).ok,
    ).toBe(false);
  });
});
