/**
 * Inference: caches, attention over them, decoding of many sequences, text from tokens, and a server.
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
export { type ChatMessage, type ChatTemplate, jinjaChatTemplate, plainChatTemplate } from './chat.js';
export type { DecoderModel, StepEntry } from './decoder.js';
export { Engine, type EngineOptions, type EngineStats } from './engine.js';
export { type GenerateOptions, generate, type Speculation } from './generate.js';
export { GptDecoder, type GptDecoderOptions } from './gptDecoder.js';
export { KvCache, type KvCacheOptions, kvCache } from './kvCache.js';
export {
  type ModelDescription,
  type ModelFolderOptions,
  modelOf,
  type RopeScaling,
  readModelFolder,
} from './modelFolder.js';
export {
  type PagedAttentionOptions,
  type PagedAttentionResult,
  type PagedPattern,
  pagedAttention,
} from './pagedAttention.js';
export type { EngineRequest, EngineStream, EngineToken, FinishReason } from './request.js';
export {
  type Distribution,
  logprobs,
  type Sampler,
  type SamplingOptions,
  sampler,
  samplingDistribution,
  type TokenLogprob,
} from './sampling.js';
export { type SaveModelFolderOptions, saveModelFolder } from './saveModelFolder.js';
export type { LogEntry, ServerLimits, ServerOptions } from './server/options.js';
export type {
  Embed,
  ServedEngine,
  ServedModel,
  ServedRequest,
  ServedToken,
  ServedTokenizer,
  ServedTokens,
} from './server/served.js';
export { createServer, type InferenceServer } from './server/server.js';
export {
  type Acceptance,
  acceptGreedy,
  acceptSampled,
  type LookupOptions,
  lookupTokens,
  type Proposal,
} from './speculation.js';
export { IncrementalText, StopStrings } from './text.js';
export { folderTokenizer, modelTokenizer, type TextTokenizer } from './tokenizer.js';
