/** The 16-bit formats, from their definition: a value is sign * integer * 2^exponent with a bounded integer. */
export type LowDType = 'float16' | 'bfloat16';

interface Format {
  /** Bits of the significand behind the leading one. */
  readonly fraction: number;
  /** Exponent of the smallest normal number; subnormals share its quantum. */
  readonly smallestExponent: number;
  readonly largestExponent: number;
}

const FORMATS: Record<LowDType, Format> = {
  float16: { fraction: 10, smallestExponent: -14, largestExponent: 15 },
  bfloat16: { fraction: 7, smallestExponent: -126, largestExponent: 127 },
};

/** A double and, on little-endian machines, its words: the high one is sign, 11 bits of biased exponent, fraction. */
const double = new Float64Array(1);
const words = new Uint32Array(double.buffer);
const DOUBLE_BIAS = 1023;

/** floor(log2 |x|) of a finite normal double. */
function exponentOf(x: number): number {
  double[0] = x;
  return (((words[1] as number) >>> 20) & 0x7ff) - DOUBLE_BIAS;
}

/** 2^exponent as a normal double. */
function power(exponent: number): number {
  words[0] = 0;
  words[1] = (exponent + DOUBLE_BIAS) << 20;
  return double[0] as number;
}

function roundHalfToEven(x: number): number {
  const floor = Math.floor(x);
  const rest = x - floor;
  if (rest !== 0.5) return rest < 0.5 ? floor : floor + 1;
  return floor % 2 === 0 ? floor : floor + 1;
}

/** Distance between neighbours of the format at the magnitude of x. */
export function ulp(x: number, dtype: LowDType): number {
  const { fraction, smallestExponent } = FORMATS[dtype];
  const exponent = x === 0 ? smallestExponent : Math.max(exponentOf(x), smallestExponent);
  return power(exponent - fraction);
}

export function largestFinite(dtype: LowDType): number {
  const { fraction, largestExponent } = FORMATS[dtype];
  return (2 - power(-fraction)) * power(largestExponent);
}

/** Rounds to the nearest value of the format, ties to even; beyond the largest finite value to infinity. */
export function round(x: number, dtype: LowDType): number {
  if (x === 0 || !Number.isFinite(x)) return x;
  const quantum = ulp(x, dtype);
  const magnitude = roundHalfToEven(Math.abs(x) / quantum) * quantum;
  return Math.sign(x) * (magnitude > largestFinite(dtype) ? Infinity : magnitude);
}

export function toBits(x: number, dtype: LowDType): number {
  const { fraction, smallestExponent, largestExponent } = FORMATS[dtype];
  const rounded = round(x, dtype);
  const sign = rounded < 0 || Object.is(rounded, -0) ? 0x8000 : 0;
  const infinity = (largestExponent - smallestExponent + 2) << fraction;
  if (Number.isNaN(rounded)) return infinity | (1 << (fraction - 1));
  if (Math.abs(rounded) === Infinity) return sign | infinity;
  // In units of the quantum, the leading one of a normal number carries into the exponent field.
  const biased = rounded === 0 ? 0 : Math.max(exponentOf(rounded), smallestExponent) - smallestExponent;
  return sign | ((biased << fraction) + Math.abs(rounded) / ulp(rounded, dtype));
}

export function fromBits(bits: number, dtype: LowDType): number {
  const { fraction, smallestExponent, largestExponent } = FORMATS[dtype];
  const sign = bits & 0x8000 ? -1 : 1;
  const biased = (bits & 0x7fff) >> fraction;
  const integer = bits & ((1 << fraction) - 1);
  if (biased === largestExponent - smallestExponent + 2) return integer === 0 ? sign * Infinity : NaN;
  if (biased === 0) return sign * integer * 2 ** (smallestExponent - fraction);
  return sign * (integer + 2 ** fraction) * 2 ** (biased - 1 + smallestExponent - fraction);
}
