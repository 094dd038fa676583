import type { DType } from '../base/dtype.js';
import type { BlockMask } from '../blockmask/blockMask.js';

/** A window side without a limit. */
export const unbounded = 0x3fffffff;
export const maxHeadDim = 256;

export interface DropoutProblem {
  readonly threshold: number;
  readonly keepScale: number;
  readonly seedLow: number;
  readonly seedHigh: number;
}

/** Relative positions as the kernels read them; `buckets[key - query + origin]` is a row of the table. */
export interface RelativeProblem {
  readonly buckets: Int32Array;
  readonly origin: number;
  readonly queryPosition: Int32Array | undefined;
  readonly keyPosition: Int32Array | undefined;
  readonly bucketCount: number;
}

/** A call to attention with every option checked and every default filled in; tensors themselves are not part of it. */
export interface AttentionProblem {
  readonly dtype: DType;
  readonly layout: 'bshd' | 'bhsd' | 'varlen';
  /** Batch entries, or sequences when varlen. */
  readonly batch: number;
  readonly heads: number;
  readonly kvHeads: number;
  readonly headDim: number;
  readonly valueDim: number;
  /** The longest sequence of queries and of keys. */
  readonly queryLength: number;
  readonly keyLength: number;
  /** Rows of the tensors along their sequence dim: total tokens when varlen. */
  readonly queryRows: number;
  readonly keyRows: number;
  /** Per batch entry: query begin, query length, key begin, key length. Undefined: every sequence is whole. */
  readonly sequences: Int32Array | undefined;
  readonly scale: number;
  /** 0: none. */
  readonly softcap: number;
  readonly windowLeft: number;
  readonly windowRight: number;
  readonly topLeft: boolean;
  /** Shifts the diagonal: (topLeft ? 0 : key length - query length) + offset. */
  readonly offset: number;
  readonly dropout: DropoutProblem | undefined;
  readonly biasShape: readonly [number, number, number, number] | undefined;
  readonly alibi: { readonly batched: boolean; readonly slopes: Float32Array | undefined } | undefined;
  readonly relative: RelativeProblem | undefined;
  readonly blockMask: BlockMask | undefined;
  readonly hasSink: boolean;
  /** Whether backward has to give the same bits on repeats. */
  readonly deterministic: boolean;
}
