// From logits to a token. All sums run over tokens in the order of their numbers and in float64, and the random number is a
// function of seed and position: the same logits give the same token, whatever else is in the batch.
import { randomBytes } from 'node:crypto';
import { checkFunction, checkInteger, checkNumber, checkOptions, mustBe } from '../base/check.js';
import { FlashAttnError, optionError } from '../base/errors.js';
import { checkSeed, type Seed } from '../ops/random.js';
import { uniformAt } from './philox.js';

/** How tokens are chosen. What is left out changes nothing. */
export interface SamplingOptions {
  /** Logits are divided by it; 0 takes the largest, of equal ones that with the lowest number. Default 1. */
  readonly temperature?: number;
  /** Only so many of the largest logits are left, of equal ones those with the lowest numbers. Fan et al. (2018). */
  readonly topK?: number;
  /**
   * Of what top-k leaves, the most probable tokens whose probabilities together reach this, above 0 to 1. Holtzman et al.
   * (2020), "The curious case of neural text degeneration".
   */
  readonly topP?: number;
  /** Of these, those with at least so large a part of the largest probability, 0 to 1. Nguyen et al. (2024), arXiv:2407.01082. */
  readonly minP?: number;
  /** Logits of tokens in the prompt or behind it are divided by it where positive, and multiplied otherwise. Keskar et al. (2019), CTRL. */
  readonly repetitionPenalty?: number;
  /** Subtracted from logits of tokens that have been generated, as in OpenAI's API; -2 to 2. */
  readonly presencePenalty?: number;
  /** Likewise, times how often they have been. */
  readonly frequencyPenalty?: number;
  /** Of the random numbers, 0 to 2^64 - 1. Default a random one. */
  readonly seed?: Seed;
  /** Changes logits before all else, in place; -Infinity for tokens that must not come. */
  readonly logitsProcessor?: (logits: Float32Array, tokens: readonly number[]) => void;
}

/** Each option once: one that is missing here would be refused. */
const known: Readonly<Record<keyof SamplingOptions, true>> = {
  temperature: true,
  topK: true,
  topP: true,
  minP: true,
  repetitionPenalty: true,
  presencePenalty: true,
  frequencyPenalty: true,
  seed: true,
  logitsProcessor: true,
};

/**
 * The next token.
 *
 * @param logits [vocabulary]; they are left as they are
 * @param tokens prompt and what was generated so far
 * @param position of the token that is drawn, from the beginning of the prompt
 * @throws ERR_OPTION for logits that have a NaN, or leave no token
 */
export type Sampler = (logits: Float32Array, tokens: ArrayLike<number>, position: number) => number;

/** The tokens that may come, in the order of their numbers, and how probable each is. */
export interface Distribution {
  readonly tokens: Int32Array;
  /** Their sum is `total`. */
  readonly weights: Float64Array;
  readonly total: number;
}

interface Checked {
  readonly temperature: number;
  readonly topK: number;
  readonly topP: number;
  readonly minP: number;
  readonly repetition: number;
  readonly presence: number;
  readonly frequency: number;
  readonly process: SamplingOptions['logitsProcessor'] | undefined;
}

function check(options: SamplingOptions): Checked {
  checkOptions(options, Object.keys(known) as (keyof SamplingOptions)[], 'sampling');
  const { temperature = 1, topK = Number.POSITIVE_INFINITY, topP = 1, minP = 0 } = options;
  const { repetitionPenalty = 1, presencePenalty = 0, frequencyPenalty = 0, logitsProcessor } = options;
  if (checkNumber(topP, 'topP', 0, 1) === 0) throw mustBe('topP', topP, 'a number above 0, to 1');
  if (checkNumber(repetitionPenalty, 'repetitionPenalty', 0) === 0)
    throw mustBe('repetitionPenalty', repetitionPenalty, 'a finite number > 0');
  return {
    temperature: checkNumber(temperature, 'temperature', 0),
    topK: options.topK === undefined ? topK : checkInteger(topK, 'topK', 1),
    topP,
    minP: checkNumber(minP, 'minP', 0, 1),
    repetition: repetitionPenalty,
    presence: checkNumber(presencePenalty, 'presencePenalty', -2, 2),
    frequency: checkNumber(frequencyPenalty, 'frequencyPenalty', -2, 2),
    process: logitsProcessor === undefined ? undefined : checkFunction(logitsProcessor, 'logitsProcessor'),
  };
}

function countsOf(tokens: ArrayLike<number>, begin: number): Map<number, number> {
  const counts = new Map<number, number>();
  for (let at = begin; at < tokens.length; at++) counts.set(tokens[at], (counts.get(tokens[at]) ?? 0) + 1);
  return counts;
}

/** The logits as they are after the caller's function and all penalties: a copy where one of them changes any. */
function penalised(logits: Float32Array, tokens: ArrayLike<number>, promptLength: number, by: Checked): Float32Array {
  const { process, repetition, presence, frequency } = by;
  const isPenalised = presence !== 0 || frequency !== 0;
  if (!process && repetition === 1 && !isPenalised) return logits;
  const changed = logits.slice();
  process?.(changed, Array.from(tokens));
  if (repetition !== 1)
    for (const token of countsOf(tokens, 0).keys())
      changed[token] = changed[token] > 0 ? changed[token] / repetition : changed[token] * repetition;
  if (isPenalised)
    for (const [token, count] of countsOf(tokens, promptLength))
      changed[token] = changed[token] - frequency * count - presence;
  return changed;
}

/** The token with the largest logit, of equal ones the first. @throws ERR_OPTION */
function largest(logits: Float32Array): number {
  let best = -1;
  for (let token = 0; token < logits.length; token++) {
    if (Number.isNaN(logits[token])) throw optionError(`logits has NaN at ${token}; they must be numbers`);
    if (logits[token] > (best < 0 ? Number.NEGATIVE_INFINITY : logits[best])) best = token;
  }
  if (best >= 0) return best;
  throw optionError(`logits has no number above -Infinity among ${logits.length}; there must be a token that may come`);
}

/** The `count` tokens with the largest logits, of equal ones the first, in the order of their numbers. */
function topTokens(logits: Float32Array, count: number): Int32Array {
  // A heap whose top is the token that goes next: the smallest logit, of equal ones the last.
  const heap = new Int32Array(Math.min(count, logits.length));
  const goesFirst = (a: number, b: number) => logits[a] < logits[b] || (logits[a] === logits[b] && a > b);
  const sink = (token: number, from: number, length: number) => {
    let at = from;
    for (let child = 2 * at + 1; child < length; child = 2 * at + 1) {
      if (child + 1 < length && goesFirst(heap[child + 1], heap[child])) child++;
      if (!goesFirst(heap[child], token)) break;
      heap[at] = heap[child];
      at = child;
    }
    heap[at] = token;
  };
  for (let token = 0; token < heap.length; token++) heap[token] = token;
  for (let at = heap.length >> 1; at >= 0; at--) sink(heap[at], at, heap.length);
  for (let token = heap.length; token < logits.length; token++)
    if (logits[token] > logits[heap[0]]) sink(token, 0, heap.length);
  return heap.sort();
}

/** The entries for which `keep` is true, in their order. */
function filtered({ tokens, weights }: Distribution, keep: (weight: number, token: number) => boolean): Distribution {
  let [count, total] = [0, 0];
  const [ownTokens, ownWeights] = [new Int32Array(tokens.length), new Float64Array(tokens.length)];
  for (let at = 0; at < tokens.length; at++) {
    if (!keep(weights[at], tokens[at])) continue;
    ownTokens[count] = tokens[at];
    ownWeights[count++] = weights[at];
    total += weights[at];
  }
  return { tokens: ownTokens.subarray(0, count), weights: ownWeights.subarray(0, count), total };
}

/** What a logit weighs beside the largest, which weighs 1 also where it, or its quotient with the temperature, is Infinity. */
const weightOf = (logit: number, most: number, temperature: number) =>
  logit === most ? 1 : Math.exp((logit - most) / temperature);

/** The most probable tokens that together have at least the part `topP` of all. */
function nucleus(all: Distribution, logits: Float32Array, temperature: number, topP: number): Distribution {
  const { tokens, total } = all;
  const wanted = topP * total;
  // Tokens below this have less than 1 - topP together: none of them is needed, and the others are few to be sorted.
  const least = (total - wanted) / tokens.length;
  const likely = filtered(all, (weight) => weight >= least);
  const falling = Float32Array.from(likely.tokens, (token) => logits[token])
    .sort()
    .reverse();
  const most = falling[0];
  let [count, sum] = [0, 0];
  while (count < falling.length && sum < wanted) sum += weightOf(falling[count++], most, temperature);
  const edge = falling[count - 1];
  let atEdge = count - falling.indexOf(edge);
  return filtered(likely, (_, token) => logits[token] > edge || (logits[token] === edge && atEdge-- > 0));
}

/** The softmax of logits, all of them or those of some tokens, without what is 0. */
function weighed(
  logits: Float32Array,
  most: number,
  temperature: number,
  only: Int32Array | undefined,
  count: number,
): Distribution {
  const [tokens, weights] = [new Int32Array(count), new Float64Array(count)];
  let [kept, total] = [0, 0];
  for (let at = 0; at < count; at++) {
    const token = only ? only[at] : at;
    const weight = weightOf(logits[token], most, temperature);
    if (weight === 0) continue;
    tokens[kept] = token;
    weights[kept++] = weight;
    total += weight;
  }
  return { tokens: tokens.subarray(0, kept), weights: weights.subarray(0, kept), total };
}

function distributionOf(logits: Float32Array, { temperature, topK, topP, minP }: Checked): Distribution {
  const best = largest(logits);
  if (temperature === 0) return { tokens: Int32Array.of(best), weights: Float64Array.of(1), total: 1 };
  const tokens = topK < logits.length ? topTokens(logits, topK) : undefined;
  const count = tokens?.length ?? logits.length;
  const all = weighed(logits, logits[best], temperature, tokens, count);
  const likely = topP < 1 ? nucleus(all, logits, temperature, topP) : all;
  return minP > 0 ? filtered(likely, (weight) => weight >= minP) : likely;
}

/**
 * What a sampler with these options draws from. For methods that accept or refuse what another model has drawn.
 *
 * @param promptLength see `sampler`
 * @throws ERR_OPTION
 */
export function samplingDistribution(
  options: SamplingOptions = {},
  promptLength = 0,
): (logits: Float32Array, tokens: ArrayLike<number>) => Distribution {
  const checked = check(options);
  checkInteger(promptLength, 'promptLength', 0);
  return (logits, tokens) => distributionOf(penalised(logits, tokens, promptLength, checked), checked);
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

const randomSeed = (): bigint => randomBytes(8).readBigUInt64LE();

/**
 * Draws tokens: the caller's function changes logits first, then repetition, frequency and presence penalties; then
 * temperature, top-k, top-p and min-p choose what is drawn from.
 *
 * @param promptLength how many of the tokens that a call is given are the prompt's, in which presence and frequency do not
 *   count, as in OpenAI's API. Default 0: all count
 * @throws ERR_OPTION
 */
export function sampler(options: SamplingOptions = {}, promptLength = 0): Sampler {
  const distribution = samplingDistribution(options, promptLength);
  const seed = checkSeed(options.seed ?? randomSeed(), 'seed');
  return (logits, tokens, position) => tokenAt(distribution(logits, tokens), uniformAt(seed, position));
}

/** A token and the logarithm of its probability. */
export interface TokenLogprob {
  readonly token: number;
  readonly logprob: number;
}

/**
 * Of logits as the model gave them: the logarithm of the probability of a token, and the `top` most probable ones, the
 * first the most probable one.
 *
 * @throws ERR_OPTION
 */
export function logprobs(
  logits: Float32Array,
  token: number,
  top = 0,
): { readonly logprob: number; readonly top: readonly TokenLogprob[] } {
  checkInteger(token, 'token', 0, logits.length - 1);
  checkInteger(top, 'top', 0);
  const most = logits[largest(logits)];
  if (most === Number.POSITIVE_INFINITY)
    throw new FlashAttnError('ERR_OPTION', 'logits has Infinity, of which no probability is known');
  let sum = 0;
  for (const logit of logits) sum += Math.exp(logit - most);
  const normaliser = most + Math.log(sum);
  const best = top === 0 ? [] : Array.from(topTokens(logits, top));
  best.sort((a, b) => (logits[a] === logits[b] ? a - b : logits[b] - logits[a]));
  return {
    logprob: logits[token] - normaliser,
    top: best.map((each) => ({ token: each, logprob: logits[each] - normaliser })),
  };
}
