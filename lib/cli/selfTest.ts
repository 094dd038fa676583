import { attention, attentionBackward } from '../attention/attention.js';
import { cudaSupport } from '../backends/cuda/support.js';
import { decode, encode, type FloatDType } from '../base/dtype.js';
import { tensor } from '../devices/create.js';
import { type DeviceName, measureTime, usableStatus } from '../devices/registry.js';
import { type Case, type Reference, reference } from './reference.js';

/** What each case gave, in the order of `cases`; undefined where the device failed. */
type Results = readonly (Readonly<Record<keyof Reference, Float32Array>> | undefined)[];

export interface SelfTestReport {
  readonly device: string;
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

/** Two devices on the same cases. */
export interface Comparison {
  readonly devices: readonly [string, string];
  readonly passed: boolean;
  /** Largest difference of float32. */
  readonly worst: number;
  readonly failures: readonly string[];
}

export interface SelfTest {
  readonly report: SelfTestReport;
  readonly results: Results;
}

// 16-bit results are rounded, and so are the probabilities that enter their products.
const tolerance: Readonly<Record<FloatDType, number>> = { float32: 1e-4, float16: 1e-3, bfloat16: 1e-2 };

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
  readonly dtype: FloatDType;
}

// Enough work to fill the device.
const wasmSpeed: SpeedProblem = { heads: 4, length: 1024, dim: 64, dtype: 'float32' };
const cudaSpeed: SpeedProblem = { heads: 32, length: 4096, dim: 128, dtype: 'bfloat16' };
const emulatorSpeed: SpeedProblem = { heads: 1, length: 64, dim: 32, dtype: 'bfloat16' };

/** Whether the device is the processor itself. */
export function isProcessor(device: DeviceName): boolean {
  const found = usableStatus(device).device;
  return found === 'wasm' || found === 'cpu';
}

/** Whether the kernels of a device run on the CPU, for tests of this library: its speed says nothing. */
export function isEmulated(device: DeviceName): boolean {
  const found = usableStatus(device).device;
  if (found === 'emulator' || isProcessor(device)) return found === 'emulator';
  const { loaded } = cudaSupport();
  return 'addon' in loaded && loaded.addon.kind === 'emulator';
}

function speedProblemOf(device: DeviceName): SpeedProblem {
  if (isEmulated(device)) return emulatorSpeed;
  return isProcessor(device) ? wasmSpeed : cudaSpeed;
}

/** Repeatable numbers in [-1, 1): Marsaglia's xorshift. */
export function noise(seed: number): (n: number) => Float32Array {
  let state = seed;
  const next = () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state / 2 ** 31;
  };
  return (n) => Float32Array.from({ length: n }, next);
}

/** The same for every device. */
function inputsOf(c: Case, seed: number) {
  const next = noise(seed);
  const random = (rows: number) => decode(encode(next(rows * c.dim), c.dtype), c.dtype);
  return { q: random(c.queries), k: random(c.keys), v: random(c.keys), dOut: random(c.queries) };
}

const seedOf = (index: number) => 2024 + index;

async function compute(c: Case, seed: number, device: DeviceName) {
  const { dtype, dim, queries, keys, options } = c;
  const data = inputsOf(c, seed);
  const onDevice = (values: Float32Array, rows: number) => tensor(values, [1, rows, 1, dim], { dtype, device });
  const q = onDevice(data.q, queries);
  const k = onDevice(data.k, keys);
  const v = onDevice(data.v, keys);
  const dOut = onDevice(data.dOut, queries);
  const { out, lse } = attention(q, k, v, options);
  const { dq, dk, dv } = attentionBackward(dOut, { q, k, v, out, lse }, options);
  try {
    return {
      out: await out.toFloat32(),
      dq: await dq.toFloat32(),
      dk: await dk.toFloat32(),
      dv: await dv.toFloat32(),
    };
  } finally {
    for (const t of [q, k, v, dOut, out, lse, dq, dk, dv]) t.dispose();
  }
}

type Values = Readonly<Record<keyof Reference, Float32Array | Float64Array>>;

/** NaN where either has one. */
function largestDifference(a: Values, b: Values): number {
  let worst = 0;
  for (const name of ['out', 'dq', 'dk', 'dv'] as const)
    for (const [i, x] of a[name].entries()) worst = Math.max(worst, Math.abs(x - b[name][i]));
  return worst;
}

const exponential = (x: number) => x.toExponential(1);

/** What differs by more than `factor` tolerances, and the largest difference of float32. */
function judge(factor: number, differenceOf: (index: number) => number | undefined) {
  const failures: string[] = [];
  let worst = 0;
  for (const [i, { name, dtype }] of cases.entries()) {
    const difference = differenceOf(i);
    if (difference === undefined) continue;
    const allowed = factor * tolerance[dtype];
    if (!(difference <= allowed))
      failures.push(`${name}: error ${exponential(difference)}, allowed ${exponential(allowed)}`);
    if (dtype === 'float32') worst = Math.max(worst, difference);
  }
  return { worst, failures };
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
export async function selfTest(device: DeviceName): Promise<SelfTest> {
  const start = performance.now();
  const results: (Values | undefined)[] = [];
  const refused: string[] = [];
  for (const [i, c] of cases.entries())
    try {
      results.push(await compute(c, seedOf(i), device));
    } catch (error) {
      results.push(undefined);
      refused.push(`${c.name}: ${(error as Error).message}`);
    }
  const { worst, failures } = judge(1, (i) => {
    const found = results[i];
    const { q, k, v, dOut } = inputsOf(cases[i], seedOf(i));
    return found && largestDifference(found, reference(cases[i], q, k, v, dOut));
  });
  const speed = speedProblemOf(device);
  const gflops = refused.length === 0 ? await measureSpeed(speed, device, 500) : 0;
  const report = {
    device,
    passed: failures.length + refused.length === 0,
    cases: cases.length,
    worst,
    failures: [...refused, ...failures],
    seconds: (performance.now() - start) / 1000,
    gflops,
    speedProblem: `${speed.heads} heads x ${speed.length} x ${speed.dim}, ${speed.dtype}`,
  };
  return { report, results: results as Results };
}

/** Whether two devices agree, as far as both have results. */
export function compare(a: SelfTest, b: SelfTest): Comparison {
  const { worst, failures } = judge(2, (i) => {
    const [left, right] = [a.results[i], b.results[i]];
    return left && right && largestDifference(left, right);
  });
  return { devices: [a.report.device, b.report.device], passed: failures.length === 0, worst, failures };
}
