/** Measures flashattn against unfused attention on the same inputs, while the model trains. */
import type { Attention, AttentionMemory, AttentionShape } from './model.js';
import type { Random } from './random.js';
import { UnfusedAttention } from './unfused.js';

export interface Comparison {
  readonly shape: AttentionShape;
  /** Median time of one forward and backward. */
  readonly fusedMs: number;
  readonly unfusedMs: number;
  readonly fusedMemory: AttentionMemory;
  readonly unfusedMemory: AttentionMemory;
  /** The largest absolute difference between the outputs and the gradients of the two. */
  readonly difference: number;
}

/** Collects measurements: call `measure` now and then, with what the model has just computed with. */
export class Race {
  readonly #fused: Attention;
  readonly #unfused: UnfusedAttention;
  readonly #fusedTimes: number[] = [];
  readonly #unfusedTimes: number[] = [];
  readonly #outputs: readonly [Float32Array, Float32Array];
  readonly #gradients: readonly [Float32Array, Float32Array];
  #difference = 0;
  #warm = false;

  constructor(fused: Attention) {
    const size = sizeOf(fused.shape);
    this.#fused = fused;
    this.#unfused = new UnfusedAttention(fused.shape);
    this.#outputs = [new Float32Array(size), new Float32Array(size)];
    this.#gradients = [new Float32Array(3 * size), new Float32Array(3 * size)];
  }

  async measure(qkv: Float32Array, dOutput: Float32Array, repetitions: number): Promise<void> {
    const run = async (attention: Attention, output: Float32Array, dQkv: Float32Array): Promise<number> => {
      const started = performance.now();
      await attention.forward(qkv, output);
      await attention.backward(dOutput, dQkv);
      return performance.now() - started;
    };
    // The very first round compiles code and allocates. After it the two take turns, so that whatever else the machine
    // is doing slows both alike.
    const skip = this.#warm ? 0 : 1;
    for (let i = 0; i < repetitions + skip; i++) {
      const fusedMs = await run(this.#fused, this.#outputs[0], this.#gradients[0]);
      const unfusedMs = await run(this.#unfused, this.#outputs[1], this.#gradients[1]);
      if (i < skip) continue;
      this.#fusedTimes.push(fusedMs);
      this.#unfusedTimes.push(unfusedMs);
    }
    this.#warm = true;
    this.#difference = Math.max(this.#difference, maxDifference(...this.#outputs), maxDifference(...this.#gradients));
  }

  get measured(): boolean {
    return this.#fusedTimes.length > 0;
  }

  get result(): Comparison {
    return {
      shape: this.#fused.shape,
      fusedMs: median(this.#fusedTimes),
      unfusedMs: median(this.#unfusedTimes),
      fusedMemory: this.#fused.memory,
      unfusedMemory: this.#unfused.memory,
      difference: this.#difference,
    };
  }
}

/** A comparison on random inputs, for shapes that the model does not have. */
export async function raceOnNoise(fused: Attention, random: Random, repetitions: number): Promise<Comparison> {
  const race = new Race(fused);
  const normal = (length: number) => Float32Array.from({ length }, () => random.normal());
  const size = sizeOf(fused.shape);
  await race.measure(normal(3 * size), normal(size), repetitions);
  return race.result;
}

function sizeOf({ batch, context, heads, headDim }: AttentionShape): number {
  return batch * context * heads * headDim;
}

function maxDifference(a: Float32Array, b: Float32Array): number {
  let max = 0;
  // Written so that a NaN on either side counts as an infinite difference, not as none.
  for (let i = 0; i < a.length; i++) {
    const d = Math.abs(a[i] - b[i]);
    if (!(d <= max)) max = Number.isNaN(d) ? Infinity : d;
  }
  return max;
}

export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}
