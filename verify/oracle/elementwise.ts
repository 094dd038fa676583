/** Functions of elements in float64, by the names that the library gives them, with their derivatives. */

const rootPi = Math.sqrt(Math.PI);

/** e^(z^2) (1 - erf(z)) for z >= 1: the continued fraction of Laplace, from its end. */
function scaledComplement(z: number): number {
  let rest = z;
  for (let k = 400; k >= 1; k--) rest = z + k / 2 / rest;
  return 1 / (rootPi * rest);
}

/** erf(z) / e^(-z^2) for z >= 0: a series of positive terms, z (2 / sqrt(pi)) (2 z^2)^n / (1 3 5 ... (2 n + 1)). */
function scaledSeries(z: number): number {
  let term = (2 / rootPi) * z;
  let sum = 0;
  for (let n = 0; n < 400 && sum + term !== sum; n++) {
    sum += term;
    term *= (2 * z * z) / (2 * n + 3);
  }
  return sum;
}

const seriesUpTo = 2.5;

function erf(x: number): number {
  const z = Math.abs(x);
  if (!(z < 7)) return Number.isNaN(x) ? x : Math.sign(x);
  if (z < seriesUpTo) return Math.sign(x) * scaledSeries(z) * Math.exp(-z * z);
  return Math.sign(x) * (1 - scaledComplement(z) * Math.exp(-z * z));
}

/**
 * The share of a standard normal distribution below x, also where that is small: x * x is exact for an x that is a float32.
 */
function normalCdf(x: number): number {
  const z = Math.abs(x) * Math.SQRT1_2;
  const weight = Math.exp((-x * x) / 2);
  if (Number.isNaN(x)) return x;
  // From 1 on the fraction is as exact: there 1 - erf would cancel.
  if (z < 1) return 0.5 + Math.sign(x) * 0.5 * scaledSeries(z) * weight;
  const tail = z > 40 ? 0 : 0.5 * scaledComplement(z) * weight;
  return x < 0 ? tail : 1 - tail;
}

const sigmoid = (x: number): number => (x >= 0 ? 1 / (1 + Math.exp(-x)) : Math.exp(x) / (1 + Math.exp(x)));
const density = (x: number): number => Math.exp((-x * x) / 2) / Math.sqrt(2 * Math.PI);

function roundHalfToEven(x: number): number {
  const whole = Math.floor(x);
  const rest = x - whole;
  if (!Number.isFinite(x)) return x;
  const up = rest > 0.5 || (rest === 0.5 && whole % 2 !== 0);
  const result = up ? whole + 1 : whole;
  return result === 0 && (x < 0 || Object.is(x, -0)) ? -0 : result;
}

const geluFactor = Math.sqrt(2 / Math.PI);
const geluInner = (x: number) => geluFactor * x * (1 + 0.044715 * x * x);

/** f, and what its slope is. */
export interface Unary {
  readonly f: (x: number) => number;
  readonly slope: (x: number) => number;
}

const flat = () => 0;

export const unary = {
  neg: { f: (x) => -x, slope: () => -1 },
  abs: { f: Math.abs, slope: Math.sign },
  sign: { f: (x) => Math.sign(x) + 0, slope: flat },
  exp: { f: Math.exp, slope: Math.exp },
  expm1: { f: Math.expm1, slope: Math.exp },
  log: { f: Math.log, slope: (x) => 1 / x },
  log1p: { f: Math.log1p, slope: (x) => 1 / (1 + x) },
  sqrt: { f: Math.sqrt, slope: (x) => 0.5 / Math.sqrt(x) },
  rsqrt: { f: (x) => 1 / Math.sqrt(x), slope: (x) => -0.5 / (x * Math.sqrt(x)) },
  square: { f: (x) => x * x, slope: (x) => 2 * x },
  sin: { f: Math.sin, slope: Math.cos },
  cos: { f: Math.cos, slope: (x) => -Math.sin(x) },
  tanh: { f: Math.tanh, slope: (x) => 1 / Math.cosh(x) ** 2 },
  sigmoid: { f: sigmoid, slope: (x) => sigmoid(x) * sigmoid(-x) },
  erf: { f: erf, slope: (x) => (2 / rootPi) * Math.exp(-x * x) },
  floor: { f: Math.floor, slope: flat },
  round: { f: roundHalfToEven, slope: flat },
  relu: { f: (x) => (x <= 0 ? 0 : x), slope: (x) => (x > 0 ? 1 : 0) },
  silu: { f: (x) => x * sigmoid(x), slope: (x) => sigmoid(x) * (1 + x * sigmoid(-x)) },
  softplus: { f: (x) => Math.max(x, 0) + Math.log1p(Math.exp(-Math.abs(x))), slope: sigmoid },
  gelu: { f: (x) => x * normalCdf(x), slope: (x) => normalCdf(x) + x * density(x) },
  geluTanh: {
    f: (x) => 0.5 * x * (1 + Math.tanh(geluInner(x))),
    slope: (x) =>
      0.5 * (1 + Math.tanh(geluInner(x))) +
      (0.5 * x * geluFactor * (1 + 3 * 0.044715 * x * x)) / Math.cosh(geluInner(x)) ** 2,
  },
} satisfies Readonly<Record<string, Unary>>;

export type UnaryName = keyof typeof unary;

/** f, and its slope along each argument. */
export interface Binary {
  readonly f: (a: number, b: number) => number;
  readonly slopes: (a: number, b: number) => readonly [number, number];
}

/** The smaller, NaN where either is: `Math.min` orders zeros too. */
const least = (a: number, b: number) => (a < b || Number.isNaN(a) ? a : b);
const most = (a: number, b: number) => (a > b || Number.isNaN(a) ? a : b);
const share = (wins: boolean, ties: boolean) => (ties ? 0.5 : wins ? 1 : 0);

/** C's pow, which is 1 for 1^NaN and (-1)^Infinity where JavaScript's is NaN. */
const power = (a: number, b: number) => (a === 1 || (a === -1 && Math.abs(b) === Infinity) ? 1 : a ** b);

export const binary = {
  add: { f: (a, b) => a + b, slopes: () => [1, 1] },
  sub: { f: (a, b) => a - b, slopes: () => [1, -1] },
  mul: { f: (a, b) => a * b, slopes: (a, b) => [b, a] },
  div: { f: (a, b) => a / b, slopes: (a, b) => [1 / b, -a / (b * b)] },
  pow: {
    f: power,
    slopes: (a, b) => [b === 0 ? 0 : b * a ** (b - 1), a === 0 && b >= 0 ? 0 : a ** b * Math.log(a)],
  },
  minimum: { f: least, slopes: (a, b) => [share(a < b, a === b), share(b < a, a === b)] },
  maximum: { f: most, slopes: (a, b) => [share(a > b, a === b), share(b > a, a === b)] },
} satisfies Readonly<Record<string, Binary>>;

export type BinaryName = keyof typeof binary;

export const comparisons = {
  equal: (a: number, b: number) => a === b,
  notEqual: (a: number, b: number) => a !== b,
  less: (a: number, b: number) => a < b,
  lessEqual: (a: number, b: number) => a <= b,
  greater: (a: number, b: number) => a > b,
  greaterEqual: (a: number, b: number) => a >= b,
} as const;

/** The distance between neighbouring float32 numbers at x. */
export function ulp32(x: number): number {
  const size = Math.abs(x);
  if (size < 2 ** -126) return 2 ** -149;
  let exponent = Math.floor(Math.log2(size));
  if (2 ** exponent > size) exponent--;
  if (2 ** (exponent + 1) <= size) exponent++;
  return 2 ** (Math.min(exponent, 127) - 23);
}
