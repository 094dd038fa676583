// What is trained and what of arithmetic a step of it is.
import type { Batch, Model } from '../peers/train/serve.mjs';

export interface Case {
  readonly name: string;
  readonly model: Model;
  /** Sequences a step. */
  readonly size: number;
}

const small = { context: 256, vocabulary: 100 };

export const cases: readonly Case[] = [
  { name: 'A', model: { layers: 2, heads: 3, width: 96, ...small }, size: 2 },
  { name: 'B', model: { layers: 4, heads: 8, width: 256, ...small }, size: 2 },
];

export const gpt2: Case = {
  name: 'GPT-2',
  model: { layers: 12, heads: 12, width: 768, context: 64, vocabulary: 50_257 },
  size: 4,
};

/** Models of two layers with heads of 32, along one size each. */
export const sweeps: Readonly<Record<'width' | 'context', readonly Case[]>> = {
  width: [64, 128, 256, 512].map((width) => sweepCase(width, 256)),
  context: [64, 128, 256, 512, 1024].map((context) => sweepCase(128, context)),
};

function sweepCase(width: number, context: number): Case {
  const model = { layers: 2, heads: width / 32, width, context, vocabulary: 100 };
  return { name: `width ${width}, context ${context}`, model, size: 2 };
}

export const tokensOf = ({ model, size }: Case): number => size * model.context;

/** Without those of positions, which nothing is multiplied by. */
const weightsOf = ({ layers, width, vocabulary }: Model): number =>
  layers * (12 * width * width + 13 * width) + 2 * width + vocabulary * width;

export const parametersOf = (model: Model): number => weightsOf(model) + model.context * model.width;

/**
 * Floating-point operations of a step: six for each weight and token, and those of causal attention with its scores
 * computed once more on the way back: 2 products forward and 5 backward, each of 2 operations for half of the pairs.
 */
export function flopsOf(training: Case): number {
  const { layers, width, context } = training.model;
  return tokensOf(training) * (6 * weightsOf(training.model) + 7 * layers * width * context);
}

/** Tokens as from a text: some are frequent, and each depends on the one before. */
export function batchOf({ model, size }: Case): Batch {
  const count = size * model.context;
  const stream: number[] = [];
  let state = 1;
  for (let i = 0; i <= count; i++) {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    const drawn = (state / 2 ** 32) ** 2 * model.vocabulary;
    stream.push(Math.floor(i % 3 === 2 ? (7 * (stream[i - 1] ?? 0) + 3) % model.vocabulary : drawn));
  }
  return { size, ids: stream.slice(0, count), targets: stream.slice(1) };
}
