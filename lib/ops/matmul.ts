import { checkFloat32, checkOptions } from '../base/check.js';
import type { DType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import {
  type MatmulOperands,
  type Matrices,
  matmulLaunches,
  matmul as matmulOperation,
  mostRows,
  packedElements,
} from '../kernels/matmul.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import { checkDisjoint } from '../tensor/overlap.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

export interface MatmulOptions {
  /** Multiplies the product. Default 1. */
  readonly alpha?: number;
  /** Added to the product; of any dtype and a shape that broadcasts to [...batch, m, n], such as [n]. */
  readonly bias?: Tensor<DType, Shape>;
}

export interface MatmulIntoOptions<D extends DType> extends MatmulOptions {
  /**
   * [...batch, m, n] of any dtype and strides, in memory that no other tensor of the call shares: the result is added to it,
   * in float32, and it is what is returned.
   */
  readonly accumulateInto: Tensor<D, Shape>;
}

/**
 * [...batch, rows, columns] of the product, with the batch axes broadcast. By index, as in all that each call runs: shapes
 * are frozen, and methods of frozen arrays are slow.
 *
 * @throws ERR_SHAPE
 */
function shapeOfProduct(a: Shape, b: Shape): number[] {
  const rank = Math.max(a.length, b.length);
  const shape = new Array<number>(rank);
  for (let axis = 0; axis < rank - 2; axis++) {
    const [ofA, ofB] = [axis - rank + a.length, axis - rank + b.length];
    const n = ofA < 0 ? 1 : a[ofA];
    const m = ofB < 0 ? 1 : b[ofB];
    if (n !== m && n !== 1 && m !== 1)
      throw shapeError(`${showBoth(a, b)}; the batch axes must be equal or 1, but ${n} meets ${m}`);
    shape[axis] = n === 1 ? m : n;
  }
  const inner = a[a.length - 1];
  if (b[b.length - 2] !== inner)
    throw shapeError(
      `${showBoth(a, b)}; the last axis of a, ${inner}, must be the last but one of b, ${b[b.length - 2]}`,
    );
  shape[rank - 2] = a[a.length - 2];
  shape[rank - 1] = b[b.length - 1];
  return shape;
}

const showBoth = (a: Shape, b: Shape) => `a has shape ${show(a)} and b ${show(b)}`;

/** A tensor as matrices of a batch of so many axes. */
function matricesOf(t: Tensor, argument: string, axes: number, backend: Backend): Matrices {
  const { shape, strides, dtype } = t;
  const rank = shape.length;
  const strideOf = (axis: number) => (axis < 0 || shape[axis] === 1 ? 0 : strides[axis]);
  const batch = new Array<number>(axes);
  for (let axis = 0; axis < axes; axis++) batch[axis] = strideOf(axis - axes + rank - 2);
  const { buffer, offset } = t.operand(argument, backend);
  return { buffer, offset, dtype, row: strideOf(rank - 2), column: strideOf(rank - 1), batch };
}

function checkMatrix(t: unknown, argument: string): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.shape.length < 2)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be a matrix or a batch of matrices`);
  const rank = t.shape.length;
  if (t.shape[rank - 2] > mostRows || t.shape[rank - 1] > mostRows)
    throw shapeError(`${argument} has shape ${show(t.shape)}; a matrix has at most 2^31 - 2^10 rows and columns`);
}

function checkBias(bias: unknown, result: Shape): asserts bias is Tensor {
  checkTensor(bias, 'bias');
  const { shape } = bias;
  const fits = shape.every((n, axis) => n === 1 || n === result[axis - shape.length + result.length]);
  if (shape.length > result.length || !fits)
    throw shapeError(`bias has shape ${show(shape)}; it must broadcast to ${show(result)}`);
}

function checkTarget(target: unknown, result: Shape): asserts target is Tensor {
  checkTensor(target, 'accumulateInto');
  const { shape } = target;
  if (shape.length !== result.length || shape.some((n, axis) => n !== result[axis]))
    throw shapeError(`accumulateInto has shape ${show(shape)}; the product has ${show(result)}`);
}

/** Queues the launches of a product, with their scratch memory. */
function launchAll(backend: Backend, operands: MatmulOperands): void {
  for (const launch of matmulLaunches(operands)) {
    const elements = packedElements(launch);
    let packedA: DeviceBuffer | undefined;
    let packedB: DeviceBuffer | undefined;
    try {
      if (elements.a > 0) packedA = backend.allocate(4 * elements.a, 'deviceWritten');
      if (elements.b > 0) packedB = backend.allocate(4 * elements.b, 'deviceWritten');
      backend.launch(matmulOperation, { operands: launch, packedA, packedB });
    } finally {
      if (packedA) backend.free(packedA);
      if (packedB) backend.free(packedB);
    }
  }
}

/**
 * The product of matrices, batched: out[..., i, j] = alpha * (the sum over k of a[..., i, k] * b[..., k, j]) + bias[..., i, j],
 * with the batch axes broadcast as in PyTorch. Sums are float32, in an order that depends on the shapes alone. Views with any
 * strides do: a transposed factor is `t.transpose(0, 1)`. Runs on `cpu` and `wasm`.
 *
 * @param a [...batch, m, k]
 * @param b [...batch, k, n], of the dtype and on the device of `a`
 * @returns [...batch, m, n] of the same dtype, or `accumulateInto`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function matmul<D extends DType, T extends DType>(
  a: Tensor<D, Shape>,
  b: Tensor<D, Shape>,
  options: MatmulIntoOptions<T>,
): Tensor<T, Shape>;
export function matmul<D extends DType>(
  a: Tensor<D, readonly [number, number]>,
  b: Tensor<D, readonly [number, number]>,
  options?: MatmulOptions,
): Tensor<D, readonly [number, number]>;
export function matmul<D extends DType>(
  a: Tensor<D, Shape>,
  b: Tensor<D, Shape>,
  options?: MatmulOptions,
): Tensor<D, Shape>;
export function matmul(a: Tensor, b: Tensor, options: MatmulOptions & Partial<MatmulIntoOptions<DType>> = {}): Tensor {
  checkMatrix(a, 'a');
  checkMatrix(b, 'b');
  checkOptions(options, ['alpha', 'bias', 'accumulateInto']);
  const { alpha = 1, bias, accumulateInto } = options;
  checkFloat32(alpha, 'alpha');
  if (a.dtype !== b.dtype)
    throw new FlashAttnError('ERR_DTYPE', `a is ${a.dtype} and b is ${b.dtype}; they must be the same`);
  const shape = shapeOfProduct(a.shape, b.shape);
  if (bias !== undefined) checkBias(bias, shape);
  if (accumulateInto !== undefined) checkTarget(accumulateInto, shape);
  if (accumulateInto !== undefined) checkDisjoint({ a, b, bias }, { accumulateInto });
  const { backend } = a;
  const axes = shape.length - 2;
  const operands = {
    a: matricesOf(a, 'a', axes, backend),
    b: matricesOf(b, 'b', axes, backend),
    bias: bias && matricesOf(bias, 'bias', axes, backend),
  };
  const target = accumulateInto && matricesOf(accumulateInto, 'accumulateInto', axes, backend);
  const result = accumulateInto ?? allocateTensor(backend, shape, a.dtype);
  try {
    launchAll(backend, {
      a: operands.a,
      b: operands.b,
      c: target ?? matricesOf(result, 'the result', axes, backend),
      bias: operands.bias,
      batch: shape.slice(0, axes),
      rows: shape[axes],
      columns: shape[axes + 1],
      inner: a.shape[a.shape.length - 1],
      alpha,
      accumulate: target !== undefined,
    });
  } catch (error) {
    if (!accumulateInto) result.dispose();
    throw error;
  }
  return result;
}
