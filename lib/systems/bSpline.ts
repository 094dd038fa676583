import { checkInteger } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { fused } from '../ops/elementwise.js';
import { unsqueeze } from '../ops/split.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkShaped, wide } from './inputs.js';

/** 1 where from <= x < to. */
const indicator = fused(function indicator(x, from, to) {
  return x.greaterEqual(from).mul(x.less(to));
});

/** One step of the recursion: the spline from `from` to `to`, beside the one that starts and ends a knot later. */
const coxDeBoor = fused(function coxDeBoor(x, from, to, spline, fromNext, toNext, next) {
  // Where knots coincide the spline between them is 0: what it is divided by makes no difference.
  const [span, spanNext] = [to.sub(from), toNext.sub(fromNext)];
  const rising = x.sub(from).div(span.equal(0).where(1, span));
  const falling = toNext.sub(x).div(spanNext.equal(0).where(1, spanNext));
  return rising.mul(spline).add(falling.mul(next));
});

/**
 * All B-splines of an order over a grid of knots, by the recursion of Cox and de Boor: of order 0 B_c(x) is 1 for g_c <= x <
 * g_(c+1) and 0 elsewhere, of order p it is (x - g_c) / (g_(c+p) - g_c) B_c,p-1 + (g_(c+p+1) - x) / (g_(c+p+1) - g_(c+1))
 * B_(c+1),p-1. Beyond the knots all are 0. Computed in float32.
 *
 * @param x [..., inputs]
 * @param grid rising knots for each input, more than order + 1: [inputs, knots], of any floating-point dtype; no gradient
 * @param order 3 of cubic splines
 * @returns float32 [..., inputs, knots - order - 1]
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function bSplines(
  x: Tensor<FloatDType, Shape>,
  grid: Tensor<FloatDType, Shape>,
  order: number,
): Tensor<'float32', Shape> {
  checkTensor(x, 'x');
  if (x.shape.length === 0) throw shapeError('x has shape []; it must be [..., inputs]');
  checkShaped(grid, 'grid', [x.shape[x.shape.length - 1], -1], 'inputs, knots', x as Tensor);
  checkInteger(order, 'order', 0);
  const knots = grid.shape[1];
  if (knots < order + 2)
    throw shapeError(`grid has shape ${show(grid.shape)}; splines of order ${order} need at least ${order + 2} knots`);
  return scope(() => {
    const at = unsqueeze(wide(x), -1);
    const last = at.shape.length - 1;
    const all = wide(grid.detach());
    /** The knots from one on, as many as there are splines of an order. */
    const from = (first: number, count: number) => all.slice(1, first, first + count);
    let splines = indicator(at, from(0, knots - 1), from(1, knots - 1));
    for (let p = 1; p <= order; p++) {
      const count = knots - p - 1;
      const [left, right] = [splines.slice(last, 0, count), splines.slice(last, 1, count + 1)];
      splines = coxDeBoor(at, from(0, count), from(p, count), left, from(1, count), from(p + 1, count), right);
    }
    return splines;
  }) as Tensor<'float32', Shape>;
}
