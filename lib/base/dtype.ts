import { FlashAttnError, show } from './errors.js';

/** Element types of tensors. Arithmetic is float32 inside the kernels, whatever the dtype. */
export type DType = 'float32' | 'float16' | 'bfloat16';

/** What reading a tensor returns: numbers for float32, raw 16-bit patterns otherwise (see `Tensor.toFloat32`). */
export interface DataOf {
  float32: Float32Array;
  float16: Uint16Array;
  bfloat16: Uint16Array;
}

export const bytesPerElement: Readonly<Record<DType, number>> = { float32: 4, float16: 2, bfloat16: 2 };

export function checkDType(dtype: unknown, argument: string): DType {
  if (typeof dtype === 'string' && Object.hasOwn(bytesPerElement, dtype)) return dtype as DType;
  throw new FlashAttnError('ERR_DTYPE', `${argument} is ${show(dtype)}; it must be 'float32', 'float16' or 'bfloat16'`);
}

const float = new Float32Array(1);
const bits = new Uint32Array(float.buffer);

function toHalf(x: number): number {
  float[0] = x;
  const word = bits[0];
  const sign = (word >>> 16) & 0x8000;
  const magnitude = word & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | 0x7e00;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;
  if (magnitude < 0x38800000) {
    // Subnormal halves are multiples of 2^-24, and Math.round would round ties up instead of to even.
    const units = Math.abs(float[0]) * 2 ** 24;
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
  float[0] = x;
  const word = bits[0];
  if ((word & 0x7fffffff) > 0x7f800000) return (word >>> 16) | 0x40;
  return ((word + 0x7fff + ((word >>> 16) & 1)) >>> 16) & 0xffff;
}

function fromBFloat(h: number): number {
  bits[0] = h << 16;
  return float[0];
}

/** Rounds numbers to `dtype` (to nearest, ties to even), as what `DataOf` holds. */
export function encode<D extends DType>(values: ArrayLike<number>, dtype: D): DataOf[D] {
  if (dtype === 'float32') return Float32Array.from(values) as DataOf[D];
  const convert = dtype === 'float16' ? toHalf : toBFloat;
  return Uint16Array.from(values, convert) as DataOf[D];
}

/** The numbers that the elements stand for. Exact. */
export function decode(data: Float32Array | Uint16Array, dtype: DType): Float32Array {
  if (dtype === 'float32') return data as Float32Array;
  return Float32Array.from(data, dtype === 'float16' ? fromHalf : fromBFloat);
}
