import { checkInteger, checkOptions } from '../base/check.js';
import { and, causal, or, prefix, slidingWindow } from '../masks/index.js';
import type { Mask } from '../masks/mask.js';

export interface StreamingLLMOptions {
  /** Attention sinks: the first tokens, which stay in the cache. Default 4. */
  readonly start?: number;
  /** Latest tokens that stay in the cache. Default 512. */
  readonly recent?: number;
}

/**
 * StreamingLLM (Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks"; mit-han-lab/streaming-llm,
 * StartRecentKVCache): query i sees key j <= i when j < start or i - j <= recent, so `recent` keys besides itself. Fewer
 * sinks where there are fewer keys: a decoder starts with an empty cache.
 *
 * The mask says nothing of positions. The authors rotate keys by their place in the cache rather than in the text: for
 * a sink j that is j at a query rotated by min(i, start + recent), for the others the usual i and j.
 *
 * @throws ERR_OPTION
 */
export function streamingLLM(options: StreamingLLMOptions = {}): Mask {
  checkOptions(options, ['start', 'recent']);
  const { start = 4, recent = 512 } = options;
  const sinks = prefix(checkInteger(start, 'start', 0));
  return and(or(sinks, slidingWindow(checkInteger(recent, 'recent', 0), 0)), causal());
}
