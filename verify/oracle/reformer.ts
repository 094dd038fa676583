/** Attention by locality-sensitive hashing, entry by entry. */
import { dot, logSumExp, mixed, softmaxOf, Tokens, upTo } from './rows.js';

export interface LshCase {
  readonly batch: number;
  readonly seq: number;
  readonly heads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly rounds: number;
  readonly chunk: number;
  readonly before: number;
  readonly after: number;
  readonly causal: boolean;
  readonly duplicates: 'count' | 'share';
  /** How many positions of the last batch entry are real; default all. */
  readonly real?: number;
}

export interface LshInputs {
  readonly qk: ArrayLike<number>;
  readonly v: ArrayLike<number>;
}

const rms = (x: readonly number[]) => Math.sqrt(dot(x, x) / x.length + 1e-6);

/** @param bucket by batch entry, head, round and position */
export function lsh(
  c: LshCase,
  inputs: LshInputs,
  bucket: (b: number, h: number, round: number, i: number) => number,
): Float64Array {
  const qk = new Tokens(inputs.qk, c.seq, c.heads, c.dim);
  const v = new Tokens(inputs.v, c.seq, c.heads, c.valueDim);
  const out = new Float64Array(c.batch * c.seq * c.heads * c.valueDim);
  const isReal = (b: number, i: number) => b < c.batch - 1 || i < (c.real ?? c.seq);
  for (const b of upTo(c.batch))
    for (const h of upTo(c.heads)) {
      const entries = upTo(c.rounds * c.seq).map((at) => {
        const [round, i] = [Math.floor(at / c.seq), at % c.seq];
        return { i, bucket: bucket(b, h, round, i), at };
      });
      entries.sort((x, y) => x.bucket - y.bucket || x.at - y.at);
      const chunks = entries.length / c.chunk;
      /** Positions that the entry at a place of the list looks at, one for each entry there. */
      const seenFrom = (place: number) =>
        upTo(c.before + 1 + c.after).flatMap((n) => {
          const chunk = (Math.floor(place / c.chunk) - c.before + n + chunks) % chunks;
          return upTo(c.chunk).map((u) => (entries[chunk * c.chunk + u] as { i: number }).i);
        });
      for (const i of upTo(c.seq)) {
        const own = upTo(entries.length).filter((place) => entries[place]?.i === i);
        const lists = own.map(seenFrom);
        const met = (j: number) => lists.flat().filter((each) => each === j).length;
        const results = lists.map((list) => {
          const visible = list.filter((j) => j === i || (isReal(b, j) && !(c.causal && j > i)));
          const logits = visible.map((j) => {
            if (j === i) return -1e5;
            const key = qk.row(b, j, h);
            const logit = dot(qk.row(b, i, h), key) / (rms(key) * Math.sqrt(c.dim));
            return c.duplicates === 'share' ? logit - Math.log(met(j)) : logit;
          });
          const row = mixed(
            softmaxOf(logits),
            visible.map((j) => v.row(b, j, h)),
            c.valueDim,
          );
          return { row, lse: logSumExp(logits) };
        });
        const row = mixed(
          softmaxOf(results.map(({ lse }) => lse)),
          results.map((each) => each.row),
          c.valueDim,
        );
        out.set(row, ((b * c.seq + i) * c.heads + h) * c.valueDim);
      }
    }
  return out;
}

/** argmax [x R, -x R] of each factor, as digits of a number. */
export function lshBucket(
  x: readonly number[],
  factors: readonly number[],
  rotation: (d: number, column: number) => number,
): number {
  let [bucket, from, product] = [0, 0, 1];
  for (const factor of factors) {
    const turned = upTo(factor / 2).map((column) =>
      x.reduce((total, each, d) => total + each * rotation(d, from + column), 0),
    );
    const both = [...turned, ...turned.map((y) => -y)];
    bucket += product * both.indexOf(Math.max(...both));
    from += factor / 2;
    product *= factor;
  }
  return bucket;
}
