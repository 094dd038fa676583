import { attention, attentionBackward, type Saved, type Shape4 } from '../attention/attention.js';
import { checkBoolean, checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError } from '../base/errors.js';
import { checkMask, type Grid, type Mask } from '../masks/mask.js';
import { concat } from '../ops/concat.js';
import { zerosLike } from '../ops/create.js';
import { fused, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { topK } from '../ops/sort.js';
import { scope } from '../tape/scope.js';
import { record, withoutRecording } from '../tape/tape.js';
import { allocateTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkQkv, type Wide, wide } from './inputs.js';
import {
  checkGradient,
  checkOptions,
  type Regrouped,
  type RegroupedGradients,
  SavedAttention,
  type ScaleOption,
  shapesOf,
  sumOf,
  viewOfAll,
} from './saved.js';
import { countUp, ranges } from './selectedBlocks.js';

export interface TopKOptions extends ScaleOption {
  /** How many keys of each row are kept; all that tie with the last of them are kept too. */
  readonly keep: number;
  /** Only keys up to the query's position, aligned at the bottom right. Default false. */
  readonly causal?: boolean;
  /** The keys to choose from, on top of `causal`. */
  readonly mask?: Mask;
  /**
   * Whether the probabilities of the kept keys are made to sum up to 1 (default: softmax over the kept keys alone), or
   * stay what they are in the softmax over all visible keys.
   */
  readonly renormalize?: boolean;
}

/** How `topKAttention` chooses keys. */
export interface TopKLayout {
  readonly keep: number;
  readonly causal: boolean;
  readonly renormalize: boolean;
  readonly scale: number;
  /** [mask batch, mask heads, Nq, Nk]: the pairs that `mask` shows. */
  readonly visible: Tensor<'bool', Shape> | undefined;
}

const pattern = 'topKAttention';

/** The pairs that a mask shows. Written by the host: the mask is what describes the problem. */
function visiblePairs(mask: Mask, q: Tensor, keys: number): Tensor<'bool', Shape> {
  const [batch, queries, heads] = q.shape;
  const grid: Grid = { batch, heads, queries, keys };
  mask.check(grid);
  for (const [name, got, wanted] of [
    ['batch entries', mask.batch, batch],
    ['heads', mask.heads, heads],
  ] as const)
    if (got !== 1 && got !== wanted) throw optionError(`mask is for ${got} ${name}; there are ${wanted}`);
  const words = new Uint32Array(Math.ceil(keys / 32));
  const pairs = new Uint8Array(mask.batch * mask.heads * queries * keys);
  for (let b = 0, at = 0; b < mask.batch; b++)
    for (let h = 0; h < mask.heads; h++)
      for (let i = 0; i < queries; i++, at += keys) {
        words.fill(0);
        mask.writeRow(words, { batch: b, head: h, query: i, keyBegin: 0, keyEnd: keys }, grid);
        for (let j = 0; j < keys; j++) pairs[at + j] = (words[j >> 5] >>> (j & 31)) & 1;
      }
  const shape: Shape = [mask.batch, mask.heads, queries, keys];
  const result = allocateTensor(q.backend, shape, 'bool', 'hostWritten');
  result.write(pairs);
  return result;
}

const upTo = fused((logit, key, last) => key.lessEqual(last).where(logit, Number.NEGATIVE_INFINITY));
/** What is hidden stays so where fewer keys than are kept can be seen. NaN is never less, and stays. */
const keptOf = fused((logit, least) =>
  logit
    .lessEqual(Number.NEGATIVE_INFINITY)
    .where(Number.NEGATIVE_INFINITY, logit.less(least).where(Number.NEGATIVE_INFINITY, 0)),
);
const droppedOf = fused((logit, least) =>
  logit
    .lessEqual(Number.NEGATIVE_INFINITY)
    .where(Number.NEGATIVE_INFINITY, logit.less(least).where(0, Number.NEGATIVE_INFINITY)),
);

/**
 * The keys of some queries as a bias: 0 for those that are kept, -Infinity for others. Without renormalising all keys come once
 * more, where 0 is for those that are seen and not kept.
 *
 * @param q [batch, rows, heads, dim]: queries from `from` on
 * @returns [batch, heads, rows, Nk or 2 Nk]
 */
function choice(q: Tensor, k: Tensor, from: number, offset: number, layout: TopKLayout): Wide {
  const [batch, rows, heads, dim] = q.shape as readonly number[];
  const [, keys, kvHeads] = k.shape as readonly number[];
  const { keep, causal, renormalize, scale, visible } = layout;
  const grouped = wide(q)
    .transpose(1, 2)
    .contiguous()
    .reshape([batch, kvHeads, (heads / kvHeads) * rows, dim]);
  const products = matmul(grouped, wide(k).permute([0, 2, 3, 1]), { alpha: scale });
  let logits = products.reshape([batch, heads, rows, keys]) as Wide;
  if (causal) logits = upTo(logits, countUp(keys, q), countUp(rows, q, from + offset).reshape([rows, 1])) as Wide;
  if (visible) logits = where(visible.slice(2, from, from + rows), logits, Number.NEGATIVE_INFINITY) as Wide;
  const count = Math.min(keep, keys);
  const least = topK(logits, count).values.slice(3, count - 1, count);
  const kept = keptOf(logits, least) as Wide;
  return renormalize ? kept : (concat([kept, droppedOf(logits, least) as Wide], 3) as Wide);
}

/** Keys twice, values once: a copy without value stands in the denominator and nowhere else. */
const doubled = (k: Tensor, v: Tensor) => ({ k: concat([k, k], 1), v: concat([v, zerosLike(v)], 1) });

/** What one pass over queries may hold of logits, in elements. Tests make it smaller. */
export const topKLimit = { logits: 2 ** 22 };

/** The attention of some queries: of all in parts, the last of the keys on the diagonal of the last query. */
interface Part {
  readonly from: number;
  readonly to: number;
  readonly bias: Wide;
}

/** What `run` gives for the queries of each part. */
function inParts<T>(q: Tensor, k: Tensor, layout: TopKLayout, run: (part: Part) => T): readonly T[] {
  const [batch, queries, heads] = q.shape;
  const keys = k.shape[1];
  const rows = Math.max(1, Math.floor(topKLimit.logits / (batch * heads * keys)));
  return ranges(queries, rows).map(([from, to]) =>
    scope(() => run({ from, to, bias: choice(q.slice(1, from, to), k, from, keys - queries, layout) })),
  );
}

interface Results {
  /** [batch, Nq, heads, value dim] */
  readonly out: Tensor;
  /** [batch, heads, Nq] */
  readonly lse: Wide;
}

function forward(q: Tensor, k: Tensor, v: Tensor, layout: TopKLayout): Results {
  const { scale, renormalize } = layout;
  if (q.size === 0 || k.size === 0) return attention<FloatDType, Shape>(q, k, v, { scale }) as Results;
  const all = renormalize ? { k, v } : doubled(k, v);
  const parts = inParts(q, k, layout, ({ from, to, bias }) => {
    const { out, lse } = attention<FloatDType, Shape>(q.slice(1, from, to), all.k, all.v, { scale, bias });
    return { out, lse: lse as Wide };
  });
  if (parts.length === 1) return parts[0];
  return {
    out: concat(
      parts.map(({ out }) => out),
      1,
    ),
    lse: concat(
      parts.map(({ lse }) => lse),
      2,
    ),
  };
}

interface Inputs extends Results {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

function backward(dOut: Tensor, dLse: Wide | undefined, { q, k, v, out, lse }: Inputs, layout: TopKLayout) {
  const { scale, renormalize } = layout;
  const keys = k.shape[1];
  const none = { q, k, v, out, lse, options: { scale } };
  if (q.size === 0 || k.size === 0) return attentionBackward<FloatDType, Shape>(dOut, none);
  const all = renormalize ? { k, v } : doubled(k, v);
  const parts = inParts(q, k, layout, ({ from, to, bias }) => {
    const rows = (t: Tensor, axis: number) => t.slice(axis, from, to).contiguous();
    const own = { q: rows(q, 1), ...all, out: rows(out, 1), lse: rows(lse, 2) as Wide, options: { scale, bias } };
    const { dq, dk, dv } = attentionBackward(rows(dOut, 1), own, dLse && { dLse: rows(dLse, 2) as Wide });
    return { dq, dk, dv };
  });
  const once = (t: Tensor) => t.slice(1, 0, keys);
  return {
    dq: parts.length === 1 ? parts[0].dq : concat(parts.map(({ dq }) => dq), 1), // biome-ignore format: one line
    dk: renormalize
      ? sumOf(parts.map(({ dk }) => dk))
      : sumOf(parts.flatMap(({ dk }) => [once(dk), dk.slice(1, keys, 2 * keys)])),
    dv: sumOf(parts.map(({ dv }) => (renormalize ? dv : once(dv)))),
  };
}

function readOptions(options: TopKOptions): void {
  checkOptions(options, ['keep', 'causal', 'mask', 'renormalize']);
  const { keep, causal = false, mask, renormalize = true } = options;
  checkInteger(keep, 'keep', 1);
  checkBoolean(causal, 'causal');
  checkBoolean(renormalize, 'renormalize');
  if (mask !== undefined) checkMask(mask, 'mask');
}

/**
 * Top-k attention (Zhao et al. 2019, Explicit Sparse Transformer; Gupta et al. 2021): of each row only the `keep` largest
 * logits count, out_i = sum_{j in top(i)} p_ij v_j, with p the softmax over top(i), or with `renormalize: false` that
 * over all visible keys, whose lse is then that of the whole row. The choice of keys itself has no gradient. All keys that tie
 * with the last of them are kept; a row that sees a logit of NaN is NaN.
 *
 * Logits are held for some queries at a time, about 16 MB of them, and computed again for gradients. Nothing is read back; a
 * `mask` is written by the host, a byte for each of its pairs.
 *
 * @param q [batch, Nq, heads, dim]
 * @param k [batch, Nk, kv heads, dim]
 * @param v [batch, Nk, kv heads, value dim]
 * @returns out [batch, Nq, heads, value dim], lse [batch, heads, Nq]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function topKAttention<D extends FloatDType>(
  q: Tensor<D, Shape4>,
  k: Tensor<D, Shape4>,
  v: Tensor<D, Shape4>,
  options: TopKOptions,
): Regrouped<D, Shape4, TopKLayout> & { readonly lse: Tensor<'float32', Shape> } {
  checkQkv(q, k, v, { grouped: true });
  readOptions(options);
  const { keep, causal = false, mask, renormalize = true, scale = 1 / Math.sqrt(q.shape[3]) } = options;
  return scope(() => {
    const visible = mask && visiblePairs(mask, q as Tensor, k.shape[1]);
    const layout: TopKLayout = { keep, causal, renormalize, scale, visible };
    const inputs = { q: viewOfAll(q), k: viewOfAll(k), v: viewOfAll(v) } as unknown as Pick<Inputs, 'q' | 'k' | 'v'>;
    const results = withoutRecording(() => scope(() => forward(inputs.q, inputs.k, inputs.v, layout)));
    const kept = [inputs.q, inputs.k, inputs.v, results.out, results.lse, ...(visible ? [visible] : [])];
    record(pattern, [q, k, v], [results.out, results.lse], kept, ([dOut, dLse], saved) => {
      const [q, k, v, out, lse, visible] = saved as [Tensor, Tensor, Tensor, Tensor, Wide, TopKLayout['visible']];
      const gradient = dOut ?? zerosLike(out);
      const { dq, dk, dv } = backward(
        gradient,
        dLse as Wide | undefined,
        { q, k, v, out, lse },
        { ...layout, visible },
      );
      return [dq, dk, dv];
    });
    const tensors = { ...inputs, ...results } as unknown as Saved<D, Shape>;
    const owned = visible ? [visible] : [];
    const saved = new SavedAttention(pattern, tensors, { scale }, shapesOf(q, k, v), layout, owned);
    return { out: viewOfAll(tensors.out), lse: viewOfAll(results.lse), saved };
  }) as Regrouped<D, Shape4, TopKLayout> & { readonly lse: Tensor<'float32', Shape> };
}

/**
 * The gradients of `topKAttention`; the choice of keys is taken as given.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `topKAttention`
 */
export function topKAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, Shape4>,
  saved: SavedAttention<D, TopKLayout>,
): RegroupedGradients<D, Shape4> {
  checkGradient(dOut, saved, pattern);
  const { layout } = saved;
  return withoutRecording(() =>
    scope(() => backward(dOut as Tensor, undefined, saved as unknown as Inputs, layout)),
  ) as unknown as RegroupedGradients<D, Shape4>;
}
