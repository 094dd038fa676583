// Speed of forward and backward on a device.

import { explain } from '../attention/explain.js';
import { plan } from '../attention/plan.js';
import type { FloatDType } from '../base/dtype.js';
import { tensor } from '../devices/create.js';
import { type DeviceName, measureTime } from '../devices/registry.js';
import type { Tensor } from '../tensor/tensor.js';
import { isEmulated, isProcessor, noise } from './selfTest.js';
import { median } from './statistics.js';

export interface BenchShape {
  readonly batch: number;
  readonly length: number;
  readonly heads: number;
  readonly dim: number;
  readonly dtype: FloatDType;
  readonly causal: boolean;
}

export interface BenchRow extends BenchShape {
  readonly kernel: string;
  /** Medians. */
  readonly forwardMs: number;
  readonly backwardMs: number;
  /** Of the pairs that the mask shows. */
  readonly forwardGflops: number;
  readonly backwardGflops: number;
}

type Sizes = readonly [batch: number, length: number, heads: number, dim: number];

const wasmShapes: readonly Sizes[] = [
  [1, 1024, 8, 64],
  [1, 2048, 8, 64],
  [1, 1024, 8, 128],
];
// 16,384 tokens of 2,048 numbers.
const cudaShapes: readonly Sizes[] = [64, 128].flatMap((dim) =>
  [512, 1024, 2048, 4096, 8192, 16384].map((length) => [16384 / length, length, 2048 / dim, dim] as const),
);
const emulatorShapes: readonly Sizes[] = [
  [1, 64, 1, 32],
  [1, 32, 2, 64],
];

/** Shapes that fill the device, as it is used most. */
export function defaultSizes(device: DeviceName): readonly Sizes[] {
  if (isEmulated(device)) return emulatorShapes;
  return isProcessor(device) ? wasmShapes : cudaShapes;
}

export const defaultDType = (device: DeviceName): FloatDType => (isProcessor(device) ? 'float32' : 'bfloat16');

const sampleMilliseconds = 3;
const mostRuns = 64;

/**
 * The time of one run: the median of `rounds` samples. A sample holds so many runs that a device works on one while the
 * next is being launched.
 */
async function timeOf(run: () => void, device: DeviceName, rounds: number): Promise<number> {
  const sample = async (runs: number) => {
    const milliseconds = await measureTime(() => {
      for (let i = 0; i < runs; i++) run();
    }, device);
    return milliseconds / runs;
  };
  for (let i = 0; i < 2; i++) await sample(1); // loads and optimises the kernels, and brings the clocks up
  const once = await sample(1);
  const runs = Math.min(mostRuns, Math.max(1, Math.ceil(sampleMilliseconds / once)));
  const samples: number[] = [];
  for (let round = 0; round < rounds; round++) samples.push(await sample(runs));
  return median(samples);
}

/** @throws as `attention` */
export async function measureShape(shape: BenchShape, device: DeviceName, rounds: number): Promise<BenchRow> {
  const { batch, length, heads, dim, dtype, causal } = shape;
  const problem = { q: [batch, length, heads, dim], dtype, device, causal, backward: true };
  const { kernel, flops } = explain(problem);
  const inputs: Tensor[] = [];
  const random = (seed: number) => {
    const t = tensor(noise(seed)(batch * length * heads * dim), problem.q, { dtype, device });
    inputs.push(t);
    return t;
  };
  try {
    const [q, k, v, dOut] = [random(1), random(2), random(3), random(4)];
    const prepared = plan(problem);
    try {
      const forwardMs = await timeOf(() => prepared.run(q, k, v), device, rounds);
      const backwardMs = await timeOf(() => prepared.runBackward(dOut), device, rounds);
      const gflops = (operations: number, milliseconds: number) => operations / milliseconds / 1e6;
      return {
        ...shape,
        kernel,
        forwardMs,
        backwardMs,
        forwardGflops: gflops(flops.forward, forwardMs),
        backwardGflops: gflops(flops.backward, backwardMs),
      };
    } finally {
      prepared.dispose();
    }
  } finally {
    for (const t of inputs) t.dispose();
  }
}
