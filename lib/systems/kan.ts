import { noGrad } from '../autograd/autograd.js';
import { checkBoolean, checkInteger, checkNumber, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import { type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { Module } from '../nn/module.js';
import { add, mul, silu } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { pad, unsqueeze } from '../ops/split.js';
import { unfold } from '../ops/unfold.js';
import { type PerAxis, perAxis } from '../ops/windows.js';
import { scope } from '../tape/scope.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { bSplines } from './bSpline.js';
import { narrow } from './inputs.js';
import { type PykanGridOptions, pykanUpdateGrid } from './kanGrid.js';
import { checkRows, project, type Weight, weightsOf } from './weights.js';

/** A curve for each input of each output; c counts B-splines. The order of the splines is knots - c - 1. */
export interface KanWeights {
  /** [inputs, knots], see `bSplines`. */
  readonly grid: Weight;
  /** [outputs, inputs] */
  readonly baseWeight: Weight;
  /** [outputs, inputs, c] */
  readonly splineWeight: Weight;
  /** [outputs, inputs]; left out: ones. */
  readonly splineScaler?: Weight | undefined;
}

/** The order of splines of which there are so many over a grid. @throws ERR_SHAPE */
function orderOf(grid: Weight, splines: number, argument: string): number {
  const order = grid.shape[1] - splines - 1;
  if (order < 0 || splines === 0)
    throw shapeError(
      `weights.grid has shape ${show(grid.shape)} and ${argument} ${splines} coefficients; there must be from 1 to knots - 1`,
    );
  return order;
}

/** A tensor in row-major order with its last two axes joined. */
function joined(t: Tensor): Tensor {
  const { shape } = t;
  const last = shape.length - 2;
  const rows = t.isContiguous ? t : t.contiguous();
  return rows.reshape([...shape.slice(0, last), shape[last] * shape[last + 1]]);
}

/** The splines of x beside each other, [..., inputs c], in the dtype of x. */
const splinesOf = (x: Tensor, grid: Weight, order: number): Tensor =>
  joined(narrow(bSplines(x, grid, order), x) as Tensor);

/**
 * A layer of a Kolmogorov-Arnold network (Liu et al., "KAN", 2024, arXiv:2404.19756) as Blealtan/efficient-kan has it: out[o] =
 * sum over i of baseWeight[o, i] silu(x_i) + splineScaler[o, i] sum over c of splineWeight[o, i, c] B_c(x_i). Splines are
 * computed in float32.
 *
 * @param x [..., inputs] of rank 2 or more
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns [..., outputs] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function kanLinear<D extends FloatDType>(x: Tensor<D, Shape>, weights: KanWeights): Tensor<D, Shape> {
  checkRows(x, 'x');
  const source = x as Tensor;
  const order = checkKan(source, source.shape[source.shape.length - 1], weights);
  return scope(() => {
    const { baseWeight, splineWeight, splineScaler } = weights;
    const curves = splineScaler ? mul(splineWeight, unsqueeze(splineScaler, -1)) : splineWeight;
    const splines = project(splinesOf(source, weights.grid, order), joined(curves as Tensor));
    return add(project(silu(source), baseWeight), splines);
  }) as unknown as Tensor<D, Shape>;
}

/** @returns the order of the splines */
function checkKan(x: Tensor, inputs: number, weights: KanWeights): number {
  const check = weightsOf(weights, ['grid', 'baseWeight', 'splineWeight', 'splineScaler'], x);
  check('grid', [inputs, -1], 'inputs, knots');
  check('baseWeight', [-1, inputs], 'outputs, inputs');
  const outputs = weights.baseWeight.shape[0];
  check('splineWeight', [outputs, inputs, -1], 'outputs, inputs, c');
  check('splineScaler', [outputs, inputs], 'outputs, inputs', 'optional');
  return orderOf(weights.grid, weights.splineWeight.shape[2], 'weights.splineWeight');
}

/** As pykan has them, [inputs, outputs]. */
export interface PykanWeights {
  /** [inputs, knots], see `bSplines`. */
  readonly grid: Weight;
  /** [inputs, outputs, c] */
  readonly coef: Weight;
  /** [inputs, outputs] each. */
  readonly scaleBase: Weight;
  readonly scaleSp: Weight;
  /** Which curves there are, 1 or 0, without a gradient: [inputs, outputs]. Default all. */
  readonly mask?: Weight | undefined;
}

/**
 * A layer of a Kolmogorov-Arnold network as its authors' pykan has it: out[o] = sum over i of mask[i, o] (scaleBase[i, o]
 * silu(x_i) + scaleSp[i, o] sum over c of coef[i, o, c] B_c(x_i)). See `kanLinear`.
 *
 * @param x [..., inputs] of rank 2 or more
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns [..., outputs] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function pykanLinear<D extends FloatDType>(x: Tensor<D, Shape>, weights: PykanWeights): Tensor<D, Shape> {
  checkRows(x, 'x');
  const source = x as Tensor;
  const inputs = source.shape[source.shape.length - 1];
  const check = weightsOf(weights, ['grid', 'coef', 'scaleBase', 'scaleSp', 'mask'], source);
  check('grid', [inputs, -1], 'inputs, knots');
  check('coef', [inputs, -1, -1], 'inputs, outputs, c');
  const [, outputs, count] = weights.coef.shape;
  check('scaleBase', [inputs, outputs], 'inputs, outputs');
  check('scaleSp', [inputs, outputs], 'inputs, outputs');
  check('mask', [inputs, outputs], 'inputs, outputs', 'optional');
  const order = orderOf(weights.grid, count, 'weights.coef');
  return scope(() => {
    const { grid, coef, scaleBase, scaleSp, mask } = weights;
    const present = (scale: Weight) => (mask ? mul(scale, mask.detach()) : scale);
    const curves = mul(coef, unsqueeze(present(scaleSp), -1))
      .transpose(1, 2)
      .contiguous();
    const splines = matmul(
      splinesOf(source, grid, order),
      narrow(curves.reshape([inputs * count, outputs]), source) as Tensor,
    );
    return add(matmul(silu(source), narrow(present(scaleBase), source) as Tensor), splines);
  }) as unknown as Tensor<D, Shape>;
}

export interface KanConv2dOptions {
  /** [rows, columns], or one number for both. */
  readonly kernelSize: PerAxis;
  /** Default 1. */
  readonly stride?: PerAxis;
  /** Zeros around x, on which curves are evaluated as on all other numbers. Default 0. */
  readonly padding?: PerAxis;
}

/**
 * A convolution whose kernels are curves: `kanLinear` of every patch of x, whose inputs are its channels, rows and columns in
 * this order. Patches are written out, and their splines, c numbers for each of theirs.
 *
 * @param x [batch, channels, height, width]
 * @param weights with channels * rows * columns inputs
 * @returns [batch, outputs, rows, columns] of the dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function kanConv2d<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: KanWeights,
  options: KanConv2dOptions,
): Tensor<D, Shape> {
  checkTensor(x, 'x');
  const source = x as Tensor;
  if (source.shape.length !== 4)
    throw shapeError(`x has shape ${show(source.shape)}; it must be [batch, channels, height, width]`);
  const [batch, channels, height, width] = source.shape;
  checkOptions(options, ['kernelSize', 'stride', 'padding']);
  const [kh, kw] = perAxis(options.kernelSize, 'kernelSize', 2, 1) as [number, number];
  const [sh, sw] = perAxis(options.stride ?? 1, 'stride', 2, 1) as [number, number];
  const [ph, pw] = perAxis(options.padding ?? 0, 'padding', 2, 0) as [number, number];
  if (kh > height + 2 * ph || kw > width + 2 * pw)
    throw shapeError(
      `kernelSize is ${kh} x ${kw}; x has shape ${show(source.shape)}, of ${height + 2 * ph} x ${width + 2 * pw} with padding`,
    );
  const inputs = channels * kh * kw;
  checkKan(source, inputs, weights);
  return scope(() => {
    const padded = ph + pw > 0 ? pad(source, [[0, 0], [0, 0], [ph, ph], [pw, pw]]) : source; // biome-ignore format: a pair an axis
    const windows = unfold(unfold(padded, 2, kh, sh), 3, kw, sw);
    const [, , rows, columns] = windows.shape;
    const patches = windows.permute([0, 2, 3, 1, 4, 5]).contiguous().reshape([batch, rows, columns, inputs]);
    return kanLinear(patches, weights).permute([0, 3, 1, 2]).contiguous();
  }) as unknown as Tensor<D, Shape>;
}

export interface KANLinearOptions extends ModuleOptions {
  readonly inputs: number;
  readonly outputs: number;
  /** Intervals between knots within the range. Default 5. */
  readonly gridSize?: number;
  /** Default 3, cubic. */
  readonly splineOrder?: number;
  /** Of the grid; beyond it splines fade to 0 within splineOrder intervals. Default [-1, 1]. */
  readonly range?: readonly [low: number, high: number];
  /** Coefficients begin uniform within noise / (2 gridSize). Default 0.1. */
  readonly noise?: number;
  /** Whether each curve has a factor of its own. Default true. */
  readonly scaler?: boolean;
}

const names = [
  ...moduleOptionNames,
  ...(['inputs', 'outputs', 'gridSize', 'splineOrder', 'range', 'noise', 'scaler'] as const),
] as const satisfies readonly (keyof KANLinearOptions)[];

/**
 * A layer of `kanLinear`, x [..., inputs], over even grids, which are not trained but may follow the inputs (`updateGrid`).
 * It begins as efficient-kan's does, but for coefficients, which are drawn as they are and not fitted to values at the knots.
 */
export class KANLinear extends Module {
  /** [inputs, gridSize + 2 splineOrder + 1] */
  grid: Tensor;
  /** [outputs, inputs] */
  baseWeight: Tensor;
  /** [outputs, inputs, gridSize + splineOrder] */
  splineWeight: Tensor;
  /** [outputs, inputs] */
  splineScaler: Tensor | undefined;

  constructor(options: KANLinearOptions) {
    super();
    checkOptions(options, names);
    const { inputs, outputs, gridSize = 5, splineOrder = 3, range = [-1, 1], noise = 0.1, scaler = true } = options;
    checkInteger(inputs, 'inputs', 1);
    checkInteger(outputs, 'outputs', 1);
    checkInteger(gridSize, 'gridSize', 1);
    checkInteger(splineOrder, 'splineOrder', 0);
    checkNumber(noise, 'noise', 0);
    checkBoolean(scaler, 'scaler');
    if (!(Array.isArray(range) && range.length === 2 && Number.isFinite(range[1] - range[0]) && range[0] < range[1]))
      throw optionError(`range is ${show(range)}; it must be [low, high] with low below high`);
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const uniform = { kind: 'uniform', bound: 1 / Math.sqrt(inputs) } as const;
    try {
      this.grid = evenGrid(inputs, gridSize, splineOrder, range as readonly [number, number], all);
      this.baseWeight = makeWeight([outputs, inputs], uniform, all);
      const small = { kind: 'uniform', bound: noise / (2 * gridSize) } as const;
      this.splineWeight = makeWeight([outputs, inputs, gridSize + splineOrder], small, all);
      this.splineScaler = scaler ? makeWeight([outputs, inputs], uniform, all) : undefined;
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    const { grid, baseWeight, splineWeight, splineScaler } = this;
    return kanLinear(x, { grid, baseWeight, splineWeight, splineScaler });
  }

  /**
   * Moves the knots to where these inputs are and fits the coefficients to the curves as they were, in place: see
   * `pykanUpdateGrid`.
   *
   * @param x [..., inputs]
   * @throws as `pykanUpdateGrid`
   */
  updateGrid(x: Tensor, options: PykanGridOptions = {}): void {
    noGrad(() =>
      scope(() => {
        const { grid, splineWeight } = this;
        const fitted = pykanUpdateGrid(x, { grid, coef: splineWeight.detach().transpose(0, 1) }, options);
        fitted.grid.copyInto(grid as never);
        fitted.coef.transpose(0, 1).copyInto(splineWeight as never);
      }),
    );
  }
}

/** The same knots for every input, float32: also where weights are of 16 bits, which would move them. */
function evenGrid(
  inputs: number,
  size: number,
  order: number,
  [low, high]: readonly [number, number],
  { device }: ModuleOptions,
): Tensor {
  const step = (high - low) / size;
  const knots = Array.from({ length: size + 2 * order + 1 }, (_, c) => low + (c - order) * step);
  return unwatched(() => {
    const row = tensor(knots, [1, knots.length], device === undefined ? {} : { device }) as Tensor;
    const rows = row.expand([inputs, knots.length]);
    const grid = rows.contiguous();
    rows.dispose();
    row.dispose();
    return grid;
  });
}
