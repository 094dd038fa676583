import { attention, attentionBackward, type Shape4 } from '../attention/attention.js';
import type { RelativeBias } from '../attention/relative.js';
import { checkInteger } from '../base/check.js';
import { encode, type FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { perHead, slidingWindow } from '../masks/index.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import {
  checkGradient,
  checkInputs,
  checkOptions,
  type Regrouped,
  type RegroupedGradients,
  SavedAttention,
  type ScaleOption,
  scaleOf,
  scoped,
  shapesOf,
  viewOfAll,
} from './saved.js';

export interface AdaptiveSpanOptions extends ScaleOption {
  /** The learned span of each head as a share of the longest one, 0 to 1: float32 [heads]. */
  readonly span: Tensor<'float32', Shape>;
  /** Over how many tokens the soft mask falls from 1 to 0. */
  readonly ramp: number;
  /** Added to the key of every query by its place among the keys that the query sees: float32 [dim, longest span]. */
  readonly keyPe?: Tensor<'float32', Shape>;
}

export interface AdaptiveSpanGradients<D extends FloatDType = FloatDType> extends RegroupedGradients<D, Shape4> {
  readonly dSpan: Tensor<'float32', Shape>;
  readonly dKeyPe?: Tensor<'float32', Shape>;
}

/** q [batch, queries, heads, dim] and k [batch, queries + longest, kv heads, dim] */
interface Dims {
  readonly batch: number;
  readonly queries: number;
  readonly heads: number;
  readonly dim: number;
  /** The longest span: the keys before a query, columns 0 to longest - 1. */
  readonly longest: number;
}

/** The soft mask of a head: ramp[c] before it is clamped to [0, 1]. */
interface SoftMask {
  readonly ramp: Float64Array;
  /** How many columns, counted from the last one, are not masked to 0. */
  readonly reach: number;
}

/** How `adaptiveSpanAttention` weighs the keys. */
export interface AdaptiveSpanLayout {
  readonly dims: Dims;
  readonly masks: readonly SoftMask[];
  readonly ramp: number;
  readonly scale: number;
}

const pattern = 'adaptiveSpanAttention';

function softMasks(span: Float32Array, ramp: number, { heads, longest }: Dims): SoftMask[] {
  const bad = span.findIndex((z) => !(z >= 0 && z <= 1));
  if (bad >= 0) throw optionError(`span[${bad}] is ${span[bad]}; it must be from 0 to 1`);
  return Array.from({ length: heads }, (_, head) => {
    const value = Float64Array.from(
      { length: longest },
      (_, c) => (span[head] * longest - (longest - 1 - c)) / ramp + 1,
    );
    return { ramp: value, reach: value.filter((w) => w > 0).length };
  });
}

function readDims(q: Tensor, k: Tensor, v: Tensor, options: AdaptiveSpanOptions): Dims {
  checkInputs(q, k, v, ['batch', 'length', 'heads', 'dim'], 1);
  checkOptions(options, ['span', 'ramp', 'keyPe']);
  const [batch, queries, heads, dim] = q.shape;
  const longest = k.shape[1] - queries;
  if (longest < 1 || queries < 1)
    throw shapeError(`k has ${k.shape[1]} tokens for ${queries} queries; it must have one for each and those before`);
  checkInteger(options.ramp, 'ramp', 1);
  checkTensor(options.span, 'span');
  if (options.span.shape.length !== 1 || options.span.size !== heads)
    throw shapeError(`span has shape ${show(options.span.shape)}; it must be [heads] = [${heads}]`);
  if (options.keyPe !== undefined) {
    checkTensor(options.keyPe, 'keyPe');
    const { shape } = options.keyPe;
    if (shape.length !== 2 || shape[0] !== dim || shape[1] !== longest)
      throw shapeError(`keyPe has shape ${show(shape)}; it must be [dim, longest span] = [${dim}, ${longest}]`);
  }
  return { batch, queries, heads, dim, longest };
}

/** A tensor of numbers that were computed on the host, beside `like`. */
function hostTensor<D extends FloatDType, S extends Shape>(
  values: Float64Array,
  shape: S,
  like: Tensor,
  dtype: D,
): Tensor<D, S> {
  const result = allocateTensor(like.backend, shape, dtype, 'hostWritten');
  const data = encode(values, dtype);
  result.write(data);
  return result;
}

/** The softmax times the soft mask, made to sum up to 1 again, is the softmax with the mask's logarithm for a bias. */
function spanBias(masks: readonly SoftMask[], { queries, heads, longest }: Dims, like: Tensor): RelativeBias {
  const table = new Float64Array(longest * heads);
  for (const [head, { ramp }] of masks.entries())
    for (let c = 0; c < longest; c++) table[c * heads + head] = ramp[c] > 0 ? Math.log(Math.min(ramp[c], 1)) : 0;
  // Query i sees key j in column j - i. Pairs outside of all columns are masked; their bucket means nothing.
  const buckets = Int32Array.from({ length: 2 * queries + longest }, (_, at) =>
    Math.min(Math.max(at - (queries - 1), 0), longest - 1),
  );
  return { table: hostTensor(table, [longest, heads], like, 'float32'), buckets, origin: queries - 1 };
}

/** Calls visit for the visible pairs of a query (a row of q) and a column, with the pair's place in the bias. */
function forEachPair(dims: Dims, masks: readonly SoftMask[], visit: (row: number, c: number, at: number) => void) {
  const { batch, queries, heads, longest } = dims;
  const keys = queries + longest - 1;
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < queries; i++)
        for (let c = longest - masks[h].reach; c < longest; c++)
          visit((b * queries + i) * heads + h, c, ((b * heads + h) * queries + i) * keys + i + c);
}

/** scale * q.keyPe as a bias [batch, heads, queries, keys]. */
function positionBias(
  q: Tensor,
  keyPe: Tensor,
  scale: number,
  dims: Dims,
  masks: readonly SoftMask[],
): Tensor<'float32', Shape> {
  const { batch, heads, queries, dim, longest } = dims;
  const [query, position] = [q.toFloat32Sync(), keyPe.toFloat32Sync()];
  const keys = queries + longest - 1;
  const bias = new Float64Array(batch * heads * queries * keys);
  forEachPair(dims, masks, (row, c, at) => {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += query[row * dim + d] * position[d * longest + c];
    bias[at] = scale * sum;
  });
  return hostTensor(bias, [batch, heads, queries, keys] as Shape, q, 'float32');
}

const maps = new Remember<RowMap>(releaseCopies);

/** Appends a row of zeros, so that there are `rows`. */
const withZeroRow = (rows: number): RowMap =>
  maps.get([rows], () =>
    RowMap.of(
      Array.from({ length: rows }, (_, at) => (at < rows - 1 ? at : -1)),
      rows - 1,
    ),
  );

/** The last key lies after every query's span. */
const beforeLast = <D extends FloatDType>(t: Tensor<D, Shape4>) => t.slice(1, 0, t.shape[1] - 1);

/**
 * Adaptive attention span (Sukhbaatar et al. 2019). Query m sees the L keys before it, column c = 0 to L - 1 being key
 * m + c, through a soft mask that each head learns:
 * out_m = sum_c p_c w_c v_{m+c} / sum_c p_c w_c, p = softmax_c(scale * q_m.(k_{m+c} + keyPe_c)),
 * w_c = clamp((span * L - (L - 1 - c)) / ramp + 1, 0, 1). Keys beyond a head's span cost nothing. (The original adds
 * 1e-8 to the denominator.)
 *
 * Blocks: span, and with `keyPe` also q, are read back; the term q.keyPe is computed on the host.
 *
 * @param q [batch, M, heads, dim]
 * @param k [batch, L + M, kv heads, dim]: the L tokens before the queries, then those of the queries
 * @param v [batch, L + M, kv heads, value dim]
 * @returns out [batch, M, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function adaptiveSpanAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  options: AdaptiveSpanOptions,
): Regrouped<D, Shape4, AdaptiveSpanLayout> {
  const dims = readDims(q, k, v, options);
  const { span, ramp, keyPe } = options;
  const layout: AdaptiveSpanLayout = {
    dims,
    masks: softMasks(span.toFloat32Sync(), ramp, dims),
    ramp,
    scale: options.scale ?? 1 / Math.sqrt(dims.dim),
  };
  const { masks, scale } = layout;
  return scoped(({ keep }) => {
    const tensors = { q: keep(viewOfAll(q)), k: keep(beforeLast(k)), v: keep(beforeLast(v)) };
    const relativeBias = spanBias(masks, dims, q);
    const bias = keyPe && keep(positionBias(q, keyPe, scale, dims, masks));
    const owned: Tensor[] = [keep(relativeBias.table), ...(keyPe && bias ? [keep(viewOfAll(keyPe)), bias] : [])];
    const spanOptions = {
      ...scaleOf(options),
      // Query i stands on the diagonal with its last column.
      mask: perHead(masks.map(({ reach }) => slidingWindow(reach - 1, 0))),
      relativeBias,
      ...(bias && { bias }),
    };
    const { out, lse } = attention(tensors.q, tensors.k, tensors.v, spanOptions);
    const saved = new SavedAttention<D, AdaptiveSpanLayout>(
      pattern,
      { ...tensors, out, lse },
      spanOptions,
      shapesOf(q, k, v),
      layout,
      owned,
    );
    return { out: viewOfAll(out), saved };
  });
}

/**
 * The gradients of `adaptiveSpanAttention`. A span has none through columns where the soft mask is clamped. Blocks.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `adaptiveSpanAttention`
 */
export function adaptiveSpanAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedAttention<D, AdaptiveSpanLayout>,
): AdaptiveSpanGradients<D> {
  checkGradient(dOut, saved, pattern);
  const { q, shapes } = saved;
  const { dims, masks, ramp, scale } = saved.layout;
  const { queries, heads, dim, longest } = dims;
  const [, keyPe] = saved.owned as readonly (Tensor | undefined)[];
  return scoped(({ use, keep }) => {
    const gradients = attentionBackward<D, Shape>(dOut, saved);
    for (const t of [gradients.dq, gradients.dk, gradients.dv, gradients.dBias, gradients.dRelativeBias]) if (t) use(t);
    const withLast = withZeroRow(longest + queries);
    const dSpan = spanGradient(gradients.dRelativeBias as Tensor, masks, ramp, dims);
    const results = {
      dk: keep(gatherRows(gradients.dk, withLast)) as Tensor<D, Shape4>,
      dv: keep(gatherRows(gradients.dv, withLast)) as Tensor<D, Shape4>,
      dSpan: keep(hostTensor(dSpan, [heads] as Shape, q, 'float32')),
    };
    if (!keyPe || !gradients.dBias) return { ...results, dq: keep(viewOfAll(gradients.dq)) as Tensor<D, Shape4> };
    const dQuery = Float64Array.from(gradients.dq.toFloat32Sync());
    const dPosition = new Float64Array(dim * longest);
    const [query, position] = [q.toFloat32Sync(), keyPe.toFloat32Sync()];
    const dBias = gradients.dBias.toFloat32Sync();
    forEachPair(dims, masks, (row, c, at) => {
      const factor = scale * dBias[at];
      for (let d = 0; d < dim; d++) {
        dQuery[row * dim + d] += factor * position[d * longest + c];
        dPosition[d * longest + c] += factor * query[row * dim + d];
      }
    });
    return {
      ...results,
      dq: keep(hostTensor(dQuery, shapes.q as Shape4, q, q.dtype as D)),
      dKeyPe: keep(hostTensor(dPosition, [dim, longest] as Shape, q, 'float32')),
    };
  });
}

/** From the gradient of log w [longest, heads]: d w / d span is longest / ramp where w is not clamped. */
function spanGradient(dTable: Tensor, masks: readonly SoftMask[], ramp: number, { heads, longest }: Dims) {
  const dLog = dTable.toFloat32Sync();
  return Float64Array.from(masks, ({ ramp: w }, head) => {
    let sum = 0;
    for (let c = 0; c < longest; c++)
      if (w[c] > 0 && w[c] <= 1) sum += (dLog[c * heads + head] / w[c]) * (longest / ramp);
    return sum;
  });
}
