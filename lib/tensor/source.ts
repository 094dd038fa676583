import { isTyped, typedArrayName } from '../base/arrays.js';
import { arrayOf, bytesPerElement, type DType, encode, isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { elementCount, type Shape } from './shape.js';

/**
 * Numbers to fill a tensor with. 16-bit patterns (`Uint16Array`) need an explicit dtype to have a meaning; for 'int32' they
 * are numbers, such as token ids.
 */
export type TensorSource =
  | Float32Array
  | Float64Array
  | readonly number[]
  | readonly boolean[]
  | Float16ArrayLike
  | Int32Array
  | Uint32Array
  | Uint16Array
  | Uint8Array;

/** `Float16Array`, where the JavaScript engine has it, or a polyfill of it. */
export interface Float16ArrayLike extends ArrayLike<number> {
  readonly [Symbol.toStringTag]: 'Float16Array';
  readonly buffer: ArrayBufferLike;
  readonly byteOffset: number;
}

const isHalfArray = (source: unknown): source is Float16ArrayLike =>
  Object.prototype.toString.call(source) === '[object Float16Array]';

/** What a source is without being told. */
export const naturalDType = (source: unknown): DType =>
  isHalfArray(source) ? 'float16' : isTyped(source, 'Int32Array') ? 'int32' : 'float32';

const needed = 'a Float32Array, Float64Array, Float16Array, Uint16Array or an array of numbers';

/** A copy of numbers in a list that may hold, or answer, anything. */
function readNumbers(source: ArrayLike<unknown>, count: number, argument: string): Float64Array {
  const numbers = new Float64Array(count);
  for (let at = 0; at < count; at++) {
    const number = source[at];
    if (typeof number !== 'number')
      throw new FlashAttnError(
        'ERR_DTYPE',
        `${argument} is ${show(source)}; it must be ${needed}, and entry ${at} is ${show(number)}`,
      );
    numbers[at] = number;
  }
  return numbers;
}

/** Arrays whose elements are already those of the dtype. */
const storedIn: Readonly<Record<DType, readonly string[]>> = {
  float32: ['Float32Array'],
  float16: ['Float16Array', 'Uint16Array'],
  bfloat16: ['Uint16Array'],
  int32: ['Int32Array'],
  bool: [],
};

const wholes = {
  int32: {
    needed: 'an Int32Array, Uint32Array, Uint16Array, Uint8Array or an array of numbers',
    entry: 'a whole number of 32 bits',
    fits: (x: unknown) => x === (Number(x) | 0),
    isList: (source: unknown) => isTyped(source, 'Int32Array', 'Uint32Array', 'Uint16Array', 'Uint8Array'),
  },
  bool: {
    needed: 'a Uint8Array or an array of booleans',
    entry: 'true, false, 1 or 0',
    fits: (x: unknown) => x === true || x === false || x === 1 || x === 0,
    isList: (source: unknown) => isTyped(source, 'Uint8Array'),
  },
};

/** The elements of an int32 or bool tensor. @throws ERR_DTYPE, ERR_OPTION, ERR_SHAPE */
function encodeWhole(source: unknown, dtype: 'int32' | 'bool', shape: Shape, argument: string): Encoded {
  const { needed, entry, fits, isList } = wholes[dtype];
  if (!isList(source) && !Array.isArray(source))
    throw new FlashAttnError('ERR_DTYPE', `${argument} is ${show(source)}; for ${dtype} it must be ${needed}`);
  const list = source as ArrayLike<unknown>;
  const count = elementCount(shape);
  if (list.length !== count)
    throw shapeError(`${argument} has ${list.length} elements; shape ${show(shape)} needs ${count}`);
  const result = new arrayOf[dtype](count);
  const isExact = storedIn[dtype].includes(typedArrayName(source) ?? '');
  for (let at = 0; at < count; at++) {
    const x = list[at];
    if (!isExact && !fits(x)) throw optionError(`${argument}[${at}] is ${show(x)}; it must be ${entry}`);
    result[at] = Number(x);
  }
  return { dtype, bytes: new Uint8Array(result.buffer) };
}

/** Elements as they are written to a device. */
export interface Encoded {
  /** That of the tensor, or float32: the device rounds. */
  readonly dtype: DType;
  readonly bytes: Uint8Array;
}

/** From so many elements on float32 is rounded on the device: before that, launches cost more than they save. */
const roundedOnDevice = 1 << 16;

/**
 * The elements of `source`, rounded to `dtype` (to nearest, ties to even) unless the device is to do that; shares memory
 * with it where nothing has to be converted.
 *
 * @throws ERR_DTYPE, ERR_SHAPE
 */
export function encodeSource(source: unknown, dtype: DType, shape: Shape, argument: string): Encoded {
  if (!isFloat(dtype)) return encodeWhole(source, dtype, shape, argument);
  const isFloats = isTyped(source, 'Float32Array', 'Float64Array');
  const isBits = isTyped(source, 'Uint16Array');
  if (!(isFloats || isBits || isHalfArray(source) || Array.isArray(source)))
    throw new FlashAttnError('ERR_DTYPE', `${argument} is ${show(source)}; it must be ${needed}`);
  if (isBits && dtype === 'float32')
    throw new FlashAttnError(
      'ERR_DTYPE',
      `${argument} is a Uint16Array of bit patterns; its dtype must be 'float16' or 'bfloat16', not 'float32'`,
    );
  const count = elementCount(shape);
  const countError = (found: number) =>
    shapeError(`${argument} has ${found} elements; shape ${show(shape)} needs ${count}`);
  if (source.length !== count) throw countError(source.length);
  const name = typedArrayName(source) ?? '';
  const written = name === 'Float32Array' && count >= roundedOnDevice ? 'float32' : dtype;
  const elements = storedIn[written].includes(name)
    ? (source as Float32Array)
    : encode(isFloats ? source : readNumbers(source, count, argument), dtype);
  const bytes = new Uint8Array(elements.buffer, elements.byteOffset, elements.byteLength);
  // The length of a subclass may be anything; these bytes are what is going to be written.
  if (bytes.byteLength !== count * bytesPerElement[written])
    throw countError(bytes.byteLength / bytesPerElement[written]);
  return { dtype: written, bytes };
}
