import { t5RelativeBias } from '../attention/relative.js';
import { checkBoolean, checkInteger, checkObject, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { cumsum } from '../ops/alongAxis.js';
import { concat } from '../ops/concat.js';
import { add, fused, mul, where } from '../ops/elementwise.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import { matmul } from '../ops/matmul.js';
import { layerNorm } from '../ops/norm.js';
import { pad, split } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkPositions, type Sequence, upToEach } from './inputs.js';

/** The weights of a gated attention unit; matrices are [out, in], e is its hidden dim and s that of queries and keys. */
export interface GatedAttentionWeights<D extends FloatDType = FloatDType> {
  /** Layer norm before everything: [dim] */
  readonly normWeight: Tensor<D, Shape>;
  readonly normBias: Tensor<D, Shape>;
  /** To values and gates: [2 e, dim], [2 e] */
  readonly hiddenWeight: Tensor<D, Shape>;
  readonly hiddenBias: Tensor<D, Shape>;
  /** To what queries and keys are made of: [s, dim], [s] */
  readonly qkWeight: Tensor<D, Shape>;
  readonly qkBias: Tensor<D, Shape>;
  /** A factor and an offset for each of the queries and keys that are made of it: [2, s], of FLASH [4, s]. */
  readonly gamma: Tensor<D, Shape>;
  readonly beta: Tensor<D, Shape>;
  /** T5's biases by relative position: [buckets, 1], 32 buckets in the originals. */
  readonly relativeBias: Tensor<D, Shape>;
  /** [dim, e], [dim] */
  readonly outWeight: Tensor<D, Shape>;
  readonly outBias: Tensor<D, Shape>;
}

export interface GatedAttentionOptions {
  /** Position i sees positions up to i alone. Default false. */
  readonly causal?: boolean;
  /**
   * Weights of pairs as the integral of a Laplace-like bump, 0.5 (1 + erf((x - sqrt(1/2)) / sqrt(1/(2 pi)))), as in Mega, in the
   * place of max(x, 0)^2. Default false.
   */
  readonly laplace?: boolean;
}

export interface FlashQuadOptions extends GatedAttentionOptions {
  /** Positions of a group, g. Default 256. */
  readonly groupSize?: number;
  /** Which positions are real, [batch, seq]; the others are no keys. */
  readonly mask?: Tensor<'bool', Shape>;
}

/** From here on distances share a bucket, as in T5. */
const maxDistance = 128;

interface Sizes {
  readonly batch: number;
  readonly seq: number;
  readonly dim: number;
  /** s */
  readonly keyDim: number;
}

/** @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE */
function readSizes(x: unknown, weights: GatedAttentionWeights, heads: number): Sizes {
  checkTensor(x, 'x');
  if (x.shape.length !== 3) throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, seq, dim]`);
  checkObject(weights, 'weights');
  const [batch, seq, dim] = x.shape;
  const check = (name: keyof GatedAttentionWeights, shape: Shape, axes: string) =>
    checkAlike(weights[name], `weights.${name}`, shape, axes, x);
  check('normWeight', [dim], 'dim');
  check('normBias', [dim], 'dim');
  check('outWeight', [dim, -1], 'dim, e');
  check('outBias', [dim], 'dim');
  const hidden = 2 * weights.outWeight.shape[1];
  check('hiddenWeight', [hidden, dim], '2 e, dim');
  check('hiddenBias', [hidden], '2 e');
  check('qkWeight', [-1, dim], 's, dim');
  const keyDim = weights.qkWeight.shape[0];
  check('qkBias', [keyDim], 's');
  check('gamma', [heads, keyDim], `[${heads}, s]`);
  check('beta', [heads, keyDim], `[${heads}, s]`);
  check('relativeBias', [-1, 1], 'buckets, 1');
  return { batch, seq, dim, keyDim };
}

const scaleAndShift = fused((z, gamma, beta) => z.mul(gamma).add(beta));

/** Values, gates, and the queries and keys. */
function project(x: Sequence, w: GatedAttentionWeights): { v: Sequence; gate: Sequence; heads: Sequence[] } {
  const normal = layerNorm(x, w.normWeight, w.normBias);
  const silu = (weight: Sequence, bias: Sequence) =>
    matmul(normal, weight.transpose(0, 1), { bias, activation: 'silu' });
  const hidden = silu(w.hiddenWeight, w.hiddenBias);
  const [v, gate] = split(hidden, w.outWeight.shape[1], -1);
  const z = silu(w.qkWeight, w.qkBias);
  const heads = Array.from({ length: w.gamma.shape[0] }, (_, i) =>
    scaleAndShift(z, w.gamma.select(0, i), w.beta.select(0, i)),
  );
  return { v, gate, heads };
}

/** t[j - i + n - 1] for all i and j below n, of t [2 n - 1]. */
export function byDifference(t: Sequence, n: number): Sequence {
  // Rows of 2 n - 1, laid out with an element more: read as if they had none, each begins one later than that before it.
  const rows = pad(t.expand([n, 2 * n - 1]), [
    [0, 0],
    [0, 1],
  ]);
  const flat = rows.reshape([2 * n * n]).slice(0, 0, n * (2 * n - 1));
  return flat.reshape([n, 2 * n - 1]).slice(1, n - 1, 2 * n - 1);
}

const known = new Remember<RowMap>(releaseCopies);

/** The row of a table of T5's biases for each difference of positions, from 1 - n to n - 1. */
const bucketsOf = (table: Sequence, n: number, bidirectional: boolean): RowMap =>
  known.get([n, table.shape[0], bidirectional], () => {
    const { buckets } = t5RelativeBias(table, { queryLength: n, keyLength: n, maxDistance, bidirectional });
    return RowMap.of(buckets, table.shape[0]);
  });

/** T5's bias of each pair among n positions, times `scale`: [n, n] */
function relativeBias(table: Sequence, n: number, scale: number, causal: boolean): Sequence {
  const rows = table.contiguous().reshape([1, table.shape[0], 1]);
  const biases = gatherRows(rows, bucketsOf(table, n, !causal), { scale });
  return byDifference(biases.reshape([2 * n - 1]), n);
}

/** max(scale x + bias, 0)^2 */
const squaredRelu = fused((x, bias, scale, ofBias) => x.mul(scale).add(bias.mul(ofBias)).maximum(0).square());
/** Mega's: the mean and the deviation are where it meets max(x, 0)^2 in value and slope. */
const laplacian = fused((x, bias, scale, ofBias) =>
  x
    .mul(scale)
    .add(bias.mul(ofBias))
    .sub(Math.SQRT1_2)
    .mul(Math.sqrt(2 * Math.PI))
    .erf()
    .add(1)
    .mul(0.5),
);

interface Pairs extends Required<GatedAttentionOptions> {
  /** Multiply q . k and the bias. */
  readonly scale: number;
  readonly ofBias: number;
}

/** The weights of all pairs: q and k [..., n, s], bias [n, n] */
function weightsOf(q: Sequence, k: Sequence, bias: Sequence, { causal, laplace, scale, ofBias }: Pairs): Sequence {
  const act = laplace ? laplacian : squaredRelu;
  const weights = act(matmul(q, k.transpose(-2, -1)), bias, scale, ofBias);
  return causal ? (where(upToEach(bias.shape[0], q), weights, 0) as Sequence) : weights;
}

const gatedBy = (values: Sequence, gate: Sequence, x: Sequence, w: GatedAttentionWeights): Sequence =>
  add(matmul(mul(values, gate), w.outWeight.transpose(0, 1), { bias: w.outBias }), x);

/**
 * The gated attention unit: with xn = layerNorm(x), [v | gate] = silu(xn Wh^T + bh), z = silu(xn Wqk^T + bqk), q and k = z gamma_i +
 * beta_i, out = ((A v) gate) Wo^T + bo + x, where A = max((q k^T + b) / n, 0)^2, of n positions, and b = sqrt(dim) times T5's
 * relative biases. Hua et al., "Transformer Quality in Linear Time" (2022), arXiv:2202.10447, as FLASH-pytorch computes it.
 * Holds all pairs: `flashQuadAttention` is for long sequences.
 *
 * @param x [batch, seq, dim]
 * @param weights of the dtype of x
 * @returns [batch, seq, dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function gatedAttentionUnit<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: GatedAttentionWeights<NoInfer<D>>,
  options: GatedAttentionOptions = {},
): Tensor<D, Shape> {
  checkOptions(options, ['causal', 'laplace']);
  const { causal = false, laplace = false } = options;
  checkBoolean(causal, 'causal');
  checkBoolean(laplace, 'laplace');
  const w = weights as GatedAttentionWeights;
  const { seq, dim } = readSizes(x, w, 2);
  return scope(() => {
    if (x.size === 0) return add(x, 0) as Sequence as Tensor<D, Shape>;
    const { v, gate, heads } = project(x, w);
    const [q, k] = heads as [Sequence, Sequence];
    const bias = relativeBias(w.relativeBias, seq, Math.sqrt(dim), causal);
    const pairs = weightsOf(q, k, bias, { causal, laplace, scale: 1 / seq, ofBias: 1 / seq });
    return gatedBy(matmul(pairs, v), gate, x, w) as Tensor<D, Shape>;
  });
}

/** The sum over all positions of lin_k^T v / n, which every query reads. */
function linearOverAll(q: Sequence, k: Sequence, v: Sequence): Sequence {
  return matmul(q, matmul(k.transpose(-2, -1), v, { alpha: 1 / q.shape[1] }));
}

/** The sum over the groups before that of the query of lin_k^T v / g. All [batch, groups, g, .] */
function linearOverPrevious(q: Sequence, k: Sequence, v: Sequence): Sequence {
  const states = matmul(k.transpose(-2, -1), v, { alpha: 1 / q.shape[2] });
  const [batch, groups, rows, columns] = states.shape;
  const first = filled(q.backend, [batch, 1, rows, columns], q.dtype, 0);
  const before = concat([first, cumsum(states, 1).slice(1, 0, groups - 1)], 1);
  return matmul(q, before);
}

/**
 * FLASH, mixed chunk attention: gated attention as in `gatedAttentionUnit`, but of pairs within groups of g positions alone,
 * A = max(q k^T / g + b, 0)^2 with b = sqrt(s) times T5's relative biases, plus linear attention with queries and keys of its own:
 * lin_q times the sum over all positions of lin_k^T v / n, or when causal over those of the groups before, of lin_k^T v / g. Time
 * grows with N. Hua et al. (2022), arXiv:2202.10447, as FLASH-pytorch computes it.
 *
 * @param x [batch, seq, dim]; the last group may be shorter
 * @param weights of the dtype of x; rows of gamma and beta are those of the quadratic query, the linear query, the quadratic key
 *   and the linear key
 * @returns [batch, seq, dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function flashQuadAttention<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: GatedAttentionWeights<NoInfer<D>>,
  options: FlashQuadOptions = {},
): Tensor<D, Shape> {
  checkOptions(options, ['causal', 'laplace', 'groupSize', 'mask']);
  const { causal = false, laplace = false, groupSize = 256, mask } = options;
  checkBoolean(causal, 'causal');
  checkBoolean(laplace, 'laplace');
  checkInteger(groupSize, 'groupSize', 1);
  const w = weights as GatedAttentionWeights;
  const { batch, seq, keyDim } = readSizes(x, w, 4);
  if (mask !== undefined) checkPositions(mask, x);
  return scope(() => {
    if (x.size === 0) return add(x, 0) as Sequence as Tensor<D, Shape>;
    const { v, gate, heads } = project(x, w);
    const [quadQ, linQ, quadK, linK] = heads as [Sequence, Sequence, Sequence, Sequence];
    // A value of 0 is a key that adds nothing, in both parts: no weight is divided by a sum.
    const values = mask ? (where(mask.reshape([batch, seq, 1]), v, 0) as Sequence) : v;
    const groups = Math.ceil(seq / groupSize);
    const missing = groups * groupSize - seq;
    const grouped = (t: Sequence) => {
      const whole =
        missing === 0
          ? t.contiguous()
          : pad(t, [
              [0, 0],
              [0, missing],
              [0, 0],
            ]);
      return whole.reshape([batch, groups, groupSize, t.shape[2]]) as Sequence;
    };
    const joined = (t: Sequence) => t.reshape([batch, groups * groupSize, t.shape[3]]).slice(1, 0, seq) as Sequence;
    const bias = relativeBias(w.relativeBias, groupSize, Math.sqrt(keyDim), causal);
    const valuesOfGroups = grouped(values);
    const pairs = weightsOf(grouped(quadQ), grouped(quadK), bias, { causal, laplace, scale: 1 / groupSize, ofBias: 1 });
    const quadratic = joined(matmul(pairs, valuesOfGroups));
    const linear = causal
      ? joined(linearOverPrevious(grouped(linQ), grouped(linK), valuesOfGroups))
      : linearOverAll(linQ, linK, values);
    return gatedBy(add(quadratic, linear) as Sequence, gate, x, w) as Tensor<D, Shape>;
  });
}
