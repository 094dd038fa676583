import { attention, attentionBackward } from '../attention.js';
import { type DeviceName, measureTime, status } from '../device.js';
import { type DType, decode, encode } from '../dtype.js';
import type { DenseOptions } from '../options.js';
import { type Tensor, tensor } from '../tensor.js';

export interface SelfTestReport {
  readonly passed: boolean;
  readonly cases: number;
  /** Largest difference from float64 attention, over out and all gradients, of float32. */
  readonly worst: number;
  readonly failures: readonly string[];
  readonly seconds: number;
  readonly gflops: number;
  /** What `gflops` was measured on. */
  readonly speedProblem: string;
}

interface Case {
  readonly name: string;
  readonly dtype: DType;
  readonly queries: number;
  readonly keys: number;
  readonly dim: number;
  readonly options: DenseOptions;
}

// 16-bit results are rounded, and so are the probabilities that enter their products.
const tolerance: Readonly<Record<DType, number>> = { float32: 1e-4, float16: 1e-3, bfloat16: 1e-2 };

const cases: readonly Case[] = [
  { name: 'full', dtype: 'float32', queries: 129, keys: 97, dim: 64, options: {} },
  { name: 'causal', dtype: 'float32', queries: 100, keys: 140, dim: 40, options: { causal: true } },
  { name: 'window', dtype: 'float32', queries: 150, keys: 150, dim: 128, options: { window: [17, 5] } },
  { name: 'softcap', dtype: 'float32', queries: 65, keys: 65, dim: 96, options: { softcap: 5 } },
  { name: 'float16', dtype: 'float16', queries: 129, keys: 97, dim: 64, options: {} },
  { name: 'bfloat16', dtype: 'bfloat16', queries: 100, keys: 140, dim: 128, options: { causal: true } },
];

interface SpeedProblem {
  readonly heads: number;
  readonly length: number;
  readonly dim: number;
  readonly dtype: DType;
}

// Enough work to fill the device.
const wasmSpeed: SpeedProblem = { heads: 4, length: 1024, dim: 64, dtype: 'float32' };
const cudaSpeed: SpeedProblem = { heads: 32, length: 4096, dim: 128, dtype: 'bfloat16' };
const emulatorSpeed: SpeedProblem = { heads: 1, length: 64, dim: 32, dtype: 'bfloat16' };

function speedProblemOf(device: DeviceName): SpeedProblem {
  const found = status(device).device;
  if (found === 'emulator') return emulatorSpeed;
  return found === 'wasm' ? wasmSpeed : cudaSpeed;
}

/** Repeatable numbers in [-1, 1): Marsaglia's xorshift. */
function noise(seed: number): (n: number) => Float32Array {
  let state = seed;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31;
  };
  return (n) => Float32Array.from({ length: n }, next);
}

interface Reference {
  readonly out: Float64Array;
  readonly dq: Float64Array;
  readonly dk: Float64Array;
  readonly dv: Float64Array;
}

/** One head in float64, straight from the definition. */
function reference(c: Case, q: Float32Array, k: Float32Array, v: Float32Array, dOut: Float32Array): Reference {
  const { queries, keys, dim, options } = c;
  const { causal = false, window = [-1, -1], softcap = 0 } = options;
  const scale = 1 / Math.sqrt(dim);
  const result = {
    out: new Float64Array(queries * dim),
    dq: new Float64Array(queries * dim),
    dk: new Float64Array(keys * dim),
    dv: new Float64Array(keys * dim),
  };
  const dot = (a: ArrayLike<number>, i: number, b: ArrayLike<number>, j: number) => {
    let sum = 0;
    for (let d = 0; d < dim; d++) sum += a[i * dim + d] * b[j * dim + d];
    return sum;
  };
  const add = (to: Float64Array, i: number, factor: number, from: ArrayLike<number>, j: number) => {
    for (let d = 0; d < dim; d++) to[i * dim + d] = to[i * dim + d] + factor * from[j * dim + d];
  };
  for (let i = 0; i < queries; i++) {
    const distance = (j: number) => j - i - (keys - queries);
    const visible = (j: number) =>
      (!causal || distance(j) <= 0) &&
      (window[0] < 0 || distance(j) >= -window[0]) &&
      (window[1] < 0 || distance(j) <= window[1]);
    const seen = Array.from({ length: keys }, (_, j) => j).filter(visible);
    const raw = seen.map((j) => scale * dot(q, i, k, j));
    const logits = raw.map((s) => (softcap ? softcap * Math.tanh(s / softcap) : s));
    const top = Math.max(...logits);
    const sum = logits.reduce((total, s) => total + Math.exp(s - top), 0);
    const p = logits.map((s) => Math.exp(s - top) / sum);
    for (const [at, j] of seen.entries()) add(result.out, i, p[at], v, j);
    const delta = dot(result.out, i, dOut, i);
    for (const [at, j] of seen.entries()) {
      const slope = softcap ? 1 - Math.tanh(raw[at] / softcap) ** 2 : 1;
      const dScore = p[at] * (dot(dOut, i, v, j) - delta) * slope * scale;
      add(result.dv, j, p[at], dOut, i);
      add(result.dq, i, dScore, k, j);
      add(result.dk, j, dScore, q, i);
    }
  }
  return result;
}

async function largestError(c: Case, seed: number, device: DeviceName): Promise<number> {
  const random = (n: number) => decode(encode(next(n), c.dtype), c.dtype);
  const next = noise(seed);
  const data = {
    q: random(c.queries * c.dim),
    k: random(c.keys * c.dim),
    v: random(c.keys * c.dim),
    dOut: random(c.queries * c.dim),
  };
  const expected = reference(c, data.q, data.k, data.v, data.dOut);
  const { dtype } = c;
  const onDevice = (values: Float32Array, rows: number) => tensor(values, [1, rows, 1, c.dim], { dtype, device });
  const q = onDevice(data.q, c.queries);
  const k = onDevice(data.k, c.keys);
  const v = onDevice(data.v, c.keys);
  const dOut = onDevice(data.dOut, c.queries);
  const { out, lse } = attention(q, k, v, c.options);
  const gradients = attentionBackward(dOut, { q, k, v, out, lse }, c.options);
  let worst = 0;
  const compare = async (t: Tensor, reference: Float64Array) => {
    const values = await t.toFloat32();
    // NaN must fail: it compares false with everything.
    for (const [i, x] of values.entries())
      worst = Math.abs(x - reference[i]) <= worst ? worst : Math.abs(x - reference[i]);
  };
  await compare(out, expected.out);
  await compare(gradients.dq, expected.dq);
  await compare(gradients.dk, expected.dk);
  await compare(gradients.dv, expected.dv);
  for (const t of [q, k, v, dOut, out, lse, gradients.dq, gradients.dk, gradients.dv]) t.dispose();
  return worst;
}

async function measureSpeed(p: SpeedProblem, device: DeviceName, milliseconds: number): Promise<number> {
  const { heads, length, dim, dtype } = p;
  const x = tensor(noise(1)(length * heads * dim), [1, length, heads, dim], { dtype, device });
  const run = () => {
    const { out, lse } = attention(x, x, x);
    out.dispose();
    lse.dispose();
  };
  const flops = 4 * heads * length * length * dim;
  let best = Number.POSITIVE_INFINITY;
  const end = performance.now() + milliseconds;
  do best = Math.min(best, await measureTime(run, device));
  while (performance.now() < end);
  x.dispose();
  return flops / best / 1e6;
}

/** Compares small problems on a device with float64, then measures for about half a second. */
export async function selfTest(device: DeviceName): Promise<SelfTestReport> {
  const start = performance.now();
  const failures: string[] = [];
  let worst = 0;
  for (const [i, c] of cases.entries()) {
    const error = await largestError(c, 2024 + i, device);
    const allowed = tolerance[c.dtype];
    if (!(error <= allowed))
      failures.push(`${c.name}: error ${error.toExponential(1)}, allowed ${allowed.toExponential(1)}`);
    if (c.dtype === 'float32') worst = error <= worst ? worst : error;
  }
  const speed = speedProblemOf(device);
  const gflops = await measureSpeed(speed, device, 500);
  const seconds = (performance.now() - start) / 1000;
  const speedProblem = `${speed.heads} heads x ${speed.length} x ${speed.dim}, ${speed.dtype}`;
  return { passed: failures.length === 0, cases: cases.length, worst, failures, seconds, gflops, speedProblem };
}
