import { attention, type Shape4 } from '../attention/attention.js';
import { checkInteger, checkNumber, checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Initial, type ModuleOptions, makeWeight, moduleOptionNames, pick, Seeds } from '../nn/initial.js';
import { LayerNorm, Linear } from '../nn/layers.js';
import { Module } from '../nn/module.js';
import { einsum } from '../ops/einsum.js';
import { add, fused, sub } from '../ops/elementwise.js';
import { matmul } from '../ops/matmul.js';
import { layerNorm } from '../ops/norm.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { checkShaped, narrow } from './inputs.js';
import { checkRows, checkSequence, project, type Weight, weightsOf } from './weights.js';

/** Matrices are [out, in]. */
export interface CrateMssaWeights {
  /** U^T of every head below each other: [heads head dim, dim]. */
  readonly subspaces: Weight;
  /** [dim, heads head dim] and [dim] */
  readonly out: Weight;
  readonly outBias?: Weight | undefined;
}

export interface CrateMssaOptions {
  readonly heads: number;
  /** Multiplies u.u. Default 1 / sqrt(head dim), as in the authors' code. */
  readonly scale?: number;
}

/** Attention of u [batch, seq, heads, dim] to itself. */
const toItself = (u: Tensor, scale: number): Tensor => {
  const heads = u as unknown as Tensor<FloatDType, Shape4>;
  return attention(heads, heads, heads, { scale }).out as unknown as Tensor;
};

/**
 * Multi-head subspace self-attention of CRATE (Yu et al., "White-Box Transformers via Sparse Rate Reduction", 2023,
 * arXiv:2306.01129) as the authors' code (Ma-Lab-Berkeley/CRATE) has it: queries, keys and values are one projection, u_h = x
 * U_h, and out = concat_h(softmax(scale u_h u_h^T) u_h) Wo^T + bo with an output matrix of its own. No position is hidden.
 *
 * @param x [batch, seq, dim]
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function crateMssa<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: CrateMssaWeights,
  options: CrateMssaOptions,
): Tensor<D, Shape> {
  checkSequence(x, 'x');
  const source = x as Tensor;
  checkOptions(options, ['heads', 'scale']);
  const check = weightsOf(weights, ['subspaces', 'out', 'outBias'], source);
  const headDim = checkMssa(source, weights, options.heads, check);
  const scale = checkNumber(options.scale ?? 1 / Math.sqrt(headDim), 'scale');
  return scope(() => mssa(source, weights, options.heads, scale)) as Tensor<D, Shape>;
}

/** @returns the head dim */
function checkMssa(
  x: Tensor,
  weights: CrateMssaWeights,
  heads: number,
  check: (name: keyof CrateMssaWeights, shape: Shape, axes: string, optional?: 'optional') => void,
): number {
  const dim = x.shape[2];
  checkInteger(heads, 'heads', 1);
  check('subspaces', [-1, dim], 'heads head dim, dim');
  const inner = weights.subspaces.shape[0];
  if (inner === 0 || inner % heads !== 0)
    throw shapeError(
      `weights.subspaces has shape ${show(weights.subspaces.shape)}; its rows must be a multiple of the ${heads} heads`,
    );
  check('out', [dim, inner], 'dim, heads head dim');
  check('outBias', [dim], 'dim', 'optional');
  return inner / heads;
}

function mssa(x: Tensor, w: CrateMssaWeights, heads: number, scale: number): Tensor {
  const [batch, seq] = x.shape;
  const inner = w.subspaces.shape[0];
  const u = project(x, w.subspaces).reshape([batch, seq, heads, inner / heads]);
  return project(toItself(u, scale).reshape([batch, seq, inner]), w.out, w.outBias);
}

const step = fused(function step(x, coefficient, towards) {
  return x.add(coefficient.mul(towards));
});

/**
 * Multi-head subspace self-attention as the paper of CRATE (Yu et al. 2023, arXiv:2306.01129) defines it, with the subspaces
 * as output maps too and the residual as part of it: out = x + coefficient sum_h softmax(u_h u_h^T) u_h U_h^T, u_h = x U_h.
 * See `crateMssa`.
 *
 * @param x [batch, seq, dim]
 * @param subspaces a basis for each head: [heads, dim, p]
 * @param coefficient of one element, p / (seq eps^2) in the paper
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function crateMssaPaper<D extends FloatDType>(
  x: Tensor<D, Shape>,
  subspaces: Weight,
  coefficient: Weight,
): Tensor<D, Shape> {
  checkSequence(x, 'x');
  const source = x as Tensor;
  checkShaped(subspaces, 'subspaces', [-1, source.shape[2], -1], 'heads, dim, p', source);
  checkShaped(coefficient, 'coefficient', [1], '1', source);
  return scope(() => {
    const U = narrow(subspaces, source) as Tensor;
    const u = einsum('bnd,hdp->bnhp', source, U);
    const towards = einsum('bnhp,hdp->bnd', toItself(u, 1), U);
    return step(source, narrow(coefficient, source), towards);
  }) as Tensor<D, Shape>;
}

export interface CrateIstaOptions {
  /** eta. Default 0.1. */
  readonly stepSize?: number;
  /** lambda, of the sparsity. Default 0.1. */
  readonly lambda?: number;
}

const sparsified = fused(function sparsified(x, towards, stepSize, threshold) {
  const moved = x.add(towards.mul(stepSize)).sub(threshold);
  return moved.lessEqual(0).where(0, moved);
});

/**
 * The sparsification of CRATE (Yu et al. 2023, arXiv:2306.01129), a step of the iterative shrinkage-thresholding algorithm
 * towards a sparse code of x: out = relu(x + eta (x - x D^T) D - eta lambda), x as rows.
 *
 * @param x [..., dim] of rank 2 or more
 * @param dictionary D, [dim, dim], of any floating-point dtype; it is used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function crateIsta<D extends FloatDType>(
  x: Tensor<D, Shape>,
  dictionary: Weight,
  options: CrateIstaOptions = {},
): Tensor<D, Shape> {
  checkRows(x, 'x');
  const source = x as Tensor;
  const dim = source.shape[source.shape.length - 1];
  checkShaped(dictionary, 'dictionary', [dim, dim], 'dim, dim', source);
  const { stepSize, lambda } = readIsta(options);
  return scope(() => {
    const residual = sub(source, project(source, dictionary)) as Tensor;
    const towards = matmul(residual, narrow(dictionary, source) as Tensor);
    return sparsified(source, towards, stepSize, stepSize * lambda);
  }) as Tensor<D, Shape>;
}

function readIsta(options: CrateIstaOptions): Required<CrateIstaOptions> {
  checkOptions(options, ['stepSize', 'lambda']);
  const { stepSize = 0.1, lambda = 0.1 } = options;
  return { stepSize: checkNumber(stepSize, 'stepSize'), lambda: checkNumber(lambda, 'lambda') };
}

export interface CrateBlockWeights extends CrateMssaWeights {
  /** [dim] each: before attention and before the sparsification. */
  readonly norm1Weight: Weight;
  readonly norm1Bias: Weight;
  readonly norm2Weight: Weight;
  readonly norm2Bias: Weight;
  /** D, [dim, dim]. */
  readonly dictionary: Weight;
}

const weightNames = [
  ...(['norm1Weight', 'norm1Bias', 'norm2Weight', 'norm2Bias'] as const),
  ...(['subspaces', 'out', 'outBias', 'dictionary'] as const),
] as const satisfies readonly (keyof CrateBlockWeights)[];

/**
 * A layer of CRATE (Yu et al. 2023, arXiv:2306.01129): a = x + crateMssa(layerNorm(x)), out = crateIsta(layerNorm(a)), which
 * has no residual besides its own; epsilon is 1e-5. See `crateMssa` and `crateIsta`.
 *
 * @param x [batch, seq, dim]
 * @param weights of any floating-point dtype; they are used in that of x
 * @returns of the shape and dtype of x
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function crateBlock<D extends FloatDType>(
  x: Tensor<D, Shape>,
  weights: CrateBlockWeights,
  options: CrateMssaOptions & CrateIstaOptions,
): Tensor<D, Shape> {
  checkSequence(x, 'x');
  const source = x as Tensor;
  const dim = source.shape[2];
  checkOptions(options, ['heads', 'scale', 'stepSize', 'lambda']);
  const check = weightsOf(weights, weightNames, source);
  const headDim = checkMssa(source, weights, options.heads, check);
  for (const name of ['norm1Weight', 'norm1Bias', 'norm2Weight', 'norm2Bias'] as const) check(name, [dim], 'dim');
  check('dictionary', [dim, dim], 'dim, dim');
  const scale = checkNumber(options.scale ?? 1 / Math.sqrt(headDim), 'scale');
  const ista = readIsta(pick(options, ['stepSize', 'lambda']));
  return scope(() => {
    const { norm1Weight, norm1Bias, norm2Weight, norm2Bias, dictionary } = weights;
    const attended = add(source, mssa(layerNorm(source, norm1Weight, norm1Bias), weights, options.heads, scale));
    return crateIsta(layerNorm(attended as Tensor, norm2Weight, norm2Bias), dictionary, ista);
  }) as Tensor<D, Shape>;
}

export interface CrateBlockOptions extends ModuleOptions, CrateMssaOptions, CrateIstaOptions {
  readonly width: number;
  /** Default width / heads. */
  readonly headDim?: number;
  /** Of the matrices of attention. Default PyTorch's: see `Linear`. */
  readonly initial?: Initial;
}

const names = [
  ...moduleOptionNames,
  ...(['width', 'heads', 'headDim', 'scale', 'stepSize', 'lambda', 'initial'] as const),
] as const satisfies readonly (keyof CrateBlockOptions)[];

/** A layer of `crateBlock`: x [batch, seq, width]. */
export class CrateBlock extends Module {
  readonly norm1: LayerNorm;
  readonly subspaces: Linear;
  readonly out: Linear;
  readonly norm2: LayerNorm;
  /** D, [width, width]. */
  dictionary: Tensor;
  readonly options: CrateMssaOptions & CrateIstaOptions;

  constructor(options: CrateBlockOptions) {
    super();
    checkOptions(options, names);
    const { width, heads } = options;
    checkInteger(width, 'width', 1);
    checkInteger(heads, 'heads', 1);
    if (options.headDim === undefined && width % heads !== 0)
      throw optionError(`width ${width} is no multiple of heads ${heads}; give headDim`);
    const inner = heads * checkInteger(options.headDim ?? width / heads, 'headDim', 1, 256);
    this.options = pick(options, ['heads', 'scale', 'stepSize', 'lambda']);
    const all = { ...pick(options, moduleOptionNames), seed: Seeds.of(options.seed) };
    const linear = { ...all, ...pick(options, ['initial']) };
    try {
      this.norm1 = new LayerNorm(width, all);
      this.subspaces = new Linear(width, inner, { ...linear, bias: false });
      this.out = new Linear(inner, width, linear);
      this.norm2 = new LayerNorm(width, all);
      // He's uniform numbers for rectifiers, as the authors'.
      this.dictionary = makeWeight([width, width], { kind: 'uniform', bound: Math.sqrt(6 / width) }, all);
    } catch (error) {
      this.dispose();
      throw error;
    }
  }

  forward(x: Tensor): Tensor {
    const { norm1, norm2, subspaces, out, dictionary } = this;
    const weights = {
      norm1Weight: norm1.weight,
      norm1Bias: norm1.bias,
      subspaces: subspaces.weight,
      out: out.weight,
      outBias: out.bias,
      norm2Weight: norm2.weight,
      norm2Bias: norm2.bias,
      dictionary,
    };
    return crateBlock(x, weights, this.options);
  }
}
