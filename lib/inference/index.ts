/**
 * Decoding of many sequences: blocks of a cache, continuous batching, speculation.
 *
 * @packageDocumentation
 */
export { attentionWithCache, type CachedAttentionOptions } from './attentionWithCache.js';
export {
  BlockPool,
  type BlockPoolOptions,
  type BlockPoolStats,
  type CachedSequence,
  type Salt,
  type SequenceOptions,
} from './blockPool.js';
export type { SequenceBlocks } from './cacheStep.js';
export type { DecoderModel, StepEntry } from './decoder.js';
export { Engine, type EngineOptions, type EngineStats } from './engine.js';
export { type GenerateOptions, generate, type Speculation } from './generate.js';
export { GptDecoder, type GptDecoderOptions } from './gptDecoder.js';
export { KvCache, type KvCacheOptions, kvCache } from './kvCache.js';
export {
  type PagedAttentionOptions,
  type PagedAttentionResult,
  type PagedPattern,
  pagedAttention,
} from './pagedAttention.js';
export type { EngineRequest, EngineStream, EngineToken, FinishReason } from './request.js';
export {
  type Acceptance,
  acceptGreedy,
  acceptSampled,
  type LookupOptions,
  lookupTokens,
  type Proposal,
} from './speculation.js';
