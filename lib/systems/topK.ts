import { attention, attentionBackward, type Saved, type Shape4 } from '../attention/attention.js';
import { checkBoolean, checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError } from '../base/errors.js';
import { release } from '../base/released.js';
import { Remember } from '../base/remember.js';
import { and, causal as causalMask } from '../masks/index.js';
import { type Coverage, checkMask, type Grid, Mask, type Row, setBits } from '../masks/mask.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
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

const pattern = 'topKAttention';

/** Bits that are given for every row. */
class BitsMask extends Mask {
  readonly #bits: Uint32Array;
  readonly #rowWords: number;

  constructor(
    bits: Uint32Array,
    override readonly batch: number,
    override readonly heads: number,
    readonly queries: number,
    readonly keys: number,
  ) {
    super();
    this.#bits = bits;
    this.#rowWords = Math.ceil(keys / 32);
  }

  override check({ queries, keys }: Grid): void {
    if (queries !== this.queries || keys !== this.keys)
      throw shapeError(`the mask is for ${this.queries} queries and ${this.keys} keys, not ${queries} and ${keys}`);
  }

  classify(): Coverage {
    return 'partial';
  }

  writeRow(words: Uint32Array, { batch, head, query, keyBegin, keyEnd }: Row): void {
    const row = ((batch * this.heads + head) * this.queries + query) * this.#rowWords;
    for (let key = keyBegin; key < keyEnd; key++)
      if ((this.#bits[row + (key >> 5)] >>> (key & 31)) & 1) setBits(words, key - keyBegin, key - keyBegin + 1);
  }
}

/** The logits of one query row against the keys of its head; -Infinity for keys it does not see. */
type RowLogits = (batch: number, head: number, query: number) => Float64Array;

function logitsOf(q: Tensor, k: Tensor, scale: number, mask: Mask | undefined): RowLogits {
  const [batch, queries, heads, dim] = q.shape;
  const [, keys, kvHeads] = k.shape;
  const query = q.toFloat32Sync();
  const key = k.toFloat32Sync();
  const grid: Grid = { batch, heads, queries, keys };
  mask?.check(grid);
  for (const [name, got, wanted] of [
    ['batch entries', mask?.batch ?? 1, batch],
    ['heads', mask?.heads ?? 1, heads],
  ] as const)
    if (got !== 1 && got !== wanted) throw optionError(`mask is for ${got} ${name}; there are ${wanted}`);
  const seen = new Uint32Array(Math.ceil(keys / 32));
  const logits = new Float64Array(keys);
  return (b, h, i) => {
    seen.fill(mask ? 0 : -1);
    mask?.writeRow(seen, { batch: b % mask.batch, head: h % mask.heads, query: i, keyBegin: 0, keyEnd: keys }, grid);
    const kvHead = Math.floor(h / (heads / kvHeads));
    const row = ((b * queries + i) * heads + h) * dim;
    for (let j = 0; j < keys; j++) {
      if (!((seen[j >> 5] >>> (j & 31)) & 1)) {
        logits[j] = -Infinity;
        continue;
      }
      const column = ((b * keys + j) * kvHeads + kvHead) * dim;
      let sum = 0;
      for (let d = 0; d < dim; d++) sum += query[row + d] * key[column + d];
      logits[j] = sum * scale;
    }
    return logits;
  };
}

/** The keys to keep. With `dropped`, the other visible keys follow as keys `keys` to 2 * `keys` - 1. */
function selection(q: Tensor, k: Tensor, options: TopKOptions, dropped: boolean): Mask {
  const [batch, queries, heads, dim] = q.shape;
  const keys = k.shape[1];
  const { keep, causal = false, mask } = options;
  const parts = [...(causal ? [causalMask()] : []), ...(mask ? [mask] : [])];
  const visible = parts.length > 0 ? and(...parts) : undefined;
  const logitsOfRow = logitsOf(q, k, options.scale ?? 1 / Math.sqrt(dim), visible);
  const columns = dropped ? 2 * keys : keys;
  const rowWords = Math.ceil(columns / 32);
  const bits = new Uint32Array(batch * heads * queries * rowWords);
  for (let b = 0, row = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < queries; i++, row++) {
        const logits = logitsOfRow(b, h, i);
        // Ascending, so the threshold lies `keep` from the end; it is -Infinity where fewer keys are visible.
        const threshold = keep >= keys ? -Infinity : logits.toSorted()[keys - keep];
        for (let j = 0; j < keys; j++) {
          const kept = logits[j] >= threshold;
          if (logits[j] === -Infinity || !(kept || dropped)) continue;
          const column = kept ? j : keys + j;
          bits[row * rowWords + (column >> 5)] |= 1 << (column & 31);
        }
      }
  return new BitsMask(bits, batch, heads, queries, columns);
}

/** How `topKAttention` copies keys and values without renormalising; they stay as they are with it. */
export interface TopKLayout {
  readonly keys: RowMap;
  readonly values: RowMap;
}

const layouts = new Remember<TopKLayout>(releaseCopies);

/** Keys twice, values once: a copy without value stands in the denominator and nowhere else. */
const doubled = (keys: number): TopKLayout =>
  layouts.get([keys], () => {
    const rows = Array.from({ length: 2 * keys }, (_, at) => at % keys);
    const once = rows.map((row, at) => (at < keys ? row : -1));
    return { keys: RowMap.of(rows, keys), values: RowMap.of(once, keys) };
  });

function readOptions(options: TopKOptions): { renormalize: boolean } {
  checkOptions(options, ['keep', 'causal', 'mask', 'renormalize']);
  const { keep, causal = false, mask, renormalize = true } = options;
  checkInteger(keep, 'keep', 1);
  checkBoolean(causal, 'causal');
  checkBoolean(renormalize, 'renormalize');
  if (mask !== undefined) checkMask(mask, 'mask');
  return { renormalize };
}

/**
 * Top-k attention (Zhao et al. 2019, Explicit Sparse Transformer; Gupta et al. 2021): of each row only the `keep` largest
 * logits count, out_i = sum_{j in top(i)} p_ij v_j, with p the softmax over top(i), or with `renormalize: false` that
 * over all visible keys, whose lse is then that of the whole row. The choice of keys itself has no gradient.
 *
 * Blocks: the keys are chosen on the host, from q and k read back.
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
): Regrouped<D, Shape4, TopKLayout | undefined> & { readonly lse: Tensor<'float32', Shape> } {
  checkInputs(q, k, v, ['batch', 'length', 'heads', 'dim'], 1);
  const { renormalize } = readOptions(options);
  const attentionOptions = { ...scaleOf(options), mask: selection(q, k, options, !renormalize) };
  const maps = renormalize ? undefined : doubled(k.shape[1]);
  return scoped(({ keep }) => {
    const query = keep(viewOfAll(q));
    const key = keep(maps ? gatherRows<D>(k, maps.keys) : viewOfAll(k)) as Tensor<D, Shape4>;
    const value = keep(maps ? gatherRows<D>(v, maps.values) : viewOfAll(v)) as Tensor<D, Shape4>;
    const { out, lse } = attention(query, key, value, attentionOptions);
    const tensors: Saved<D, Shape> = { q: query, k: key, v: value, out, lse };
    const mask = { dispose: () => release(attentionOptions.mask) };
    const saved = new SavedAttention(pattern, tensors, attentionOptions, shapesOf(q, k, v), maps, [mask]);
    return { out: viewOfAll(out), lse: viewOfAll(lse), saved };
  });
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
  saved: SavedAttention<D, TopKLayout | undefined>,
): RegroupedGradients<D, Shape4> {
  checkGradient(dOut, saved, pattern);
  const { layout: maps } = saved;
  const gradients = attentionBackward<D, Shape>(dOut, saved);
  if (!maps) return gradients as RegroupedGradients<D, Shape> as RegroupedGradients<D, Shape4>;
  return scoped(({ use, keep }) => ({
    dq: keep(gradients.dq) as Tensor<D, Shape4>,
    dk: keep(gatherRows(use(gradients.dk), maps.keys.transposed())) as Tensor<D, Shape4>,
    dv: keep(gatherRows(use(gradients.dv), maps.values.transposed())) as Tensor<D, Shape4>,
  }));
}
