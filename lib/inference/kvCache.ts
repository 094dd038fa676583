// Keys and values of many sequences, in blocks: what decoding reads instead of computing it again.

import type { Shape3 } from '../attention/attention.js';
import { checkInteger, checkOptions } from '../base/check.js';
import { checkFloatDType, type FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, show } from '../base/errors.js';
import { backendFor, type DeviceName } from '../devices/registry.js';
import { maxHeadDim } from '../kernels/attention.js';
import { fill } from '../kernels/copy.js';
import type { Backend } from '../kernels/device.js';
import { allocating, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { BlockPool, type CachedSequence } from './blockPool.js';

export interface KvCacheOptions<D extends FloatDType = FloatDType> {
  readonly layers: number;
  /** Blocks of every layer, shared by all sequences. */
  readonly blocks: number;
  /** Positions of a block. Default 16. With as many as a sequence has at most, the cache is contiguous. */
  readonly blockSize?: number;
  readonly kvHeads: number;
  /** Of keys. */
  readonly dim: number;
  /** Of values. Default `dim`. */
  readonly valueDim?: number;
  /** What keys and values are kept in, whatever they are computed in. Default 'float32'. */
  readonly dtype?: D;
  /** Default 'auto'. */
  readonly device?: DeviceName;
}

const names = ['layers', 'blocks', 'blockSize', 'kvHeads', 'dim', 'valueDim', 'dtype', 'device'] as const;

// Kernels count rows in 32 bits.
const mostRows = 2 ** 31 - 1;

/** See `kvCache`. */
export class KvCache<D extends FloatDType = FloatDType> implements Disposable {
  /** Which sequence has which blocks. */
  readonly pool: BlockPool;
  readonly layers: number;
  readonly kvHeads: number;
  readonly dim: number;
  readonly valueDim: number;
  readonly dtype: D;
  /** Of each layer: [blocks * blockSize, kv heads, dim]. */
  readonly keys: readonly Tensor<D, Shape3>[];
  readonly values: readonly Tensor<D, Shape3>[];
  #disposed = false;

  /** @internal Use `kvCache`. */
  constructor(options: KvCacheOptions<D>) {
    checkOptions(options, names);
    const { layers, blocks, blockSize = 16, kvHeads, dim, valueDim = dim, dtype = 'float32' as D } = options;
    this.layers = checkInteger(layers, 'layers', 1);
    checkInteger(blocks, 'blocks', 1);
    checkInteger(blockSize, 'blockSize', 1);
    if (blocks * blockSize > mostRows)
      throw optionError(
        `blocks is ${blocks} and blockSize ${blockSize}; together they must be at most 2^31 - 1 positions`,
      );
    this.kvHeads = checkInteger(kvHeads, 'kvHeads', 1);
    this.dim = checkInteger(dim, 'dim', 1, maxHeadDim);
    this.valueDim = checkInteger(valueDim, 'valueDim', 1, maxHeadDim);
    this.dtype = checkFloatDType(dtype, 'dtype') as D;
    const backend = backendFor(options.device);
    const rows = blocks * blockSize;
    const made = unwatched(() =>
      allocating(backend, (allocate) => {
        const ofLayers = (width: number) =>
          Array.from({ length: layers }, () => allocate([rows, kvHeads, width], dtype) as Tensor<D, Shape3>);
        return { keys: ofLayers(dim), values: ofLayers(valueDim) };
      }),
    );
    // What nobody has written is read beside what somebody has: it must be a number.
    for (const t of [...made.keys, ...made.values])
      backend.launch(fill, { buffer: t.operand('the cache', backend).buffer, bits: 0 });
    this.keys = made.keys;
    this.values = made.values;
    this.pool = new BlockPool({ blocks, blockSize, copy: (from, to) => this.#copyBlock(from, to) });
  }

  get blockSize(): number {
    return this.pool.blockSize;
  }

  /** @internal */
  get backend(): Backend {
    return (this.keys[0] as Tensor).backend;
  }

  /** A new sequence: see `BlockPool`. */
  sequence(...given: Parameters<BlockPool['sequence']>): CachedSequence {
    this.checkUsable();
    return this.pool.sequence(...given);
  }

  /** @internal */
  checkUsable(): void {
    if (this.#disposed) throw new FlashAttnError('ERR_DISPOSED', 'the cache has been disposed');
  }

  /** @internal @throws ERR_OPTION */
  checkLayer(layer: unknown): number {
    const found = checkInteger(layer, 'layer', 0);
    if (found >= this.layers) throw optionError(`layer is ${show(layer)}; the cache has ${this.layers}, from 0 on`);
    return found;
  }

  /** Frees the memory. Sequences of it are worth nothing afterwards. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    for (const t of [...this.keys, ...this.values]) t.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }

  /** A sequence is about to write into a block that others read: it gets one of its own. */
  #copyBlock(from: number, to: number): void {
    const { blockSize } = this;
    unwatched(() => {
      for (const t of [...this.keys, ...this.values]) {
        const [source, target] = [from, to].map((block) => t.slice(0, block * blockSize, (block + 1) * blockSize));
        source?.copyInto(target as never);
        source?.dispose();
        target?.dispose();
      }
    });
  }
}

/**
 * A cache of keys and values in blocks of `blockSize` positions (Kwon et al., "Efficient Memory Management for Large Language
 * Model Serving with PagedAttention", 2023): sequences of any length share its memory, and blocks with a common beginning.
 * `cache.sequence()` begins one, `attentionWithCache` stores and reads.
 *
 * It takes layers * blocks * blockSize * kvHeads * (dim + valueDim) elements.
 *
 * @throws ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export const kvCache = <D extends FloatDType = 'float32'>(options: KvCacheOptions<D>): KvCache<D> =>
  new KvCache(options);
