import { attention, attentionBackward } from '../attention/attention.js';
import type { DenseOptions } from '../attention/options.js';
import { swinRelativeBias } from '../attention/relative.js';
import { mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { type Coverage, Mask, mostTokens, type Region, type Row, showKeys } from '../masks/mask.js';
import { gatherRows, RowMap, releaseCopies } from '../ops/gather.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
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
} from './saved.js';

/** [batch, height, width, heads, dim] */
export type MapShape = readonly [number, number, number, number, number];

export interface SwinOptions extends ScaleOption {
  /** Size of a window in tokens, or [height, width]. */
  readonly window: number | readonly [height: number, width: number];
  /** How far the windows are moved down and right, below the size of a window. Default 0. */
  readonly shift?: number | readonly [down: number, right: number];
  /** Relative position bias [(2 height - 1) * (2 width - 1), heads], as in `swinRelativeBias`. */
  readonly biasTable?: Tensor<FloatDType, Shape>;
}

export interface SwinGradients<D extends FloatDType = FloatDType> extends RegroupedGradients<D, MapShape> {
  readonly dBiasTable?: Tensor<FloatDType, Shape>;
}

/** One axis of the map: its real and padded length, and how windows lie on it. */
interface Axis {
  readonly length: number;
  readonly padded: number;
  readonly window: number;
  readonly shift: number;
}

/** Tokens see those of their window that were neighbours before the shift brought the far ends of the map together. */
class RegionMask extends Mask {
  /** regions[window * tokens + token] */
  readonly #regions: Uint8Array;
  readonly #tokens: number;

  constructor(
    regions: Uint8Array,
    tokens: number,
    override readonly batch: number,
  ) {
    super();
    this.#regions = regions;
    this.#tokens = tokens;
  }

  classify(region: Region): Coverage {
    const regions = this.#of(region.batch);
    return regions.every((r) => r === regions[0]) ? 'full' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    const regions = this.#of(row.batch);
    for (let key = row.keyBegin; key < row.keyEnd; key++)
      if (regions[key] === regions[row.query]) showKeys(words, row, key, key + 1);
  }

  #of(batch: number): Uint8Array {
    const start = (batch * this.#tokens) % this.#regions.length;
    return this.#regions.subarray(start, start + this.#tokens);
  }
}

/** How `swinAttention` regroups tokens. */
export interface SwinLayout {
  /** From tokens of the map, row by row, to tokens of the windows. */
  readonly map: RowMap;
  readonly count: number;
  /** Tokens of a window. */
  readonly tokens: number;
  readonly mask: Mask | undefined;
}

const known = new Remember<SwinLayout>(releaseCopies);

function windowsOf(batch: number, y: Axis, x: Axis): SwinLayout {
  return known.get([batch, y, x], () => {
    const tokens = y.window * x.window;
    const columns = x.padded / x.window;
    const count = (y.padded / y.window) * columns;
    const sources = new Int32Array(count * tokens);
    const regions = new Uint8Array(count * tokens);
    const regionOf = (at: number, { padded, window, shift }: Axis) =>
      at < padded - window ? 0 : at < padded - shift ? 1 : 2;
    for (let sy = 0; sy < y.padded; sy++)
      for (let sx = 0; sx < x.padded; sx++) {
        const window = Math.floor(sy / y.window) * columns + Math.floor(sx / x.window);
        const at = window * tokens + (sy % y.window) * x.window + (sx % x.window);
        const [py, px] = [(sy + y.shift) % y.padded, (sx + x.shift) % x.padded];
        sources[at] = py < y.length && px < x.length ? py * x.length + px : -1;
        regions[at] = regionOf(sy, y) * 3 + regionOf(sx, x);
      }
    const shifted = y.shift > 0 || x.shift > 0;
    return {
      map: RowMap.of(sources, y.length * x.length),
      count,
      tokens,
      mask: shifted ? new RegionMask(regions, tokens, batch * count) : undefined,
    };
  });
}

const pair = (value: SwinOptions['window']) => (typeof value === 'number' ? ([value, value] as const) : value);

function readWindows([batch, height, width]: Shape, options: SwinOptions): SwinLayout {
  checkOptions(options, ['window', 'shift', 'biasTable']);
  const { window, shift = 0 } = options;
  const [sizes, shifts] = [pair(window), pair(shift)];
  const valid = (values: unknown, most: (axis: number) => number, least: number) =>
    Array.isArray(values) &&
    values.length === 2 &&
    values.every((n, axis) => Number.isInteger(n) && n >= least && n <= most(axis));
  if (!valid(sizes, () => Number.POSITIVE_INFINITY, 1))
    throw mustBe('window', window, 'a size or [height, width], integers >= 1');
  if (!valid(shifts, (axis) => sizes[axis] - 1, 0))
    throw mustBe('shift', shift, `from 0 to below the window ${show(window)}`);
  const axis = (length: number, at: 0 | 1): Axis => ({
    length,
    padded: Math.ceil(length / sizes[at]) * sizes[at],
    window: sizes[at],
    shift: shifts[at],
  });
  const [y, x] = [axis(height, 0), axis(width, 1)];
  if (y.padded * x.padded > mostTokens)
    throw mustBe('window', window, `smaller: the ${height} x ${width} map padded to it has more than 2^30 tokens`);
  return windowsOf(batch, y, x);
}

/** [batch, height, width, heads, dim] -> [batch * windows, tokens of a window, heads, dim]; padding is zeros. */
function partition<D extends FloatDType>(t: Tensor<D, Shape>, windows: SwinLayout): Tensor<D, Shape> {
  return scoped(({ use }) => {
    const [batch, height, width, heads, dim] = t.shape;
    const rows = use(t.reshape([batch, height * width, heads, dim] as Shape));
    const grouped = use(gatherRows(rows, windows.map));
    return grouped.reshape([batch * windows.count, windows.tokens, heads, dim] as Shape);
  });
}

/** The adjoint of `partition`, and its inverse but for the padding. */
function reverse<D extends FloatDType>(t: Tensor<D, Shape>, windows: SwinLayout, shape: Shape): Tensor<D, MapShape> {
  return scoped(({ use }) => {
    const [groups, tokens, heads, dim] = t.shape;
    const rows = use(t.reshape([groups / windows.count, windows.count * tokens, heads, dim] as Shape));
    return use(gatherRows(rows, windows.map.transposed())).reshape(shape as MapShape);
  });
}

/**
 * Window attention of Swin (Liu et al. 2021) over a map of tokens, within windows that may be shifted:
 * out = softmax(scale * q k^T + bias) v among the tokens of a window. As in the original code, maps are padded at the
 * bottom and right to whole windows with tokens q = k = v = 0 that are keys like any other, shifted windows wrap
 * around, and tokens that only wrapping brought together do not see each other.
 *
 * @param q [batch, height, width, heads, dim], contiguous
 * @param k [batch, height, width, kv heads, dim], contiguous
 * @param v [batch, height, width, kv heads, value dim], contiguous
 * @returns out [batch, height, width, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function swinAttention<D extends FloatDType>(
  q: Tensor<D, MapShape>,
  k: Tensor<D, MapShape>,
  v: Tensor<D, MapShape>,
  options: SwinOptions,
): Regrouped<D, MapShape, SwinLayout> {
  checkInputs(q, k, v, ['batch', 'height', 'width', 'heads', 'dim']);
  const windows = readWindows(q.shape, options);
  const { window, biasTable } = options;
  if (biasTable !== undefined) checkTensor(biasTable, 'biasTable');
  const windowed: DenseOptions = {
    ...scaleOf(options),
    ...(windows.mask && { mask: windows.mask }),
    ...(biasTable && { relativeBias: swinRelativeBias(biasTable, { window }) }),
  };
  const shapes = shapesOf(q, k, v);
  return scoped(({ keep }) => {
    const [query, key, value] = [q, k, v].map((t) => keep(partition<D>(t, windows)));
    const { out, lse } = attention<D>(query, key, value, windowed);
    const saved = new SavedAttention<D, SwinLayout>(
      'swinAttention',
      { q: query, k: key, v: value, out: keep(out), lse: keep(lse) },
      windowed,
      shapes,
      windows,
    );
    return { out: reverse(out, windows, shapes.out), saved };
  });
}

/**
 * The gradients of `swinAttention`.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `swinAttention`
 */
export function swinAttentionBackward<D extends FloatDType>(
  dOut: Tensor<D, MapShape>,
  saved: SavedAttention<D, SwinLayout>,
): SwinGradients<D> {
  checkGradient(dOut, saved, 'swinAttention');
  const { shapes, layout: windows } = saved;
  return scoped(({ use, keep }) => {
    const gradients = attentionBackward<D, Shape>(use(partition<D>(dOut, windows)), saved);
    const { dq, dk, dv, dRelativeBias } = gradients;
    for (const t of [dq, dk, dv]) use(t);
    if (dRelativeBias) keep(dRelativeBias);
    return {
      dq: keep(reverse(dq, windows, shapes.q)),
      dk: keep(reverse(dk, windows, shapes.k)),
      dv: keep(reverse(dv, windows, shapes.v)),
      ...(dRelativeBias && { dBiasTable: dRelativeBias }),
    };
  });
}
