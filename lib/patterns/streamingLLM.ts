import { checkInteger } from '../base/check.js';
import { and, causal, or, slidingWindow } from '../masks/index.js';
import { type Coverage, Mask, type Region, type Row, showKeys } from '../masks/mask.js';

/** The first keys, however few there are yet: a decoder starts with an empty cache. */
class FirstKeysMask extends Mask {
  readonly #count: number;

  constructor(count: number) {
    super();
    this.#count = count;
  }

  classify({ keyBegin, keyEnd }: Region): Coverage {
    return keyEnd <= this.#count ? 'full' : keyBegin >= this.#count ? 'empty' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    showKeys(words, row, 0, this.#count);
  }
}

export interface StreamingLLMOptions {
  /** Attention sinks: the first tokens, which stay in the cache. Default 4. */
  readonly start?: number;
  /** Latest tokens that stay in the cache. Default 512. */
  readonly recent?: number;
}

/**
 * StreamingLLM (Xiao et al. 2023, "Efficient Streaming Language Models with Attention Sinks"; mit-han-lab/streaming-llm,
 * StartRecentKVCache): query i sees key j <= i when j < start or i - j <= recent, so `recent` keys besides itself.
 *
 * The mask says nothing of positions. The authors rotate keys by their place in the cache rather than in the text: for
 * a sink j that is j at a query rotated by min(i, start + recent), for the others the usual i and j.
 *
 * @throws ERR_OPTION
 */
export function streamingLLM({ start = 4, recent = 512 }: StreamingLLMOptions = {}): Mask {
  const sinks = new FirstKeysMask(checkInteger(start, 'start', 0));
  return and(or(sinks, slidingWindow(checkInteger(recent, 'recent', 0), 0)), causal());
}
