import type { Parameter } from './parameters.js';

export interface AdamOptions {
  readonly beta1?: number;
  readonly beta2?: number;
  readonly epsilon?: number;
  readonly weightDecay?: number;
}

/** AdamW (Loshchilov and Hutter 2019): Adam, with weight decay that does not pass through the moments. */
export class AdamW {
  readonly #beta1: number;
  readonly #beta2: number;
  readonly #epsilon: number;
  readonly #weightDecay: number;
  readonly #states: readonly { parameter: Parameter; mean: Float32Array; square: Float32Array }[];
  #steps = 0;

  constructor(parameters: readonly Parameter[], options: AdamOptions = {}) {
    this.#beta1 = options.beta1 ?? 0.9;
    this.#beta2 = options.beta2 ?? 0.99;
    this.#epsilon = options.epsilon ?? 1e-8;
    this.#weightDecay = options.weightDecay ?? 0.01;
    this.#states = parameters.map((parameter) => ({
      parameter,
      mean: new Float32Array(parameter.value.length),
      square: new Float32Array(parameter.value.length),
    }));
  }

  /** `gradientScale` multiplies every gradient: the way clipping enters without another pass over memory. */
  step(learningRate: number, gradientScale = 1): void {
    const beta1 = this.#beta1;
    const beta2 = this.#beta2;
    this.#steps++;
    // Both moments start at zero; dividing by these makes their early values unbiased.
    const correction1 = 1 - beta1 ** this.#steps;
    const correction2 = 1 - beta2 ** this.#steps;
    for (const { parameter, mean, square } of this.#states) {
      const { value, gradient } = parameter;
      const keep = 1 - (parameter.decay ? learningRate * this.#weightDecay : 0);
      for (let i = 0; i < value.length; i++) {
        const g = gradient[i] * gradientScale;
        const m = beta1 * mean[i] + (1 - beta1) * g;
        const s = beta2 * square[i] + (1 - beta2) * g * g;
        mean[i] = m;
        square[i] = s;
        value[i] = value[i] * keep - (learningRate * (m / correction1)) / (Math.sqrt(s / correction2) + this.#epsilon);
      }
    }
  }
}

/** The factor that shortens the gradient of all parameters together to `maxNorm` where it is longer. */
export function clipScale(parameters: readonly Parameter[], maxNorm: number): number {
  let sum = 0;
  for (const { gradient } of parameters) {
    for (let i = 0; i < gradient.length; i++) sum += gradient[i] * gradient[i];
  }
  return Math.min(1, maxNorm / (Math.sqrt(sum) + 1e-6));
}

/** Linear warmup to `peak`, then half a cosine down to a tenth of it. */
export function cosineSchedule(step: number, steps: number, peak: number, warmup: number): number {
  if (step < warmup) return (peak * (step + 1)) / warmup;
  const progress = (step - warmup) / Math.max(1, steps - warmup);
  return peak * (0.1 + 0.45 * (1 + Math.cos(Math.PI * Math.min(1, progress))));
}
