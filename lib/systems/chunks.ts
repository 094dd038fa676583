// Tokens in chunks, and sums of k v^T over all that came before a chunk.

import { zeros } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { cumsum } from '../ops/alongAxis.js';
import { concat } from '../ops/concat.js';
import { matmul } from '../ops/matmul.js';
import { pad } from '../ops/split.js';
import type { Tensor } from '../tensor/tensor.js';

const rows = (t: Tensor): Tensor => (t.isContiguous ? t : t.contiguous());

/**
 * Tokens [batch, seq, heads, dim] in chunks of `size`, as a view [batch, chunks, heads, size, dim] where it can be one.
 *
 * @param before how many zeros stand before the first; as many as are missing stand after the last
 */
export function inChunks(t: Tensor, size: number, before = 0): Tensor {
  const [batch, tokens, heads, dim] = t.shape as readonly [number, number, number, number];
  const chunks = Math.ceil((before + tokens) / size);
  const after = chunks * size - before - tokens;
  const whole = before + after > 0 ? pad(t, [[0, 0], [before, after], [0, 0], [0, 0]]) : rows(t); // biome-ignore format: a pair an axis
  return whole.reshape([batch, chunks, size, heads, dim]).transpose(2, 3);
}

/** The tokens from `before` on of `inChunks`: [batch, seq, heads, dim]. */
export function fromChunks(t: Tensor, before: number, tokens: number): Tensor {
  const [batch, chunks, heads, size, dim] = t.shape as readonly [number, number, number, number, number];
  const whole = rows(t.transpose(2, 3)).reshape([batch, chunks * size, heads, dim]);
  return tokens === chunks * size ? whole : whole.slice(1, before, before + tokens);
}

/**
 * S_n = first + the sum over the chunks before chunk n of k^T v, and that over all of them at last:
 * [batch, chunks + 1, heads, dim, value dim].
 *
 * @param k [batch, chunks, heads, size, dim]
 * @param v [batch, chunks, heads, size, value dim]
 * @param first [batch, heads, dim, value dim]. Default 0
 */
export function sumsBefore(k: Tensor, v: Tensor, first?: Tensor): Tensor {
  const own = matmul(k.transpose(-2, -1), v);
  const [batch, , ...rest] = own.shape;
  const start = first
    ? rows(first).reshape([batch, 1, ...rest])
    : zeros([batch, 1, ...rest], { device: k.device as DeviceName });
  return cumsum(concat([start as Tensor, own], 1), 1);
}
