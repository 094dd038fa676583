/** Numbers at both ends of their range, in every input: a logit that is finite hides nothing, and nothing overflows inside. */
import type { DeviceName } from 'flashattn';
import { type Case, type CaseDType, type Instance, instantiate, roundTo } from '../cases/case.js';
import { failuresIn } from '../cases/check.js';
import { runLibrary } from '../cases/library.js';
import { magnitude, maxError } from '../oracle/compare.js';
import { type LowDType, ulp } from '../oracle/float16.js';
import type { Problem } from '../oracle/problem.js';
import { type Named, solve } from '../oracle/sensitivity.js';
import { type Check, CheckFailure, ensure } from './check.js';
import { DTYPES } from './grid.js';

const LOWEST = -3.4028234663852886e38;
const LOWEST_BFLOAT16 = -3.3895313892515355e38;
const WIDE: readonly CaseDType[] = ['float32', 'bfloat16'];

const base = {
  seed: 800,
  layout: 'bshd',
  queryLength: 37,
  keyLength: 67,
  kvHeads: 1,
  group: 2,
  headDim: 16,
  wideExtras: true,
} as const;

type Change = (p: Problem, dtype: CaseDType) => Partial<Problem>;

function changed(c: Case, change: Change): Instance {
  const { problem, ...rest } = instantiate(c);
  return { ...rest, problem: { ...problem, ...change(problem, c.dtype ?? 'float32') } };
}

const ofKeys = (length: number, value: (j: number) => number): Partial<Problem> => ({
  bias: { shape: [1, 1, 1, length], values: Float64Array.from({ length }, (_, j) => value(j)) },
});

/** Masks that are finite, as many libraries write them. */
const MASKS: Readonly<Record<string, { readonly options?: Partial<Case>; readonly change: Change }>> = {
  ...Object.fromEntries(
    [-1e4, -1e9, -1e30, LOWEST_BFLOAT16, LOWEST].map((mask) => [
      `a bias of ${mask.toPrecision(5)} on every key`,
      { change: (p: Problem) => ofKeys(p.keyLength, () => mask) },
    ]),
  ),
  'the lowest bias on every key but three': {
    change: (p) => ofKeys(p.keyLength, (j) => (j % 30 === 5 ? 0 : LOWEST)),
  },
  'the lowest bias on every key that is not hidden': {
    change: (p) => ofKeys(p.keyLength, (j) => (j % 3 === 1 ? LOWEST : -Infinity)),
  },
  'the lowest bias beside one that is a little higher': {
    change: (p) => ofKeys(p.keyLength, (j) => (j % 5 === 1 ? -3e38 : LOWEST)),
  },
  'the lowest bias and a sink as low': {
    options: { sink: true },
    change: (p) => ({ ...ofKeys(p.keyLength, () => LOWEST), sink: p.sink?.map(() => LOWEST) }),
  },
  'a lowest sink': { options: { sink: true }, change: (p) => ({ sink: p.sink?.map(() => LOWEST) }) },
  'a lowest sink alone': {
    options: { sink: true },
    change: (p) => ({ ...ofKeys(p.keyLength, () => -Infinity), sink: p.sink?.map(() => LOWEST) }),
  },
  'the lowest bias under a causal mask': {
    options: { causal: true },
    change: (p) => ofKeys(p.keyLength, () => LOWEST),
  },
  'a bias of 3e38 on every key': { change: (p) => ofKeys(p.keyLength, () => Math.fround(3e38)) },
  'a relative table of lowest numbers': {
    options: { relative: 'distance' },
    change: (p) => ({ relative: p.relative && { ...p.relative, table: p.relative.table.map(() => LOWEST) } }),
  },
  'ALiBi slopes of 1e36': {
    options: { alibi: 'heads' },
    change: (p) => ({ alibi: p.alibi?.map(() => Math.fround(1e36)) }),
  },
  'a softcap of 1.3e-38': { options: { softcap: Math.fround(1.3e-38) }, change: () => ({}) },
  'a softcap of 2e37': { options: { softcap: Math.fround(2e37) }, change: () => ({}) },
  'a scale of 1.3e-38': { options: { scale: Math.fround(1.3e-38) }, change: () => ({}) },
  'a scale of 2e38 over products of zero': {
    options: { scale: Math.fround(2e38) },
    change: (p) => ({ key: p.key.map(() => 0) }),
  },
};

/** Within a few units of what the dtype resolves of the largest element of each result. */
function ensureNear(instance: Instance, dtype: CaseDType, found: Named): void {
  for (const [name, wanted] of Object.entries(solve(instance.problem, instance.dOut, instance.dLse))) {
    const error = maxError(found[name] ?? [], wanted);
    const size = magnitude(wanted, dtype === 'float32' ? 1 : 2 ** -10);
    const limit = dtype === 'float32' ? 2e-5 * size : name === 'lse' ? 2e-6 * size : 4 * ulp(size, dtype);
    ensure(error <= limit, `${name}: error ${error.toExponential(2)} > ${limit.toExponential(2)}`);
  }
}

const masks = (name: string, { options, change }: (typeof MASKS)[string], dtype: CaseDType): Check => ({
  name: `${name}, ${dtype}`,
  run(device) {
    const c: Case = { ...base, ...options, dtype };
    // Products of zero: beside such a bias float32 logits hold no others.
    const instance = changed(c, (p) => ({ query: p.query.map(() => 0), ...change(p, dtype) }));
    ensureNear(instance, dtype, runLibrary(instance, { ...c, device }));
  },
});

/** Of the same products for all keys, whatever their size: the mean of the values. */
const hugeProducts = (size: number, dtype: CaseDType): Check => ({
  name: `products of ${size} for every key, ${dtype}`,
  run(device) {
    const c: Case = { ...base, dtype };
    const root = Math.sqrt(Math.abs(size) / 4);
    const { problem, dOut } = changed(c, (p) => ({
      query: roundTo(
        p.query.map(() => Math.sign(size) * root),
        dtype,
      ),
      key: roundTo(
        p.key.map(() => root),
        dtype,
      ),
    }));
    const { out, lse, dValue, dQuery } = runLibrary({ problem, dOut }, { ...c, device });
    const exact = solve(problem, dOut);
    const tolerance = dtype === 'float32' ? 2e-5 : 2 ** -7;
    for (const [tensor, found, wanted] of [
      ['out', out, exact.out],
      ['dValue', dValue, exact.dValue],
    ] as const)
      ensure(maxError(found ?? [], wanted ?? []) <= tolerance * magnitude(wanted ?? []), `${tensor} is not the mean`);
    const logit = exact.lse?.[0] ?? NaN;
    ensure(lse?.every((x) => Math.abs(x / logit - 1) < 1e-6) ?? false, `lse is ${lse?.[0]}, not ${logit}`);
    ensure(dQuery?.every(Number.isFinite) ?? false, 'dQuery is not finite');
  },
});

/** Means of values near the ends of the range of float32, and one such value by itself, are what they are. */
const values = (size: number, dtype: CaseDType): Check => ({
  name: `values of ${size}, ${dtype}`,
  run(device) {
    const [value = NaN] = roundTo(Float64Array.of(size), dtype);
    for (const keyLength of [1, 67, 300]) {
      const c: Case = { ...base, dtype, keyLength, valueDim: 8 };
      const instance = changed(c, (p) => ({ value: p.value.map(() => value) }));
      const { out } = runLibrary(instance, { ...c, device, forwardOnly: true });
      const tolerance = (dtype === 'float32' ? 1e-5 : 2 ** -8) * Math.abs(value);
      const wrong = out?.find((x) => !(Math.abs(x - value) <= tolerance));
      ensure(out !== undefined && wrong === undefined, `out is ${wrong} where all ${keyLength} values are ${value}`);
    }
  },
});

// Gradients of any size -----------------------------------------------------------------------------------------------

/** Within a few units of what the dtype resolves: of the largest element, and of the smallest numbers it has. */
function ensureResolved(instance: Instance, dtype: LowDType, device: DeviceName, c: Case): void {
  const found = runLibrary(instance, { ...c, device });
  const exact = solve(instance.problem, instance.dOut, instance.dLse);
  for (const name of ['dQuery', 'dKey', 'dValue']) {
    const wanted = exact[name] ?? new Float64Array(0);
    const error = maxError(found[name] ?? [], wanted);
    const limit = 4 * ulp(magnitude(wanted, 0), dtype);
    ensure(error <= limit, `${name}: error ${error.toExponential(2)} > ${limit.toExponential(2)}`);
  }
}

const POWERS = [-20, -14, -8, 0, 5, 10, 13];

const scaledLosses = (dtype: LowDType): Check[] =>
  ([{}, { causal: true, softcap: 3 }, { dropout: { p: 0.5, seed: 3 } }] as const).flatMap((options) =>
    POWERS.map((power) => {
      const c: Case = { ...base, dtype, headDim: 64, queryLength: 70, keyLength: 130, ...options };
      return {
        name: `a loss scaled by 2^${power}${Object.keys(options).map((key) => `, ${key}`)}, ${dtype}`,
        run(device) {
          const instance = instantiate(c);
          // Small values leave room above for large gradients, so that only what lies between can overflow.
          const problem = {
            ...instance.problem,
            key: roundTo(
              instance.problem.key.map((x) => x / 16),
              dtype,
            ),
          };
          const dOut = roundTo(
            instance.dOut.map((x) => x * 2 ** power),
            dtype,
          );
          ensureResolved({ problem, dOut }, dtype, device, c);
        },
      };
    }),
  );

/** dS is 128,000, beyond float16; what is made of it is not. */
const largeGradients = (dtype: CaseDType): Check => ({
  name: `gradients that fit, of a dS that does not, ${dtype}`,
  run(device) {
    const dim = 64;
    const rows = (...sizes: number[]): Float64Array =>
      roundTo(
        Float64Array.from({ length: sizes.length * dim }, (_, n) => sizes[Math.floor(n / dim)] ?? NaN),
        dtype,
      );
    const instance: Instance = {
      problem: {
        layout: 'bshd',
        batch: 1,
        queryLength: 1,
        keyLength: 2,
        queryHeads: 1,
        kvHeads: 1,
        headDim: dim,
        valueDim: dim,
        query: rows(0.01),
        key: rows(0.01, -0.01),
        value: rows(4, -4),
      },
      dOut: rows(1000),
    };
    const failures = failuresIn(instance, dtype, runLibrary(instance, { dtype, device }));
    if (failures.length > 0) throw new CheckFailure(failures.join('; '));
  },
});

/** Probabilities of a sharp dropout are multiplied by more than float16 holds. */
const sharpDropout = (dtype: CaseDType): Check => ({
  name: `dropout that keeps one element of 100,000, ${dtype}`,
  run(device) {
    const dropout = { p: 0.99999, seed: 5 };
    const c: Case = { ...base, dtype, queryLength: 300, keyLength: 700, headDim: 16, dropout };
    const { problem, dOut } = changed(c, (p) => ({
      value: roundTo(
        p.value.map((x) => x / 8),
        dtype,
      ),
    }));
    const found = runLibrary({ problem, dOut }, { ...c, device });
    const exact = solve(problem, dOut);
    ensure(exact.out?.some((x) => x !== 0) ?? false, 'nothing is kept');
    for (const name of ['out', 'dValue', 'dQuery', 'dKey']) {
      const wanted = exact[name] ?? new Float64Array(0);
      const error = maxError(found[name] ?? [], wanted);
      ensure(error <= 2 ** -6 * magnitude(wanted), `${name}: error ${error.toExponential(2)}`);
    }
  },
});

export const rangeChecks = (): Check[] => [
  ...DTYPES.flatMap((dtype) => Object.entries(MASKS).map(([name, mask]) => masks(name, mask, dtype))),
  ...WIDE.flatMap((dtype) => [-1e30, 1e30, -1e6, 1e6].map((size) => hugeProducts(size, dtype))),
  ...WIDE.flatMap((dtype) => [1e38, -1e38, 1e-25].map((size) => values(size, dtype))),
  values(3.4e38, 'float32'),
  ...(['float16', 'bfloat16'] as const).flatMap(scaledLosses),
  ...DTYPES.map(largeGradients),
  ...DTYPES.map(sharpDropout),
];
