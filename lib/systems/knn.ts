import { checkInteger, checkOptions, checkWord } from '../base/check.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { takeAlongAxis } from '../ops/alongAxis.js';
import { cast } from '../ops/cast.js';
import { concat } from '../ops/concat.js';
import { add, square, sub, where } from '../ops/elementwise.js';
import type { Indices } from '../ops/embedding.js';
import { matmul } from '../ops/matmul.js';
import { sum } from '../ops/reduce.js';
import { topK } from '../ops/sort.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import { elementCount, sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkAnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { type Wide, wide } from './inputs.js';

export interface KnnOptions {
  /** How many neighbours of each query, from 1 to the number of keys. */
  readonly count: number;
  /** 'dot' (default): the largest q . k; 'euclidean': the smallest |q - k|. */
  readonly metric?: 'dot' | 'euclidean';
  /** Which keys may be found: bool, broadcast to [..., 1, keys]. Default all. */
  readonly mask?: Tensor<'bool', Shape>;
  /** How many scores are held at once, about. Default 2^22. */
  readonly scoresAtOnce?: number;
}

export interface Neighbours {
  /** float32 [..., queries, count], falling: q . k or -|q - k|^2; -Infinity where fewer keys than `count` may be found. */
  readonly values: Tensor<'float32', Shape>;
  /** int32 [..., queries, count]: which keys. Of a value of -Infinity it means nothing. */
  readonly indices: Indices;
}

/** Keys of a tile: long lines for the kernels, short enough for a row of them to be held. */
const keysOfTile = 2 ** 13;
/** Places pass through float32 on their way. */
const mostKeys = 2 ** 24;

function checkMask(mask: unknown, queries: Tensor, keys: Shape): asserts mask is Tensor<'bool', Shape> {
  checkAnyTensor(mask, 'mask');
  const { dtype, shape } = mask as AnyTensor;
  if (dtype !== 'bool') throw new FlashAttnError('ERR_DTYPE', `mask is ${dtype}; it must be bool: cast() converts`);
  const [count, rank] = [keys[keys.length - 2], keys.length];
  const wanted = [...keys.slice(0, -2), 1, count];
  const missing = rank - shape.length;
  const fits =
    missing >= 0 &&
    shape.length > 0 &&
    shape.every((n, at) => n === wanted[at + missing] || (n === 1 && at < shape.length - 1));
  if (!fits)
    throw shapeError(
      `mask has shape ${show(shape)}; it must broadcast to ${show(wanted)}, with all keys along its last axis`,
    );
  (mask as AnyTensor).operand('mask', queries.backend);
}

/** The best of both, of equal ones those of the first. Places are float32. */
function merged(
  first: readonly [Wide, Wide] | undefined,
  second: readonly [Wide, Wide],
  count: number,
): readonly [Wide, Wide] {
  if (!first) return second;
  const [values, places] = [0, 1].map((i) => concat([first[i], second[i]] as [Wide, Wide], -1)) as [Wide, Wide];
  const best = topK(values, Math.min(count, values.shape[values.shape.length - 1]));
  return [best.values, takeAlongAxis(places, best.indices)];
}

/** Of some queries the best of all keys, tile by tile. */
function ofQueries(
  queries: Wide,
  keys: Tensor,
  tile: number,
  { count, metric, mask }: KnnOptions,
): readonly [Wide, Wide] {
  const isDistance = metric === 'euclidean';
  const all = keys.shape[keys.shape.length - 2];
  let best: readonly [Wide, Wide] | undefined;
  for (let first = 0; first < all; first += tile) {
    const before = best;
    best = scope(() => {
      const end = Math.min(first + tile, all);
      const own = wide(keys.slice(-2, first, end));
      // -|q - k|^2 = 2 q.k - |k|^2 - |q|^2, of which the last is the same for all keys.
      const sizes = isDistance && (sum(square(own), -1, { keepDims: true }).transpose(-2, -1) as Wide);
      const products = matmul(queries, own.transpose(-2, -1), { alpha: isDistance ? 2 : 1 });
      const scores = sizes ? (sub(products, sizes) as Wide) : products;
      const seen = mask ? (where(mask.slice(-1, first, end), scores, Number.NEGATIVE_INFINITY) as Wide) : scores;
      const found = topK(seen, Math.min(count, end - first));
      return merged(before, [found.values, add(cast(found.indices, 'float32'), first) as Wide], count);
    });
    for (const t of before ?? []) t.dispose();
  }
  const [values, places] = best as readonly [Wide, Wide];
  return isDistance ? [sub(values, sum(square(queries), -1, { keepDims: true })) as Wide, places] : [values, places];
}

/**
 * The nearest keys of each query, exactly: scores of a tile of queries with a tile of keys at a time, never of all pairs, and the
 * best of both kept. Of equal scores the key with the lowest index comes first. NaN is larger than everything, as in `topK`: a
 * key or query that holds NaN is found, and what is hidden never is. Distances are computed from products, to about 2^-22 of
 * |q|^2 + |k|^2.
 *
 * Scores are float32, whatever the dtype. Values and indices have no gradient.
 *
 * @param queries [..., queries, dim]
 * @param keys [..., keys, dim], with the same axes before; 1 to 2^24 keys
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function knn(queries: Tensor, keys: Tensor, options: KnnOptions): Neighbours {
  checkTensor(queries, 'queries');
  checkTensor(keys, 'keys');
  const [own, of] = [queries.shape, keys.shape];
  const rank = own.length;
  if (rank < 2 || of.length !== rank || own[rank - 1] !== of[rank - 1] || !sameShape(own.slice(0, -2), of.slice(0, -2)))
    throw shapeError(
      `queries has shape ${show(own)} and keys ${show(of)}; they must be [..., queries, dim] and [..., keys, dim]`,
    );
  const all = of[rank - 2];
  if (all < 1 || all > mostKeys) throw shapeError(`keys has shape ${show(of)}; there must be from 1 to 2^24 keys`);
  if (queries.dtype !== keys.dtype)
    throw new FlashAttnError('ERR_DTYPE', `keys is ${keys.dtype} and queries ${queries.dtype}; they must be the same`);
  keys.operand('keys', queries.backend);
  checkOptions(options, ['count', 'metric', 'mask', 'scoresAtOnce']);
  const { count, metric = 'dot', mask, scoresAtOnce = 2 ** 22 } = options;
  checkInteger(count, 'count', 1, all);
  checkWord(metric, 'metric', ['dot', 'euclidean']);
  checkInteger(scoresAtOnce, 'scoresAtOnce', 1);
  if (mask !== undefined) checkMask(mask, queries, of);
  return withoutRecording(() =>
    scope(() => {
      const batch = Math.max(1, elementCount(own.slice(0, -2)));
      const tile = Math.max(1, Math.min(all, keysOfTile, Math.floor(scoresAtOnce / batch)));
      const rows = Math.max(1, Math.floor(scoresAtOnce / (batch * tile)));
      const parts: (readonly [Wide, Wide])[] = [];
      for (let first = 0; first === 0 || first < own[rank - 2]; first += rows)
        parts.push(
          scope(() =>
            ofQueries(wide(queries.slice(-2, first, Math.min(first + rows, own[rank - 2]))), keys, tile, options),
          ),
        );
      const [values, places] = [0, 1].map(
        (i) =>
        parts.length === 1 ? parts[0][i] : concat(parts.map((part) => part[i] as Wide), -2), // biome-ignore format: one line
      ) as [Wide, Wide];
      return { values, indices: cast(places, 'int32') };
    }),
  );
}
