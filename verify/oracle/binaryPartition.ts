/** The graph of a binary partition by its definition, and attention along edges, edge by edge. */
import { dot, mixed, softmaxOf, Tokens, upTo } from './rows.js';

export interface Edge {
  readonly source: number;
  readonly destination: number;
  readonly type: number;
}

export interface PartitionCase {
  readonly length: number;
  readonly step: number;
  readonly causal: boolean;
  readonly clip: number;
}

/** Levels of spans, each as the leaves that its spans cover. */
function spansOf(length: number): number[][][] {
  if (length === 0) return [];
  const levels = [upTo(length).map((leaf) => [leaf])];
  for (let level = levels[0] as number[][]; level.length > 1; level = levels.at(-1) as number[][])
    levels.push(
      upTo(Math.ceil(level.length / 2)).map((i) => [...(level[2 * i] as number[]), ...(level[2 * i + 1] ?? [])]),
    );
  return levels;
}

/** For lengths that are a power of 2, where the graph is what the paper says: what each node sees. */
export function partitionEdges({ length, step, causal, clip }: PartitionCase): Edge[] {
  const levels = spansOf(length);
  const begin = (level: number) => levels.slice(0, level).reduce((total, { length: n }) => total + n, 0);
  const edges: Edge[] = [];
  const typeOf = (level: number) => (2 * step + 1) * Math.min(level, clip);
  for (const [level, spans] of levels.entries())
    for (const [i, leaves] of spans.entries())
      for (const leaf of leaves) edges.push({ source: leaf, destination: begin(level) + i, type: typeOf(level) });
  for (const leaf of upTo(length)) {
    // What has been seen so far lies within [from, to].
    let [from, to] = [leaf, leaf];
    for (const [level, spans] of levels.entries()) {
      for (let k = 0; k < step; k++) {
        // The next span begins at `to` + 1; where that is the second half of a larger one, the half is seen first.
        const width = 2 ** level;
        if (!causal && to + 1 < length) {
          const half = level > 0 && (to + 1) % width !== 0;
          const size = half ? width / 2 : width;
          const at = (to + 1) / size;
          edges.push({
            source: begin(half ? level - 1 : level) + at,
            destination: leaf,
            type: typeOf(level) + 2 * (k + 1),
          });
          to += size;
        }
        if (from > 0) {
          const half = level > 0 && from % width !== 0;
          const size = half ? width / 2 : width;
          const at = from / size - 1;
          edges.push({
            source: begin(half ? level - 1 : level) + at,
            destination: leaf,
            type: typeOf(level) + 2 * k + 1,
          });
          from -= size;
        }
      }
      if (spans.length === 1) break;
    }
  }
  return edges;
}

export interface GraphSizes {
  readonly batch: number;
  readonly nodes: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
}

type Arrays = Readonly<Record<'q' | 'k' | 'v' | 'relative', ArrayLike<number>>>;

export function edgeAttention(s: GraphSizes, { q, k, v, relative }: Arrays, edges: readonly Edge[]): Float64Array {
  const [queries, keys, values] = [
    new Tokens(q, s.nodes, s.heads, s.dim),
    new Tokens(k, s.nodes, s.heads, s.dim),
    new Tokens(v, s.nodes, s.heads, s.valueDim),
  ];
  const out: number[] = [];
  for (const b of upTo(s.batch))
    for (const node of upTo(s.nodes)) {
      const own = edges.filter(({ destination }) => destination === node);
      for (const h of upTo(s.heads)) {
        const query = queries.row(b, node, h);
        const logits = own.map(({ source, type }) => {
          const key = keys.row(b, source, h).map((x, d) => x + (relative[type * s.dim + d] as number));
          return dot(query, key) / Math.sqrt(s.dim);
        });
        const rows = own.map(({ source }) => values.row(b, source, h));
        out.push(...mixed(logits.length > 0 ? softmaxOf(logits) : [], rows, s.valueDim));
      }
    }
  return Float64Array.from(out);
}

/** x W^T of rows of x. */
export function project(x: ArrayLike<number>, W: ArrayLike<number>, width: number): Float64Array {
  const rows = x.length / width;
  return Float64Array.from({ length: rows * width }, (_, at) => {
    const [row, o] = [Math.floor(at / width), at % width];
    return upTo(width).reduce((total, d) => total + (x[row * width + d] as number) * (W[o * width + d] as number), 0);
  });
}
