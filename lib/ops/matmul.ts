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

/** The shape of a batch of which each entry is one of `a` and one of `b`. @throws ERR_SHAPE */
function broadcastBatch(a: Shape, b: Shape, say: () => string): number[] {
  const rank = Math.max(a.length, b.length);
  return Array.from({ length: rank }, (_, axis) => {
    const [n, m] = [a[axis - rank + a.length] ?? 1, b[axis - rank + b.length] ?? 1];
    if (n !== m && n !== 1 && m !== 1)
      throw shapeError(`${say()}; the batch axes must be equal or 1, but ${n} meets ${m}`);
    return n === 1 ? m : n;
  });
}

/** A tensor of at least rank 2 as matrices of a batch. */
function matricesOf(t: Tensor, argument: string, batch: Shape, backend: Backend): Matrices {
  const { shape, strides, dtype } = t;
  const strideOf = (axis: number) => (axis < 0 || shape[axis] === 1 ? 0 : strides[axis]);
  const rank = shape.length;
  return {
    ...t.operand(argument, backend),
    dtype,
    row: strideOf(rank - 2),
    column: rank === 0 || shape[rank - 1] === 1 ? 0 : strides[rank - 1],
    batch: batch.map((_, axis) => strideOf(axis - batch.length + rank - 2)),
  };
}

function checkMatrix(t: unknown, argument: string): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.shape.length < 2)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be a matrix or a batch of matrices`);
  for (const n of t.shape.slice(-2))
    if (n > mostRows) throw shapeError(`${argument} has shape ${show(t.shape)}; a matrix has fewer than 2^31 rows`);
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
    const scratch: DeviceBuffer[] = [];
    const allocate = (count: number) => {
      if (count === 0) return undefined;
      const buffer = backend.allocate(4 * count, 'deviceWritten');
      scratch.push(buffer);
      return buffer;
    };
    try {
      backend.launch(matmulOperation, {
        ...launch,
        packedA: allocate(elements.a),
        packedB: allocate(elements.b),
      });
    } finally {
      for (const buffer of scratch) backend.free(buffer);
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
  const say = () => `a has shape ${show(a.shape)} and b ${show(b.shape)}`;
  if (a.dtype !== b.dtype)
    throw new FlashAttnError('ERR_DTYPE', `a is ${a.dtype} and b is ${b.dtype}; they must be the same`);
  const [rows, inner] = a.shape.slice(-2);
  const [others, columns] = b.shape.slice(-2);
  if (inner !== others)
    throw shapeError(`${say()}; the last axis of a, ${inner}, must be the last but one of b, ${others}`);
  const batch = broadcastBatch(a.shape.slice(0, -2), b.shape.slice(0, -2), say);
  const shape = [...batch, rows, columns];
  if (bias !== undefined) checkBias(bias, shape);
  if (accumulateInto !== undefined) checkTarget(accumulateInto, shape);
  const { backend } = a;
  const operands = {
    a: matricesOf(a, 'a', batch, backend),
    b: matricesOf(b, 'b', batch, backend),
    bias: bias && matricesOf(bias, 'bias', batch, backend),
  };
  const target = accumulateInto && matricesOf(accumulateInto, 'accumulateInto', batch, backend);
  const result = accumulateInto ?? allocateTensor(backend, shape, a.dtype);
  try {
    launchAll(backend, {
      ...operands,
      c: target ?? matricesOf(result, 'the result', batch, backend),
      batch,
      rows,
      columns,
      inner,
      alpha,
      accumulate: target !== undefined,
    });
  } catch (error) {
    if (!accumulateInto) result.dispose();
    throw error;
  }
  return result;
}
