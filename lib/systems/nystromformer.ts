import { attention } from '../attention/attention.js';
import { checkBoolean, checkInteger, checkOptions as checkNames } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { cumsum } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { conv2d } from '../ops/conv.js';
import { add, div, equal, mul, sub, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { max, mean, sum } from '../ops/reduce.js';
import { softmax } from '../ops/softmax.js';
import { pad } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkPositions, checkQkv, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { checkOptions, type ScaleOption } from './saved.js';

export interface PseudoInverseOptions {
  /** Default 6. */
  readonly iterations?: number;
  /**
   * Whether each matrix begins with its own largest column sum, and not all with the largest of all of them, with which a
   * batch entry makes a difference to others, by rounding and as long as the iteration has not converged. Default false, as
   * the authors'.
   */
  readonly perMatrix?: boolean;
}

export interface NystromPaddedOptions extends ScaleOption, PseudoInverseOptions {
  /** How many means of consecutive tokens stand for all queries, and for all keys. */
  readonly landmarks: number;
  /**
   * What is added to out: a convolution of the values over positions, with a kernel for each head, [heads, 1, size, 1] of any
   * float dtype with an odd size, zeros around the sequence. Default none.
   */
  readonly convWeight?: Tensor<FloatDType, Shape>;
}

export interface NystromformerOptions extends NystromPaddedOptions {
  /**
   * Which positions are real, [batch, seq]. Others are hidden as keys and count as zeros in everything else, also in the means;
   * their rows of out mean nothing. Default all.
   */
  readonly mask?: Tensor<'bool', Shape>;
}

/**
 * The pseudo-inverse of matrices by the iteration of Razavi et al. (2014), as in Nystromformer:
 * Z <- Z (13 I - A Z (15 I - A Z (7 I - A Z))) / 4 from Z = A^T / the largest sum of a column. It converges for rows that
 * softmax has made, whose sums are 1. Everything is differentiated, the first Z too.
 *
 * @param a [..., n, n], float32
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function iterativePseudoInverse(
  a: Tensor<'float32', Shape>,
  options: PseudoInverseOptions = {},
): Tensor<'float32', Shape> {
  checkTensor(a, 'a');
  const { shape, backend, dtype } = a;
  const n = shape[shape.length - 1];
  if (shape.length < 2 || shape[shape.length - 2] !== n || a.size === 0)
    throw shapeError(`a has shape ${show(shape)}; it must be [..., n, n]`);
  if (dtype !== 'float32') throw new FlashAttnError('ERR_DTYPE', `a is ${dtype}; it must be float32`);
  checkNames(options, ['iterations', 'perMatrix']);
  const { iterations = 6, perMatrix = false } = options;
  checkInteger(iterations, 'iterations', 0);
  checkBoolean(perMatrix, 'perMatrix');
  return scope(() => {
    // Made on the device, as a captured step must be.
    const places = cumsum(filled(backend, [n], 'float32', 1));
    const identity = cast(equal(places, places.reshape([n, 1])), 'float32');
    const [seven, thirteen, fifteen] = [7, 13, 15].map((times) => mul(identity, times)) as [Wide, Wide, Wide];
    const columns = sum(a, -2, { keepDims: true });
    let z = div(a.transpose(-2, -1), perMatrix ? max(columns, -1, { keepDims: true }) : max(columns)) as Wide;
    for (let i = 0; i < iterations; i++) {
      const az = matmul(a, z);
      const inner = matmul(az, sub(seven, az) as Wide, { alpha: -1, bias: fifteen });
      z = matmul(z, matmul(az, inner, { alpha: -1, bias: thirteen }), { alpha: 0.25 });
    }
    return z;
  });
}

/** Means of consecutive tokens: [batch, landmarks, heads, dim]. */
function landmarksOf(t: Wide, landmarks: number): Wide {
  const [batch, seq, heads, dim] = t.shape;
  const rows = t.isContiguous ? t : t.contiguous();
  return mean(rows.reshape([batch, landmarks, seq / landmarks, heads, dim]), 2);
}

const heads = (t: Wide): Wide => t.transpose(1, 2);

/** softmax(Q Kl^T) pinv(softmax(Ql Kl^T)) (softmax(Ql K^T) V), from the right to the left, and never of all pairs. */
function nystrom(
  q: Wide,
  k: Wide,
  v: Wide,
  scale: number,
  hidden: Wide | undefined,
  options: NystromPaddedOptions,
): Wide {
  const { landmarks, iterations = 6, perMatrix = false } = options;
  const [qMeans, kMeans] = [landmarksOf(q, landmarks), landmarksOf(k, landmarks)];
  const seen = attention<'float32', Shape>(qMeans, k, v, { scale, ...(hidden && { bias: hidden }) }).out;
  const among = softmax(matmul(heads(qMeans), heads(kMeans).transpose(-2, -1), { alpha: scale }));
  const values = matmul(iterativePseudoInverse(among, { iterations, perMatrix }), heads(seen));
  return attention<'float32', Shape>(q, kMeans, heads(values), { scale }).out;
}

/** Of each dim of each head over positions: v [batch, seq, heads, dim], weight [heads, 1, size, 1]. */
const convolved = (v: Wide, weight: Sequence): Wide =>
  heads(
    conv2d(heads(v).contiguous(), wide(weight), {
      groups: v.shape[2],
      padding: [(weight.shape[2] - 1) / 2, 0],
    }) as Wide,
  );

const names = ['landmarks', 'iterations', 'perMatrix', 'convWeight'] as const;

function checkNystrom(q: Sequence, { landmarks, iterations = 6, perMatrix = false, convWeight }: NystromPaddedOptions) {
  checkInteger(landmarks, 'landmarks', 1);
  checkInteger(iterations, 'iterations', 0);
  checkBoolean(perMatrix, 'perMatrix');
  if (convWeight === undefined) return;
  checkTensor(convWeight, 'convWeight');
  const [own, one, size, last] = convWeight.shape;
  if (convWeight.shape.length !== 4 || own !== q.shape[2] || one !== 1 || last !== 1 || size % 2 !== 1)
    throw shapeError(
      `convWeight has shape ${show(convWeight.shape)}; it must be [heads, 1, an odd size, 1], here [${q.shape[2]}, 1, ..., 1]`,
    );
  convWeight.operand('convWeight', q.backend);
}

/**
 * Nystrom attention: softmax attention by the Nystrom method from landmarks, the means of consecutive tokens Ql and Kl,
 * out = softmax(Q Kl^T) pinv(softmax(Ql Kl^T)) (softmax(Ql K^T) V), with all products scaled, and the pseudo-inverse by
 * `iterativePseudoInverse`. Xiong et al., "Nystromformer" (2021), arXiv:2102.03902, as its code (mlpen/Nystromformer) has it;
 * with as many landmarks as tokens it is softmax attention itself.
 *
 * Computed in float32: a pseudo-inverse has large numbers that cancel out. A batch entry without real keys has 0 for what they
 * would give; the code weighs them all alike.
 *
 * @param q [batch, seq, heads, dim], with seq a multiple of landmarks
 * @param k of the shape of q
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim], of the dtype of q
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function nystromformerAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: NystromformerOptions,
): Sequence<D> {
  checkQkv(q, k, v, { self: true });
  checkOptions(options, [...names, 'mask']);
  checkNystrom(q, options);
  const { landmarks, mask, convWeight, scale = 1 / Math.sqrt(q.shape[3]) } = options;
  const [batch, seq] = q.shape;
  if (seq % landmarks !== 0)
    throw shapeError(`q has ${seq} positions; they must be a multiple of the ${landmarks} landmarks`);
  if (mask !== undefined) checkPositions(mask, q);
  return scope(() => {
    const real = mask?.reshape([batch, seq, 1, 1]);
    const zeroed = (t: Sequence) => wide(real ? (where(real, t, 0) as Sequence) : t);
    const [query, key, value] = [zeroed(q), zeroed(k), zeroed(v)];
    const hidden = mask && (where(mask.reshape([batch, 1, 1, seq]), 0, Number.NEGATIVE_INFINITY) as Wide);
    const out =
      landmarks === seq || q.size === 0
        ? attention<'float32', Shape>(query, key, value, { scale, ...(hidden && { bias: hidden }) }).out
        : nystrom(query, key, value, scale, hidden, options);
    return narrow(convWeight ? (add(out, convolved(value, convWeight)) as Wide) : out, q);
  });
}

/**
 * Nystrom attention for any length, as lucidrains/nystrom-attention has it between its projections: as
 * `nystromformerAttention`, of a sequence with zeros before it up to a multiple of the landmarks. These zeros are tokens like
 * others: keys that are seen, and parts of means.
 *
 * @param q [batch, seq, heads, dim]
 * @param k of the shape of q
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim], of the dtype of q
 * @throws as `nystromformerAttention`
 */
export function nystromAttentionPadded<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: NystromPaddedOptions,
): Sequence<D> {
  checkQkv(q, k, v, { self: true });
  checkOptions(options, names);
  checkNystrom(q, options);
  const { landmarks, convWeight, scale = 1 / Math.sqrt(q.shape[3]) } = options;
  const seq = q.shape[1];
  return scope(() => {
    if (q.size === 0) return attention<D, Shape>(q, k, v, { scale }).out;
    const before = (landmarks - (seq % landmarks)) % landmarks;
    const [query, key, value] = [q, k, v].map(
      (t) => pad(wide(t), [[0, 0], [before, 0], [0, 0], [0, 0]]), // biome-ignore format: a pair an axis
    ) as [Wide, Wide, Wide];
    const out = nystrom(query, key, value, scale, undefined, options);
    const whole = convWeight ? (add(out, convolved(value, convWeight)) as Wide) : out;
    return narrow(whole.slice(1, before, before + seq).contiguous(), q);
  });
}
