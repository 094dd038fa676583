/** Random cases for fast-check. Data come from a seed, so that a case stays small and shrinks fast. */
import fc from 'fast-check';
import type { LowDType } from '../oracle/float16.js';
import { SCORE_MOD_KINDS } from '../oracle/scoreMods.js';
import type { BroadcastAxes, Case } from './case.js';
import { VIEW_KINDS } from './views.js';

/** Lengths around the borders of every tile size, and small ones. */
const length = fc.oneof(
  { withCrossShrink: true },
  { weight: 6, arbitrary: fc.integer({ min: 1, max: 20 }) },
  { weight: 3, arbitrary: fc.constantFrom(3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33) },
  { weight: 2, arbitrary: fc.constantFrom(48, 63, 64, 65, 66, 96, 127, 128, 129, 150) },
);
const headDim = fc.oneof(
  { withCrossShrink: true },
  { weight: 4, arbitrary: fc.integer({ min: 1, max: 20 }) },
  { weight: 3, arbitrary: fc.constantFrom(16, 31, 32, 33, 48, 64, 65) },
  { weight: 1, arbitrary: fc.constantFrom(80, 96, 100, 128, 129, 160, 192, 193, 250, 255, 256) },
);

function optional<T>(arbitrary: fc.Arbitrary<T>, weight: number): fc.Arbitrary<T | undefined> {
  return fc.option(arbitrary, { nil: undefined, freq: weight });
}

const side = fc.oneof(fc.constant(-1), fc.integer({ min: 0, max: 12 }), fc.integer({ min: 13, max: 140 }));
const axes: fc.Arbitrary<BroadcastAxes> = fc.tuple(fc.boolean(), fc.boolean(), fc.boolean(), fc.boolean());
const kind = fc.constantFrom(...VIEW_KINDS);

/** Everything that dense and packed problems have in common. fc.option keeps the value in `freq` of freq + 1 cases. */
const common = {
  seed: fc.integer({ min: 0, max: 999_999 }),
  kvHeads: fc.integer({ min: 1, max: 3 }),
  group: fc.integer({ min: 1, max: 3 }),
  headDim,
  valueDim: optional(headDim, 1),
  scale: optional(fc.constantFrom(0.05, 0.3, 0.7, -0.2), 1),
  causal: fc.boolean(),
  align: fc.constantFrom('bottomRight' as const, 'topLeft' as const),
  offset: fc.option(fc.integer({ min: -40, max: 160 }), { nil: undefined, freq: 1 }),
  window: optional(fc.tuple(side, side), 1),
  softcap: optional(fc.constantFrom(0.8, 3, 30), 1),
  bias: optional(axes, 1),
  biasHides: fc.boolean(),
  alibi: optional(fc.constantFrom('heads' as const, 'batch' as const), 1),
  relative: optional(fc.constantFrom('distance' as const, 'positions' as const), 1),
  scoreMod: fc.option(fc.constantFrom(...SCORE_MOD_KINDS), { nil: undefined, freq: 1 }),
  sink: fc.boolean(),
  dropout: optional(fc.record({ p: fc.constantFrom(0.1, 0.37, 0.5, 0.9), seed: fc.maxSafeNat() }), 1),
  dLse: fc.boolean(),
  deterministic: fc.boolean(),
  wideExtras: fc.boolean(),
  views: optional(fc.tuple(kind, kind, kind, kind), 1),
} as const;

/** Query-key pairs over all heads, and multiplications, that a case may cost: the oracle is plain JavaScript. */
const PAIR_BUDGET = 30_000;
const PRODUCT_BUDGET = 1_500_000;

type Draft = Omit<Case, 'valueDim' | 'kvHeads' | 'group'> & { valueDim: number; kvHeads: number; group: number };

function pairsOf(c: Draft): number {
  const lengths =
    c.qLens && c.kLens && c.layout === 'varlen' ? c.qLens.map((n, s) => n * (c.kLens?.[s] ?? 0)) : undefined;
  const pairs = lengths
    ? lengths.reduce((a, b) => a + b, 0)
    : (c.batch ?? 1) * (c.queryLength ?? 1) * (c.keyLength ?? 1);
  return pairs * c.kvHeads * c.group;
}

/** Cuts heads, batch and dims down until the case fits the budget. */
function affordable(c: Draft): Case {
  const shrink: ((c: Draft) => Draft)[] = [
    (d) => ({ ...d, group: 1 }),
    (d) => ({ ...d, kvHeads: 1 }),
    (d) =>
      d.layout === 'varlen'
        ? { ...d, qLens: d.qLens?.slice(0, 2) ?? [], kLens: d.kLens?.slice(0, 2) ?? [] }
        : { ...d, batch: 1 },
    (d) => ({ ...d, headDim: Math.min(d.headDim, 40), valueDim: Math.min(d.valueDim, 40) }),
  ];
  let result = c;
  for (const step of shrink) {
    const pairs = pairsOf(result);
    if (pairs <= PAIR_BUDGET && pairs * (result.headDim + result.valueDim) <= PRODUCT_BUDGET) break;
    result = step(result);
  }
  return result;
}

/** Without the options that are off, so that a printed case is short. */
function compact(c: Case): Case {
  const entries = Object.entries(c).filter(([, value]) => value !== undefined && value !== false);
  return Object.fromEntries(entries) as unknown as Case;
}

function finish(draft: Omit<Draft, 'valueDim'> & { valueDim?: number | undefined }): Case {
  const c = affordable({ ...draft, valueDim: draft.valueDim ?? draft.headDim });
  const { bias, biasHides, wideExtras, dtype } = c;
  return compact({
    ...c,
    biasHides: Boolean(bias && biasHides),
    wideExtras: Boolean(wideExtras && dtype && dtype !== 'float32'),
  });
}

/** Real lengths, one for each of the batch entries, some of them zero. */
function realLengths(batch: number, padded: number): fc.Arbitrary<number[] | undefined> {
  return optional(fc.array(fc.integer({ min: 0, max: padded }), { minLength: batch, maxLength: batch }), 1);
}

export function denseCases(dtype: 'float32' | LowDType): fc.Arbitrary<Case> {
  return fc
    .record({
      ...common,
      dtype: fc.constant(dtype),
      layout: fc.constantFrom('bshd' as const, 'bhsd' as const),
      batch: fc.integer({ min: 1, max: 3 }),
      queryLength: length,
      keyLength: length,
    })
    .chain((draft) =>
      fc.record({
        draft: fc.constant(draft),
        qLens: realLengths(draft.batch, draft.queryLength),
        kLens: realLengths(draft.batch, draft.keyLength),
      }),
    )
    .map(({ draft, qLens, kLens }) => {
      const c = finish(draft as Draft);
      const cut = (lengths: number[] | undefined): { lens?: number[] } =>
        lengths ? { lens: lengths.slice(0, c.batch) } : {};
      const [q, k] = [cut(qLens).lens, cut(kLens).lens];
      return { ...c, ...(q && { qLens: q }), ...(k && { kLens: k }) };
    });
}

export function packedCases(dtype: 'float32' | LowDType): fc.Arbitrary<Case> {
  const sequence = fc.record({
    q: fc.oneof({ weight: 1, arbitrary: fc.constant(0) }, { weight: 5, arbitrary: length }),
    k: fc.oneof({ weight: 1, arbitrary: fc.constant(0) }, { weight: 5, arbitrary: length }),
  });
  return fc
    .record({
      ...common,
      dtype: fc.constant(dtype),
      layout: fc.constant('varlen' as const),
      // The first sequence is never empty: a tensor without elements is a case of its own.
      first: fc.record({ q: length, k: length }),
      others: fc.array(sequence, { maxLength: 4 }),
      /** Which share of the keys of each sequence is real. */
      used: fc.option(fc.constantFrom(0, 0.4, 0.9), { nil: undefined, freq: 1 }),
    })
    .map(({ first, others, used, ...draft }) => {
      const sequences = [first, ...others];
      const c = finish({ ...draft, qLens: sequences.map(({ q }) => q), kLens: sequences.map(({ k }) => k) } as Draft);
      return used === undefined ? c : { ...c, usedK: c.kLens?.map((length) => Math.floor(length * used)) ?? [] };
    });
}
