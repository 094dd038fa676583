// Knots of Kolmogorov-Arnold layers that follow the numbers that come in.
import { checkNumber, checkOptions, mustBe } from '../base/check.js';
import { shapeError, show } from '../base/errors.js';
import { concat } from '../ops/concat.js';
import { equal, fused, where } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { sort } from '../ops/sort.js';
import { svd } from '../ops/svd.js';
import { scope } from '../tape/scope.js';
import { withoutRecording } from '../tape/tape.js';
import type { Tensor } from '../tensor/tensor.js';
import { bSplines } from './bSpline.js';
import { narrow, type Wide, wide } from './inputs.js';
import { countUp } from './selectedBlocks.js';
import { checkRows, type Weight, weightsOf } from './weights.js';

/** What `pykanUpdateGrid` changes of a layer. */
export interface PykanCurves {
  /** [inputs, knots], see `bSplines`. */
  readonly grid: Weight;
  /** [inputs, outputs, c]; the order of the splines is knots - c - 1. */
  readonly coef: Weight;
}

export interface PykanGridOptions {
  /**
   * From 0, where as many samples lie between any two knots, to 1, where all knots are as far apart. Default 0.02. (pykan
   * describes its grid_eps the other way round, and computes this.)
   */
  readonly gridEps?: number;
}

/** One side of what is decomposed: see `svd`. */
const mostValues = 256;

const between = fused((quantile, first, last, place, intervals, eps) =>
  quantile.mul(eps.neg().add(1)).add(first.add(last.sub(first).div(intervals).mul(place)).mul(eps)),
);
const beyond = fused((end, first, last, steps, intervals) => end.add(last.sub(first).div(intervals).mul(steps)));
const solved = fused((projection, value, largest, cut) =>
  value.lessEqual(largest.mul(cut)).where(0, projection.div(value)),
);

/** Places in the sorted samples that knots are taken from: quantiles, and the last. */
const quantilesOf = (samples: number, intervals: number): readonly number[] => [
  ...Array.from({ length: intervals }, (_, i) => Math.floor((samples / intervals) * i)),
  samples - 1,
];

/** Knots for sorted samples [samples, inputs], with `order` more on each side: [inputs, intervals + 1 + 2 order]. */
function knotsOf(sorted: Wide, intervals: number, order: number, eps: number): Wide {
  const [samples] = sorted.shape;
  const rows = quantilesOf(samples, intervals).map((at) => sorted.slice(0, at, at + 1));
  const quantiles = concat(rows, 0).transpose(0, 1).contiguous() as Wide;
  const [first, last] = [quantiles.slice(1, 0, 1), quantiles.slice(1, intervals, intervals + 1)];
  const inner = between(quantiles, first, last, countUp(intervals + 1, sorted), intervals, eps) as Wide;
  if (order === 0) return inner;
  // The ends of the inner knots are the first sample and the last.
  const left = beyond(first, first, last, countUp(order, sorted, -order), intervals) as Wide;
  const right = beyond(last, first, last, countUp(order, sorted, 1), intervals) as Wide;
  return concat([left, inner, right], 1) as Wide;
}

/** Splines of sorted samples, [inputs, samples, c]. */
const splinesOf = (sorted: Wide, grid: Wide, order: number): Wide =>
  bSplines(sorted, grid, order).permute([1, 0, 2]).contiguous() as Wide;

/** The shortest of the coefficients [inputs, c, outputs] that bring the curves as near to y [inputs, samples, outputs] as they come. */
function leastSquares(splines: Wide, y: Wide): Wide {
  const [, samples, count] = splines.shape;
  const { u, s, v } = svd(splines as Tensor);
  const [inputs, values] = s.shape as readonly [number, number];
  const rows = s.reshape([inputs, values, 1]) as Tensor;
  const projections = matmul(u.transpose(1, 2), y as Tensor);
  return matmul(v, solved(projections, rows, rows.slice(1, 0, 1), 2 ** -23 * Math.max(samples, count))) as Wide;
}

/**
 * Moves the knots of a layer to where its inputs are, and fits its coefficients so that its curves stay what they were at
 * these samples: `update_grid_from_samples` of pykan (Liu et al., "KAN", 2024, arXiv:2404.19756, section 2.4). Knots are
 * quantiles of the samples of each input, mixed with even ones, with `order` more on each side; coefficients are least
 * squares by a singular value decomposition, whose values below 2^-23 max(samples, c) of the largest count as 0: of several
 * solutions the shortest. An input whose samples are all the same keeps its knots and curves.
 *
 * Everything happens on the device, in float32, with inputs * samples * c numbers for the splines a few times over. The results
 * have no gradient.
 *
 * @param x [..., inputs] of rank 2 or more, with at least one sample
 * @param weights of any floating-point dtype, with an order of at most (knots - 2) / 2
 * @returns both in their shapes and dtypes
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function pykanUpdateGrid(
  x: Tensor,
  weights: PykanCurves,
  options: PykanGridOptions = {},
): { readonly grid: Weight; readonly coef: Weight } {
  checkRows(x, 'x');
  const inputs = x.shape[x.shape.length - 1];
  const check = weightsOf(weights, ['grid', 'coef'], x);
  check('grid', [inputs, -1], 'inputs, knots');
  check('coef', [inputs, -1, -1], 'inputs, outputs, c');
  checkOptions(options, ['gridEps']);
  const { gridEps = 0.02 } = options;
  if (checkNumber(gridEps, 'gridEps', 0) > 1) throw mustBe('gridEps', gridEps, 'from 0 to 1');
  const { grid, coef } = weights;
  const count = coef.shape[2];
  const order = grid.shape[1] - count - 1;
  const intervals = count - order;
  if (order < 0 || intervals < 1)
    throw shapeError(
      `weights.grid has shape ${show(grid.shape)} and weights.coef ${count} coefficients; there must be fewer of them than knots, and more than half as many`,
    );
  const samples = inputs === 0 ? 0 : x.size / inputs;
  if (inputs > 0 && samples === 0) throw shapeError(`x has shape ${show(x.shape)}; there must be at least one sample`);
  if (Math.min(samples, count) > mostValues)
    throw shapeError(
      `weights.coef has ${count} coefficients of a curve; at most ${mostValues} can be fitted to ${samples} samples`,
    );
  return withoutRecording(() =>
    scope(() => {
      const before = wide(grid as Tensor);
      const own = wide(coef as Tensor);
      if (inputs === 0) return { grid: grid.contiguous(), coef: coef.contiguous() };
      const rows = wide(x.contiguous()).reshape([samples, inputs]);
      const sorted = sort(rows, 0).values as Wide;
      const y = matmul(splinesOf(sorted, before, order), own.transpose(1, 2)) as Wide;
      const [first, last] = [sorted.slice(0, 0, 1), sorted.slice(0, samples - 1, samples)];
      const isOne = equal(first, last).reshape([inputs, 1]);
      const knots = where(isOne, before, knotsOf(sorted, intervals, order, gridEps)) as Wide;
      const fitted = leastSquares(splinesOf(sorted, knots, order), y).transpose(1, 2) as Wide;
      const curves = where(isOne.reshape([inputs, 1, 1]), own, fitted) as Tensor;
      return { grid: narrow(knots as Tensor, grid), coef: narrow(curves, coef) };
    }),
  ) as unknown as { readonly grid: Weight; readonly coef: Weight };
}
