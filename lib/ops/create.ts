// Tensors of known numbers, and parts of matrices.
import { checkFloat32, checkInteger, checkOptions } from '../base/check.js';
import { checkDType, checkFloatDType, type DType, type FloatDType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type TensorOptions, tensor } from '../devices/create.js';
import { backendFor, type DeviceName } from '../devices/registry.js';
import { compile, type Program } from '../kernels/elementwise.js';
import { input, scalar } from '../kernels/expression.js';
import { compute, converted, filled } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { checkShape, type Shape, type Widen } from '../tensor/shape.js';
import { type AnyTensor, checkAnyTensor, checkIndices, checkTensor, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { checkWithin, type Indices } from './embedding.js';

/**
 * A tensor of one number, rounded to its dtype.
 *
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function full<const S extends Shape, D extends FloatDType = 'float32'>(
  shape: S,
  value: number,
  options: TensorOptions<D> = {},
): Tensor<D, Widen<S>> {
  const axes = checkShape(shape, 'shape');
  checkOptions(options, ['dtype', 'device']);
  if (typeof value !== 'number') throw optionError(`value is ${show(value)}; it must be a number`);
  if (Number.isFinite(value)) checkFloat32(value, 'value');
  const dtype = checkFloatDType(options.dtype ?? 'float32', 'dtype') as D;
  return filled(backendFor(options.device), axes, dtype, value) as unknown as Tensor<D, Widen<S>>;
}

/** A tensor of ones. See `full`. */
export const ones = <const S extends Shape, D extends FloatDType = 'float32'>(
  shape: S,
  options: TensorOptions<D> = {},
): Tensor<D, Widen<S>> => full(shape, 1, options);

const like = <D extends DType, S extends Shape>(t: Tensor<D, S>, value: number): Tensor<D, S> => {
  checkAnyTensor(t, 't');
  t.operand('t', t.backend);
  return filled(t.backend, t.shape, t.dtype, value) as unknown as Tensor<D, S>;
};

/** Zeros of the shape and dtype of t, and on its device. @throws ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY */
export const zerosLike = <D extends DType, S extends Shape>(t: Tensor<D, S>): Tensor<D, S> => like(t, 0);

/** Ones of the shape and dtype of t, and on its device. @throws ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY */
export const onesLike = <D extends DType, S extends Shape>(t: Tensor<D, S>): Tensor<D, S> => like(t, 1);

/** Whole numbers up to here are exact in float32. */
const mostCounted = 2 ** 24;

const counted = (count: number): Float32Array => Float32Array.from({ length: count }, (_, i) => i);

/**
 * 0, 1, ... count - 1.
 *
 * @param count at most 2^24
 * @param options dtype: default 'int32'; of 16 bits they are rounded
 * @throws ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_OUT_OF_MEMORY
 */
export function arange<D extends Exclude<DType, 'bool'> = 'int32'>(
  count: number,
  options: TensorOptions<D> = {},
): Tensor<D, readonly [number]> {
  checkInteger(count, 'count', 0, mostCounted);
  checkOptions(options, ['dtype', 'device']);
  const { dtype: requested = 'int32', device } = options;
  const dtype = checkDType(requested, 'dtype');
  if (dtype === 'bool') throw optionError("dtype is 'bool'; it must be one of numbers");
  const place = device === undefined ? {} : { device };
  const made =
    dtype === 'int32'
      ? tensor(
          Int32Array.from({ length: count }, (_, i) => i),
          [count],
          place,
        )
      : tensor(counted(count), [count], { dtype, ...place });
  return made as unknown as Tensor<D, readonly [number]>;
}

const places = (t: AnyTensor, count: number, shape: Shape): Tensor =>
  tensor(counted(count), shape, { device: t.device as DeviceName }) as Tensor;

const isEqual = compile([input(0).equal(input(1))], 2);

/**
 * 1 at the place of each id and 0 elsewhere.
 *
 * @param ids int32, from 0 to classes - 1; of one that an operation has made and that is no class all are 0
 * @param classes at most 2^24
 * @param options dtype: default 'float32'
 * @returns [...shape of ids, classes]
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function oneHot<D extends FloatDType = 'float32'>(
  ids: Indices,
  classes: number,
  options: { readonly dtype?: D } = {},
): Tensor<D, Shape> {
  checkIndices(ids, 'ids');
  checkInteger(classes, 'classes', 0, mostCounted);
  checkOptions(options, ['dtype']);
  const dtype = checkFloatDType(options.dtype ?? 'float32', 'dtype') as D;
  const { backend } = ids;
  ids.operand('ids', backend);
  checkWithin(ids, 'ids', classes, `a class, from 0 to ${classes - 1}`);
  const shape = checkShape([...ids.shape, classes], 'shape');
  return tidying(
    () => {
      const numbers = converted(ids, 'float32').reshape([...ids.shape, 1]);
      return compute(backend, isEqual, [numbers, places(ids, classes, [classes])], shape, dtype);
    },
    (t) => [t],
  );
}

const offset = input(2).sub(input(1));
const below = compile([offset.lessEqual(scalar(0)).where(input(0), 0)], 3);
const above = compile([offset.less(scalar(0)).where(0, input(0))], 3);

function triangle(name: string, program: Program, x: Tensor, diagonal: number): Tensor {
  checkTensor(x, 'x');
  const { shape, backend, dtype } = x;
  if (shape.length < 2) throw shapeError(`x has shape ${show(shape)}; it must be a matrix or a batch of matrices`);
  checkInteger(diagonal, 'diagonal', -mostCounted, mostCounted);
  const [rows, columns] = shape.slice(-2);
  if (rows > mostCounted || columns > mostCounted)
    throw shapeError(`x has shape ${show(shape)}; a matrix may have at most 2^24 rows and columns`);
  x.operand('x', backend);
  const run = (t: Tensor) =>
    tidying(
      () => {
        const inputs = [t, places(t, rows, [rows, 1]), places(t, columns, [columns])];
        return compute(backend, program, inputs, shape, dtype, [diagonal]) as Tensor;
      },
      (result) => [result],
    );
  const result = run(x);
  record(name, [x], [result], [], ([gradient]) => [gradient && run(gradient)]);
  return result;
}

/**
 * The lower triangle of matrices: x[..., i, j] where j - i <= diagonal, else 0, whatever x is there.
 *
 * @param x [..., m, n] of any strides
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export const tril = <D extends FloatDType, S extends Shape>(x: Tensor<D, S>, diagonal = 0): Tensor<D, S> =>
  triangle('tril', below, x as unknown as Tensor, diagonal) as unknown as Tensor<D, S>;

/**
 * The upper triangle of matrices: x[..., i, j] where j - i >= diagonal, else 0, whatever x is there.
 *
 * @param x [..., m, n] of any strides
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export const triu = <D extends FloatDType, S extends Shape>(x: Tensor<D, S>, diagonal = 0): Tensor<D, S> =>
  triangle('triu', above, x as unknown as Tensor, diagonal) as unknown as Tensor<D, S>;
