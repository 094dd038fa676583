export {
  attentionWithCache,
  type CachedAttentionOptions,
  type CachedAttentionResult,
} from './attentionWithCache.js';
export type { SequenceBlocks } from './cacheStep.js';
export { KvCache, type KvCacheOptions, kvCache } from './kvCache.js';
