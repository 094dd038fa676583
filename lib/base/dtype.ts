import { mustBe } from './check.js';

/**
 * Element types that attention and arithmetic are for. Whatever the dtype, kernels add up in float32 and compute logits, softmax and lse in it.
 * What differs is what they multiply: on WebAssembly float32, to which 16-bit elements are widened; on CUDA tensor cores
 * multiply 16-bit tensors in their own dtype, so that the probabilities P are rounded to it before P v, and P and dS
 * before the products of the backward pass, as in FlashAttention.
 */
export type FloatDType = 'float32' | 'float16' | 'bfloat16';

/** Element types of tensors: besides those of arithmetic 'int32' for indices, and 'bool' (a byte, 0 or 1) for conditions. */
export type DType = FloatDType | 'int32' | 'bool';

/**
 * What reading a tensor returns: numbers for float32 and int32, raw 16-bit patterns for float16 and bfloat16 (see
 * `Tensor.toFloat32`), bytes that are 0 or 1 for bool.
 */
export interface DataOf {
  float32: Float32Array;
  float16: Uint16Array;
  bfloat16: Uint16Array;
  int32: Int32Array;
  bool: Uint8Array;
}

export const bytesPerElement: Readonly<Record<DType, number>> = {
  float32: 4,
  float16: 2,
  bfloat16: 2,
  int32: 4,
  bool: 1,
};

/** What `DataOf` holds, to make one of. */
export const arrayOf = {
  float32: Float32Array,
  float16: Uint16Array,
  bfloat16: Uint16Array,
  int32: Int32Array,
  bool: Uint8Array,
} as const;

export const isFloat = (dtype: DType): dtype is FloatDType => dtype !== 'int32' && dtype !== 'bool';

export function checkDType(dtype: unknown, argument: string): DType {
  if (typeof dtype === 'string' && Object.hasOwn(bytesPerElement, dtype)) return dtype as DType;
  throw mustBe(argument, dtype, "'float32', 'float16', 'bfloat16', 'int32' or 'bool'", 'ERR_DTYPE');
}

export function checkFloatDType(dtype: unknown, argument: string): FloatDType {
  if (typeof dtype === 'string' && Object.hasOwn(bytesPerElement, dtype) && isFloat(dtype as DType))
    return dtype as FloatDType;
  throw mustBe(argument, dtype, "'float32', 'float16' or 'bfloat16'", 'ERR_DTYPE');
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

/**
 * The bits of x as a float32, rounded to odd: what is not exact becomes the neighbour whose last bit is set. Rounding
 * that to fewer bits, to nearest, gives what rounding x at once would give: the last bit keeps exact ties and what lies
 * beside them apart (Boldo and Melquiond 2008, "Emulation of FMA and correctly rounded sums: proved algorithms using
 * rounding to odd").
 */
function roundToOdd(x: number): number {
  float[0] = x;
  const word = bits[0];
  const near = float[0];
  if (near === x || word & 1) return word;
  return Math.abs(near) < Math.abs(x) ? word + 1 : word - 1; // also a NaN stays one
}

function toHalf(x: number): number {
  const word = roundToOdd(x);
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Subnormal halves are multiples of 2^-24, and Math.round would round ties up instead of to even.
    const units = Math.abs(x) * 2 ** 24;
    const down = Math.floor(units);
    const rest = units - down;
    return sign | (rest > 0.5 || (rest === 0.5 && down % 2 === 1) ? down + 1 : down);
  }
  const odd = (magnitude >>> 13) & 1;
  return sign | ((magnitude - 0x38000000 + 0xfff + odd) >>> 13);
}

function fromHalf(h: number): number {
  const exponent = (h >>> 10) & 31;
  const mantissa = h & 1023;
  const sign = h & 0x8000 ? -1 : 1;
  if (exponent === 31) return mantissa ? Number.NaN : sign * Number.POSITIVE_INFINITY;
  return sign * (exponent ? (1 + mantissa / 1024) * 2 ** (exponent - 15) : mantissa * 2 ** -24);
}

function toBFloat(x: number): number {
  const word = roundToOdd(x);
  if ((word & 0x7fffffff) > 0x7f800000) return (word >>> 16) | 0x40;
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff;
}

/** Rounds numbers to `dtype` (to nearest, ties to even, in one step), as what `DataOf` holds; whole ones are taken as they are. */
export function encode<D extends DType>(values: ArrayLike<number>, dtype: D): DataOf[D] {
  if (dtype === 'float32') return Float32Array.from(values) as DataOf[D];
  if (dtype === 'int32') return Int32Array.from(values) as DataOf[D];
  if (dtype === 'bool') return Uint8Array.from(values) as DataOf[D];
  const convert = dtype === 'float16' ? toHalf : toBFloat;
  const result = new Uint16Array(values.length);
  for (let at = 0; at < result.length; at++) result[at] = convert(values[at]);
  return result as DataOf[D];
}

const patterns = 1 << 16;
/** What the bits of a half stand for; made when it is first worth it. */
let halves: Float32Array | undefined;

/** The numbers that the elements stand for. Exact, but for whole numbers beyond 2^24. */
export function decode(data: DataOf[DType], dtype: DType): Float32Array {
  if (dtype === 'float32') return data as Float32Array;
  if (dtype === 'int32' || dtype === 'bool') return Float32Array.from(data);
  const result = new Float32Array(data.length);
  if (dtype === 'bfloat16') {
    const words = new Uint32Array(result.buffer);
    for (let at = 0; at < words.length; at++) words[at] = data[at] << 16;
    return result;
  }
  if (data.length >= patterns) halves ??= Float32Array.from({ length: patterns }, (_, half) => fromHalf(half));
  if (halves) for (let at = 0; at < result.length; at++) result[at] = halves[data[at]];
  else for (let at = 0; at < result.length; at++) result[at] = fromHalf(data[at]);
  return result;
}
