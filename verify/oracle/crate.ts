/** CRATE in float64, row by row: x is [batch, seq, dim]. */
import { attend, dot, head, layerNorm, linear, type Numbers, range, row, total } from './dense.js';

export interface CrateDims {
  readonly batch: number;
  readonly seq: number;
  readonly dim: number;
  readonly heads: number;
}

/** The rows of each batch entry, all of which f sees at once. */
function eachEntry(
  d: CrateDims,
  x: Numbers,
  f: (rows: readonly (readonly number[])[]) => readonly (readonly number[])[],
): Float64Array {
  return Float64Array.from(
    range(d.batch).flatMap((b) => f(range(d.seq).map((t) => row(x, b * d.seq + t, d.dim))).flat()),
  );
}

export interface MssaWeights {
  readonly subspaces: Numbers;
  readonly out: Numbers;
  readonly outBias?: Numbers;
}

export const mssa = (d: CrateDims, x: Numbers, w: MssaWeights, scale?: number): Float64Array =>
  eachEntry(d, x, (rows) => {
    const u = rows.map((each) => linear(each, w.subspaces));
    const of = scale ?? 1 / Math.sqrt(u[0].length / d.heads);
    return u.map((query) => {
      const merged = range(d.heads).flatMap((h) => {
        const own = u.map((each) => head(each, h, d.heads));
        return attend(head(query, h, d.heads), own, own, of);
      });
      return linear(merged, w.out, w.outBias);
    });
  });

/** U [heads, dim, p] */
export const mssaPaper = (d: CrateDims, x: Numbers, U: Numbers, coefficient: number): Float64Array => {
  const p = U.length / (d.heads * d.dim);
  const basis = (h: number, i: number) => row(U, h * d.dim + i, p);
  return eachEntry(d, x, (rows) => {
    const updates = range(d.heads).map((h) => {
      const u = rows.map((each) => range(p).map((c) => total(each.map((value, i) => value * basis(h, i)[c]))));
      return u.map((query) => attend(query, u, u, 1));
    });
    return rows.map((each, t) =>
      each.map((value, i) => value + coefficient * total(updates.map((update, h) => dot(update[t], basis(h, i))))),
    );
  });
};

export const ista = (dim: number, x: Numbers, D: Numbers, eta: number, lambda: number): Float64Array =>
  Float64Array.from(
    range(x.length / dim).flatMap((r) => {
      const own = row(x, r, dim);
      const residual = linear(own, D).map((coded, i) => own[i] - coded);
      return own.map((value, j) => {
        const towards = total(residual.map((each, i) => each * D[i * dim + j]));
        return Math.max(0, value + eta * towards - eta * lambda);
      });
    }),
  );

export interface BlockWeights extends MssaWeights {
  readonly norm1Weight: Numbers;
  readonly norm1Bias: Numbers;
  readonly norm2Weight: Numbers;
  readonly norm2Bias: Numbers;
  readonly dictionary: Numbers;
}

export function block(d: CrateDims, x: Numbers, w: BlockWeights, eta = 0.1, lambda = 0.1): Float64Array {
  const normal = (values: Numbers, gain: Numbers, bias: Numbers) =>
    range(d.batch * d.seq).flatMap((r) => layerNorm(row(values, r, d.dim), gain, bias));
  const update = mssa(d, normal(x, w.norm1Weight, w.norm1Bias), w);
  const attended = update.map((value, i) => value + x[i]);
  return ista(d.dim, normal(attended, w.norm2Weight, w.norm2Bias), w.dictionary, eta, lambda);
}
