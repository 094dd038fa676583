import { attention, type Shape4 } from '../attention/attention.js';
import { checkBoolean, checkInteger, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { Remember } from '../base/remember.js';
import type { FeatureMap } from '../linear/featureMaps.js';
import { blocks } from '../masks/blocks.js';
import type { Mask } from '../masks/mask.js';
import { concat } from '../ops/concat.js';
import { exp, fused, mul } from '../ops/elementwise.js';
import { softmax } from '../ops/softmax.js';
import { pad, split } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { fromChunks, inChunks } from './chunks.js';
import { efficientAttention } from './efficientAttention.js';
import { checkHeads, checkShaped, narrow, type Sequence, type Wide, wide } from './inputs.js';
import { linearAttention } from './linearAttention.js';

const gated = fused(function gated(gate, a, b) {
  return gate.sigmoid().mul(a.sub(b)).add(b);
});

export interface HybridLocalLinearOptions {
  /** How many heads, the first ones, have softmax attention; the others have linear attention. */
  readonly localHeads: number;
  /** Tokens of a block of the local attention. */
  readonly window: number;
  /** Default false. */
  readonly causal?: boolean;
  /**
   * With `causal`, tokens of a bucket of the linear attention, none of which sees its own bucket; with 1 a token does see
   * itself. Default 1, as the authors'.
   */
  readonly blindspot?: number;
}

const masks = new Remember<Mask>();

/** Blocks of tokens, each of which sees its neighbours. */
const neighbours = (tokens: number, window: number): Mask =>
  masks.get([tokens, window], () => {
    const count = Math.ceil(tokens / window);
    const layout = new Uint8Array(count * count);
    for (let i = 0; i < count; i++) layout.fill(1, i * count + Math.max(0, i - 1), i * count + Math.min(count, i + 2));
    return blocks(layout, { shape: [count, count], blockSize: window });
  });

/** What has been mapped already. */
const asIs: FeatureMap = (x) => wide(x);

/** Tokens in buckets, with as many zeros before each of them or behind: [batch, 2 seq, heads, dim]. */
function amongZeros(t: Wide, bucket: number, zeros: 'before' | 'behind'): Wide {
  const none = [0, 0] as const;
  const own = zeros === 'before' ? ([bucket, 0] as const) : ([0, bucket] as const);
  const doubled = pad(inChunks(t, bucket), [none, none, none, own, none]);
  return fromChunks(doubled, 0, 2 * bucket * doubled.shape[1]) as Wide;
}

/** softmax(q) / sqrt(dim) (softmax over tokens of k)^T v. */
const linearOfAll = (q: Wide, k: Wide, v: Wide): Sequence =>
  mul(efficientAttention(q, k, v), 1 / Math.sqrt(q.shape[3])) as Sequence;

/** The tokens up to one's own, or with buckets of several all buckets before one's own. */
function linearOfBefore(q: Wide, k: Wide, v: Wide, blindspot: number): Sequence {
  const phi = mul(softmax(q), 1 / Math.sqrt(q.shape[3])) as Wide;
  const features = exp(k) as Wide;
  const options = { featureMap: asIs, causal: true, epsilon: 1e-3, epsilonIn: 'floor' } as const;
  if (blindspot === 1) return linearAttention(phi, features, v, options);
  // Of each bucket all queries come first, and then its keys: none of them sees its own.
  const queries = amongZeros(phi, blindspot, 'behind');
  const [keys, values] = [amongZeros(features, blindspot, 'before'), amongZeros(v, blindspot, 'before')];
  const out = linearAttention(queries, keys, values, options);
  return fromChunks(inChunks(out, 2 * blindspot).slice(3, 0, blindspot), 0, v.shape[1]);
}

/**
 * The hybrid attention of linear-attention-transformer (lucidrains), between its projections: the first heads have softmax
 * attention in blocks of `window` tokens, each of which sees its neighbours too, with scale 1 / sqrt(dim), or with `causal`
 * the tokens j <= i of its own block and of the one before; the other heads have the linear attention of Shen et al.
 * ("Efficient Attention", 2018), out = fq (fk^T v) with fq = softmax(q) / sqrt(dim) over dims and fk = softmax of k over
 * tokens. With `causal` fk = e^k, summed over the buckets of `blindspot` tokens before that of i, and out is divided by
 * max(fq.sum fk_j, 1e-3); buckets of 1 token include their own.
 *
 * Linear attention is computed in float32. With `causal` what is not finite reaches no token before it.
 *
 * @param q [batch, seq, heads, dim]
 * @param k of the shape of q
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function hybridLocalLinear<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: HybridLocalLinearOptions,
): Tensor<D, Shape4> {
  const all = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkHeads(...all, 'any');
  checkOptions(options, ['localHeads', 'window', 'causal', 'blindspot']);
  const { localHeads, window, causal = false, blindspot = 1 } = options;
  const [, tokens, heads] = q.shape;
  checkInteger(localHeads, 'localHeads', 0, heads);
  checkInteger(window, 'window', 1);
  checkBoolean(causal, 'causal');
  checkInteger(blindspot, 'blindspot', 1);
  return scope(() => {
    const pairs = all.map((t) => split(t, [localHeads, heads - localHeads], 2) as [Tensor, Tensor]);
    const [local, global] = [0, 1].map((i) => pairs.map((pair) => pair[i])) as [Tensor[], Tensor[]];
    const parts: Tensor[] = [];
    if (localHeads > 0) {
      const [lq, lk, lv] = local as [Tensor, Tensor, Tensor];
      const mask = q.size > 0 && tokens > window ? { mask: neighbours(tokens, window) } : {};
      parts.push(attention(lq, lk, lv, { causal, ...mask }).out);
    }
    if (localHeads < heads) {
      const [gq, gk, gv] = global.map(wide) as [Wide, Wide, Wide];
      const out = causal ? linearOfBefore(gq, gk, gv, blindspot) : linearOfAll(gq, gk, gv);
      parts.push(narrow(out, all[0]));
    }
    return concat(parts, 2);
  }) as unknown as Tensor<D, Shape4>;
}

export interface HybridGatedOptions {
  /** Of softmax attention against linear attention, one for each head, before the sigmoid: [heads]. */
  readonly gate: Tensor<FloatDType, Shape>;
  /** How many tokens a token sees with softmax attention, itself included. */
  readonly window: number;
}

/**
 * A mix of both kinds of attention for every head: out = sigmoid(gate) softmax attention over the tokens i - window < j <= i,
 * with scale 1 / sqrt(dim), + (1 - sigmoid(gate)) causal linear attention with phi(x) = elu(x) + 1,
 * sum_j (phi(q_i).phi(k_j)) v_j / (sum_j phi(q_i).phi(k_j) + 1e-6) over j <= i.
 *
 * Linear attention is computed in float32. What is not finite reaches no token before it.
 *
 * @param q [batch, seq, heads, dim]
 * @param k of the shape of q
 * @param v [batch, seq, heads, value dim]
 * @returns [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function hybridGatedWindowLinear<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<NoInfer<D>, Shape4>,
  v: Tensor<NoInfer<D>, Shape4>,
  options: HybridGatedOptions,
): Tensor<D, Shape4> {
  const all = [q, k, v] as unknown as readonly [Tensor, Tensor, Tensor];
  checkHeads(...all, 'any');
  checkOptions(options, ['gate', 'window']);
  const { gate, window } = options;
  const heads = q.shape[2];
  checkShaped(gate, 'gate', [heads], 'heads', all[0]);
  checkInteger(window, 'window', 1);
  return scope(() => {
    const { out: local } = attention(...all, { causal: true, window: [window - 1, 0] });
    const linear = linearAttention(...(all.map(wide) as [Wide, Wide, Wide]), { causal: true });
    return narrow(gated(wide(gate).reshape([heads, 1]), local, linear), all[0]);
  }) as unknown as Tensor<D, Shape4>;
}
