import { attention } from '../attention/attention.js';
import { checkInteger, checkObject } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { concat } from '../ops/concat.js';
import { where } from '../ops/elementwise.js';
import { type RopeAngles, rope } from '../ops/rope.js';
import { pad } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkAnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkAlike, checkShaped, narrow, type Sequence } from './inputs.js';
import { checkOptions, type ScaleOption, scaleOf } from './saved.js';

export interface RetroOptions extends ScaleOption {
  /** Tokens of a chunk. */
  readonly chunk: number;
  /** What every token may attend to besides: a learned key and value for each head, [heads, dim] and [heads, value dim]. */
  readonly nullKey: Tensor<FloatDType, Shape>;
  readonly nullValue: Tensor<FloatDType, Shape>;
  /** Which retrieved tokens are real, [batch, chunks, neighbours, tokens]. Default all. */
  readonly mask?: Tensor<'bool', Shape>;
  /**
   * Rotary positions, of which the first half of the dims and the second are turned together: of the queries of a chunk, from
   * its last token on, [chunk, dim / 2 at most], and of the tokens of a neighbour, [tokens, dim / 2 at most]. lucidrains/RETRO-pytorch
   * gives queries position 2 chunk - 2 for the first of these and 0 for all others, where chunk - 1, chunk, ... was meant.
   */
  readonly rope?: { readonly queries: RopeAngles; readonly keys: RopeAngles };
}

const axes = 'batch, chunks, neighbours, tokens, heads, dim';

function checkRetrieved(q: unknown, k: unknown, v: unknown, chunk: number): void {
  checkTensor(q, 'q');
  checkTensor(k, 'k');
  checkTensor(v, 'v');
  if (q.shape.length !== 4) throw shapeError(`q has shape ${show(q.shape)}; it must be [batch, seq, heads, dim]`);
  const [batch, seq, heads, dim] = q.shape;
  checkInteger(chunk, 'chunk', 1);
  checkAlike(k, 'k', [batch, -1, -1, -1, heads, dim], axes, q);
  checkAlike(v, 'v', [...k.shape.slice(0, 5), -1], axes, q);
  if (k.shape[1] > Math.floor(seq / chunk))
    throw shapeError(
      `k has ${k.shape[1]} chunks; q has ${Math.floor(seq / chunk)} whole ones of ${chunk} in its ${seq} tokens`,
    );
}

function checkNulls(q: Sequence, v: Sequence, { nullKey, nullValue, mask }: RetroOptions): void {
  checkShaped(nullKey, 'nullKey', [q.shape[2], q.shape[3]], 'heads, dim', q);
  checkShaped(nullValue, 'nullValue', [q.shape[2], v.shape[5]], 'heads, value dim', q);
  if (mask === undefined) return;
  checkAnyTensor(mask, 'mask');
  const { dtype, shape } = mask as AnyTensor;
  if (dtype !== 'bool') throw new FlashAttnError('ERR_DTYPE', `mask is ${dtype}; it must be bool: cast() converts`);
  if (!sameShape(shape, v.shape.slice(0, 4)))
    throw shapeError(
      `mask has shape ${show(shape)}; it must be ${show(v.shape.slice(0, 4))}, [batch, chunks, neighbours, tokens]`,
    );
  (mask as AnyTensor).operand('mask', q.backend);
}

function checkRope(given: RetroOptions['rope'], chunk: number, k: Sequence): void {
  if (given === undefined) return;
  checkObject(given, 'rope');
  for (const [side, rows] of [
    ['queries', chunk],
    ['keys', k.shape[3]],
  ] as const) {
    checkObject(given[side], `rope.${side}`);
    for (const name of ['cos', 'sin'] as const) {
      const t = given[side][name];
      checkTensor(t, `rope.${side}.${name}`);
      if (t.shape.length !== 2 || t.shape[0] !== rows || 2 * t.shape[1] > k.shape[5])
        throw shapeError(
          `rope.${side}.${name} has shape ${show(t.shape)}; it must be [${rows}, at most dim / 2], with a head dim of ${k.shape[5]}`,
        );
    }
  }
}

/** A row before those of all chunks: t [batch * chunks, tokens, heads, dim], row [heads, dim]. */
function withNull<D extends FloatDType>(t: Sequence<D>, row: Sequence): Sequence<D> {
  const [groups, , heads, dim] = t.shape;
  return concat([narrow(row, t).reshape([1, 1, heads, dim]).expand([groups, 1, heads, dim]) as Sequence<D>, t], 1);
}

/**
 * Chunked cross-attention of RETRO (Borgeaud et al. 2022, arXiv:2112.04426, section 2.4), between its projections, as
 * lucidrains/RETRO-pytorch has it: the last token of chunk c and those that follow, but for the last of chunk c + 1, attend to all
 * tokens of all neighbours that were retrieved for chunk c, and to a learned null. No token sees what was retrieved with tokens
 * behind it. The first chunk - 1 tokens, and those behind the retrieved chunks, have 0.
 *
 * @param q [batch, seq, heads, dim]
 * @param k [batch, chunks, neighbours, tokens, heads, dim]; at most the whole chunks of q
 * @param v [batch, chunks, neighbours, tokens, heads, value dim]
 * @returns [batch, seq, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function retroCrossAttention<D extends FloatDType>(
  q: Sequence<D>,
  k: Sequence<NoInfer<D>>,
  v: Sequence<NoInfer<D>>,
  options: RetroOptions,
): Sequence<D> {
  checkOptions(options, ['chunk', 'nullKey', 'nullValue', 'mask', 'rope']);
  const { chunk, nullKey, nullValue, mask, rope: angles } = options;
  checkRetrieved(q, k, v, chunk);
  checkNulls(q, v as Sequence, options);
  checkRope(angles, chunk, k as Sequence);
  const [batch, seq, heads, dim] = q.shape;
  const [, chunks, neighbours, tokens] = k.shape;
  const first = chunk - 1;
  const count = Math.min(seq - first, chunks * chunk);
  const none = [0, 0] as const;
  return scope(() => {
    if (chunks === 0 || q.size === 0)
      return pad(q.slice(1, 0, 0).slice(3, 0, 0), [none, [seq, 0], none, [v.shape[5], 0]]);
    const groups = batch * chunks;
    const reach = neighbours * tokens;
    const moved = pad(q.slice(1, first, first + count), [none, [0, chunks * chunk - count], none, none]);
    const grouped = moved.reshape([groups, chunk, heads, dim]);
    const query = angles ? rope(grouped, angles.queries) : grouped;
    const rows = <T extends Sequence>(t: T): T => (t.isContiguous ? t : t.contiguous()) as T;
    const retrieved = rows(k as Sequence<D>);
    const turned = angles && tokens > 0 ? rope(retrieved, angles.keys) : retrieved;
    const key = withNull(turned.reshape([groups, reach, heads, dim]), nullKey);
    const value = withNull(rows(v as Sequence<D>).reshape([groups, reach, heads, v.shape[5]]), nullValue);
    const hidden = mask && where(mask, 0, Number.NEGATIVE_INFINITY).reshape([groups, 1, 1, reach]);
    const bias = hidden && { bias: pad(hidden, [none, none, none, [1, 0]]) };
    const { out } = attention<D, Shape>(query, key as Sequence<NoInfer<D>>, value as Sequence<NoInfer<D>>, {
      ...scaleOf(options),
      ...bias,
    });
    const own = out.reshape([batch, chunks * chunk, heads, v.shape[5]]).slice(1, 0, count);
    return pad(own, [none, [first, seq - first - count], none, none]);
  });
}
