import { optionError } from '../base/errors.js';

export interface SamplingOptions {
  readonly temperature?: number;
  readonly topK?: number;
  readonly topP?: number;
  readonly minP?: number;
  readonly repetitionPenalty?: number;
  readonly presencePenalty?: number;
  readonly frequencyPenalty?: number;
  readonly seed?: number | bigint;
  readonly logitsProcessor?: (logits: Float32Array, tokens: readonly number[]) => void;
}

export type Sampler = (logits: Float32Array, tokens: ArrayLike<number>, position: number) => number;

/** The tokens that may come, in the order of their numbers, and how probable each is. */
export interface Distribution {
  readonly tokens: Int32Array;
  /** Their sum is `total`. */
  readonly weights: Float64Array;
  readonly total: number;
}

/** The token at the place `u` from [0, 1) of a distribution. */
export function tokenAt({ tokens, weights, total }: Distribution, u: number): number {
  const place = u * total;
  let sum = 0;
  for (let at = 0; at < tokens.length; at++) {
    sum += weights[at];
    if (place < sum) return tokens[at];
  }
  return tokens[tokens.length - 1];
}

/** Takes the largest logit. */
export function sampler(options: SamplingOptions = {}, _promptLength = 0): Sampler {
  const { temperature = 0, logitsProcessor } = options;
  if (!(temperature >= 0)) throw optionError(`temperature is ${temperature}; it must be a finite number >= 0`);
  return (logits, tokens) => {
    const own = logits.slice();
    logitsProcessor?.(own, Array.from(tokens));
    return own.reduce((best, logit, token) => (logit > own[best] ? token : best), 0);
  };
}

export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

export function logprobs(
  logits: Float32Array,
  token: number,
  top = 0,
): { readonly logprob: number; readonly top: readonly TokenLogprob[] } {
  const normaliser = Math.log(logits.reduce((sum, logit) => sum + Math.exp(logit), 0));
  const all = Array.from(logits, (logit, each) => ({ token: each, logprob: logit - normaliser }));
  return { logprob: all[token].logprob, top: all.sort((a, b) => b.logprob - a.logprob).slice(0, top) };
}
