/** Routing attention, cluster by cluster. */
import { dot, largest, mixed, softmaxOf, Tokens, upTo } from './rows.js';

export interface RoutingCase {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly clusters: number;
  readonly window: number;
  readonly memories: number;
  readonly causal: boolean;
  readonly shared: boolean;
  /** How many positions of the last batch entry are real; default all. */
  readonly real?: number;
}

export type RoutingInputs = Readonly<Record<string, Float64Array>>;

const unit = (x: readonly number[]) => {
  const length = Math.sqrt(dot(x, x));
  return x.map((each) => each / Math.max(length, 1e-12));
};

const isReal = (c: RoutingCase, b: number, i: number) => b < c.batch - 1 || i < (c.real ?? c.seq);

const sliceOf = (t: Float64Array, at: number, n: number) => [...t.subarray(at * n, (at + 1) * n)];

/** The positions that each cluster takes of x: by batch entry, head and cluster. */
export function taken(
  c: RoutingCase,
  x: Float64Array,
  means: Float64Array,
): (b: number, h: number, cluster: number) => number[] {
  const tokens = new Tokens(x, c.seq, c.heads, c.dim);
  return (b, h, cluster) => {
    const mean = sliceOf(means, h * c.clusters + cluster, c.dim);
    const near = upTo(c.seq).map((i) => (isReal(c, b, i) ? dot(unit(tokens.row(b, i, h)), mean) : -Number.MAX_VALUE));
    return largest(near, c.window);
  };
}

type Taken = ReturnType<typeof taken>;

/** Inputs q, k and v, or qk and v, and memoryKeys and memoryValues where there are memories. */
export function routing(c: RoutingCase, inputs: RoutingInputs, queries: Taken, keys: Taken): Float64Array {
  const q = new Tokens((c.shared ? inputs.qk : inputs.q) as Float64Array, c.seq, c.heads, c.dim);
  const k = new Tokens((c.shared ? inputs.qk : inputs.k) as Float64Array, c.seq, c.heads, c.dim);
  const v = new Tokens(inputs.v as Float64Array, c.seq, c.heads, c.valueDim);
  const out = new Float64Array(c.batch * c.seq * c.heads * c.valueDim);
  const counts = new Float64Array(c.batch * c.seq * c.heads);
  for (const b of upTo(c.batch))
    for (const h of upTo(c.heads))
      for (const cluster of upTo(c.clusters))
        for (const i of queries(b, h, cluster)) {
          const own = upTo(c.memories).map((m) => (h * c.clusters + cluster) * c.memories + m);
          const visible = keys(b, h, cluster).filter(
            (j) => (c.shared && j === i) || (isReal(c, b, i) && isReal(c, b, j) && !(c.causal && j > i)),
          );
          const query = q.row(b, i, h);
          const keyOf = (j: number) => (c.shared ? unit(k.row(b, j, h)) : k.row(b, j, h));
          const logits = [
            ...own.map((m) => dot(query, sliceOf(inputs.memoryKeys as Float64Array, m, c.dim)) / Math.sqrt(c.dim)),
            ...visible.map((j) => (c.shared && j === i ? -5e4 : dot(query, keyOf(j)) / Math.sqrt(c.dim))),
          ];
          const values = [
            ...own.map((m) => sliceOf(inputs.memoryValues as Float64Array, m, c.valueDim)),
            ...visible.map((j) => v.row(b, j, h)),
          ];
          const row = mixed(logits.length > 0 ? softmaxOf(logits) : [], values, c.valueDim);
          const at = (b * c.seq + i) * c.heads + h;
          (counts[at] as number) += 1;
          for (const [d, x] of row.entries()) (out[at * c.valueDim + d] as number) += x;
        }
  return out.map((x, at) => x / ((counts[Math.floor(at / c.valueDim)] as number) + 1e-5));
}

/** One step of online k-means. */
export function movedMeans(c: RoutingCase, x: Float64Array, means: Float64Array, decay: number): Float64Array {
  const tokens = new Tokens(x, c.seq, c.heads, c.dim);
  const result = means.slice();
  for (const h of upTo(c.heads)) {
    const sums = upTo(c.clusters).map(() => new Array<number>(c.dim).fill(0));
    const counts = sums.map(() => 0);
    for (const b of upTo(c.batch))
      for (const i of upTo(c.seq)) {
        if (!isReal(c, b, i)) continue;
        const own = unit(tokens.row(b, i, h));
        const near = upTo(c.clusters).map((n) => dot(own, sliceOf(means, h * c.clusters + n, c.dim)));
        const [best] = largest(near, 1) as [number];
        (counts[best] as number) += 1;
        sums[best] = (sums[best] as number[]).map((s, d) => s + (own[d] as number));
      }
    for (const n of upTo(c.clusters)) {
      if (counts[n] === 0) continue;
      for (const [d, y] of unit(sums[n] as number[]).entries()) {
        const at = (h * c.clusters + n) * c.dim + d;
        result[at] = decay * (means[at] as number) + (1 - decay) * y;
      }
    }
  }
  return result;
}
