import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

/**
 * A learned bias by relative position: bias[h, i, j] = table[buckets[keyPosition[j] - queryPosition[i] + origin], h].
 * It costs memory for the positions and the table alone, never for queries x keys.
 */
export interface RelativeBias {
  /** [buckets, heads], any float dtype, contiguous. Its gradient is `dRelativeBias`. */
  readonly table: Tensor<FloatDType, Shape>;
  /** The row of the table for each difference of positions, shifted by `origin`. */
  readonly buckets: Int32Array;
  readonly origin: number;
  /** Position of each query within its sequence; default its index. */
  readonly queryPosition?: Int32Array;
  /** Position of each key within its sequence; default its index. */
  readonly keyPosition?: Int32Array;
}

/** Options of `t5RelativeBias`. */
export interface T5Options {
  readonly queryLength: number;
  readonly keyLength: number;
  /** Distances from here on share the last bucket. Default 128. */
  readonly maxDistance?: number;
  /** Half of the buckets for keys after the query (encoder, default), or all for keys before it (decoder). */
  readonly bidirectional?: boolean;
}

/**
 * Relative position buckets of T5 (Raffel et al. 2020): exact up to a quarter (bidirectional) or half of the buckets,
 * logarithmic up to `maxDistance`, in float32 as the original computes them. T5 itself uses no scale: pass `scale: 1`.
 *
 * @param table [buckets, heads]
 */
export function t5RelativeBias(table: Tensor<FloatDType, Shape>, options: T5Options): RelativeBias {
  const { queryLength, keyLength, maxDistance = 128, bidirectional = true } = options;
  for (const [name, n] of Object.entries({ queryLength, keyLength, maxDistance }))
    if (!Number.isInteger(n) || n < 1) throw optionError(`${name} is ${show(n)}; it must be an integer >= 1`);
  const bucketCount = table.shape[0] ?? 0;
  const directed = bidirectional ? Math.floor(bucketCount / 2) : bucketCount;
  const exact = Math.floor(directed / 2);
  if (table.shape.length !== 2 || exact < 1)
    throw shapeError(
      `table has shape ${show(table.shape)}; it must be [buckets, heads] with at least ${bidirectional ? 4 : 2} buckets`,
    );
  if (maxDistance <= exact)
    throw optionError(`maxDistance is ${maxDistance}; it must be more than the ${exact} exact buckets`);

  const bucketOf = (relative: number) => {
    const side = bidirectional && relative > 0 ? directed : 0;
    const distance = bidirectional ? Math.abs(relative) : Math.max(-relative, 0);
    if (distance < exact) return side + distance;
    const { fround, log } = Math;
    const ratio = fround(fround(log(fround(distance / exact))) / fround(log(maxDistance / exact)));
    return side + Math.min(directed - 1, exact + Math.floor(fround(ratio * (directed - exact))));
  };
  const origin = queryLength - 1;
  const buckets = Int32Array.from({ length: queryLength + keyLength - 1 }, (_, at) => bucketOf(at - origin));
  return { table, buckets, origin };
}

/**
 * Relative position bias of Swin (Liu et al. 2021) for one window of height x width tokens in row-major order.
 *
 * @param table [(2 height - 1) * (2 width - 1), heads], row (dy + height - 1) * (2 width - 1) + dx + width - 1 with
 * dy = y of the query - y of the key
 */
export function swinRelativeBias(
  table: Tensor<FloatDType, Shape>,
  options: { readonly window: number | readonly [height: number, width: number] },
): RelativeBias {
  const { window } = options;
  const [height, width] = (typeof window === 'number' ? [window, window] : window) as readonly [number, number];
  if (!Number.isInteger(height) || !Number.isInteger(width) || height < 1 || width < 1)
    throw optionError(`window is ${show(window)}; it must be a size or [height, width], integers >= 1`);
  const stride = 2 * width - 1;
  const bucketCount = (2 * height - 1) * stride;
  if (table.shape.length !== 2 || table.shape[0] !== bucketCount)
    throw shapeError(
      `table has shape ${show(table.shape)}; a ${height} x ${width} window needs [${bucketCount}, heads]`,
    );
  const position = Int32Array.from(
    { length: height * width },
    (_, at) => Math.floor(at / width) * stride + (at % width),
  );
  // The table runs over query minus key, the positions over key minus query: the buckets count down.
  const buckets = Int32Array.from({ length: bucketCount }, (_, at) => bucketCount - 1 - at);
  const origin = (height - 1) * stride + width - 1;
  return { table, buckets, origin, queryPosition: position, keyPosition: position };
}

/**
 * The slopes of ALiBi (Press et al. 2021): 2^(-8 (h + 1) / heads) for a power of two; otherwise those of the next
 * lower power of two, then every second one of the next higher.
 */
export function alibiSlopes(heads: number): Float32Array {
  if (!Number.isInteger(heads) || heads < 1) throw optionError(`heads is ${show(heads)}; it must be an integer >= 1`);
  const power = 2 ** Math.floor(Math.log2(heads));
  const slope = (h: number, of: number) => 2 ** ((-8 * (h + 1)) / of);
  return Float32Array.from({ length: heads }, (_, h) =>
    h < power ? slope(h, power) : slope(2 * (h - power), 2 * power),
  );
}
