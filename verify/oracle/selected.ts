/** Attention in which every position has a list of key blocks of its own, position by position. */
import type { Heads, NsaSizes } from './nsa.js';
import { dot, logSumExp, mixed, softmaxOf, Tokens, upTo } from './rows.js';

export interface SelectedCase extends NsaSizes {
  readonly size: number;
  readonly slots: number;
  readonly scale: number;
}

/** `out` [batch, seq, heads, value dim] and `lse` [batch, heads, seq], with blocks [batch, seq, kv heads, slots]. */
export function selected(c: SelectedCase, inputs: Heads, blocks: ArrayLike<number>) {
  const q = new Tokens(inputs.q, c.seq, c.heads, c.dim);
  const k = new Tokens(inputs.k, c.seq, c.kvHeads, c.dim);
  const v = new Tokens(inputs.v, c.seq, c.kvHeads, c.valueDim);
  const lists = new Tokens(blocks, c.seq, c.kvHeads, c.slots);
  const out: number[] = [];
  const lse = new Float64Array(c.batch * c.heads * c.seq);
  for (const b of upTo(c.batch))
    for (const i of upTo(c.seq))
      for (const h of upTo(c.heads)) {
        const kv = Math.floor((h * c.kvHeads) / c.heads);
        const named = new Set(lists.row(b, i, kv));
        const keys = upTo(i + 1).filter((j) => named.has(Math.floor(j / c.size)));
        const logits = keys.map((j) => c.scale * dot(q.row(b, i, h), k.row(b, j, kv)));
        lse[(b * c.heads + h) * c.seq + i] = logSumExp(logits);
        const values = keys.map((j) => v.row(b, j, kv));
        out.push(...mixed(softmaxOf(logits), values, c.valueDim));
      }
  return { out: Float64Array.from(out), lse };
}
