export { attentionWithCache, type CachedAttentionOptions } from './attentionWithCache.js';
export type { SequenceBlocks } from './cacheStep.js';
export { KvCache, type KvCacheOptions, kvCache } from './kvCache.js';
export {
  type PagedAttentionOptions,
  type PagedAttentionResult,
  type PagedPattern,
  pagedAttention,
} from './pagedAttention.js';
