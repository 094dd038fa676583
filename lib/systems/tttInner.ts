// The inner loop of test-time training: a model whose weights take a step of gradient descent for every token.

import { cumsum } from '../ops/alongAxis.js';
import { concat } from '../ops/concat.js';
import { add, clamp, fused, mul, sub } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { layerNorm } from '../ops/norm.js';
import { sum } from '../ops/reduce.js';
import { unbind, unsqueeze } from '../ops/split.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { narrow, upToEach, wide } from './inputs.js';
import { standardise, throughNorm } from './normGradient.js';

/** Of the layer norm of the inner model. */
export const tttEpsilon = 1e-6;

/** A layer x W + b of the inner model: W [batch, heads, inputs, outputs], b [batch, heads, 1, outputs]. */
export interface InnerLayer {
  readonly W: Tensor;
  readonly b: Tensor;
}

/** A layer at the start of a mini-batch, and the sum of lr_j dL/dW over the tokens j of that mini-batch so far. */
export interface Learner {
  readonly start: InnerLayer;
  readonly sums: InnerLayer | undefined;
}

/** What the layers of a model make of the queries [..., m, inputs] and the keys, given their gradients. */
export interface MiniBatch {
  /** [batch, heads, m, dim] */
  readonly queries: Tensor;
  readonly keys: Tensor;
  /** keys to values: v - k */
  readonly target: Tensor;
  /** [batch, heads, m, 1] */
  readonly rate: Tensor;
  /** [m, 1]: the factor of all steps so far in the weights that a token sees. */
  readonly coef: Tensor;
  /** [m, m]: the same at j <= i, else 0. */
  readonly causal: Tensor;
  /** Of the queries and keys: see `pairsOf`. Undefined in the primal form. */
  readonly pairs: Tensor | undefined;
}

const weigh = fused(function pairs(score, causal) {
  return score.add(1).mul(causal);
});
const step = fused(function step(weight, sums, coef) {
  return weight.sub(sums.mul(coef));
});

/**
 * c_i (q_i.k_j + 1) for j <= i: how much of the gradient g_j the output of token i loses, by W and by b at once.
 *
 * @param causal [m, m]
 */
const pairsOf = (queries: Tensor, keys: Tensor, causal: Tensor): Tensor =>
  weigh(matmul(queries, keys.transpose(-2, -1)), causal);

/** x W + b */
export const apply = (x: Tensor, { W, b }: InnerLayer): Tensor => matmul(x, W, { bias: b });

/**
 * What the layer makes of the queries x, token i with W_i = W - c_i sum_{j <= i} k_j^T g_j and b_i = b - c_i sum_{j <= i} g_j.
 * Dual form: W_i is never made, x_i W_i + b_i = x_i W + b - sum_{j <= i} c_i (x_i.k_j + 1) g_j.
 *
 * @param pairs `pairsOf` x and the keys
 * @param g lr_j dL/dz_j [batch, heads, m, outputs]
 */
function dual(x: Tensor, pairs: Tensor, g: Tensor, coef: Tensor, { start, sums }: Learner): Tensor {
  const z = matmul(pairs, g, { alpha: -1, bias: apply(x, start) });
  return sums ? step(z, apply(x, sums), coef) : z;
}

/** The same with every W_i [batch, heads, m, inputs, outputs] made: the primal form. */
function primal(x: Tensor, keys: Tensor, g: Tensor, coef: Tensor, { start, sums }: Learner): Tensor {
  const so = (t: Tensor, before: Tensor | undefined) => (before ? add(t, before) : t);
  const outer = mul(unsqueeze(keys, -1), unsqueeze(g, -2));
  const ofW = so(cumsum(outer, -3), sums && unsqueeze(sums.W, -3));
  const ofB = so(cumsum(g, -2), sums?.b);
  const W = step(unsqueeze(start.W, -3), ofW, unsqueeze(coef, -1));
  const z = matmul(unsqueeze(x, -2), W);
  return add(z.reshape(g.shape), step(start.b, ofB, coef));
}

/** The outputs of a layer for the queries x, in the form that the mini-batch is in. */
export function outputs(
  x: Tensor,
  keys: Tensor,
  g: Tensor,
  learner: Learner,
  { coef, causal, pairs: made }: MiniBatch,
  pairs: Tensor | undefined = made && pairsOf(x, keys, causal),
): Tensor {
  return pairs ? dual(x, pairs, g, coef, learner) : primal(x, keys, g, coef, learner);
}

/** Adds the gradients of the tokens of a mini-batch. */
export function learned({ start, sums }: Learner, keys: Tensor, g: Tensor): Learner {
  const W = matmul(keys.transpose(-2, -1), g, sums ? { bias: sums.W } : {});
  const b = sum(g, -2, { keepDims: true });
  return { start, sums: { W, b: sums ? add(b, sums.b) : b } };
}

/** The weights that a token sees whose factor is `coef` []. */
const weightsOf = ({ start, sums }: Learner, coef: Tensor): InnerLayer =>
  sums ? { W: step(start.W, sums.W, coef), b: step(start.b, sums.b, coef) } : start;

/** LN(z) = x gain + bias, and the gradient of 0.5 |LN(z) - target|^2 with respect to x, times the learning rate. */
const pull = fused(function pull(x, gain, bias, target, rate) {
  return x.mul(gain).add(bias).sub(target).mul(gain).mul(rate);
});

export interface InnerNorm {
  /** [heads, dim] */
  readonly gain: Tensor;
  readonly bias: Tensor;
}

/** lr_j dL/dz_j of L = 0.5 |LN(z_j) - target_j|^2. */
export function lossGradient(z: Tensor, { gain, bias }: InnerNorm, { target, rate }: MiniBatch): Tensor {
  const standardised = standardise(z, tttEpsilon);
  return throughNorm(pull(standardised.x, gain, bias, target, rate), standardised);
}

/** How a model learns from one mini-batch: its outputs before the last norm, and its layers with the gradients added. */
export type InnerModel = (
  learners: readonly Learner[],
  norm: InnerNorm,
  batch: MiniBatch,
) => { readonly z: Tensor; readonly learners: readonly Learner[] };

/** Equally long mini-batches, one after the other. */
interface Run {
  readonly from: number;
  readonly count: number;
  readonly length: number;
  /** Tokens of the first mini-batch that came before. */
  readonly position: number;
}

function runsOf(position: number, tokens: number, size: number): Run[] {
  const runs: Run[] = [];
  let from = 0;
  const take = (count: number, length: number, at = 0) => {
    if (count > 0 && length > 0) runs.push({ from, count, length, position: at });
    from += count * length;
  };
  if (position > 0) take(1, Math.min(size - position, tokens), position);
  take(Math.floor((tokens - from) / size), size);
  take(1, tokens - from);
  return runs;
}

/** [seq, batch, heads, ...] in row-major order, so that mini-batches are cut off without a copy. */
function seqFirst(t: Tensor): Tensor {
  const order = t.shape.map((_, axis) => (axis === 0 ? 1 : axis === 1 ? 0 : axis));
  const moved = wide(t).permute(order);
  return moved.isContiguous ? moved : moved.contiguous();
}

/** A run of [seq, batch, heads, dim] as [mini-batches, batch, heads, m, dim]. */
function cut(t: Tensor, { from, count, length }: Run): Tensor {
  const [, ...rest] = t.shape;
  return t
    .slice(0, from, from + count * length)
    .reshape([count, length, ...rest])
    .permute([0, 2, 3, 1, 4]);
}

export interface InnerInputs {
  /** [batch, seq, heads, dim] */
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
  /** [batch, seq, heads] */
  readonly lr: Tensor;
  /** [mini-batch] */
  readonly tokenCoef: Tensor;
  readonly norm: InnerNorm;
  readonly form: 'dual' | 'primal';
}

export interface InnerResult {
  /** [batch, seq, heads, dim] in the dtype of q */
  readonly out: Tensor;
  readonly learners: readonly Learner[];
  /** After the last token. */
  readonly layers: readonly InnerLayer[];
  /** Tokens of the mini-batch that has begun. */
  readonly position: number;
}

const residual = fused(function residual(q, x, gain, bias) {
  return x.mul(gain).add(bias).add(q);
});

/** Runs a model over a sequence. Everything but the weights' way from mini-batch to mini-batch is done for many at once. */
export function runInner(
  model: InnerModel,
  layers: readonly Learner[],
  position: number,
  { q, k, v, lr, tokenCoef, norm, form }: InnerInputs,
): InnerResult {
  const [batch, tokens, heads] = q.shape as readonly [number, number, number];
  const size = tokenCoef.shape[0];
  const [queries, keys, values] = [q, k, v].map(seqFirst) as [Tensor, Tensor, Tensor];
  const target = sub(values, keys);
  const rate = seqFirst(lr).reshape([tokens, batch, heads, 1]);
  const coef = clamp(wide(tokenCoef), 0, Number.POSITIVE_INFINITY).reshape([size, 1]);
  const ofHeads = (t: Tensor): Tensor => unsqueeze(wide(t), 1);
  const inner = { gain: ofHeads(norm.gain), bias: ofHeads(norm.bias) };

  const made: Tensor[] = [];
  let learners = layers;
  let at = position;
  for (const run of runsOf(position, tokens, size)) {
    const own = coef.slice(0, run.position, run.position + run.length);
    const causal = mul(upToEach(run.length, q), own);
    const parts = { queries: cut(queries, run), keys: cut(keys, run), target: cut(target, run), rate: cut(rate, run) };
    const pairs = form === 'dual' ? unbind(pairsOf(parts.queries, parts.keys, causal)) : [];
    const [eachQueries, eachKeys, eachTarget, eachRate] = Object.values(parts).map((t) => unbind(t)) as Tensor[][];
    for (let i = 0; i < run.count; i++) {
      const { z, learners: next } = model(learners, inner, {
        queries: eachQueries[i],
        keys: eachKeys[i],
        target: eachTarget[i],
        rate: eachRate[i],
        coef: own,
        causal,
        pairs: pairs[i],
      });
      made.push(z);
      at = (run.position + run.length) % size;
      learners =
        at > 0 ? next : next.map((each) => ({ start: weightsOf(each, coef.select(0, size - 1)), sums: undefined }));
    }
  }
  const last = at > 0 ? coef.select(0, at - 1) : undefined;
  const final = learners.map((each) => (last ? weightsOf(each, last) : each.start));
  if (made.length === 0) return { out: mul(q, 1), learners, layers: final, position: at };
  const z = made.length === 1 ? made[0] : concat(made, 2);
  const x = layerNorm(z, undefined, undefined, { epsilon: tttEpsilon }).transpose(1, 2);
  const out = narrow(residual(wide(q), x, wide(norm.gain), wide(norm.bias)), q);
  return { out, learners, layers: final, position: at };
}

/** Weights [heads, ...] for every batch entry, as a view. */
export const forBatch = (t: Tensor, batch: number): Tensor => {
  const own = wide(t);
  return (own.shape.length === 3 ? own.expand([batch, ...own.shape] as Shape) : own) as Tensor;
};
