// What the scans ask of their arguments, and how these reach the kernels.
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import type { Flat } from '../kernels/operand.js';
import { mostScanned, type ScanShape, type Sequences, scanParts } from '../kernels/scan.js';
import { Operands } from '../ops/operands.js';
import { converted } from '../tape/arithmetic.js';
import { type Allocate, allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** What a scan returns. */
export interface Scanned<D extends FloatDType, S extends Shape> {
  /** Of the shape and dtype of the input. */
  readonly out: Tensor<D, S>;
  /** After the last position, float32: the initial state of what follows. */
  readonly state: Tensor<'float32', Shape>;
}

/** @throws ERR_OPTION, ERR_DTYPE, ERR_SHAPE */
export function checkSequences(t: unknown, argument: string): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.shape.length !== 3)
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be [batch, length, channels]`);
}

/** Also its size, which kernels count in 32 bits. */
export function scanShapeOf(t: Tensor, argument: string): ScanShape {
  const [batch, length, channels] = t.shape;
  if (length > mostScanned || batch * scanParts(channels) > mostScanned)
    throw shapeError(`${argument} has shape ${show(t.shape)}; kernels count up to ${mostScanned} positions and items`);
  return { batch, length, channels };
}

/** A tensor of exactly this shape and any floating-point dtype. `axes` names them for messages. */
export function checkShape(t: unknown, argument: string, shape: readonly number[], axes: string): asserts t is Tensor {
  checkTensor(t, argument);
  if (t.shape.length !== shape.length || shape.some((n, axis) => t.shape[axis] !== n))
    throw shapeError(`${argument} has shape ${show(t.shape)}; it must be ${show(shape)}, ${axes}`);
}

/** States are float32, whatever the dtype of what is scanned: rounding them would add up along the sequence. */
export function checkState(t: unknown, argument: string, shape: readonly number[], axes: string): asserts t is Tensor {
  checkShape(t, argument, shape, axes);
  if (t.dtype !== 'float32')
    throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; states are float32 for every dtype of the input`);
}

/** Every tensor on the backend and not disposed, before anything is allocated. */
export function checkUsable(backend: Backend, tensors: Readonly<Record<string, Tensor | undefined>>): void {
  for (const name in tensors) tensors[name]?.operand(name, backend);
}

/** Checked tensors as the kernels of scans read them. */
export class ScanOperands extends Operands {
  /** What `make` returns; what it had to copy is disposed, and what it had allocated if it throws. */
  static within<T>(backend: Backend, make: (operands: ScanOperands, allocate: Allocate) => T): T {
    const operands = new ScanOperands(backend);
    try {
      return allocating(backend, (allocate) => make(operands, allocate));
    } finally {
      operands.dispose();
    }
  }

  /** [batch, length, dim] or [batch, length, groups, dim], where it lies if its last axis is contiguous. */
  sequences(t: Tensor, argument: string): Sequences;
  sequences(t: Tensor | undefined, argument: string): Sequences | undefined;
  sequences(t: Tensor | undefined, argument: string): Sequences | undefined {
    if (!t) return undefined;
    const last = t.shape.length - 1;
    const lies = t.size === 0 || t.shape[last] === 1 || t.strides[last] === 1;
    const source = lies ? t : this.keep(t.contiguous());
    const { buffer, offset } = source.operand(argument, this.backend);
    const { strides, dtype } = source;
    return {
      buffer,
      offset,
      dtype,
      batchStride: strides[0],
      positionStride: strides[1],
      groupStride: last === 3 ? strides[2] : 0,
    };
  }

  /** Contiguous float32. */
  floats(t: Tensor, argument: string): Flat;
  floats(t: Tensor | undefined, argument: string): Flat | undefined;
  floats(t: Tensor | undefined, argument: string): Flat | undefined {
    if (!t) return undefined;
    if (t.dtype === 'float32' && t.isContiguous) return t.flat(argument, this.backend);
    return this.keep(converted(t, 'float32')).flat(argument, this.backend);
  }
}

/** The gradient of a parameter, which kernels make in float32, in the dtype of the parameter. Takes `gradient` over. */
export function gradientOf(parameter: Tensor, gradient: Tensor | undefined): Tensor | undefined {
  if (!gradient || gradient.dtype === parameter.dtype) return gradient;
  try {
    return converted(gradient, parameter.dtype) as Tensor;
  } finally {
    gradient.dispose();
  }
}
