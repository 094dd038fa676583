import type { DType } from '../base/dtype.js';
import type { BlockMask } from '../blockmask/blockMask.js';
import type { Mask } from '../masks/mask.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import type { RelativeBias } from './relative.js';

/** Integers given by the host: lengths and offsets. */
export type Integers = Int32Array | readonly number[];

/** Options of every form of attention. All of them combine. */
export interface CommonOptions {
  /** Multiplies q.k before anything else. Finite; default 1 / sqrt(head dim). */
  scale?: number;
  /** Query i sees key j only if j <= i + diagonal (see `align`). Default false. */
  causal?: boolean;
  /**
   * Where the diagonal of `causal`, `window` and `alibi` lies when there are Nq queries and Nk keys:
   * 'bottomRight' (default) ends it at the last query and key, diagonal = Nk - Nq, with the real lengths of each
   * sequence; 'topLeft' starts it at the first ones, diagonal = 0.
   */
  align?: 'bottomRight' | 'topLeft';
  /** Query i sees key j only if i + diagonal - left <= j <= i + diagonal + right. Inclusive; -1 is infinite. */
  window?: readonly [left: number, right: number];
  /**
   * Any pattern of visible pairs, on top of `causal` and `window`: a mask of `masks`, compiled at the first use for these
   * lengths, or a block mask for exactly Nq x Nk (the longest sequences when there are several; positions are local).
   * Time follows the number of blocks that hold a visible pair.
   */
  mask?: Mask | BlockMask;
  /** s -> c * tanh(s / c) after the scale and before any bias (Gemma 2). Positive and finite. */
  softcap?: number;
  /**
   * Added to the logits: [batch | 1, heads | 1, Nq | 1, Nk | 1] in every layout, any float dtype, contiguous.
   * -Infinity hides a key. With varlen: [sequences | 1, heads | 1, longest Nq | 1, longest Nk | 1], local positions.
   */
  bias?: Tensor<DType, Shape>;
  /** Adds -slope * |i + diagonal - j| (Press et al. 2021): slopes [heads], or a tensor [batch, heads]. */
  alibi?: Tensor<'float32', Shape> | Float32Array | readonly number[];
  /** A learned bias by relative position: see `t5RelativeBias` and `swinRelativeBias`. */
  relativeBias?: RelativeBias;
  /** One learned logit per query head, unscaled, that joins the denominator only. Any float dtype, [heads]. */
  sink?: Tensor<DType, Shape>;
  /**
   * Drops probabilities with Philox4x32-10 and multiplies the kept ones by 1 / (1 - p), 0 <= p < 1. The key is the
   * 64-bit seed, the counter (floor(j / 4), i, b * heads + h, 0); word j % 4 keeps its element iff >= floor(p * 2^32).
   * The same seed drops the same elements on every device, and in backward.
   */
  dropout?: { readonly p: number; readonly seed: number | bigint };
  /** Whether backward must give the same bits on repeats; forward always does. Default false; always so on WebAssembly. */
  deterministic?: boolean;
}

/** q [batch, Nq, heads, dim], k [batch, Nk, kv heads, dim], v [batch, Nk, kv heads, value dim]. */
export interface DenseOptions extends CommonOptions {
  /** Order of the dims of q, k, v and out: [batch, seq, heads, dim] (default) or [batch, heads, seq, dim]. */
  layout?: 'bshd' | 'bhsd';
  /** How many queries of each batch entry are real. Later rows: out 0, lse -Infinity, no gradient. */
  qLens?: Integers;
  /** How many keys of each batch entry are real. Later ones are invisible. */
  kLens?: Integers;
  cuSeqlensQ?: never;
  cuSeqlensK?: never;
}

/** Packed sequences: q [total q, heads, dim], k [total k, kv heads, dim], v [total k, kv heads, value dim]. */
export interface VarlenOptions extends CommonOptions {
  /** [sequences + 1] starts of the sequences among the queries: from 0, never falling, at most total q. */
  cuSeqlensQ: Integers;
  /** The same for the keys. Sequence s of the queries sees sequence s of the keys alone. */
  cuSeqlensK: Integers;
  layout?: never;
  qLens?: never;
  kLens?: never;
}

export type AttentionOptions = DenseOptions | VarlenOptions;

const known: Readonly<Record<keyof DenseOptions, true>> = {
  scale: true,
  causal: true,
  align: true,
  window: true,
  mask: true,
  softcap: true,
  bias: true,
  alibi: true,
  relativeBias: true,
  sink: true,
  dropout: true,
  deterministic: true,
  layout: true,
  qLens: true,
  kLens: true,
  cuSeqlensQ: true,
  cuSeqlensK: true,
};

export const optionNames: ReadonlySet<string> = new Set(Object.keys(known));
