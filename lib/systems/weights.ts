// Weights of systems: checked by name, and used in the dtype of what they meet.
import { checkOptions } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { timesTransposed } from '../nn/layers.js';
import { checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkShaped } from './inputs.js';

export type Weight = Tensor<FloatDType, Shape>;

/**
 * What checks one weight after the other: of any floating-point dtype, on the device of `like`.
 *
 * @returns a function of a name, a shape, in which -1 stands for any length, and the names of its axes; one that is `optional`
 *   may be undefined
 * @throws ERR_OPTION; what it returns throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE and ERR_DISPOSED
 */
export function weightsOf<W>(
  weights: W,
  names: readonly Extract<keyof W, string>[],
  like: Tensor,
  argument = 'weights',
): (name: Extract<keyof W, string>, shape: Shape, axes: string, optional?: 'optional') => void {
  checkOptions(weights, names, argument);
  return (name, shape, axes, optional) => {
    const t = weights[name];
    if (t !== undefined || !optional) checkShaped(t, `${argument}.${name}`, shape, axes, like);
  };
}

/** [..., features] with at least two axes. @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE */
export function checkRows(x: unknown, argument: string): asserts x is Tensor {
  checkTensor(x, argument);
  if (x.shape.length < 2)
    throw shapeError(`${argument} has shape ${show(x.shape)}; it must be [..., features] with at least two axes`);
}

/** A tensor with these axes. @throws ERR_SHAPE, ERR_OPTION, ERR_DTYPE */
export function checkSequence(x: unknown, argument: string, axes = 'batch, seq, dim'): asserts x is Tensor {
  checkTensor(x, argument);
  if (x.shape.length !== axes.split(', ').length)
    throw shapeError(`${argument} has shape ${show(x.shape)}; it must be [${axes}]`);
}

/** x weight^T + bias in the dtype of x. */
export const project = (x: Tensor, weight: Weight, bias?: Weight): Tensor => timesTransposed(x, weight as Tensor, bias);
