/** Lengths at the borders of tiles, and numbers at the ends of their range. */

import { type Case, type Instance, instantiate, roundTo } from '../cases/case.js';
import { failuresIn } from '../cases/check.js';
import { runLibrary } from '../cases/library.js';
import type { CaseDType } from '../cases/views.js';
import { magnitude } from '../oracle/compare.js';
import { type Check, CheckFailure, caseCheck, ensure, type Settings } from './check.js';
import { DTYPES } from './grid.js';

const LENGTHS = [1, 31, 32, 63, 64, 65, 127, 128, 129, 300];
const LARGE_LENGTHS = [511, 512, 513, 1000];

/** Queries and keys of different lengths, each length once on either side. */
export const lengthChecks = ({ large }: Settings): Check[] =>
  [...LENGTHS, ...(large ? LARGE_LENGTHS : [])].flatMap((queryLength, n, all) => {
    const keyLength = all[(n + 4) % all.length] as number;
    const dtype = DTYPES[n % DTYPES.length] as CaseDType;
    const causal = n % 2 === 1;
    const c: Case = { seed: n, layout: 'bshd', dtype, queryLength, keyLength, causal, headDim: 64 };
    return [caseCheck(`${queryLength} queries, ${keyLength} keys${causal ? ', causal' : ''}, ${dtype}`, c)];
  });

/** So many heads that every multiprocessor of a large device has work, which means larger tiles. */
export const occupancyChecks = ({ large }: Settings): Check[] =>
  !large
    ? []
    : DTYPES.flatMap((dtype, n) =>
        [32, 64, 96, 128, 192, 256].flatMap((headDim) => {
          const sizes = { batch: 12, kvHeads: 13, queryLength: 9, keyLength: 11 } as const;
          const c: Case = { seed: n, layout: 'bshd', ...sizes, dtype, headDim };
          return [
            caseCheck(`156 heads, ${dtype}, head dim ${headDim}`, c),
            caseCheck(`156 heads, causal, ${dtype}, head dim ${headDim}`, { ...c, causal: true }),
          ];
        }),
      );

const base = {
  seed: 400,
  layout: 'bshd',
  queryLength: 37,
  keyLength: 67,
  kvHeads: 2,
  headDim: 16,
  dLse: true,
} as const;

interface Extreme {
  readonly options?: Partial<Case>;
  /** 16-bit results are held to a reference that overflows where a result would. */
  readonly dtypes?: readonly CaseDType[];
  readonly change: (instance: Instance, dtype: CaseDType) => Instance;
}

/** Scales queries so that the largest logit is `size`. */
function withLogits({ problem: p, ...rest }: Instance, size: number, dtype: CaseDType): Instance {
  const largest = Math.sqrt(p.headDim) * magnitude(p.query) * magnitude(p.key);
  const query = p.query.map((x) => (x * size * Math.sqrt(p.headDim)) / largest);
  return { ...rest, problem: { ...p, query: roundTo(query, dtype) } };
}

const logits = (size: number, options: Partial<Case> = {}): Extreme => ({
  options,
  change: (instance, dtype) => withLogits(instance, size, dtype),
});

const EXTREMES: Readonly<Record<string, Extreme>> = {
  'logits up to 100': logits(100),
  'logits up to 1000, causal': logits(1000, { causal: true }),
  // For larger ones the log-sum-exp in float32 is coarser than the tolerance of gradients.
  'logits up to 3000': logits(3000),
  'logits up to 1000 with a sink': logits(1000, { sink: true }),
  'capped logits up to 1000': logits(1000, { softcap: 1000 }),
  'a bias of 10000 on all logits': {
    options: { bias: [false, false, false, false], wideExtras: true },
    dtypes: ['float32'],
    change: ({ problem: p, ...rest }) => {
      const values = p.bias?.values.map((x) => Math.fround(x + 1e4)) ?? new Float64Array(0);
      return { ...rest, problem: { ...p, ...(p.bias && { bias: { ...p.bias, values } }) } };
    },
  },
  'logits that rise and fall by thousands from one key tile to the next': {
    options: { keyLength: 300, bias: [true, true, true, false], sink: true, wideExtras: true },
    dtypes: ['float32'],
    change: ({ problem: p, ...rest }) => {
      const values = Float64Array.from({ length: 300 }, (_, j) => Math.fround(3000 * Math.sin(j / 20)));
      return { ...rest, problem: { ...p, bias: { shape: [1, 1, 1, 300], values } } };
    },
  },
  // What additions lose is then lost on one side: it shows which ones cut instead of rounding.
  'values of one sign over thousands of keys': {
    options: { queryLength: 9, keyLength: 3000, kvHeads: 1 },
    change: ({ problem: p, ...rest }, dtype) => ({
      ...rest,
      problem: {
        ...p,
        value: roundTo(
          p.value.map((x) => 0.6 + 0.3 * Math.abs(x)),
          dtype,
        ),
      },
    }),
  },
  'values near the largest float16': {
    dtypes: ['float16'],
    change: ({ problem: p, ...rest }) => ({
      ...rest,
      problem: { ...p, value: p.value.map((x) => (x < 0 ? -60_000 : 60_000)) },
      dOut: rest.dOut.map(() => 0),
    }),
  },
};

const extremeChecks = (settings: Settings): Check[] =>
  Object.entries(EXTREMES).flatMap(([name, { options, dtypes = DTYPES, change }]) =>
    dtypes.map((dtype) => ({
      name: `${name}, ${dtype}`,
      run(device) {
        // Tensor cores cut.
        settings.emulator?.configure({ cutSums: true });
        const c: Case = { ...base, ...options, dtype };
        const instance = change(instantiate(c), dtype);
        const failures = failuresIn(instance, dtype, runLibrary(instance, { ...c, device }));
        if (failures.length > 0) throw new CheckFailure(failures.join('; '));
      },
    })),
  );

const subnormal: Check = {
  name: 'subnormal float16 values are numbers like all others',
  run(device) {
    const instance = instantiate({ ...base, dtype: 'float16' });
    const tiny = 777 * 2 ** -24;
    const problem = { ...instance.problem, value: instance.problem.value.map(() => tiny) };
    const { out } = runLibrary({ ...instance, problem }, { dtype: 'float16', device, forwardOnly: true });
    ensure(
      out?.every((x) => x === tiny) ?? false,
      `out is ${out?.find((x) => x !== tiny)} where all values are ${tiny}`,
    );
  },
};

const sinks = (dtype: CaseDType): Check => ({
  name: `a sink of -Infinity is no sink and a huge one takes everything, ${dtype}`,
  run(device) {
    const instance = instantiate({ ...base, dtype, sink: true });
    const run = (sink: number | undefined) => {
      const { sink: given, ...problem } = instance.problem;
      const sinks_ = sink === undefined ? undefined : given?.map(() => sink);
      return runLibrary({ ...instance, problem: { ...problem, sink: sinks_ } }, { dtype, device, deterministic: true });
    };
    const [none, absent, huge] = [run(undefined), run(-Infinity), run(1024)];
    for (const [name, values] of Object.entries(none))
      ensure(absent[name]?.every((x, n) => x === values[n]) ?? false, `${name} is another with a sink of -Infinity`);
    ensure(absent.dSink?.every((x) => x === 0) ?? false, 'a sink of -Infinity has a gradient');
    ensure(huge.out?.every((x) => x === 0) ?? false, 'a huge sink leaves something in out');
    ensure(huge.lse?.every((x) => x === 1024) ?? false, 'lse is not the huge sink');
  },
});

export const numberChecks = (settings: Settings): Check[] => [
  ...extremeChecks(settings),
  subnormal,
  ...DTYPES.map(sinks),
];

const nothing: Readonly<Record<string, Partial<Case>>> = {
  'no keys': { batch: 2, queryLength: 5, keyLength: 0 },
  'no queries': { batch: 2, queryLength: 0, keyLength: 5 },
  'no batch': { batch: 0, queryLength: 5, keyLength: 5 },
  'no real lengths': { batch: 2, queryLength: 5, keyLength: 5, qLens: [0, 0], kLens: [0, 0] },
  'packed, every sequence empty': { layout: 'varlen', qLens: [0, 0], kLens: [0, 0] },
  'packed, no keys': { layout: 'varlen', qLens: [3, 4], kLens: [0, 0] },
  'packed, no queries': { layout: 'varlen', qLens: [0, 0], kLens: [3, 4] },
  'packed, no sequences': { layout: 'varlen', qLens: [], kLens: [] },
  'packed, empty at both ends': { layout: 'varlen', qLens: [0, 70, 0], kLens: [0, 35, 0], causal: true },
  'packed, many tiny ones': {
    layout: 'varlen',
    qLens: Array.from({ length: 40 }, (_, n) => n % 3),
    kLens: Array.from({ length: 40 }, (_, n) => n % 4),
  },
};

export const emptyChecks = (): Check[] =>
  Object.entries(nothing).map(([name, sizes], n) => {
    const dtype = DTYPES[n % DTYPES.length] as CaseDType;
    return caseCheck(`${name}, ${dtype}`, { ...base, dtype, relative: 'distance', sink: true, ...sizes });
  });
