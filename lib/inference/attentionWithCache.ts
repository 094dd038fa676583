// Attention of new positions over all that a cache holds of their sequences.
import { viewOf } from '../attention/layout.js';
import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { DeviceName } from '../devices/registry.js';
import type { RotaryProblem } from '../kernels/attention.js';
import { storeRows } from '../kernels/storeRows.js';
import { needsRecord, withoutRecording } from '../tape/tape.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { type SequenceBlocks, type Span, spansOf, stepRows } from './cacheStep.js';
import { KvCache } from './kvCache.js';
import {
  attendPaged,
  countsOf,
  type PagedAttentionResult,
  type PagedPattern,
  packed,
  patternNames,
  readPaged,
  unpacked,
} from './pagedAttention.js';

export interface CachedAttentionOptions extends PagedPattern {
  /** Of the cache, from 0 on. */
  readonly layer: number;
  /** As many as q has: each with its new positions counted in `length`. */
  readonly sequences: readonly SequenceBlocks[];
  /** Of packed q [total, heads, dim]: how many of its rows each sequence has, its last positions. */
  readonly counts?: readonly number[];
  /** Keys and values of the new positions, in the order of q, of any float dtype; left out, they are in the cache already. */
  readonly k?: Tensor<FloatDType, Shape>;
  readonly v?: Tensor<FloatDType, Shape>;
}

/** Rows of k or v, as many as those of q. */
function rowsLike(t: Tensor, name: string, q: Tensor, heads: number, dim: number): Tensor {
  const wanted = [...q.shape.slice(0, -2), heads, dim];
  if (t.shape.length !== wanted.length || t.shape.some((n, axis) => n !== wanted[axis]))
    throw shapeError(
      `${name} has shape ${show(t.shape)}; it must be ${show(wanted)}, as many rows as q with the heads of the cache`,
    );
  return packed(t);
}

/** Puts rows where the spans say, keys turned on their way. */
function store(
  cache: KvCache,
  layer: number,
  spans: readonly Span[],
  { k, v }: { readonly k: Tensor; readonly v: Tensor },
  rope: PagedPattern['rope'],
  rotary: RotaryProblem | undefined,
): void {
  const { backend } = cache;
  const { slots, positions } = stepRows(spans, cache.blockSize, backend.device as DeviceName);
  const put = (from: Tensor, name: string, to: Tensor, turn?: RotaryProblem) => {
    const [count, heads, dim] = from.shape as readonly [number, number, number];
    const { cos, sin } = rope?.keys ?? rope ?? {};
    backend.launch(storeRows, {
      from: viewOf(from, 'varlen', name, backend),
      to: viewOf(to, 'varlen', 'the cache', backend),
      rows: slots.flat('slots', backend),
      count,
      heads,
      dim,
      ...(turn &&
        cos &&
        sin && {
          rotary: {
            ...turn,
            angles: { cos: cos.flat('rope.cos', backend), sin: sin.flat('rope.sin', backend) },
            positions: positions.flat('positions', backend),
          },
        }),
    });
    to.written();
  };
  put(k, 'k', cache.keys[layer] as Tensor, rotary);
  put(v, 'v', cache.values[layer] as Tensor);
}

/**
 * Attention of each sequence's last positions, the new ones, over all positions that the cache holds of it: stores `k` and `v`
 * of the new positions first, turned by `rope`. Query i of n stands at position length - n + i and sees the keys up to it.
 *
 * Keys are summed in pieces of 256 that are merged in their order. On the processor a row of the result has the same bits
 * whatever other rows and sequences are computed with it, however a prompt is cut into pieces, and on any number of threads. On
 * CUDA, and where more than 16 new positions of a sequence are not causal, the rows that are seen are brought together first.
 *
 * @param q [batch, new, heads, dim], the same number of new positions of each sequence; or packed [total, heads, dim] with
 *   `counts`. Heads are a multiple of the cache's
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_AUTOGRAD, ERR_OUT_OF_MEMORY, with the cache unchanged:
 *   also for blocks that are none, two sequences that write to one, lengths past the table, positions past the angles
 */
export function attentionWithCache<D extends FloatDType>(
  q: Tensor<D, Shape>,
  cache: KvCache,
  options: CachedAttentionOptions,
): PagedAttentionResult<D>;
export function attentionWithCache(q: Tensor, cache: KvCache, options: CachedAttentionOptions): PagedAttentionResult {
  checkTensor(q, 'q');
  if (!(cache instanceof KvCache)) throw optionError(`cache is ${show(cache)}; it must be what kvCache() makes`);
  cache.checkUsable();
  checkOptions(options, [...patternNames, 'layer', 'sequences', 'counts', 'k', 'v']);
  const layer = cache.checkLayer(options.layer);
  const counts = countsOf(q, options.counts);
  const { k, v, sink, rope } = options;
  if ((k === undefined) !== (v === undefined)) throw optionError('k and v belong together; give both or neither');
  for (const [name, t] of Object.entries({ q, k, v, sink })) {
    if (t === undefined) continue;
    checkTensor(t, name);
    t.operand(name, cache.backend);
    if (needsRecord([t]))
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        `${name} needs a gradient, and a cache has none: detach() it, or call it within noGrad()`,
      );
  }
  const { blocks } = cache.pool;
  const spans = spansOf({ blocks, blockSize: cache.blockSize, writes: k !== undefined }, options.sequences, counts);
  return withoutRecording(() =>
    tidying(
      () => {
        const query = packed(q);
        const own = k &&
          v && {
            k: rowsLike(k, 'k', q, cache.kvHeads, cache.dim),
            v: rowsLike(v, 'v', q, cache.kvHeads, cache.valueDim),
          };
        const [keys, values] = [cache.keys[layer] as Tensor, cache.values[layer] as Tensor];
        const pages = { keys, values, blockSize: cache.blockSize };
        const read = readPaged(query, pages, spans, options);
        if (own) store(cache, layer, spans, own, rope, read.rotary);
        return unpacked(attendPaged({ q: query, pages, spans, options, ...read }), q);
      },
      ({ out, lse }) => [out, lse],
    ),
  );
}
