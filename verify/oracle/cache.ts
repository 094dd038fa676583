// Attention of the last positions of a sequence over all of its positions, pair by pair in float64.

export interface CachedProblem {
  readonly heads: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly scale: number;
  readonly causal: boolean;
  /** Keys left and right of the diagonal; undefined: all. */
  readonly window?: readonly [number, number];
  readonly softcap?: number;
  readonly alibi?: readonly number[];
  readonly sink?: readonly number[];
}

/**
 * @param q [new][heads * dim], of the last positions
 * @param k [length][kv heads * dim]
 * @param v [length][kv heads * value dim]
 * @returns out [new][heads * value dim] and lse [new][heads]
 */
export function attendCached(
  p: CachedProblem,
  q: readonly ArrayLike<number>[],
  k: readonly ArrayLike<number>[],
  v: readonly ArrayLike<number>[],
): { readonly out: Float64Array[]; readonly lse: Float64Array[] } {
  const group = p.heads / p.kvHeads;
  const lse: Float64Array[] = [];
  const out = q.map((query, i) => {
    const position = k.length - q.length + i;
    const row = new Float64Array(p.heads * p.valueDim);
    const sums = new Float64Array(p.heads);
    for (let h = 0; h < p.heads; h++) {
      const kv = Math.floor(h / group);
      const logits = k.map((key, j) => {
        const [left, right] = p.window ?? [Number.POSITIVE_INFINITY, Number.POSITIVE_INFINITY];
        if (j > position + (p.causal ? 0 : right) || j < position - left) return Number.NEGATIVE_INFINITY;
        let dot = 0;
        for (let d = 0; d < p.dim; d++) dot += (query[h * p.dim + d] as number) * (key[kv * p.dim + d] as number);
        let s = dot * p.scale;
        if (p.softcap) s = p.softcap * Math.tanh(s / p.softcap);
        return s - (p.alibi?.[h] ?? 0) * Math.abs(position - j);
      });
      const sink = p.sink?.[h] ?? Number.NEGATIVE_INFINITY;
      const most = Math.max(sink, ...logits);
      let sum = most === Number.NEGATIVE_INFINITY ? 0 : Math.exp(sink - most);
      for (const s of logits) if (s > Number.NEGATIVE_INFINITY) sum += Math.exp(s - most);
      sums[h] = sum === 0 ? Number.NEGATIVE_INFINITY : most + Math.log(sum);
      for (const [j, s] of logits.entries()) {
        if (s === Number.NEGATIVE_INFINITY) continue;
        const weight = Math.exp(s - most) / sum;
        for (let d = 0; d < p.valueDim; d++)
          row[h * p.valueDim + d] =
            (row[h * p.valueDim + d] as number) + weight * (v[j]?.[kv * p.valueDim + d] as number);
      }
    }
    lse.push(sums);
    return row;
  });
  return { out, lse };
}
