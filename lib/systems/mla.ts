import { attention } from '../attention/attention.js';
import { checkpoint } from '../autograd/checkpoint.js';
import { checkInteger, checkOptions as checkNames, checkNumber, checkObject, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { maxHeadDim } from '../kernels/attention.js';
import { cumsum } from '../ops/alongAxis.js';
import { concat } from '../ops/concat.js';
import { lessEqual, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { rmsNorm } from '../ops/norm.js';
import { logSumExp } from '../ops/reduce.js';
import { type RopeAngles, rope } from '../ops/rope.js';
import { softmax } from '../ops/softmax.js';
import { split } from '../ops/split.js';
import { filled } from '../tape/arithmetic.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkShaped, narrow, type Sequence } from './inputs.js';
import { checkOptions, type ScaleOption } from './saved.js';

/** Matrices are [out, in]; any float dtype. Of all heads, one behind the other. */
export interface MlaWeights {
  /** To queries, of each head first those without and then those with positions: [heads * (nope dim + rope dim), width or q rank] */
  readonly q: Tensor<FloatDType, Shape>;
  /** To what queries are made of where they have a rank too, [q rank, width], and its RMS norm [q rank]. Both or neither. */
  readonly qDown?: Tensor<FloatDType, Shape> | undefined;
  readonly qNorm?: Tensor<FloatDType, Shape> | undefined;
  /** To the latent that keys and values are made of, and to the key with positions that all heads share: [kv rank + rope dim, width] */
  readonly kvDown: Tensor<FloatDType, Shape>;
  /** RMS norm of the latent: [kv rank] */
  readonly kvNorm: Tensor<FloatDType, Shape>;
  /** From the latent, of each head first its keys and then its values: [heads * (nope dim + value dim), kv rank] */
  readonly kvUp: Tensor<FloatDType, Shape>;
}

/** What has to be kept of tokens for those behind them: kv rank + rope dim numbers each, whatever the heads. */
export interface MlaCache {
  /** After its norm: [batch, tokens, kv rank] */
  readonly latent: Tensor<FloatDType, Shape>;
  /** Keys with positions, turned: [batch, tokens, rope dim] */
  readonly ropeKeys: Tensor<FloatDType, Shape>;
}

export interface MlaOptions extends ScaleOption {
  readonly heads: number;
  /** Of positions from 0 to that of the last token: [at least cached + seq, rope dim / 2]. Neighbouring dims are turned together. */
  readonly angles: RopeAngles;
  /**
   * 'naive' (default): keys and values are made of the latents, and attention has heads * (nope dim + rope dim + value dim)
   * numbers for each. 'absorbed': queries are brought to the latents, which all heads share as keys and values; for few
   * queries of many tokens, where reading these is what takes time. Both give the same but for rounding.
   */
  readonly form?: 'naive' | 'absorbed';
  /** Of both norms. Default 1e-6. */
  readonly epsilon?: number;
  /** Of the tokens before x. Default none. */
  readonly cache?: MlaCache;
}

export interface MlaResult<D extends FloatDType> {
  /** Of all heads, one behind the other, before the projection back: [batch, seq, heads * value dim] */
  readonly out: Sequence<D>;
  /** [batch, heads, seq] */
  readonly lse: Tensor<'float32', Shape>;
  /** Of all tokens up to the last of x. */
  readonly cache: MlaCache;
}

interface Dims {
  readonly heads: number;
  readonly nope: number;
  readonly rope: number;
  readonly value: number;
  readonly rank: number;
  readonly scale: number;
}

const contiguous = <D extends FloatDType>(t: Sequence<D>): Sequence<D> => (t.isContiguous ? t : t.contiguous());
/** In the dtype of x, turned round: x w^T is a product of x with it. */
const across = <D extends FloatDType>(w: Sequence, x: Sequence<D>): Sequence<D> => narrow(w, x).transpose(-2, -1);

interface Attended<D extends FloatDType> {
  readonly out: Sequence<D>;
  readonly lse: Tensor<'float32', Shape>;
}

/** How many scores are held at once where no kernel takes rows of latents. */
const mostScores = 2 ** 22;

/**
 * @internal
 *
 * Causal attention of heads that share keys whose first dims are their values, of more dims than the kernels take, as a product,
 * a softmax and a product for some queries at a time; gradients compute these again.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, keys, dim]
 */
export function attendWide<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<D>,
  rank: number,
  scale: number,
  scoresAtOnce = mostScores,
): Attended<D> {
  const [batch, seq, heads] = q.shape;
  const keys = k.shape[1];
  const rows = Math.max(1, Math.floor(scoresAtOnce / Math.max(1, batch * heads * keys)));
  let first = keys - seq;
  const blocks = split(contiguous(q.transpose(1, 2)), rows, 2).map((block) => {
    const [from, to] = [first, first + block.shape[2]];
    first = to;
    return checkpoint(
      (queries: Sequence<D>, all: Sequence<D>) => {
        const positions = cumsum(filled(q.backend, [keys], 'float32', 1));
        const own = positions.slice(0, from, to).reshape([to - from, 1]);
        const shared = all.reshape([batch, 1, keys, all.shape[2]]);
        const scores = matmul(queries, shared.transpose(-2, -1), { alpha: scale });
        const seen = where(lessEqual(positions, own), scores, Number.NEGATIVE_INFINITY) as Sequence<D>;
        return [matmul(softmax(seen), shared.slice(3, 0, rank)), logSumExp(narrow(seen, positions), -1)];
      },
      block as Sequence<D>,
      contiguous(k),
    ) as unknown as [Sequence<D>, Tensor<'float32', Shape>];
  });
  return {
    out: contiguous(concat(blocks.map(([out]) => out), 2).transpose(1, 2)), // biome-ignore format: one line
    lse: concat(blocks.map(([, lse]) => lse), 2), // biome-ignore format: one line
  };
}

type Parts<D extends FloatDType> = readonly [
  qNope: Sequence<D>,
  qRope: Sequence<D>,
  latent: Sequence<D>,
  kRope: Sequence<D>,
];

function naive<D extends FloatDType>([qNope, qRope, latent, kRope]: Parts<D>, kvUp: Sequence, d: Dims): Attended<D> {
  const [batch, keys] = latent.shape;
  const made = matmul(latent, across(kvUp, latent)).reshape([batch, keys, d.heads, d.nope + d.value]);
  const [kNope, v] = split(made, [d.nope, d.value], 3) as [Sequence<D>, Sequence<D>];
  const shared = kRope.reshape([batch, keys, 1, d.rope]).expand([batch, keys, d.heads, d.rope]) as Sequence<D>;
  const [q, k] = [concat([qNope, qRope], 3), concat([kNope, shared], 3)];
  return attention<D, Shape>(q, k as Sequence<NoInfer<D>>, v as Sequence<NoInfer<D>>, { causal: true, scale: d.scale });
}

function absorbed<D extends FloatDType>([qNope, qRope, latent, kRope]: Parts<D>, kvUp: Sequence, d: Dims): Attended<D> {
  const [batch, keys] = latent.shape;
  const ofHeads = narrow(kvUp, latent).reshape([d.heads, d.nope + d.value, d.rank]);
  const [up, down] = split(ofHeads, [d.nope, d.value], 1) as [Sequence<D>, Sequence<D>];
  // (q W_k) . c = q . (W_k c)
  const q = concat([contiguous(matmul(qNope.transpose(1, 2), up).transpose(1, 2)), qRope], 3);
  const k = concat([latent, kRope], 2);
  const wide = d.rank + d.rope > maxHeadDim;
  const shared = k.reshape([batch, keys, 1, d.rank + d.rope]);
  const { out, lse } = wide
    ? attendWide(q, k, d.rank, d.scale)
    : attention<D, Shape>(q, shared as Sequence<NoInfer<D>>, shared.slice(3, 0, d.rank) as Sequence<NoInfer<D>>, {
        causal: true,
        scale: d.scale,
      });
  // sum_j p_j (W_v c_j) = W_v (sum_j p_j c_j)
  return { out: matmul(out.transpose(1, 2), down.transpose(1, 2)).transpose(1, 2), lse };
}

/** Reads the dims off the weights. @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED */
function checkWeights(x: Sequence, weights: MlaWeights, heads: number): Omit<Dims, 'scale'> {
  checkNames(weights, ['q', 'qDown', 'qNorm', 'kvDown', 'kvNorm', 'kvUp'], 'weights');
  const { q, qDown, qNorm, kvDown, kvNorm, kvUp } = weights;
  const width = x.shape[2];
  for (const [name, t, rank] of [
    ['q', q, 2],
    ['kvDown', kvDown, 2],
    ['kvNorm', kvNorm, 1],
    ['kvUp', kvUp, 2],
  ] as const) {
    checkTensor(t, `weights.${name}`);
    if (t.shape.length !== rank)
      throw shapeError(
        `weights.${name} has shape ${show(t.shape)}; it must have ${rank === 1 ? 'one axis' : 'two axes'}`,
      );
  }
  const [rank] = kvNorm.shape;
  const rope = kvDown.shape[0] - rank;
  const nope = q.shape[0] / heads - rope;
  const value = kvUp.shape[0] / heads - nope;
  const shown = `weights.q has shape ${show(q.shape)}, kvDown ${show(kvDown.shape)}, kvNorm ${show(kvNorm.shape)} and kvUp ${show(kvUp.shape)}`;
  if (rope < 2 || rope % 2 !== 0 || !Number.isInteger(nope) || nope < 1 || !Number.isInteger(value) || value < 1)
    throw shapeError(
      `${shown}; they must be [${heads} (nope + rope dim), ...], [kv rank + rope dim, width], [kv rank] and [${heads} (nope + value dim), kv rank], with an even rope dim`,
    );
  checkShaped(kvDown, 'weights.kvDown', [rank + rope, width], 'kv rank + rope dim, width', x);
  checkShaped(kvUp, 'weights.kvUp', [-1, rank], 'heads * (nope dim + value dim), kv rank', x);
  kvNorm.operand('weights.kvNorm', x.backend);
  if (qDown !== undefined || qNorm !== undefined) {
    checkShaped(qDown, 'weights.qDown', [-1, width], 'q rank, width', x);
    checkShaped(qNorm, 'weights.qNorm', [qDown.shape[0]], 'q rank', x);
  }
  checkShaped(
    q,
    'weights.q',
    [-1, qDown ? qDown.shape[0] : width],
    'heads * (nope dim + rope dim), width or q rank',
    x,
  );
  return { heads, nope, rope, value, rank };
}

function checkCache(cache: MlaCache, x: Sequence, { rank, rope }: Omit<Dims, 'scale'>): void {
  checkNames(cache, ['latent', 'ropeKeys'], 'cache');
  checkTensor(cache.latent, 'cache.latent');
  checkAlike(cache.latent, 'cache.latent', [x.shape[0], -1, rank], 'batch, tokens, kv rank', x);
  checkAlike(cache.ropeKeys, 'cache.ropeKeys', [x.shape[0], cache.latent.shape[1], rope], 'batch, tokens, rope dim', x);
}

function checkAngles(angles: RopeAngles, x: Sequence, positions: number, pairs: number): void {
  checkObject(angles, 'angles');
  for (const name of ['cos', 'sin'] as const) {
    const t = angles[name];
    checkTensor(t, `angles.${name}`);
    if (t.shape.length !== 2 || t.shape[0] < positions || t.shape[1] !== pairs)
      throw shapeError(
        `angles.${name} has shape ${show(t.shape)}; it must be [at least ${positions} positions, ${pairs} pairs of the rope dim]`,
      );
    t.operand(`angles.${name}`, x.backend);
  }
}

/**
 * Multi-head latent attention, causal, up to the projection back. DeepSeek-AI, "DeepSeek-V2" (2024), arXiv:2405.04434, section
 * 2.1, as the code of DeepSeek-V3 has it:
 *
 * q = norm(x W_qDown^T) W_q^T, or x W_q^T; [c | k_rope] = x W_kvDown^T, c = norm(c); [k_nope | v] = c W_kvUp^T of each head; then
 * softmax attention of [q_nope | rope(q_rope)] and [k_nope | rope(k_rope)], where all heads share k_rope. Norms are RMS norms.
 *
 * The absorbed form takes one fused attention where kv rank + rope dim is at most 256. Beyond it some rows of scores are held at
 * a time, and what is not finite in a latent reaches tokens before it too.
 *
 * @param x [batch, seq, width]
 * @param options scale: default 1 / sqrt(nope dim + rope dim)
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function multiHeadLatentAttention<D extends FloatDType>(
  x: Sequence<D>,
  weights: MlaWeights,
  options: MlaOptions,
): MlaResult<D> {
  checkTensor(x, 'x');
  if (x.shape.length !== 3) throw shapeError(`x has shape ${show(x.shape)}; it must be [batch, seq, width]`);
  checkOptions(options, ['heads', 'angles', 'form', 'epsilon', 'cache']);
  const { angles, form = 'naive', epsilon = 1e-6, cache } = options;
  const heads = checkInteger(options.heads, 'heads', 1);
  checkWord(form, 'form', ['naive', 'absorbed']);
  checkNumber(epsilon, 'epsilon', 0);
  const own = checkWeights(x, weights, heads);
  const dims = { ...own, scale: options.scale ?? 1 / Math.sqrt(own.nope + own.rope) };
  if (cache !== undefined) checkCache(cache, x, own);
  const [batch, seq] = x.shape;
  const before = cache?.latent.shape[1] ?? 0;
  checkAngles(angles, x, before + seq, own.rope / 2);
  return scope(() => {
    const part = (t: Tensor<'float32', Shape>) => t.slice(0, before, before + seq);
    const turned = (t: Sequence<D>): Sequence<D> =>
      t.size === 0 ? t : rope(t, { cos: part(angles.cos), sin: part(angles.sin) }, { pairs: 'interleaved' });
    const { q, qDown, qNorm, kvDown, kvNorm, kvUp } = weights;
    const source = qDown && qNorm ? rmsNorm(matmul(x, across(qDown, x)), narrow(qNorm, x), { epsilon }) : x;
    const queries = matmul(source, across(q, x)).reshape([batch, seq, heads, own.nope + own.rope]);
    const [qNope, qRope] = split(queries, [own.nope, own.rope], 3) as [Sequence<D>, Sequence<D>];
    const [c, kRope] = split(matmul(x, across(kvDown, x)), [own.rank, own.rope], 2) as [Sequence<D>, Sequence<D>];
    const latents = rmsNorm(c, narrow(kvNorm, x), { epsilon });
    const ropeKeys = turned(contiguous(kRope).reshape([batch, seq, 1, own.rope])).reshape([batch, seq, own.rope]);
    const all = {
      latent: cache ? concat([cache.latent as Sequence<D>, latents], 1) : latents,
      ropeKeys: cache ? concat([cache.ropeKeys as Sequence<D>, ropeKeys], 1) : ropeKeys,
    };
    const parts: Parts<D> = [qNope, turned(qRope), all.latent, all.ropeKeys];
    const { out, lse } = form === 'naive' ? naive(parts, kvUp, dims) : absorbed(parts, kvUp, dims);
    return { out: contiguous(out).reshape([batch, seq, heads * own.value]), lse, cache: all };
  });
}
