// A GPT that decodes: what it has computed of a sequence stays in a cache.
import { checkOptions, mustBe } from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { optionError, show } from '../base/errors.js';
import { tensor } from '../devices/create.js';
import type { DeviceName } from '../devices/registry.js';
import { GPT } from '../nn/gpt.js';
import { MultiHeadAttention } from '../nn/transformer.js';
import { withoutRecording } from '../tape/tape.js';
import { isTensor, type Tensor } from '../tensor/tensor.js';
import { attentionWithCache } from './attentionWithCache.js';
import type { BlockPool } from './blockPool.js';
import type { DecoderModel, StepEntry } from './decoder.js';
import { type KvCache, kvCache } from './kvCache.js';
import type { PagedPattern } from './pagedAttention.js';

export interface GptDecoderOptions {
  /** Blocks of the cache. Default as many as one sequence of the model's context takes. */
  readonly blocks?: number;
  /** Positions of a block. Default 16. */
  readonly blockSize?: number;
  /** Of keys and values in the cache. Default that which the model computes in. */
  readonly dtype?: FloatDType;
}

/** What a layer attends by, where a cache knows it. @throws ERR_OPTION */
function cachedPattern(given: MultiHeadAttention['pattern']): PagedPattern {
  const { causal = false, mask, scoreMod, alibi, deterministic: _, ...others } = given;
  for (const [name, value] of Object.entries({ mask, scoreMod, alibi: isTensor(alibi) ? alibi : undefined }))
    if (value !== undefined)
      throw optionError(`${name} is ${show(value)} in the model's attention; with a cache it cannot be given`);
  if (!causal)
    throw optionError('the attention of the model is not causal; a cache is read from the first position on');
  return { ...others, causal, ...(alibi !== undefined && { alibi: alibi as ArrayLike<number> }) };
}

/**
 * Decodes with a GPT of softmax attention: token after token, many sequences at once. Each step computes the new positions of
 * some sequences, packed, and no other; on the processor the logits of a sequence have the same bits whatever is computed
 * beside it and however its prompt is cut into steps.
 */
export class GptDecoder implements DecoderModel, Disposable {
  readonly cache: KvCache;
  readonly model: GPT;
  readonly #patterns: readonly PagedPattern[];

  /** @throws ERR_OPTION where a layer is none of softmax attention, or attends in a way that a cache does not know; ERR_OUT_OF_MEMORY */
  constructor(model: GPT, options: GptDecoderOptions = {}) {
    if (!(model instanceof GPT)) throw mustBe('model', model, 'a GPT');
    checkOptions(options, ['blocks', 'blockSize', 'dtype']);
    const { blockSize = 16, blocks = Math.ceil(model.context / blockSize), dtype } = options;
    const layers = model.blocks.map(({ attention }, layer) => {
      if (!(attention instanceof MultiHeadAttention))
        throw optionError(`the attention of block ${layer} is ${show(attention)}; a cache is of MultiHeadAttention`);
      return attention;
    });
    const [{ kvHeads, headDim }] = layers as [MultiHeadAttention];
    this.#patterns = layers.map(({ pattern }) => cachedPattern(pattern));
    this.model = model;
    const device = model.tokens.weight.device as DeviceName;
    const kept = dtype ?? model.computes;
    this.cache = kvCache({ layers: layers.length, blocks, blockSize, kvHeads, dim: headDim, dtype: kept, device });
  }

  get vocabulary(): number {
    return this.model.vocabulary;
  }

  get context(): number {
    return this.model.context;
  }

  get pool(): BlockPool {
    return this.cache.pool;
  }

  /** See `DecoderModel`. @throws ERR_OPTION for a sequence past the context or a token that is none */
  async step(entries: readonly StepEntry[]): Promise<readonly Float32Array[]> {
    const logits = this.logits(entries);
    if (!logits) return [];
    try {
      const values = await logits.toFloat32();
      const { vocabulary } = this;
      return Array.from({ length: values.length / vocabulary }, (_, i) =>
        values.slice(i * vocabulary, (i + 1) * vocabulary),
      );
    } finally {
      logits.dispose();
    }
  }

  /** The same on the device, [wanted positions, vocabulary]; undefined: none are wanted. */
  logits(entries: readonly StepEntry[]): Tensor | undefined {
    const { model, cache, context } = this;
    const used = entries.filter(({ count }) => count > 0);
    const ids: number[] = [];
    const positions: number[] = [];
    const wanted: number[] = [];
    for (const { sequence, count, logits } of used) {
      const { tokens, length } = sequence;
      if (length > context) throw optionError(`a sequence has ${length} positions; the model's context is ${context}`);
      for (let i = length - count; i < length; i++) {
        ids.push(tokens[i] as number);
        positions.push(i);
      }
      for (let i = Number(logits); i > 0; i--) wanted.push(ids.length - i);
    }
    if (ids.length === 0) return undefined;
    const device = model.tokens.weight.device as DeviceName;
    const indices = (values: readonly number[], shape: readonly number[]) =>
      tensor(Int32Array.from(values), shape, { device });
    const sequences = used.map(({ sequence }) => sequence);
    const counts = used.map(({ count }) => count);
    const reach = Math.max(...positions) + 1;
    const given = [
      indices(ids, [1, ids.length]),
      indices(positions, [1, ids.length]),
      // Something must be asked for: what nobody wants is thrown away.
      indices(wanted.length > 0 ? wanted : [0], [Math.max(1, wanted.length)]),
    ] as const;
    try {
      const result = withoutRecording(() =>
        model.logitsWith(...given, (layer) => ({
          positions: reach,
          attend: (q, k, v, rope) => {
            const rows = (t: Tensor) => t.select(0, 0);
            const { out } = attentionWithCache(rows(q), cache, {
              ...this.#patterns[layer],
              ...(rope && { rope }),
              layer,
              sequences,
              counts,
              k: rows(k),
              v: rows(v),
            });
            return out;
          },
        })),
      );
      if (wanted.length > 0) return result;
      result.dispose();
      return undefined;
    } finally {
      for (const t of given) t.dispose();
    }
  }

  /** Frees the cache; the model stays. */
  dispose(): void {
    this.cache.dispose();
  }

  [Symbol.dispose](): void {
    this.dispose();
  }
}
