/** A model without arithmetic: its logits are a digest of the whole past as it lies in the blocks of a simulated device. */

import { setImmediate as nextTurn } from 'node:timers/promises';
import type { DecoderModel, StepEntry } from '../../lib/inference/decoder.js';
import type { SamplingOptions } from '../../lib/inference/sampling.js';
import { sampler } from '../../lib/inference/sampling.js';
import { digest, SimulatedDevice } from './simulatedDevice.js';

const vocabulary = 11;

function logitsOf(past: number): Float32Array {
  return Float32Array.from({ length: vocabulary }, (_, token) => digest(past, token) / 2 ** 30);
}

export interface FakeModelOptions {
  readonly blocks?: number;
  readonly blockSize?: number;
  readonly context?: number;
  /** Awaited in each step, after what is wrong with it has been told; it may throw. */
  readonly during?: (entries: readonly StepEntry[], step: number) => Promise<void> | void;
}

export class FakeModel extends SimulatedDevice implements DecoderModel {
  readonly vocabulary = vocabulary;
  readonly context: number;
  /** Of each step the counts of its entries. */
  readonly steps: number[][] = [];
  isBusy = false;
  readonly #during: FakeModelOptions['during'];

  constructor({ blocks = 64, blockSize = 4, context = 4096, during }: FakeModelOptions = {}) {
    super({ blocks, blockSize });
    this.context = context;
    this.#during = during;
  }

  async step(entries: readonly StepEntry[]): Promise<Float32Array[]> {
    if (this.isBusy) throw new Error('two steps at once');
    this.isBusy = true;
    try {
      return await this.#compute(entries);
    } finally {
      this.isBusy = false;
    }
  }

  async #compute(entries: readonly StepEntry[]): Promise<Float32Array[]> {
    this.steps.push(entries.map(({ count }) => count));
    this.#checkWriters(entries);
    await nextTurn();
    await this.#during?.(entries, this.steps.length - 1);
    for (const { sequence, count } of entries) this.write(sequence, sequence.length - count);
    return entries.flatMap(({ sequence, logits }) => {
      if (!logits) return [];
      let past = 0;
      for (let at = 0; at < sequence.length; at++) past = digest(past, this.read(sequence, at)?.token ?? Number.NaN);
      return [logitsOf(past)];
    });
  }

  /** What is written belongs to one sequence, once, and what is before it has been committed. */
  #checkWriters(entries: readonly StepEntry[]): void {
    const written = new Set<number>();
    const all = new Set(entries.map(({ sequence }) => sequence));
    if (all.size !== entries.length || entries.length === 0) throw new Error('a sequence is there twice, or none');
    for (const { sequence, count } of entries) {
      if (count < 1 || sequence.committed !== sequence.length - count) throw new Error('a wrong count');
      const first = Math.floor(sequence.committed / this.pool.blockSize);
      for (const block of sequence.table.slice(first)) {
        if (written.has(block)) throw new Error(`block ${block} is written by two`);
        written.add(block);
      }
    }
    for (const { sequence } of entries) {
      const first = Math.floor(sequence.committed / this.pool.blockSize);
      for (const block of sequence.table.slice(0, first))
        if (written.has(block)) throw new Error(`block ${block} is written and read`);
    }
  }
}

/** What the model generates one token at a time, with no cache at all. */
export function alone(
  prompt: readonly number[],
  maxTokens: number,
  {
    sampling = {},
    stopTokens = [],
  }: { readonly sampling?: SamplingOptions; readonly stopTokens?: readonly number[] } = {},
): number[] {
  const sample = sampler(sampling, prompt.length);
  const tokens = [...prompt];
  while (tokens.length < prompt.length + maxTokens) {
    const token = sample(logitsOf(tokens.reduce(digest, 0)), tokens, tokens.length);
    tokens.push(token);
    if (stopTokens.includes(token)) break;
  }
  return tokens.slice(prompt.length);
}
