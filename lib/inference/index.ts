/**
 * Decoding of many sequences: blocks of a cache, continuous batching, speculation.
 *
 * @packageDocumentation
 */
export {
  BlockPool,
  type BlockPoolOptions,
  type BlockPoolStats,
  type CachedSequence,
  type Salt,
  type SequenceOptions,
} from './blockPool.js';
export type { DecoderModel, StepEntry } from './decoder.js';
export { Engine, type EngineOptions, type EngineStats } from './engine.js';
export type { EngineRequest, EngineStream, EngineToken, FinishReason } from './request.js';
export {
  type Acceptance,
  acceptGreedy,
  acceptSampled,
  type LookupOptions,
  lookupTokens,
  type Proposal,
} from './speculation.js';
