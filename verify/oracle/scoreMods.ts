/** Functions that replace scores, as plain arithmetic in float64 with their derivatives: what `scoreMod` is held against. */

/** What a function looks up. */
export interface ScoreTable {
  readonly values: Float64Array;
  readonly shape: readonly number[];
  readonly dtype: 'float32' | 'int32';
}

type OfScore = (score: number, b: number, h: number, i: number, j: number) => number;

export interface ScoreMod {
  readonly kind: ScoreModKind;
  readonly tables: readonly ScoreTable[];
  readonly value: OfScore;
  /** Its derivative by the score. */
  readonly slope: OfScore;
}

const kinds = ['relative', 'slopes', 'softcap', 'documents', 'table'] as const;
export type ScoreModKind = (typeof kinds)[number];
export const SCORE_MOD_KINDS: readonly ScoreModKind[] = kinds;

/** What tables are made for, and where their numbers come from. */
export interface ScoreModSizes {
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
  readonly data: (size: number) => Float64Array;
  /** From 0 to below 1. */
  readonly next: () => number;
}

const flat: OfScore = () => 1;

/** Which document each position is in, in their order. */
function documents(length: number, next: () => number): Float64Array {
  let document = 0;
  return Float64Array.from({ length }, () => {
    if (next() < 0.15) document++;
    return document;
  });
}

export function scoreModOf(kind: ScoreModKind, { heads, queries, keys, data, next }: ScoreModSizes): ScoreMod {
  if (kind === 'relative')
    return { kind, tables: [], value: (score, _b, _h, i, j) => score + 0.125 * (j - i), slope: flat };
  if (kind === 'softcap')
    return {
      kind,
      tables: [],
      value: (score) => 1.5 * Math.tanh(score / 1.5),
      slope: (score) => 1 - Math.tanh(score / 1.5) ** 2,
    };
  if (kind === 'slopes') {
    const slopes: ScoreTable = { values: data(heads).map((x) => Math.abs(x) / 4), shape: [heads], dtype: 'float32' };
    const table = { ...slopes, values: slopes.values.map(Math.fround) };
    const value: OfScore = (score, _b, h, i, j) => score - (table.values[h] as number) * Math.abs(i - j);
    return { kind, tables: [table], value, slope: flat };
  }
  if (kind === 'documents') {
    const length = Math.max(1, queries, keys);
    const ids = documents(length, next);
    const same = (i: number, j: number) => ids[i] === ids[j];
    return {
      kind,
      tables: [{ values: ids, shape: [length], dtype: 'int32' }],
      value: (score, _b, _h, i, j) => (same(i, j) ? score : -Infinity),
      slope: (_score, _b, _h, i, j) => (same(i, j) ? 1 : 0),
    };
  }
  const [rows, columns] = [Math.max(1, queries), Math.max(1, keys)];
  const values = data(heads * rows * columns).map(Math.fround);
  return {
    kind,
    tables: [{ values, shape: [heads, rows, columns], dtype: 'float32' }],
    value: (score, b, h, i, j) => score * (1 - 0.25 * b) + (values[(h * rows + i) * columns + j] as number),
    slope: (_score, b) => 1 - 0.25 * b,
  };
}
