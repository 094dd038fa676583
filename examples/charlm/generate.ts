import type { Transformer } from './model.js';
import { Random } from './random.js';

export interface GenerateOptions {
  readonly prompt: Int32Array;
  readonly length: number;
  /** Below 1 the model keeps to what it finds likely; towards 0 it always takes the likeliest character. */
  readonly temperature: number;
  readonly seed: number;
}

/**
 * Samples one character after the other from a model of batch 1. The text so far stands at the left of the context
 * and zeros fill the rest: attention is causal, so what follows the last character cannot change its prediction.
 */
export async function* generate(model: Transformer, options: GenerateOptions): AsyncGenerator<number> {
  const { context } = model.batchShape;
  const { vocabulary } = model.weights.config;
  const random = new Random(options.seed);
  const text = Array.from(options.prompt);
  const tokens = new Int32Array(context);
  for (let i = 0; i < options.length; i++) {
    const recent = text.slice(-context);
    tokens.fill(0);
    tokens.set(recent);
    const logits = await model.forward(tokens);
    const last = (recent.length - 1) * vocabulary;
    const next = sample(logits.subarray(last, last + vocabulary), options.temperature, random);
    text.push(next);
    yield next;
  }
}

function sample(logits: Float32Array, temperature: number, random: Random): number {
  const max = logits.reduce((a, b) => Math.max(a, b));
  const weights = Array.from(logits, (logit) => Math.exp((logit - max) / temperature));
  let remaining = random.uniform() * weights.reduce((a, b) => a + b);
  for (let c = 0; c < weights.length; c++) {
    remaining -= weights[c];
    if (remaining < 0) return c;
  }
  return weights.length - 1;
}
