/**
 * Exact attention and its gradients in float64, row by row, written to be read.
 *
 *   s_ij = scoreMod(softcap(scale * q_i . k_j) + bias_ij + relative_ij - slope * |diagonal(i) - j|)   for visible j
 *   p_ij = exp(s_ij) / (exp(sink) + sum_j exp(s_ij)),   out_i = sum_j drop(p_ij) v_j
 *
 * A sink is one more key whose value is zero: a row that sees nothing else has out 0 and lse = sink. Without a sink it
 * is empty: out 0, lse -Infinity, no gradient.
 * Invisible pairs, also those with a score of -Infinity, are skipped and never multiplied by zero, so nothing in them can reach a result.
 */
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

export interface ForwardResult {
  readonly out: Float64Array;
  readonly lse: Float64Array;
}

export interface BackwardResult {
  readonly dQuery: Float64Array;
  readonly dKey: Float64Array;
  readonly dValue: Float64Array;
  readonly dBias?: Float64Array;
  readonly dRelativeBias?: Float64Array;
  readonly dSink?: Float64Array;
}

interface VisibleKey {
  readonly j: number;
  /** Row of the key and of the value. */
  readonly row: number;
  readonly logit: number;
  /** Derivative of the logit by scale * q . k. */
  readonly capSlope: number;
  /** Derivative of what scoreMod makes of it. */
  readonly modSlope: number;
  /** What dropout multiplies the probability with: 0 or 1 / (1 - p). */
  readonly keep: number;
}

interface Row {
  readonly keys: readonly VisibleKey[];
  readonly probabilities: readonly number[];
  readonly sinkProbability: number;
  readonly lse: number;
}

const EMPTY_ROW: Row = { keys: [], probabilities: [], sinkProbability: 0, lse: -Infinity };

export function dot(a: Float64Array, rowA: number, b: Float64Array, rowB: number, dim: number): number {
  let sum = 0;
  for (let d = 0; d < dim; d++) sum += (a[rowA * dim + d] as number) * (b[rowB * dim + d] as number);
  return sum;
}

/** target[row] += factor * source[sourceRow] */
export function addRow(
  target: Float64Array,
  row: number,
  factor: number,
  source: Float64Array,
  sourceRow: number,
  dim: number,
): void {
  for (let d = 0; d < dim; d++) {
    target[row * dim + d] = (target[row * dim + d] as number) + factor * (source[sourceRow * dim + d] as number);
  }
}

function add(target: Float64Array, index: number, amount: number): void {
  target[index] = (target[index] as number) + amount;
}

function visibleKeys(p: Problem, b: number, h: number, i: number): VisibleKey[] {
  const { keyLength } = extent(p, b);
  const kept = p.dropout && keptElements(p.dropout, b * p.queryHeads + h, i, keyLength);
  const query = queryRow(p, b, h, i);
  const keys: VisibleKey[] = [];
  for (let j = 0; j < keyLength; j++) {
    if (!visible(p, b, h, i, j)) continue;
    const row = keyRow(p, b, h, j);
    let logit = scaleOf(p) * dot(p.query, query, p.key, row, p.headDim);
    let capSlope = 1;
    if (p.softcap) {
      const t = Math.tanh(logit / p.softcap);
      logit = p.softcap * t;
      capSlope = 1 - t * t;
    }
    if (p.bias) logit += p.bias.values[broadcastIndex(p.bias, b, h, i, j)] as number;
    if (p.relative) logit += p.relative.table[relativeIndex(p, p.relative, h, i, j)] as number;
    if (p.alibi) logit -= alibiSlope(p, b, h) * Math.abs(diagonal(p, b, i) - j);
    let modSlope = 1;
    if (p.scoreMod && logit !== -Infinity) {
      modSlope = p.scoreMod.slope(logit, b, h, i, j);
      logit = p.scoreMod.value(logit, b, h, i, j);
    }
    if (logit === -Infinity) continue;
    const keep = kept && p.dropout ? (kept[j] ? 1 / (1 - p.dropout.p) : 0) : 1;
    keys.push({ j, row, logit, capSlope, modSlope, keep });
  }
  return keys;
}

function softmaxRow(p: Problem, b: number, h: number, i: number): Row {
  const keys = visibleKeys(p, b, h, i);
  const sink = p.sink ? (p.sink[h] as number) : -Infinity;
  if (keys.length === 0 && sink === -Infinity) return EMPTY_ROW;
  const largest = keys.reduce((max, key) => Math.max(max, key.logit), sink);
  const exponentials = keys.map((key) => Math.exp(key.logit - largest));
  const sinkExponential = Math.exp(sink - largest);
  const sum = exponentials.reduce((a, e) => a + e, sinkExponential);
  return {
    keys,
    probabilities: exponentials.map((e) => e / sum),
    sinkProbability: sinkExponential / sum,
    lse: largest + Math.log(sum),
  };
}

export function attentionForward(p: Problem): ForwardResult {
  const out = new Float64Array(outSize(p));
  const lse = new Float64Array(lseSize(p)).fill(-Infinity);
  forEachRow(p, (b, h, i) => {
    const row = softmaxRow(p, b, h, i);
    lse[lseIndex(p, b, h, i)] = row.lse;
    row.keys.forEach((key, n) => {
      if (key.keep === 0) return;
      addRow(out, queryRow(p, b, h, i), key.keep * (row.probabilities[n] as number), p.value, key.row, p.valueDim);
    });
  });
  return { out, lse };
}

/** Gradients of sum(out * dOut) + sum(lse * dLse). */
export function attentionBackward(p: Problem, dOut: Float64Array, dLse?: Float64Array): BackwardResult {
  const dQuery = new Float64Array(p.query.length);
  const dKey = new Float64Array(p.key.length);
  const dValue = new Float64Array(p.value.length);
  const dBias = p.bias && new Float64Array(p.bias.values.length);
  const dRelativeBias = p.relative && new Float64Array(p.relative.table.length);
  const dSink = p.sink && new Float64Array(p.sink.length);

  forEachRow(p, (b, h, i) => {
    const { keys, probabilities, sinkProbability } = softmaxRow(p, b, h, i);
    const query = queryRow(p, b, h, i);
    const dProbabilities = keys.map((key, n) => {
      if (key.keep === 0) return 0;
      addRow(dValue, key.row, key.keep * (probabilities[n] as number), dOut, query, p.valueDim);
      return key.keep * dot(dOut, query, p.value, key.row, p.valueDim);
    });
    // d lse / d s_ij = p_ij, so the gradient of lse joins the row term of the softmax.
    const rowTerm =
      dProbabilities.reduce((sum, dp, n) => sum + dp * (probabilities[n] as number), 0) -
      (dLse ? (dLse[lseIndex(p, b, h, i)] as number) : 0);

    keys.forEach((key, n) => {
      const dLogit = key.modSlope * (probabilities[n] as number) * ((dProbabilities[n] as number) - rowTerm);
      if (p.bias && dBias) add(dBias, broadcastIndex(p.bias, b, h, i, key.j), dLogit);
      if (p.relative && dRelativeBias) add(dRelativeBias, relativeIndex(p, p.relative, h, i, key.j), dLogit);
      const dProduct = scaleOf(p) * key.capSlope * dLogit;
      addRow(dQuery, query, dProduct, p.key, key.row, p.headDim);
      addRow(dKey, key.row, dProduct, p.query, query, p.headDim);
    });
    if (dSink) add(dSink, h, -sinkProbability * rowTerm);
  });
  return {
    dQuery,
    dKey,
    dValue,
    ...(dBias && { dBias }),
    ...(dRelativeBias && { dRelativeBias }),
    ...(dSink && { dSink }),
  };
}
