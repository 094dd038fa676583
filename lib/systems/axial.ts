import { checkIntegers } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, show } from '../base/errors.js';
import { Remember } from '../base/remember.js';
import { releaseCopies } from '../ops/gather.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { Packing, pack, packedAttention, packedBackward, type Sequence, unpack } from './packing.js';
import {
  checkGradient,
  checkInputs,
  checkOptions,
  type Regrouped,
  type RegroupedGradients,
  type SavedAttention,
  type ScaleOption,
  scaleOf,
  scoped,
  shapesOf,
} from './saved.js';

export interface AxialOptions extends ScaleOption {
  /** Grid axes to attend along, 0 being the first one after the batch. Default all of them. */
  readonly axes?: readonly number[];
  /** A token sees only those before it on its line. Default false. */
  readonly causal?: boolean;
}

/** How `axialAttention` regroups tokens: the lines of the grid. */
export interface AxialLayout {
  readonly packing: Packing;
}

const layouts = new Remember<AxialLayout>(releaseCopies);

/** The lines of the grid along each of the axes. */
function layoutOf(grid: readonly number[], axes: readonly number[]): AxialLayout {
  return layouts.get([grid, axes], () => {
    const tokens = grid.reduce((product, n) => product * n, 1);
    const lines: Sequence[] = [];
    for (const axis of axes) {
      const stride = grid.slice(axis + 1).reduce((product, n) => product * n, 1);
      for (let start = 0; start < tokens; start++) {
        if (Math.floor(start / stride) % grid[axis] !== 0) continue;
        const line = Array.from({ length: grid[axis] }, (_, at) => start + at * stride);
        lines.push({ queries: line, keys: line });
      }
    }
    return { packing: new Packing(lines, tokens, tokens) };
  });
}

function readAxes(options: AxialOptions, axisCount: number): readonly number[] {
  checkOptions(options, ['axes', 'causal']);
  if (options.axes === undefined) return Array.from({ length: axisCount }, (_, axis) => axis);
  const axes = checkIntegers(options.axes, 'axes', 0, axisCount - 1);
  if (axes.length === 0 || new Set(axes).size !== axes.length)
    throw optionError(`axes is ${show(axes)}; it must name at least one axis, each once`);
  return axes;
}

/** Rank 4 with the grid as one axis: [batch, tokens, heads, dim]. */
const flat = <D extends FloatDType>(t: Tensor<D, Shape>): Tensor<D, Shape> =>
  t.reshape([t.shape[0], t.shape.slice(1, -2).reduce((product, n) => product * n, 1), ...t.shape.slice(-2)] as Shape);

/**
 * Axial attention (Ho et al. 2019): every token attends along the lines of a grid that run through it, one axis at a
 * time; the results of several axes are summed,
 * out = sum_a softmax(scale * q k_a^T) v_a, where k_a and v_a are the tokens that differ from the query along axis a only.
 * For axes one after the other (the sequential form) call it with `axes: [a]` layer by layer.
 *
 * @param q [batch, ...grid, heads, dim], contiguous, any number of grid axes
 * @param k [batch, ...grid, kv heads, dim]
 * @param v [batch, ...grid, kv heads, value dim]
 * @returns out [batch, ...grid, heads, value dim]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function axialAttention<D extends FloatDType, S extends Shape>(
  q: Tensor<D, S>,
  k: Tensor<D, S>,
  v: Tensor<D, S>,
  options: AxialOptions = {},
): Regrouped<D, S, AxialLayout> {
  checkInputs(q, k, v, gridOrder(q));
  const grid = q.shape.slice(1, -2);
  const layout = layoutOf(grid, readAxes(options, grid.length));
  const { causal = false } = options;
  const shapes = shapesOf(q, k, v);
  return scoped(({ use, keep }) => {
    const inputs = { q: use(flat(q)), k: use(flat(k)), v: use(flat(v)) };
    const saved = packedAttention('axialAttention', inputs, layout, shapes, { ...scaleOf(options), causal });
    for (const t of [saved.q, saved.k, saved.v, saved.out, saved.lse]) keep(t);
    // A token is a query once on each axis: what its queries found adds up.
    return {
      out: use(unpack(saved.out, layout.packing.queries)).reshape(shapes.out) as Tensor<D, Shape> as Tensor<D, S>,
      saved,
    };
  });
}

/**
 * The gradients of `axialAttention`.
 *
 * @param dOut the shape and dtype of out
 * @param saved what the forward pass saved
 * @throws as `axialAttention`
 */
export function axialAttentionBackward<D extends FloatDType, S extends Shape>(
  dOut: Tensor<D, S>,
  saved: SavedAttention<D, AxialLayout>,
): RegroupedGradients<D, S> {
  checkGradient(dOut, saved, 'axialAttention');
  return scoped(({ use }) => {
    const packed = use(pack(use(flat(dOut)), saved.layout.packing.queries));
    return packedBackward(packed, saved) as RegroupedGradients<D, Shape> as RegroupedGradients<D, S>;
  });
}

function gridOrder(q: unknown): string[] {
  const rank = (q as Partial<Tensor> | undefined)?.shape?.length ?? 0;
  const axes = Array.from({ length: Math.max(1, rank - 3) }, (_, axis) => `grid axis ${axis}`);
  return ['batch', ...axes, 'heads', 'dim'];
}
