import type { IntegerList } from '../base/arrays.js';
import type { FloatDType } from '../base/dtype.js';
import type { BlockMask } from '../blockmask/blockMask.js';
import type { Mask } from '../masks/mask.js';
import type { RopeAngles, RopeOptions } from '../ops/rope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import type { RelativeBias } from './relative.js';
import type { ScoreMod } from './scoreMod.js';

/** Integers given by the host, lengths and offsets: numbers, or a typed array of integers, 64-bit ones included. */
export type Integers = IntegerList;

/** See the option `rope`. */
export interface RotaryOption extends RopeAngles, RopeOptions {
  /** Of k, where they are not those of q; of the same shape. */
  readonly keys?: RopeAngles;
}

/** Which keys each query sees, pair by pair; read when it is given. */
export interface BooleanMask {
  /** true or nonzero where the key is visible, row-major. */
  readonly data: Uint8Array | readonly boolean[];
  /** Broadcasts to [batch, heads, Nq, Nk]: rank 1 to 4, aligned at the right, each dim equal or 1. */
  readonly shape: Shape;
}

/** Options of every form of attention. All of them combine. */
export interface CommonOptions {
  /**
   * Multiplies q.k before anything else. Default 1 / sqrt(head dim). 0, or from 1.2e-38 to 2.3e38 in size, so that
   * float32 holds scale, scale * log2 e and scale / softcap.
   */
  scale?: number;
  /** Query i sees key j only if j <= i + diagonal (see `align`). Default false. */
  causal?: boolean;
  /**
   * Where the diagonal of `causal`, `window` and `alibi` lies when there are Nq queries and Nk keys:
   * 'bottomRight' (default) ends it at the last query and key, diagonal = Nk - Nq, with the real lengths of each
   * sequence; 'topLeft' starts it at the first ones, diagonal = 0.
   */
  align?: 'bottomRight' | 'topLeft';
  /**
   * The number of keys that came before the first query: diagonal = offset, whatever the lengths. Any integer below 2^30
   * in size; instead of `align`.
   */
  offset?: number;
  /** Query i sees key j only if i + diagonal - left <= j <= i + diagonal + right. Inclusive; -1 is infinite. */
  window?: readonly [left: number, right: number];
  /**
   * Any pattern of visible pairs, on top of `causal` and `window`: a mask of `masks`, compiled at the first use for these
   * lengths, or a block mask for exactly Nq x Nk (the longest sequences when there are several; positions are local).
   * Time follows the number of blocks that hold a visible pair.
   */
  mask?: Mask | BlockMask;
  /**
   * A mask given pair by pair. Booleans hide: they are compiled to a block mask and combine with `mask`. A tensor of any
   * float dtype is added to the logits like `bias` (give one of the two), but has no gradient. Both broadcast to
   * [batch, heads, Nq, Nk] like `bias`.
   */
  attnMask?: Tensor<FloatDType, Shape> | BooleanMask;
  /**
   * Turns q and k by the angles of their positions before the scores (Su et al., "RoFormer", 2021, arXiv:2104.09864), as the
   * operation `rope` does. cos and sin [positions, at most dim / 2], a row a position, finite, without a gradient; `keys` are
   * those of k where they differ, as in xPos. Positions count from 0 within each batch entry or packed sequence: key j is at j,
   * query i at i + diagonal, as `align` and `offset` have it, so that fewer queries than keys are by default the last positions.
   * Not for keys that have been turned before.
   *
   * On the processor rows are turned while they are loaded, in float32, and nothing that is turned is in memory. On CUDA `rope`
   * itself makes tensors in the dtype of q, which gradients keep.
   */
  rope?: RotaryOption;
  /** s -> c * tanh(s / c) after the scale and before any bias (Gemma 2). 0: off; otherwise from 1.2e-38 to 2.3e38. */
  softcap?: number;
  /**
   * Added to the logits: broadcasts to [batch, heads, Nq, Nk] in every layout: rank 1 to 4, aligned at the right, each
   * dim equal or 1. Any float dtype, any strides. -Infinity hides a key. With varlen: [sequences, heads, longest Nq,
   * longest Nk], local positions.
   */
  bias?: Tensor<FloatDType, Shape>;
  /**
   * Adds -slope * |i + diagonal - j| (Press et al. 2021): slopes [heads], finite in float32 also when multiplied by
   * log2 e and any distance, or a tensor [heads] or [batch, heads], whose values are not looked at.
   */
  alibi?: Tensor<'float32', Shape> | Float32Array | readonly number[];
  /** A learned bias by relative position: see `t5RelativeBias` and `swinRelativeBias`. */
  relativeBias?: RelativeBias;
  /**
   * Replaces each score by what this function makes of it, after softcap and everything that is added, before masks and the
   * softmax: `(score, b, h, i, j) => score.sub(i.sub(j).abs().mul(0.1))`. It is called once, with expressions, and becomes a
   * program that the kernels run, with its derivative for backward; tensors that it needs are read with `lookup`. A result of
   * -Infinity hides the pair, and a score that is -Infinity before stays so. Up to 72 instructions, derivative included.
   * Dong et al., "Flex Attention" (2024).
   */
  scoreMod?: ScoreMod;
  /** One learned logit per query head, unscaled, that joins the denominator only. Any float dtype, [heads]. */
  sink?: Tensor<FloatDType, Shape>;
  /**
   * Drops probabilities with Philox4x32-10 and multiplies the kept ones by 1 / (1 - p), 0 <= p < 1. The key is the
   * 64-bit seed, the counter (floor(j / 4), i, b * heads + h, 0); word j % 4 keeps its element iff >= floor(p * 2^32).
   * The same seed drops the same elements on every device, and in backward.
   */
  dropout?: { readonly p: number; readonly seed: number | bigint };
  /**
   * Whether backward must give the same bits on repeats, and on processors also for any number of threads, as forward then does.
   * Default false: repeats alone have the same bits forward, and on processors backward too.
   */
  deterministic?: boolean;
  /** How many queries of each batch entry or packed sequence are real. Later rows: out 0, lse -Infinity, no gradient. */
  qLens?: Integers;
  /** How many keys of each batch entry or packed sequence are real. Later ones are invisible. */
  kLens?: Integers;
}

/** q [batch, Nq, heads, dim], k [batch, Nk, kv heads, dim], v [batch, Nk, kv heads, value dim]. */
export interface DenseOptions extends CommonOptions {
  /** Order of the dims of q, k, v and out: [batch, seq, heads, dim] (default) or [batch, heads, seq, dim]. */
  layout?: 'bshd' | 'bhsd';
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
}

export type AttentionOptions = DenseOptions | VarlenOptions;

const known: Readonly<Record<keyof DenseOptions, true>> = {
  scale: true,
  causal: true,
  align: true,
  offset: true,
  window: true,
  mask: true,
  attnMask: true,
  rope: true,
  softcap: true,
  bias: true,
  alibi: true,
  relativeBias: true,
  scoreMod: true,
  sink: true,
  dropout: true,
  deterministic: true,
  layout: true,
  qLens: true,
  kLens: true,
  cuSeqlensQ: true,
  cuSeqlensK: true,
};

export const optionNames = Object.keys(known) as readonly (keyof DenseOptions)[];
