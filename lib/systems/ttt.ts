import type { Shape4 } from '../attention/attention.js';
import { checkInteger, checkObject, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { fused, gelu } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkFloat32State, checkHeads, checkShaped } from './inputs.js';
import {
  apply,
  forBatch,
  type InnerLayer,
  type InnerModel,
  type InnerResult,
  type Learner,
  learned,
  lossGradient,
  outputs,
  runInner,
} from './tttInner.js';

/** The inner model of TTT-Linear, k W + b: [heads, dim, dim] and [heads, 1, dim], or with batch as the first axis. */
export interface TTTLinearWeights {
  readonly W: Tensor;
  readonly b: Tensor;
}

/**
 * The inner model of TTT-MLP, gelu(k W1 + b1) W2 + b2: W1 [heads, dim, hidden], b1 [heads, 1, hidden], W2 [heads, hidden,
 * dim], b2 [heads, 1, dim], or with batch as the first axis. The authors have hidden = 4 dim.
 */
export interface TTTMlpWeights {
  readonly W1: Tensor;
  readonly b1: Tensor;
  readonly W2: Tensor;
  readonly b2: Tensor;
}

/** Where a sequence was left off, wherever that was. */
export interface TTTState<Weights> {
  /** At the start of the mini-batch that has begun: float32, with batch as the first axis. */
  readonly weights: Weights;
  /** The sum of lr_j dL_j over the tokens of that mini-batch so far, of the shapes of the weights. */
  readonly sums?: Weights;
  /** How many tokens of that mini-batch there have been. */
  readonly position: number;
}

export interface TTTOptions {
  /** The learning rate of every token and head [batch, seq, heads]. */
  readonly lr: Tensor<FloatDType, Shape>;
  /**
   * What token i of a mini-batch multiplies all steps up to its own by [mini-batch]; negative ones count as 0. The authors
   * have 1 / (i + 1) and something learned. Its length is that of a mini-batch.
   */
  readonly tokenCoef: Tensor<FloatDType, Shape>;
  /** The norm that ends the inner model, [heads, dim] both. */
  readonly norm: { readonly gain: Tensor<FloatDType, Shape>; readonly bias: Tensor<FloatDType, Shape> };
  /**
   * 'dual' (default) makes products of queries and keys, as attention does; 'primal' makes the weights that each token sees,
   * [batch, seq, heads, ...], a mini-batch at a time. Both give the same.
   */
  readonly form?: 'dual' | 'primal';
}

export interface TTTResult<D extends FloatDType, Weights> {
  /** [batch, seq, heads, dim] */
  readonly out: Tensor<D, Shape4>;
  /** The inner model after the last token, as if the mini-batch ended there: float32, with batch as the first axis. */
  readonly weights: Weights;
  /** To go on from. Its tensors may be those of `weights`. */
  readonly state: TTTState<Weights>;
}

/** How weights are read as layers, and layers as weights. */
interface Kind<Weights> {
  readonly name: string;
  readonly model: InnerModel;
  readonly names: readonly (readonly [W: string & keyof Weights, b: string & keyof Weights])[];
}

/** Z = k W + b. */
const linearModel: InnerModel = ([only], norm, batch) => {
  const { queries, keys, pairs } = batch;
  const learner = only as Learner;
  const g = lossGradient(apply(keys, learner.start), norm, batch);
  return { z: outputs(queries, keys, g, learner, batch, pairs), learners: [learned(learner, keys, g)] };
};

const bySlope = fused(function geluGradient(z, g) {
  const scale = 2 * Math.sqrt(2 / Math.PI);
  const squared = z.square().mul(scale * 0.044715);
  const gate = squared.add(scale).mul(z).sigmoid();
  const slope = squared.mul(3).add(scale).mul(z).mul(gate).mul(gate.neg().add(1)).add(gate);
  return g.mul(slope);
});

/** Z1 = k W1 + b1, X2 = gelu(Z1), Z2 = X2 W2 + b2. */
const mlpModel: InnerModel = ([first, second], norm, batch) => {
  const { queries, keys, pairs } = batch;
  const [layer1, layer2] = [first as Learner, second as Learner];
  const activation = (z: Tensor) => gelu(z, { approximate: 'tanh' });
  const z1 = apply(keys, layer1.start);
  const x2 = activation(z1);
  const g2 = lossGradient(apply(x2, layer2.start), norm, batch);
  const g1 = bySlope(z1, matmul(g2, layer2.start.W.transpose(-2, -1)));
  const hidden = activation(outputs(queries, keys, g1, layer1, batch, pairs));
  return {
    z: outputs(hidden, x2, g2, layer2, batch),
    learners: [learned(layer1, keys, g1), learned(layer2, x2, g2)],
  };
};

const linearKind: Kind<TTTLinearWeights> = { name: 'tttLinear', model: linearModel, names: [['W', 'b']] };
const mlpKind: Kind<TTTMlpWeights> = {
  name: 'tttMlp',
  model: mlpModel,
  names: [
    ['W1', 'b1'],
    ['W2', 'b2'],
  ],
};

const isState = <Weights>(start: Weights | TTTState<Weights>): start is TTTState<Weights> =>
  start !== null && typeof start === 'object' && 'position' in start;

type ByName = Readonly<Record<string, Tensor>>;

/** Checks weights against each other and q; `batched` where they must have the axis of a batch. */
function checkWeights<Weights>(
  { names }: Kind<Weights>,
  weights: unknown,
  q: Tensor,
  argument: string,
  batched: boolean,
) {
  checkObject(weights, argument);
  checkOptions(weights as object as ByName, names.flat() as string[], argument);
  const given = weights as object as ByName;
  const [batch, , heads, dim] = q.shape as Shape4;
  let inputs = dim;
  for (const [i, [W, b]] of names.entries()) {
    const [nameW, nameB] = [`${argument}.${W}`, `${argument}.${b}`];
    checkTensor(given[W], nameW);
    const own = given[W].shape;
    const front = batched || own.length === 4 ? [batch, heads] : [heads];
    const outputs = i === names.length - 1 ? dim : own[own.length - 1];
    const axes = front.length === 2 ? 'batch, heads' : 'heads';
    checkShaped(given[W], nameW, [...front, inputs, outputs], `${axes}, inputs, outputs`, q);
    checkShaped(given[b], nameB, [...front, 1, outputs], `${axes}, 1, outputs`, q);
    if (batched)
      for (const [name, t] of [
        [nameW, given[W]],
        [nameB, given[b]],
      ] as const)
        checkFloat32State(t, name);
    inputs = outputs;
  }
}

function checkStart<Weights>(kind: Kind<Weights>, start: Weights | TTTState<Weights>, q: Tensor, size: number): void {
  if (!isState(start)) {
    checkWeights(kind, start, q, 'start', false);
    return;
  }
  checkOptions(start, ['weights', 'sums', 'position'] as never[], 'start');
  checkInteger(start.position, 'start.position', 0, size - 1);
  checkWeights(kind, start.weights, q, 'start.weights', true);
  if (start.position > 0) checkWeights(kind, start.sums, q, 'start.sums', true);
}

function checkTTTOptions(options: TTTOptions, q: Tensor): void {
  checkOptions(options, ['lr', 'tokenCoef', 'norm', 'form']);
  const { lr, tokenCoef, norm, form = 'dual' } = options;
  const [batch, tokens, heads, dim] = q.shape as Shape4;
  checkShaped(lr, 'lr', [batch, tokens, heads], 'batch, seq, heads', q);
  checkTensor(tokenCoef, 'tokenCoef');
  if (tokenCoef.shape.length !== 1 || tokenCoef.shape[0] < 1)
    throw shapeError(`tokenCoef has shape ${show(tokenCoef.shape)}; it must be [mini-batch], of at least one token`);
  tokenCoef.operand('tokenCoef', q.backend);
  checkOptions(norm, ['gain', 'bias'], 'norm');
  checkShaped(norm.gain, 'norm.gain', [heads, dim], 'heads, dim', q);
  checkShaped(norm.bias, 'norm.bias', [heads, dim], 'heads, dim', q);
  checkWord(form, 'form', ['dual', 'primal']);
}

function learnersOf<Weights>({ names }: Kind<Weights>, start: Weights | TTTState<Weights>, batch: number): Learner[] {
  const of = (weights: unknown, [W, b]: readonly [string, string]): InnerLayer => ({
    W: forBatch((weights as ByName)[W], batch),
    b: forBatch((weights as ByName)[b], batch),
  });
  if (!isState(start)) return names.map((pair) => ({ start: of(start, pair), sums: undefined }));
  const { weights, sums, position } = start;
  return names.map((pair) => ({
    start: of(weights, pair),
    sums: position > 0 ? of(sums, pair) : undefined,
  }));
}

function resultOf<D extends FloatDType, Weights>(
  { names }: Kind<Weights>,
  { out, learners, layers, position }: InnerResult,
): TTTResult<D, Weights> {
  const named = (list: readonly InnerLayer[]) =>
    Object.fromEntries(
      list.flatMap(({ W, b }, i) => [
        [names[i][0], W],
        [names[i][1], b],
      ]),
    ) as unknown as Weights;
  const state = {
    weights: named(learners.map(({ start }) => start)),
    ...(position > 0 && { sums: named(learners.map(({ sums }) => sums as InnerLayer)) }),
    position,
  };
  return { out: out as unknown as Tensor<D, Shape4>, weights: named(layers), state };
}

function run<D extends FloatDType, Weights>(
  kind: Kind<Weights>,
  [q, k, v]: readonly [Tensor, Tensor, Tensor],
  start: Weights | TTTState<Weights>,
  options: TTTOptions,
): TTTResult<D, Weights> {
  checkHeads(q, k, v, 'same');
  checkTTTOptions(options, q);
  const { lr, tokenCoef, norm, form = 'dual' } = options;
  checkStart(kind, start, q, tokenCoef.shape[0]);
  const position = isState(start) ? start.position : 0;
  return scope(() => {
    const learners = learnersOf(kind, start, q.shape[0]);
    return resultOf(kind, runInner(kind.model, learners, position, { q, k, v, lr, tokenCoef, norm, form }));
  });
}

/**
 * TTT-Linear (Sun et al., "Learning to (Learn at Test Time)", 2024, arXiv:2407.04620) as its authors' code has it: the state
 * is a linear model that learns, one step of gradient descent a mini-batch, to make values of keys. In a mini-batch that
 * starts with W and b: Z_j = k_j W + b, g_j = the gradient of 0.5 |LN(Z_j) - (v_j - k_j)|^2 with respect to Z_j, with LN(z) =
 * gain (z - mean) / sqrt(variance + 1e-6) + bias. Token i of it sees W_i = W - c_i sum_{j <= i} lr_j k_j^T g_j and b_i
 * likewise, with c = max(tokenCoef, 0): out_i = q_i + LN(q_i W_i + b_i). The next mini-batch starts with those of the last
 * token.
 *
 * 16-bit inputs are computed with in float32; a token that is not finite is felt by its whole mini-batch in the dual form.
 *
 * @param q [batch, seq, heads, dim], with rotary positions applied where they are wanted
 * @param k of the shape of q
 * @param v of the shape of q
 * @param start the inner model before the first token, or the state that another call has left
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export const tttLinear = <D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  start: TTTLinearWeights | TTTState<TTTLinearWeights>,
  options: TTTOptions,
): TTTResult<D, TTTLinearWeights> => run(linearKind, [q, k, v] as unknown as [Tensor, Tensor, Tensor], start, options);

/**
 * TTT-MLP: `tttLinear` with an inner model of two layers, Z2 = gelu(k W1 + b1) W2 + b2 with the tanh approximation of gelu.
 * Token i sees W1_i = W1 - c_i sum_{j <= i} lr_j k_j^T g1_j and W2_i = W2 - c_i sum_{j <= i} lr_j gelu(Z1_j)^T g2_j, and b1_i
 * and b2_i likewise: out_i = q_i + LN(gelu(q_i W1_i + b1_i) W2_i + b2_i). Sun et al. (2024), arXiv:2407.04620. q, k and v
 * are of the shapes that `tttLinear` takes.
 *
 * @throws as `tttLinear`
 */
export const tttMlp = <D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  start: TTTMlpWeights | TTTState<TTTMlpWeights>,
  options: TTTOptions,
): TTTResult<D, TTTMlpWeights> => run(mlpKind, [q, k, v] as unknown as [Tensor, Tensor, Tensor], start, options);
