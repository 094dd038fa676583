import { checkOptions } from '../base/check.js';
import { checkDType, type DType } from '../base/dtype.js';
import { fill } from '../kernels/copy.js';
import { checkShape, type Shape, type Widen } from '../tensor/shape.js';
import { encodeSource, type Float16ArrayLike, naturalDType, type TensorSource } from '../tensor/source.js';
import { type AnyTensor, allocateTensor, type Tensor } from '../tensor/tensor.js';
import { backendFor, type DeviceName } from './registry.js';

/** Options of `tensor` and `zeros`. */
export interface TensorOptions<D extends DType = DType> {
  /** Default 'float32', 'float16' for a Float16Array, 'int32' for an Int32Array. Numbers are rounded to nearest, ties to even, in one step. */
  readonly dtype?: D;
  /** Default 'auto': the best device that works here. */
  readonly device?: DeviceName;
}

function readOptions<D extends DType>(options: TensorOptions<D>): TensorOptions<D> {
  checkOptions(options, ['dtype', 'device']);
  return options;
}

/**
 * Copies data to a device.
 *
 * @param data as many numbers as the shape has elements, in row-major order
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function tensor<const S extends Shape>(
  data: Float16ArrayLike,
  shape: S,
  options?: TensorOptions<'float16'>,
): Tensor<'float16', Widen<S>>;
export function tensor<const S extends Shape, D extends 'float16' | 'bfloat16'>(
  data: Uint16Array,
  shape: S,
  options: TensorOptions<D> & { readonly dtype: D },
): Tensor<D, Widen<S>>;
export function tensor<const S extends Shape, D extends DType = 'float32'>(
  data: Float32Array | Float64Array | readonly number[],
  shape: S,
  options?: TensorOptions<D>,
): Tensor<D, Widen<S>>;
export function tensor<const S extends Shape>(
  data: Int32Array,
  shape: S,
  options?: TensorOptions<'int32'>,
): Tensor<'int32', Widen<S>>;
export function tensor<const S extends Shape>(
  data: Uint8Array | Uint16Array | Uint32Array,
  shape: S,
  options: TensorOptions<'int32'> & { readonly dtype: 'int32' },
): Tensor<'int32', Widen<S>>;
export function tensor<const S extends Shape>(
  data: Uint8Array | readonly boolean[],
  shape: S,
  options: TensorOptions<'bool'> & { readonly dtype: 'bool' },
): Tensor<'bool', Widen<S>>;
export function tensor(data: TensorSource, shape: Shape, options: TensorOptions<DType> = {}): AnyTensor {
  const axes = checkShape(shape, 'shape');
  const { dtype: requested, device } = readOptions(options);
  const dtype = checkDType(requested ?? naturalDType(data), 'dtype');
  const encoded = encodeSource(data, dtype, axes, 'data');
  const backend = backendFor(device);
  const result = allocateTensor(backend, axes, dtype, encoded.dtype === dtype ? 'hostWritten' : 'deviceWritten');
  try {
    result.overwrite(encoded);
  } catch (error) {
    result.dispose();
    throw error;
  }
  return result;
}

/** A tensor of zeros. @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY */
export function zeros<const S extends Shape, D extends DType = 'float32'>(
  shape: S,
  options: TensorOptions<D> = {},
): Tensor<D, Widen<S>> {
  const axes = checkShape(shape, 'shape');
  const { dtype: requested, device } = readOptions(options);
  const dtype = checkDType(requested ?? 'float32', 'dtype') as D;
  const backend = backendFor(device);
  const result = allocateTensor(backend, axes, dtype);
  backend.launch(fill, { buffer: result.operand('zeros', backend).buffer, bits: 0 });
  return result as unknown as Tensor<D, Widen<S>>;
}
