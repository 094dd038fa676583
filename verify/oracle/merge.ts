/**
 * Merging attention over disjoint key sets, in float64:
 *   lse = log sum_p exp(lse_p),   out = sum_p exp(lse_p - lse) out_p.
 * `rows` maps a row of lse to the row of out, so that one code serves every layout.
 */
import type { ForwardResult } from './attention.js';

export type RowMap = (lseRow: number) => number;

/** out is [batch, seq, heads, dim] (or [total, heads, dim] with batch 1); lse is [batch, heads, seq]. */
export function seqMajorRows(heads: number, seq: number): RowMap {
  return (row) => {
    const i = row % seq;
    const h = Math.floor(row / seq) % heads;
    const b = Math.floor(row / (seq * heads));
    return (b * seq + i) * heads + h;
  };
}

/** out is [batch, heads, seq, dim]. */
export const headMajorRows: RowMap = (row) => row;

function weights(states: readonly ForwardResult[], row: number): { weights: number[]; lse: number } {
  const lses = states.map((state) => state.lse[row] as number);
  const largest = Math.max(...lses);
  if (largest === -Infinity) return { weights: lses.map(() => 0), lse: -Infinity };
  const exponentials = lses.map((lse) => Math.exp(lse - largest));
  const sum = exponentials.reduce((a, e) => a + e, 0);
  return { weights: exponentials.map((e) => e / sum), lse: largest + Math.log(sum) };
}

function shapeOf(states: readonly ForwardResult[]): { rows: number; dim: number; size: number } {
  const [first] = states;
  if (!first) throw new RangeError('no states to merge');
  return { rows: first.lse.length, dim: first.out.length / first.lse.length, size: first.out.length };
}

export function mergeForward(states: readonly ForwardResult[], rows: RowMap): ForwardResult {
  const shape = shapeOf(states);
  const out = new Float64Array(shape.size);
  const lse = new Float64Array(shape.rows);
  for (let row = 0; row < shape.rows; row++) {
    const merged = weights(states, row);
    lse[row] = merged.lse;
    states.forEach((state, s) => {
      const weight = merged.weights[s] as number;
      if (weight === 0) return;
      for (let d = 0; d < shape.dim; d++) {
        const at = rows(row) * shape.dim + d;
        out[at] = (out[at] as number) + weight * (state.out[at] as number);
      }
    });
  }
  return { out, lse };
}

/** Gradients of sum(out * dOut) + sum(lse * dLse) by every state. */
export function mergeBackward(
  states: readonly ForwardResult[],
  rows: RowMap,
  dOut: Float64Array,
  dLse?: Float64Array,
): { dOut: Float64Array; dLse: Float64Array }[] {
  const shape = shapeOf(states);
  const { out } = mergeForward(states, rows);
  const gradients = states.map(() => ({
    dOut: new Float64Array(shape.size),
    dLse: new Float64Array(shape.rows),
  }));
  for (let row = 0; row < shape.rows; row++) {
    const merged = weights(states, row);
    states.forEach((state, s) => {
      const weight = merged.weights[s] as number;
      const gradient = gradients[s];
      if (weight === 0 || !gradient) return;
      let dWeighted = dLse ? (dLse[row] as number) : 0;
      for (let d = 0; d < shape.dim; d++) {
        const at = rows(row) * shape.dim + d;
        gradient.dOut[at] = weight * (dOut[at] as number);
        dWeighted += (dOut[at] as number) * ((state.out[at] as number) - (out[at] as number));
      }
      gradient.dLse[row] = weight * dWeighted;
    });
  }
  return gradients;
}
