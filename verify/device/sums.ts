/** Sums over very many keys: what they lose must not grow with the number of their terms. */
import type { CaseDType, Instance } from '../cases/case.js';
import { type RunOptions, runLibrary } from '../cases/library.js';
import type { Problem } from '../oracle/problem.js';
import { uniform } from '../oracle/random.js';
import { solve } from '../oracle/sensitivity.js';
import { type Check, ensure, type Settings } from './check.js';
import { DTYPES } from './grid.js';

const KEYS = 131_072;
/** Of the checks whose references go through all pairs. */
const ALL_PAIRS = 20_000;
/** Of results in float32: what the rounding of one lse leaves of a probability. */
const EXACT = 2e-6;

/** One head of dim 1 whose queries are all `query` and whose keys are all 1. */
function problem(keys: number, query: number, value: (j: number) => number, queries = 1): Problem {
  return {
    layout: 'bshd',
    batch: 1,
    queryLength: queries,
    keyLength: keys,
    queryHeads: 1,
    kvHeads: 1,
    headDim: 1,
    valueDim: 1,
    scale: 1,
    query: new Float64Array(queries).fill(query),
    key: new Float64Array(keys).fill(1),
    value: Float64Array.from({ length: keys }, (_, j) => value(j)),
  };
}

const ofAll = (p: Problem, dOut: number): Instance => ({
  problem: p,
  dOut: new Float64Array(p.queryLength).fill(dOut),
});

/** Race checks are for other problems: here they would cost minutes. */
function run(settings: Settings, instance: Instance, options: RunOptions): Readonly<Record<string, Float64Array>> {
  settings.emulator?.configure({ races: false, globalRaces: false, bankConflicts: false });
  try {
    return runLibrary(instance, options);
  } finally {
    settings.emulator?.configure({ races: true, globalRaces: true, bankConflicts: true });
  }
}

function ensureEach(name: string, found: Float64Array | undefined, exact: number, tolerance: number): void {
  ensure(found !== undefined && found.length > 0, `${name} is missing`);
  const wrong = found.find((x) => !(Math.abs(x - exact) <= tolerance * Math.abs(exact)));
  ensure(wrong === undefined, `${name} is ${wrong}, not ${exact}`);
}

const equalKeys = (settings: Settings, dtype: CaseDType): Check => ({
  name: `${KEYS} equal keys of which half have a value of 1, ${dtype}`,
  run(device) {
    const instance = ofAll(
      problem(KEYS, 0, (j) => (j < KEYS / 2 ? 1 : 0)),
      1,
    );
    const { out, lse } = run(settings, instance, { device, dtype, forwardOnly: true });
    ensureEach('out', out, 0.5, dtype === 'float32' ? 1e-6 : 0);
    ensureEach('lse', lse, Math.log(KEYS), 1e-6);
  },
});

/** Of exponentials that are no powers of two every addition rounds, and always to the same side. */
const unevenKeys = (settings: Settings, dtype: CaseDType): Check => ({
  name: `${KEYS} keys of equal weight behind one of more, ${dtype}`,
  run(device) {
    const p = problem(KEYS, -0.375, () => 1);
    p.key[0] = 0;
    const { out, lse } = run(settings, ofAll(p, 1), { device, dtype, forwardOnly: true });
    ensureEach('out', out, 1, dtype === 'bfloat16' ? 2 ** -8 : dtype === 'float16' ? 2 ** -10 : 5e-6);
    ensureEach('lse', lse, Math.log(1 + (KEYS - 1) * Math.exp(-0.375)), 1e-6);
  },
});

/**
 * A sink that takes half of every row: P = 1 / 2N, out = 1/4, delta = 1/4 and dS = P (v - 1/4), whose sum over a row is
 * 1/8. Everything that is summed over pairs is then a multiple of it.
 */
const sumsOfGradients = (settings: Settings, dtype: CaseDType, keys: number): Check => ({
  name: `gradients summed over ${keys} keys, ${dtype}`,
  run(device) {
    const queries = 3;
    const p: Problem = {
      ...problem(keys, 0, (j) => (j < keys / 2 ? 1 : 0), queries),
      sink: Float64Array.of(Math.fround(Math.log(keys))),
      bias: { shape: [1, 1, 1, 1], values: Float64Array.of(0) },
      relative: {
        table: Float64Array.of(0),
        bucketCount: 1,
        buckets: new Int32Array(keys + queries),
        origin: queries,
      },
    };
    const results = run(settings, ofAll(p, 1), { device, dtype, wideExtras: true });
    // P and dS are rounded to 16 bits before products, and are the same for many keys.
    const rounded = dtype === 'float32' ? EXACT : dtype === 'float16' ? 2 ** -10 : 2 ** -7;
    ensureEach('out', results.out, 0.25, rounded);
    ensureEach('lse', results.lse, Math.log(2 * keys), 1e-6);
    ensureEach('dBias', results.dBias, queries / 8, EXACT);
    ensureEach('dRelativeBias', results.dRelativeBias, queries / 8, EXACT);
    ensureEach('dSink', results.dSink, -queries / 8, EXACT);
    ensureEach('dQuery', results.dQuery, 1 / 8, rounded);
    ensureEach('dValue', results.dValue, queries / (2 * keys), rounded);
  },
});

/** Positive numbers of every size: what is lost of a sum of them is lost on one side. Against float64. */
const positiveValues = (settings: Settings): Check => ({
  name: `sums of positive numbers over ${ALL_PAIRS} keys and queries, float32`,
  run(device) {
    for (const [queries, keys] of [
      [2, ALL_PAIRS],
      [ALL_PAIRS, 2],
    ] as const) {
      const next = uniform(keys);
      const draw = (count: number) => Float64Array.from({ length: count }, () => Math.fround(0.5 + next()));
      const p: Problem = {
        ...problem(keys, 0, () => 1, queries),
        query: draw(queries),
        key: draw(keys),
        value: draw(keys),
      };
      const instance: Instance = { problem: p, dOut: draw(queries) };
      const found = run(settings, instance, { device, dtype: 'float32' });
      const exact = solve(p, instance.dOut);
      for (const name of ['out', 'dValue'] as const) {
        const error = relativeError(found[name] as Float64Array, exact[name] as Float64Array);
        ensure(error <= SUMMED, `${name} is off by ${error} of its norm with ${queries} queries, ${keys} keys`);
      }
    }
  },
});

/** Sums in float32 that are rounded some hundred times. */
const SUMMED = 1e-6;

/** ||found - exact|| / ||exact|| */
function relativeError(found: Float64Array, exact: Float64Array): number {
  let difference = 0;
  let size = 0;
  for (const [i, x] of exact.entries()) {
    difference += ((found[i] as number) - x) ** 2;
    size += x ** 2;
  }
  return Math.sqrt(difference / size);
}

export const sumChecks = (settings: Settings): Check[] => [
  ...DTYPES.flatMap((dtype) => [
    equalKeys(settings, dtype),
    unevenKeys(settings, dtype),
    sumsOfGradients(settings, dtype, settings.emulator ? KEYS / 4 : KEYS),
  ]),
  positiveValues(settings),
];
