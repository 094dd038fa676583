/**
 * What float16 and bfloat16 results are held against: attention as an eager framework computes it, one operator at a
 * time, every operator rounding its result to the dtype, with matrix products and reductions accumulated wide.
 * A fused kernel has to be at least about as exact as that.
 */
import { addRow, type BackwardResult, dot, type ForwardResult } from './attention.js';
import { type LowDType, round, ulp } from './float16.js';
import { keptElements } from './philox.js';
import {
  alibiSlope,
  broadcastIndex,
  diagonal,
  extent,
  forEachRow,
  keyRow,
  lseIndex,
  lseSize,
  outSize,
  type Problem,
  queryRow,
  relativeIndex,
  scaleOf,
  visible,
} from './problem.js';
import type { Named } from './sensitivity.js';

interface UnfusedKey {
  readonly j: number;
  readonly row: number;
  readonly tanh: number;
  /** Of scoreMod. */
  readonly slope: number;
  readonly keep: number;
}

interface UnfusedRow {
  readonly keys: readonly UnfusedKey[];
  readonly probabilities: readonly number[];
  readonly sinkProbability: number;
  readonly lse: number;
}

/** Other unfused implementations than the plain one, whose rounding errors are of the same size. */
export interface UnfusedVariant {
  /** Stretches the values that the dtype can hold. Default 1. */
  readonly grid?: number;
  /**
   * What softmax's gradient subtracts from every dP of a row: the sum over its keys of P dP, or the same as the product of
   * the output, as it was stored, with its gradient. The former is the default; the latter needs no second pass.
   */
  readonly rowTerm?: 'probabilities' | 'output';
}

class Unfused {
  /** query * scale, as its own tensor. */
  private readonly scaledQuery: Float64Array;
  private readonly grid: number;
  private readonly rowTerm: 'probabilities' | 'output';

  constructor(
    private readonly p: Problem,
    private readonly dtype: LowDType,
    { grid = 1, rowTerm = 'probabilities' }: UnfusedVariant,
  ) {
    this.grid = grid;
    this.rowTerm = rowTerm;
    this.scaledQuery = p.query.map((x) => this.round(x * scaleOf(p)));
  }

  private round(x: number): number {
    return round(x * this.grid, this.dtype) / this.grid;
  }

  private roundAll(values: Float64Array): Float64Array {
    return values.map((x) => this.round(x));
  }

  private logit(
    b: number,
    h: number,
    i: number,
    j: number,
    row: number,
  ): { logit: number; tanh: number; slope: number } {
    const { p } = this;
    let logit = this.round(dot(this.scaledQuery, queryRow(p, b, h, i), p.key, row, p.headDim));
    let tanh = 0;
    if (p.softcap) {
      tanh = this.round(Math.tanh(this.round(logit / p.softcap)));
      logit = this.round(p.softcap * tanh);
    }
    if (p.bias) logit = this.round(logit + (p.bias.values[broadcastIndex(p.bias, b, h, i, j)] as number));
    if (p.relative) {
      logit = this.round(logit + (p.relative.table[relativeIndex(p, p.relative, h, i, j)] as number));
    }
    if (p.alibi) {
      logit = this.round(logit - this.round(alibiSlope(p, b, h) * Math.abs(diagonal(p, b, i) - j)));
    }
    if (!p.scoreMod || logit === -Infinity) return { logit, tanh, slope: 1 };
    return {
      logit: this.round(p.scoreMod.value(logit, b, h, i, j)),
      tanh,
      slope: this.round(p.scoreMod.slope(logit, b, h, i, j)),
    };
  }

  private row(b: number, h: number, i: number): UnfusedRow {
    const { p } = this;
    const { keyLength } = extent(p, b);
    const kept = p.dropout && keptElements(p.dropout, b * p.queryHeads + h, i, keyLength);
    const keys: UnfusedKey[] = [];
    const logits: number[] = [];
    for (let j = 0; j < keyLength; j++) {
      if (!visible(p, b, h, i, j)) continue;
      const row = keyRow(p, b, h, j);
      const { logit, tanh, slope } = this.logit(b, h, i, j, row);
      if (logit === -Infinity) continue;
      logits.push(logit);
      keys.push({ j, row, tanh, slope, keep: kept && p.dropout ? (kept[j] ? 1 / (1 - p.dropout.p) : 0) : 1 });
    }
    const sink = p.sink ? (p.sink[h] as number) : -Infinity;
    if (keys.length === 0 && sink === -Infinity) {
      return { keys, probabilities: [], sinkProbability: 0, lse: -Infinity };
    }
    const largest = logits.reduce((max, logit) => Math.max(max, logit), sink);
    const sum = logits.reduce((total, logit) => total + Math.exp(logit - largest), Math.exp(sink - largest));
    return {
      keys,
      probabilities: logits.map((logit) => this.round(Math.exp(logit - largest) / sum)),
      sinkProbability: this.round(Math.exp(sink - largest) / sum),
      lse: largest + Math.log(sum),
    };
  }

  forward(): ForwardResult {
    const { p } = this;
    const out = new Float64Array(outSize(p));
    const lse = new Float64Array(lseSize(p)).fill(-Infinity);
    forEachRow(p, (b, h, i) => {
      const row = this.row(b, h, i);
      lse[lseIndex(p, b, h, i)] = row.lse;
      row.keys.forEach((key, n) => {
        const dropped = this.round(key.keep * (row.probabilities[n] as number));
        addRow(out, queryRow(p, b, h, i), dropped, p.value, key.row, p.valueDim);
      });
    });
    return { out: this.roundAll(out), lse };
  }

  backward(dOut: Float64Array, dLse?: Float64Array): BackwardResult {
    const { p } = this;
    const dQuery = new Float64Array(p.query.length);
    const dBias = p.bias && new Float64Array(p.bias.values.length);
    const dRelativeBias = p.relative && new Float64Array(p.relative.table.length);
    const dSink = p.sink && new Float64Array(p.sink.length);
    // Each query head of a group has its own gradient, rounded before the heads are summed.
    const group = p.queryHeads / p.kvHeads;
    const out = this.rowTerm === 'output' ? this.forward().out : undefined;
    const dKeys = Array.from({ length: group }, () => new Float64Array(p.key.length));
    const dValues = Array.from({ length: group }, () => new Float64Array(p.value.length));

    forEachRow(p, (b, h, i) => {
      const { keys, probabilities, sinkProbability } = this.row(b, h, i);
      const query = queryRow(p, b, h, i);
      const dKey = dKeys[h % group] as Float64Array;
      const dValue = dValues[h % group] as Float64Array;
      const dProbabilities = keys.map((key, n) => {
        const dropped = this.round(key.keep * (probabilities[n] as number));
        addRow(dValue, key.row, dropped, dOut, query, p.valueDim);
        return this.round(key.keep * this.round(dot(dOut, query, p.value, key.row, p.valueDim)));
      });
      const rowTerm =
        (out
          ? dot(dOut, query, out, query, p.valueDim)
          : dProbabilities.reduce((sum, dp, n) => sum + dp * (probabilities[n] as number), 0)) -
        (dLse ? (dLse[lseIndex(p, b, h, i)] as number) : 0);
      keys.forEach((key, n) => {
        const dResult = this.round((probabilities[n] as number) * ((dProbabilities[n] as number) - rowTerm));
        const dLogit = p.scoreMod ? this.round(dResult * key.slope) : dResult;
        if (p.bias && dBias) {
          const at = broadcastIndex(p.bias, b, h, i, key.j);
          dBias[at] = (dBias[at] as number) + dLogit;
        }
        if (p.relative && dRelativeBias) {
          const at = relativeIndex(p, p.relative, h, i, key.j);
          dRelativeBias[at] = (dRelativeBias[at] as number) + dLogit;
        }
        const dProduct = p.softcap ? this.round(dLogit * this.round(1 - key.tanh * key.tanh)) : dLogit;
        addRow(dQuery, query, dProduct, p.key, key.row, p.headDim);
        addRow(dKey, key.row, dProduct, this.scaledQuery, query, p.headDim);
      });
      if (dSink) dSink[h] = (dSink[h] as number) + this.round(-sinkProbability * rowTerm);
    });
    return {
      dQuery: dQuery.map((x) => this.round(this.round(x) * scaleOf(p))),
      dKey: this.sumOfGroup(dKeys),
      dValue: this.sumOfGroup(dValues),
      ...(dBias && { dBias: this.roundAll(dBias) }),
      ...(dRelativeBias && { dRelativeBias: this.roundAll(dRelativeBias) }),
      ...(dSink && { dSink: this.roundAll(dSink) }),
    };
  }

  private sumOfGroup(heads: readonly Float64Array[]): Float64Array {
    const sum = new Float64Array(heads[0]?.length ?? 0);
    for (const head of heads) addRow(sum, 0, 1, this.roundAll(head), 0, sum.length);
    return this.roundAll(sum);
  }
}

/** Outputs and gradients as the unfused reference computes them. */
export function unfused(
  p: Problem,
  dtype: LowDType,
  dOut: Float64Array,
  dLse?: Float64Array,
  variant: UnfusedVariant = {},
): Named {
  const reference = new Unfused(p, dtype, variant);
  return { ...reference.forward(), ...reference.backward(dOut, dLse) };
}

/** Other rounding errors of the same size show how much of an error is luck. */
export const VARIANTS: readonly UnfusedVariant[] = [1, 1.09, 1.21, 1.37, 1.53].flatMap((grid) => [
  ...(grid === 1 ? [] : [{ grid, rowTerm: 'probabilities' } as const]),
  { grid, rowTerm: 'output' } as const,
]);

const NOISE = 1e-6;

export interface LowPrecisionVerdict {
  readonly ok: boolean;
  readonly max: number;
  readonly maxLimit: number;
  readonly mean: number;
  readonly meanLimit: number;
}

interface Errors {
  readonly max: number;
  readonly mean: number;
}

/** Errors of the elements that the dtype can hold. One that it cannot has to be the infinity or NaN it rounds to. */
function errorsOf(dtype: LowDType, actual: ArrayLike<number>, exact: Float64Array): Errors {
  let [max, sum, count] = [0, 0, 0];
  exact.forEach((value, n) => {
    const a = actual[n] as number;
    const nearest = round(value, dtype);
    if (!Number.isFinite(nearest)) {
      if (!Object.is(a, nearest)) max = Infinity;
      return;
    }
    const error = Number.isFinite(a) ? Math.abs(a - value) : Infinity;
    max = Math.max(max, error);
    sum += error;
    count++;
  });
  return { max: actual.length === exact.length ? max : Infinity, mean: sum / Math.max(1, count) };
}

/**
 * Max error at most twice that of the unfused reference plus 2 ulp at the largest value, and mean error at most 1.1
 * times that of the reference. Errors are compared with errors: over few of them chance decides which mean is larger,
 * so the mean gets room that shrinks with the number of independent ones (those of a row are not) and vanishes over
 * thousands. `NOISE` is what float32 accumulation leaves where the reference happens to be exact.
 */
export function judge(
  dtype: LowDType,
  actual: ArrayLike<number>,
  exact: Float64Array,
  references: readonly Float64Array[],
  independent = exact.length,
): LowPrecisionVerdict {
  const { max, mean } = errorsOf(dtype, actual, exact);
  // A reference that overflows says nothing about how exact one can be.
  const errors = references.map((reference) => errorsOf(dtype, reference, exact)).filter((e) => Number.isFinite(e.max));
  const referenceMax = Math.max(0, ...errors.map((e) => e.max));
  const referenceMean = Math.max(0, ...errors.map((e) => e.mean));
  const finite = exact.filter((x) => Number.isFinite(round(x, dtype))).map(Math.abs);
  const largest = finite.reduce((a, b) => Math.max(a, b), 0);
  const typical = finite.reduce((a, b) => a + b, 0) / Math.max(1, finite.length);
  const room = (2 * referenceMean + 2 * ulp(typical, dtype)) / Math.sqrt(Math.max(1, independent));
  const maxLimit = 2 * referenceMax + 2 * ulp(largest, dtype) + NOISE;
  const meanLimit = 1.1 * referenceMean + room + NOISE;
  return { ok: max <= maxLimit && mean <= meanLimit, max, maxLimit, mean, meanLimit };
}
