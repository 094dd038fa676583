/** Numbers in memory that must not be read, written or seen, and numbers that must be. */
import { type DeviceName, type Tensor, tensor, zeros } from 'flashattn';
import { type Case, type Instance, instantiate } from '../cases/case.js';
import { failuresIn } from '../cases/check.js';
import { LibraryProblem, type RunOptions, runLibrary, type Side } from '../cases/library.js';
import { compiledMask } from '../cases/maskCases.js';
import { patternFailures, poisoned } from '../cases/poison.js';
import type { CaseDType } from '../cases/views.js';
import { VIEW_KINDS } from '../cases/views.js';
import type { Layout } from '../oracle/problem.js';
import { normal } from '../oracle/random.js';
import { type Check, CheckFailure, ensure } from './check.js';
import { DTYPES, HEAD_DIMS } from './grid.js';

type Bits = Record<string, Buffer>;

function bitsOf(instance: Instance, run: RunOptions): Bits {
  const problem = new LibraryProblem(instance, run);
  try {
    return problem.results((t) => Buffer.from(t.dataSync().buffer));
  } finally {
    problem.dispose();
  }
}

function ensureSameBits(actual: Bits, expected: Bits, where: string): void {
  for (const [name, bits] of Object.entries(expected))
    ensure(actual[name]?.equals(bits) ?? false, `${name} is another with ${where}`);
}

const LAYOUTS: readonly Layout[] = ['bshd', 'bhsd', 'varlen'];

/** A case in each layout. */
function caseOf(layout: Layout, rest: Partial<Case> = {}): Case {
  const sizes = layout === 'varlen' ? { qLens: [19, 0, 18], kLens: [37, 5, 31] } : { queryLength: 37, keyLength: 67 };
  return { seed: 400, layout, group: 2, headDim: 13, valueDim: 21, deterministic: true, ...sizes, ...rest };
}

const around = (layout: Layout, dtype: CaseDType): Check => ({
  name: `NaN around inputs, ${layout}, ${dtype}`,
  run(device) {
    const c = caseOf(layout, { dtype, kvHeads: 2, causal: true });
    const instance = instantiate(c);
    const plain = bitsOf(instance, { ...c, device });
    for (const kind of VIEW_KINDS)
      ensureSameBits(bitsOf(instance, { ...c, device, views: [kind, kind, kind, kind] }), plain, `inputs ${kind}`);
  },
});

/** Holes between guards, as large as the results, so that results come to lie between guards. */
function withGuards(sizes: readonly number[], device: DeviceName, dtype: CaseDType, run: () => void): void {
  const pattern = Float32Array.from(normal(64, 3));
  const holes: Tensor[] = [];
  const guards: Tensor[] = [];
  try {
    for (const size of sizes) {
      holes.push(zeros([size], { dtype, device }));
      guards.push(tensor(pattern, [pattern.length], { device }));
    }
    for (const hole of holes.splice(0)) hole.dispose();
    run();
    for (const [n, guard] of guards.entries())
      ensure(
        guard.toFloat32Sync().every((x, i) => x === pattern[i]),
        `memory around the results was written: guard ${n}`,
      );
  } finally {
    for (const t of [...holes, ...guards]) t.dispose();
  }
}

const guarded = (dtype: CaseDType): Check => ({
  name: `guards around results, ${dtype}`,
  run(device) {
    const c = caseOf('bhsd', {
      dtype,
      bias: [false, true, false, false],
      sink: true,
      relative: 'distance',
      dLse: true,
    });
    const instance = instantiate(c);
    const { query, key, value } = instance.problem;
    const sizes = [query.length, key.length, value.length, instance.dOut.length, instance.dLse?.length ?? 0, 4];
    let first: Bits | undefined;
    withGuards([...sizes, ...sizes, ...sizes], device, dtype, () => {
      first = bitsOf(instance, { ...c, device });
    });
    ensureSameBits(bitsOf(instance, { ...c, device }), first ?? {}, 'other memory');
  },
});

type Spot = readonly [side: Side | 'dLse', batch: number, rows: readonly [begin: number, end: number]];

function poison({ problem: p, dOut, dLse }: Instance, spots: readonly Spot[], value: number): Instance {
  let instance: Instance = { problem: p, dOut, dLse };
  for (const [side, b, rows] of spots) {
    const { problem } = instance;
    if (side === 'dLse') {
      const perBatch = p.queryHeads * p.queryLength;
      const hit = (n: number) => {
        const i = n % p.queryLength;
        return Math.floor(n / perBatch) === b && i >= rows[0] && i < rows[1];
      };
      instance = { ...instance, dLse: instance.dLse?.map((x, n) => (hit(n) ? value : x)) };
    } else if (side === 'out') {
      instance = { ...instance, dOut: poisoned(p, 'out', instance.dOut, b, rows, value) };
    } else {
      instance = { ...instance, problem: { ...problem, [side]: poisoned(p, side, problem[side], b, rows, value) } };
    }
  }
  return instance;
}

const hideOneKey = ({ problem, ...rest }: Instance): Instance => {
  const [, , , keys] = problem.bias?.shape ?? [0, 0, 0, 0];
  const values = Float64Array.from({ length: keys }, (_, j) => (j % 7 === 3 ? -Infinity : (j % 5) / 4));
  return { ...rest, problem: { ...problem, bias: { shape: [1, 1, 1, keys], values } } };
};

interface Hidden {
  readonly options: Partial<Case>;
  readonly spots: readonly Spot[];
  readonly prepare?: (instance: Instance) => Instance;
}

const everyTerm = {
  softcap: 4,
  bias: [false, false, false, false],
  alibi: 'heads',
  relative: 'distance',
  sink: true,
} as const;

/** Nobody sees these rows. Two batch entries of 37 queries and 67 keys. */
const HIDDEN: Readonly<Record<string, Hidden>> = {
  'keys and values beyond their length': {
    options: { kLens: [67, 34] },
    spots: [
      ['key', 1, [34, 67]],
      ['value', 1, [34, 67]],
    ],
  },
  'keys and values beyond their length, every term': {
    options: { kLens: [67, 34], causal: true, ...everyTerm },
    spots: [
      ['key', 1, [34, 67]],
      ['value', 1, [34, 67]],
    ],
  },
  'keys and values above the diagonal': {
    options: { causal: true, align: 'topLeft' },
    spots: [
      ['key', 0, [37, 67]],
      ['value', 0, [37, 67]],
    ],
  },
  'keys and values outside of every window': {
    options: { window: [3, 6], align: 'topLeft' },
    spots: [
      ['key', 0, [44, 67]],
      ['value', 0, [44, 67]],
    ],
  },
  'keys and values that the bias hides': {
    options: { bias: [true, true, true, false], causal: true },
    spots: [
      ['key', 1, [31, 32]],
      ['value', 1, [3, 4]],
    ],
    prepare: hideOneKey,
  },
  'keys and values that the block mask hides': {
    options: {
      blockMask: { expression: { kind: 'not', part: { kind: 'fixed', stride: 8, summary: 2 } }, blockSize: 64 },
    },
    spots: [
      ['key', 0, [6, 8]],
      ['value', 0, [14, 16]],
    ],
  },
  'queries and output gradients beyond their length': {
    options: { qLens: [37, 18], dLse: true },
    spots: [
      ['query', 1, [18, 37]],
      ['out', 1, [18, 37]],
      ['dLse', 1, [18, 37]],
    ],
  },
  'queries and output gradients of rows without keys': {
    options: { queryLength: 67, keyLength: 37, causal: true },
    spots: [
      ['query', 0, [0, 30]],
      ['out', 0, [0, 30]],
    ],
  },
};

const POISONS = [NaN, Infinity, -Infinity];

const hidden = (what: string, { options, spots, prepare }: Hidden, dtype: CaseDType, headDim: number): Check => ({
  name: `NaN and infinity in ${what}, ${dtype}, head dim ${headDim}`,
  run(device) {
    const c = caseOf('bshd', { dtype, batch: 2, headDim, valueDim: headDim, ...options });
    const drawn = instantiate(c);
    const instance = prepare ? prepare(drawn) : drawn;
    const mask = c.blockMask && compiledMask(c, c.blockMask);
    for (const value of POISONS) {
      const bad = poison(instance, spots, value);
      const failures = failuresIn(bad, dtype, runLibrary(bad, { dtype, device, mask, deterministic: true }));
      if (failures.length > 0) throw new CheckFailure(`${value} leaks: ${failures.join('; ')}`);
    }
  },
});

const MASKS: Readonly<Record<string, Partial<Case>>> = {
  everyone: {},
  'a causal mask': { causal: true },
  'a causal window': { causal: true, window: [33, 0] },
  'a hiding bias': { bias: [true, true, false, false], biasHides: true },
  'a block mask': { blockMask: { expression: { kind: 'strided', step: 2 }, blockSize: 64 } },
  'a causal mask and every term': { causal: true, ...everyTerm },
};

const SEEN: Readonly<Record<string, Spot>> = {
  key: ['key', 0, [41, 42]],
  value: ['value', 0, [41, 42]],
  query: ['query', 0, [17, 18]],
  'output gradient': ['out', 0, [17, 18]],
};

const TOLERANCE: Readonly<Record<CaseDType, number>> = { float32: 1e-4, float16: 8e-3, bfloat16: 6e-2 };

const seen = (mask: string, options: Partial<Case>, dtype: CaseDType, headDim: number): Check => ({
  name: `NaN that ${mask} shows reaches those rows and no other, ${dtype}, head dim ${headDim}`,
  run(device) {
    const c = caseOf('bhsd', { dtype, headDim, valueDim: headDim, ...options });
    const instance = instantiate(c);
    const run = { dtype, device, mask: c.blockMask && compiledMask(c, c.blockMask), deterministic: true };
    for (const [where, spot] of Object.entries(SEEN)) {
      const bad = poison(instance, [spot], NaN);
      const actual = runLibrary(bad, run);
      const failures = patternFailures(bad, actual, TOLERANCE[dtype]);
      if (failures.length > 0) throw new CheckFailure(`NaN in one ${where}: ${failures.join('; ')}`);
      ensure(
        Object.values(actual).some((values) => values.some(Number.isNaN)),
        `NaN in one ${where} was lost`,
      );
    }
  },
});

/** All pairs of `rows` and dtypes, the buckets in turn: every dtype meets every bucket. */
function spread<T>(
  rows: Readonly<Record<string, T>>,
  make: (name: string, row: T, dtype: CaseDType, headDim: number) => Check,
): Check[] {
  const dims = Object.keys(HEAD_DIMS).map(Number);
  return Object.entries(rows).flatMap(([name, row], r) =>
    DTYPES.map((dtype, d) => make(name, row, dtype, dims[(r + 2 * d) % dims.length] as number)),
  );
}

export const canaryChecks = (): Check[] => [
  ...LAYOUTS.flatMap((layout) => DTYPES.map((dtype) => around(layout, dtype))),
  ...DTYPES.map(guarded),
  ...spread(HIDDEN, hidden),
  ...spread(MASKS, seen),
];
