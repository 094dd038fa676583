/** Makes a failing case as simple as it gets: fewer options first, then smaller sizes. */
import type { Case } from './case.js';

const OPTIONS = [
  'blockMask',
  'views',
  'dLse',
  'deterministic',
  'wideExtras',
  'dropout',
  'scoreMod',
  'relative',
  'alibi',
  'biasHides',
  'bias',
  'softcap',
  'window',
  'sink',
  'causal',
  'align',
  'offset',
  'scale',
  'qLens',
  'kLens',
  'usedQ',
  'usedK',
] as const satisfies readonly (keyof Case)[];

const DIMS = ['headDim', 'valueDim'] as const;
const SIZES = ['batch', 'kvHeads', 'group', 'queryLength', 'keyLength', ...DIMS] as const;

function without(c: Case, option: (typeof OPTIONS)[number]): Case {
  const { [option]: _, ...rest } = c;
  return rest;
}

/** 1, a half, and one less. */
function smaller(n: number): number[] {
  return [1, Math.floor(n / 2), n - 1].filter((m) => m >= 1 && m < n);
}

/** Dense problems keep one real length per batch entry, none of them beyond the padded length. */
function resize(c: Case, size: (typeof SIZES)[number], n: number): Case {
  const resized = { ...c, [size]: n };
  const fit = (lengths: readonly number[], limit: number): number[] =>
    lengths.slice(0, resized.batch ?? 1).map((length) => Math.min(length, limit));
  return {
    ...resized,
    ...(c.qLens && { qLens: fit(c.qLens, resized.queryLength ?? 1) }),
    ...(c.kLens && { kLens: fit(c.kLens, resized.keyLength ?? 1) }),
  };
}

/** No sequence uses more than it has. */
function fitUsed(c: Case): Case {
  const fit = (used: readonly number[], lengths: readonly number[] = []) =>
    used.slice(0, lengths.length).map((n, s) => Math.min(n, lengths[s] ?? 0));
  return {
    ...c,
    ...(c.usedQ && { usedQ: fit(c.usedQ, c.qLens) }),
    ...(c.usedK && { usedK: fit(c.usedK, c.kLens) }),
  };
}

function* simplerSequences(c: Case): Generator<Case> {
  const [qLens = [], kLens = []] = [c.qLens, c.kLens];
  const drop = (lengths: readonly number[], s: number): number[] => lengths.toSpliced(s, 1);
  for (const s of qLens.keys()) {
    if (qLens.length > 1) yield fitUsed({ ...c, qLens: drop(qLens, s), kLens: drop(kLens, s) });
    for (const n of smaller(qLens[s] ?? 0)) yield fitUsed({ ...c, qLens: qLens.with(s, n) });
    for (const n of smaller(kLens[s] ?? 0)) yield fitUsed({ ...c, kLens: kLens.with(s, n) });
  }
}

function* simpler(c: Case): Generator<Case> {
  const packed = c.layout === 'varlen';
  for (const option of OPTIONS) {
    if (packed && (option === 'qLens' || option === 'kLens')) continue;
    if (c[option] !== undefined) yield without(c, option);
  }
  // A mask is made for its lengths and heads.
  if (packed && !c.blockMask) yield* simplerSequences(c);
  for (const size of c.blockMask ? DIMS : SIZES) {
    for (const n of smaller(c[size] ?? 1)) yield packed ? { ...c, [size]: n } : resize(c, size, n);
  }
}

/** The simplest case found within `attempts` tries that still fails. */
export function shrink(failing: Case, fails: (c: Case) => boolean, attempts = 500): Case {
  let best = failing;
  let left = attempts;
  for (let improved = true; improved && left > 0; ) {
    improved = false;
    for (const candidate of simpler(best)) {
      if (left-- <= 0) break;
      if (!fails(candidate)) continue;
      best = candidate;
      improved = true;
      break;
    }
  }
  return best;
}
