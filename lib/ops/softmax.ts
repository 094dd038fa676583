import type { FloatDType } from '../base/dtype.js';
import type { Backend } from '../kernels/device.js';
import type { Strided } from '../kernels/operand.js';
import {
  fitsSoftmax,
  softmaxBackward as softmaxBackwardOperation,
  softmax as softmaxOperation,
} from '../kernels/softmax.js';
import { record } from '../tape/tape.js';
import { checkAxis } from '../tensor/shape.js';
import { type AnyTensor, allocateTensor, checkLike, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/**
 * Runs `launch` on tensors of one shape and a result like the first, which lies row by row. Where they cannot be walked over
 * together, copies take their places.
 */
function withResult<D extends FloatDType, S extends Shape>(
  tensors: readonly [Tensor<D, S>, ...Tensor<D, S>[]],
  operands: readonly Strided[],
  axis: number,
  launch: (backend: Backend, result: Strided, operands: readonly Strided[]) => void,
): Tensor<D, S> {
  const [{ backend, shape, dtype }] = tensors;
  const copies: Tensor<D, S>[] = [];
  let result: Tensor<D, S> | undefined;
  try {
    result = allocateTensor(backend, shape, dtype) as Tensor<D, S>;
    const to = result.strided('the result', backend);
    const fits = fitsSoftmax([to, ...operands], axis);
    if (!fits) for (const t of tensors) copies.push(t.contiguous());
    launch(backend, to, fits ? operands : copies.map((copy) => copy.strided('a copy', backend)));
  } catch (error) {
    result?.dispose();
    throw error;
  } finally {
    for (const copy of copies) copy.dispose();
  }
  return result;
}

function alongAxis<D extends FloatDType, S extends Shape>(x: Tensor<D, S>, axis: number, log: boolean): Tensor<D, S> {
  checkTensor(x, 'x');
  const along = checkAxis(axis, x.shape);
  const operands = [x.strided('x', x.backend)];
  const out = withResult([x], operands, along, (backend, result, [from]) =>
    backend.launch(softmaxOperation, { x: from, result, axis: along, log }),
  );
  record(
    log ? 'logSoftmax' : 'softmax',
    [x as AnyTensor],
    [out as AnyTensor],
    [out as AnyTensor],
    ([gradient], [own]) => [gradient && softmaxBackward(own as Tensor, gradient, along, log)],
  );
  return out;
}

/**
 * Softmax along an axis: out = e^(x - max) / (the sum of e^(x - max)), in float32, whatever the dtype. A row whose elements
 * are all -Infinity, or one that holds NaN or Infinity, becomes NaN, as in PyTorch.
 *
 * @param x of any shape and strides
 * @param axis from -rank to rank - 1. Default: the last
 * @returns a contiguous tensor of the shape and dtype of `x`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function softmax<D extends FloatDType, S extends Shape>(x: Tensor<D, S>, axis = -1): Tensor<D, S> {
  return alongAxis(x, axis, false);
}

/**
 * The logarithm of softmax along an axis: out = x - max - log(the sum of e^(x - max)), in float32, whatever the dtype. What
 * becomes NaN in `softmax` does so here.
 *
 * @param x of any shape and strides
 * @param axis from -rank to rank - 1. Default: the last
 * @returns a contiguous tensor of the shape and dtype of `x`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function logSoftmax<D extends FloatDType, S extends Shape>(x: Tensor<D, S>, axis = -1): Tensor<D, S> {
  return alongAxis(x, axis, true);
}

/**
 * The gradient of x from what `softmax` has returned, dx = out (dOut - sum(dOut out)), or with `log` from what `logSoftmax`
 * has, dx = dOut - e^out sum(dOut). Sums are float32, along the axis.
 *
 * @internal
 * @param dOut of the shape and dtype of `out`; both of any strides
 * @returns a contiguous tensor of the shape and dtype of `out`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function softmaxBackward<D extends FloatDType, S extends Shape>(
  out: Tensor<D, S>,
  dOut: Tensor<D, S>,
  axis: number,
  log: boolean,
): Tensor<D, S> {
  checkTensor(out, 'out');
  checkLike(dOut, 'dOut', out, 'out');
  const along = checkAxis(axis, out.shape);
  const operands = [out.strided('out', out.backend), dOut.strided('dOut', out.backend)];
  return withResult([out, dOut], operands, along, (backend, result, [y, dy]) =>
    backend.launch(softmaxBackwardOperation, { out: y, dOut: dy, result, axis: along, log }),
  );
}
