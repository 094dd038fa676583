import { attention } from '../attention/attention.js';
import { checkInteger, checkOptions as checkNames, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { add } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { pad } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkAlike, checkQkv, checkShaped, narrow, type Sequence } from './inputs.js';
import { checkOptions, type ScaleOption } from './saved.js';

/**
 * Sinusoids of distances, of the farthest first: row p is of distance t = length - 1 - p, [sin(t 10000^(-2 i / width)) for all
 * i below width / 2, and then the cosines]. The last n rows are those of a shorter length n.
 *
 * @param options width: even; device: default 'auto'
 * @returns [length, width], float32
 * @throws ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function distanceSinusoids(options: {
  readonly length: number;
  readonly width: number;
  readonly device?: DeviceName;
}): Tensor<'float32', Shape> {
  checkNames(options, ['length', 'width', 'device']);
  const { length, width, device } = options;
  checkInteger(length, 'length', 0);
  if (checkInteger(width, 'width', 2) % 2 === 1) throw mustBe('width', width, 'even');
  const half = width / 2;
  const values = Float32Array.from({ length: length * width }, (_, at) => {
    const [row, column] = [Math.floor(at / width), at % width];
    const angle = (length - 1 - row) * 10_000 ** (-(column % half) / half);
    return column < half ? Math.sin(angle) : Math.cos(angle);
  });
  return tensor(values, [length, width], device === undefined ? {} : { device });
}

export interface TransformerXLOptions extends ScaleOption {
  /** Added to queries where they meet keys, u of the paper: [heads, dim], any float dtype. */
  readonly contentBias: Tensor<FloatDType, Shape>;
  /** Added to queries where they meet distances, v of the paper: [heads, dim], any float dtype. */
  readonly distanceBias: Tensor<FloatDType, Shape>;
}

/**
 * The shift: rows of distances, farthest first, to columns of keys. A zero before each row and a row that begins later by one
 * than the one before it move each row by one more. What lands behind a query's own position means nothing.
 */
function shifted(t: Sequence): Sequence {
  const [batch, heads, queries, keys] = t.shape;
  const spaced = pad(t, [[0, 0], [0, 0], [0, 0], [1, 0]]); // biome-ignore format: a pair an axis
  const flat = spaced.reshape([batch, heads, queries * (keys + 1)]).slice(2, queries, queries * (keys + 1));
  return flat.contiguous().reshape([batch, heads, queries, keys]);
}

/**
 * Attention of Transformer-XL (Dai et al. 2019, arXiv:1901.02860, section 3.3), causal, with queries the last of the keys:
 * softmax over j of scale ((q_i + u) . k_j + (q_i + v) . r_(i - j)), with r_t what distance t is projected to. As in the paper
 * the second product is a number for each pair [batch, heads, Nq, Nk], of a segment and its memory alone; the rest is one fused
 * attention.
 *
 * @param q [batch, Nq, heads, dim], Nq at most Nk
 * @param k [batch, Nk, heads, dim]: memory, and then the segment of the queries
 * @param v [batch, Nk, heads, value dim]
 * @param r [Nk, heads, dim]: of distances from Nk - 1 to 0, such as a projection of `distanceSinusoids`
 * @param options scale: default 1 / sqrt(dim)
 * @returns [batch, Nq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function transformerXLAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  r: Sequence<NoInfer<D>>,
  options: TransformerXLOptions,
): Sequence<D> {
  checkQkv(q, k, v);
  checkOptions(options, ['contentBias', 'distanceBias']);
  const [, queries, heads, dim] = q.shape;
  const keys = k.shape[1];
  if (queries > keys) throw shapeError(`q has ${queries} positions and k ${keys}; queries are the last of the keys`);
  checkAlike(r, 'r', [keys, heads, dim], 'distances, as many as keys, heads, dim', q);
  const { contentBias, distanceBias, scale = 1 / Math.sqrt(dim) } = options;
  checkShaped(contentBias, 'contentBias', [heads, dim], 'heads, dim', q);
  checkShaped(distanceBias, 'distanceBias', [heads, dim], 'heads, dim', q);
  return scope(() => {
    if (q.size === 0) return attention<D, Shape>(q, k, v, { causal: true, scale }).out;
    const biased = (bias: Sequence) => add(q, narrow(bias, q)) as Sequence<D>;
    const distances = matmul(biased(distanceBias).transpose(1, 2), (r as Sequence<D>).permute([1, 2, 0]), {
      alpha: scale,
    });
    return attention<D, Shape>(biased(contentBias), k, v, { causal: true, scale, bias: shifted(distances) }).out;
  });
}
