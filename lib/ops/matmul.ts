import { checkFloat32, checkOptions, checkWord } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import {
  activations,
  type MatmulOperands,
  type Matrices,
  matmulLaunches,
  matmul as matmulOperation,
  mostRows,
  packedElements,
} from '../kernels/matmul.js';
import type { DeviceBuffer } from '../kernels/memory.js';
import { inRows, sumTo } from '../tape/arithmetic.js';
import { needsRecord, record } from '../tape/tape.js';
import { checkDisjoint } from '../tensor/overlap.js';
import { sameShape } from '../tensor/shape.js';
import { allocateTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { checkWritable } from '../tensor/writable.js';
import { gelu, relu, silu } from './elementwise.js';

export interface MatmulOptions {
  /** Multiplies the product. Default 1. */
  readonly alpha?: number;
  /** Added to the product; of any dtype and a shape that broadcasts to [...batch, m, n], such as [n]. */
  readonly bias?: Tensor<FloatDType, Shape>;
  /**
   * Applied to the product after the bias has been added, in float32: `gelu` is x P(X <= x) of a normal X, `geluTanh` its
   * approximation 0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) (Hendrycks and Gimpel, "Gaussian Error Linear Units",
   * 2016), `silu` x / (1 + e^-x), `relu` max(x, 0). Not together with `accumulateInto`. Default none.
   */
  readonly activation?: 'gelu' | 'geluTanh' | 'silu' | 'relu';
}

export interface MatmulIntoOptions<D extends FloatDType> extends Omit<MatmulOptions, 'activation'> {
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
  if (!sameShape(shape, result))
    throw shapeError(`accumulateInto has shape ${show(shape)}; the product has ${show(result)}`);
  checkWritable(target, 'accumulateInto');
}

/** Queues the launches of a product, with their scratch memory. */
function launchAll(backend: Backend, operands: MatmulOperands): void {
  const { packsFactors } = backend;
  for (const launch of matmulLaunches(operands, packsFactors)) {
    const elements = packsFactors ? packedElements(launch) : { a: 0, b: 0 };
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

const activate: Readonly<Record<NonNullable<MatmulOptions['activation']>, (x: Tensor) => Tensor>> = {
  gelu: (x) => gelu(x),
  geluTanh: (x) => gelu(x, { approximate: 'tanh' }),
  silu: (x) => silu(x),
  relu: (x) => relu(x),
};

/**
 * The product of matrices, batched: out[..., i, j] = activation(alpha * (the sum over k of a[..., i, k] * b[..., k, j]) +
 * bias[..., i, j]), with the batch axes broadcast as in PyTorch. Sums are float32, in an order that depends on the shapes and
 * the device alone; on GPUs float32 is multiplied as two tf32 numbers each, to nearly its own precision. Views with any strides
 * do: a transposed factor is `t.transpose(0, 1)`; GPUs are fast where one of a factor's last two axes is contiguous. There
 * NVIDIA's cuBLASLt multiplies where it is found and has the same maths (`status('cuda').matmul`; docs/install.md says where it
 * is looked for): then float32 is multiplied as such, and the order of sums depends on strides, alignment and its version too.
 *
 * @param a [...batch, m, k]
 * @param b [...batch, k, n], of the dtype and on the device of `a`
 * @returns [...batch, m, n] of the same dtype, or `accumulateInto`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function matmul<D extends FloatDType, T extends FloatDType>(
  a: Tensor<D, Shape>,
  b: Tensor<D, Shape>,
  options: MatmulIntoOptions<T>,
): Tensor<T, Shape>;
export function matmul<D extends FloatDType>(
  a: Tensor<D, readonly [number, number]>,
  b: Tensor<D, readonly [number, number]>,
  options?: MatmulOptions,
): Tensor<D, readonly [number, number]>;
export function matmul<D extends FloatDType>(
  a: Tensor<D, Shape>,
  b: Tensor<D, Shape>,
  options?: MatmulOptions,
): Tensor<D, Shape>;
export function matmul(
  a: Tensor,
  b: Tensor,
  options: MatmulOptions & Partial<MatmulIntoOptions<FloatDType>> = {},
): Tensor {
  checkMatrix(a, 'a');
  checkMatrix(b, 'b');
  checkOptions(options, ['alpha', 'bias', 'activation', 'accumulateInto']);
  const { alpha = 1, bias, activation, accumulateInto } = options;
  checkFloat32(alpha, 'alpha');
  if (activation !== undefined) checkWord(activation, 'activation', activations);
  if (activation !== undefined && accumulateInto !== undefined)
    throw optionError(
      `activation is ${show(activation)} and accumulateInto a tensor; what is added up has no activation, leave one out`,
    );
  if (a.dtype !== b.dtype)
    throw new FlashAttnError('ERR_DTYPE', `a is ${a.dtype} and b is ${b.dtype}; they must be the same`);
  const shape = shapeOfProduct(a.shape, b.shape);
  if (bias !== undefined) checkBias(bias, shape);
  if (accumulateInto !== undefined) checkTarget(accumulateInto, shape);
  if (accumulateInto !== undefined && needsRecord([a, b, bias, accumulateInto]))
    throw new FlashAttnError(
      'ERR_AUTOGRAD',
      'accumulateInto cannot be differentiated: call it within noGrad(), or add() the product',
    );
  if (accumulateInto !== undefined) checkDisjoint({ a, b, bias }, { accumulateInto });
  // The gradient of an activation reads what goes into it.
  if (activation !== undefined && needsRecord([a, b, bias])) {
    const product = matmul(a, b, { alpha, ...(bias && { bias }) });
    try {
      return activate[activation](product);
    } finally {
      product.dispose();
    }
  }
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
      activation,
    });
    if (accumulateInto) accumulateInto.written();
    else recordMatmul(a, b, bias, alpha, result);
  } catch (error) {
    if (!accumulateInto) result.dispose();
    throw error;
  }
  return result;
}

function recordMatmul(a: Tensor, b: Tensor, bias: Tensor | undefined, alpha: number, result: Tensor): void {
  const inputs = [a, b, bias];
  if (!needsRecord(inputs)) return;
  const needsA = a.requiresGrad;
  const needsB = b.requiresGrad;
  const kept = [...(needsA ? [b] : []), ...(needsB ? [a] : [])];
  const [shapeA, shapeB] = [a.shape, b.shape];
  const isTransposed = b.strides[shapeB.length - 2] === 1 && b.strides[shapeB.length - 1] !== 1;
  record('matmul', inputs, [result], kept, ([gradient], saved, needed) => {
    if (!gradient) return [];
    const [first, second] = saved as readonly Tensor[];
    const [keptB, keptA] = needsA ? [first, second] : [undefined, first];
    return [
      keptB && sumTo(matmul(gradient, keptB.transpose(-2, -1), { alpha }), shapeA),
      keptA && gradientOfSecond(keptA, gradient, shapeB, alpha, isTransposed),
      bias && needed[2] ? sumTo(gradient, bias.shape, bias.dtype) : undefined,
    ];
  });
}

/** alpha * a^T gradient, summed over what b was broadcast along; column by column where b is. */
function gradientOfSecond(a: Tensor, gradient: Tensor, shape: Shape, alpha: number, isTransposed: boolean): Tensor {
  // One matrix for the whole batch: its rows are the rows of a single product.
  const isShared = shape.length === 2 && a.shape.length > 2 && a.shape.length === gradient.shape.length;
  if (!isShared) return sumTo(productInLayout(a, gradient, alpha, isTransposed), shape);
  const asRows = (t: Tensor) => inRows(t).reshape([-1, t.shape[t.shape.length - 1]]);
  return productInLayout(asRows(a), asRows(gradient), alpha, isTransposed);
}

/** alpha * a^T b. A weight that was read transposed has a gradient that lies as it does, which saves a copy. */
function productInLayout(a: Tensor, b: Tensor, alpha: number, isTransposed: boolean): Tensor {
  if (!isTransposed) return matmul(a.transpose(-2, -1), b, { alpha });
  return matmul(b.transpose(-2, -1), a, { alpha }).transpose(-2, -1);
}
