/** Attention of single queries to lists of keys, for definitions that choose those one by one. */

/** Tokens [batch, seq, heads, dim]. */
export class Tokens {
  constructor(
    readonly data: ArrayLike<number>,
    readonly seq: number,
    readonly heads: number,
    readonly dim: number,
  ) {}

  row(b: number, i: number, h: number): number[] {
    const begin = ((b * this.seq + i) * this.heads + h) * this.dim;
    return Array.from({ length: this.dim }, (_, d) => this.data[begin + d] as number);
  }
}

export const upTo = (n: number): number[] => Array.from({ length: n }, (_, i) => i);

export const dot = (a: readonly number[], b: readonly number[]): number =>
  a.reduce((total, x, d) => total + x * (b[d] as number), 0);

export const meanOf = (rows: readonly (readonly number[])[]): number[] =>
  (rows[0] as readonly number[]).map(
    (_, d) => rows.reduce((total, row) => total + (row[d] as number), 0) / rows.length,
  );

/** log sum e^x; -Infinity of none. */
export function logSumExp(logits: readonly number[]): number {
  const most = Math.max(...logits, Number.NEGATIVE_INFINITY);
  if (most === Number.NEGATIVE_INFINITY) return most;
  return most + Math.log(logits.reduce((total, x) => total + Math.exp(x - most), 0));
}

export const softmaxOf = (logits: readonly number[]): number[] => {
  const all = logSumExp(logits);
  return logits.map((x) => Math.exp(x - all));
};

/** The sum of rows by their weights; zeros where there are none. */
export function mixed(weights: readonly number[], rows: readonly (readonly number[])[], dim: number): number[] {
  return upTo(dim).map((d) => rows.reduce((total, row, j) => total + (weights[j] as number) * (row[d] as number), 0));
}

/** softmax(scale q . k) v over lists of keys and values. */
export const attend = (
  q: readonly number[],
  keys: readonly (readonly number[])[],
  values: readonly (readonly number[])[],
  scale: number,
  dim: number,
): number[] => mixed(softmaxOf(keys.map((key) => scale * dot(q, key))), values, dim);

/** The indices of the largest numbers, the largest first; of equal ones the first. */
export const largest = (numbers: readonly number[], count: number): number[] =>
  upTo(numbers.length)
    .sort((a, b) => (numbers[b] as number) - (numbers[a] as number) || a - b)
    .slice(0, count);
