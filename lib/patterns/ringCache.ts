import { checkInteger, checkOptions } from '../base/check.js';
import { and, edges, not, prefix } from '../masks/index.js';
import { checkTokens, type Mask } from '../masks/mask.js';

export interface RingCacheOptions {
  /** Keys that the buffer holds. */
  readonly slots: number;
  /** Tokens written so far. */
  readonly written: number;
  /** Queries: the last tokens that were written. */
  readonly queries: number;
}

/**
 * A key/value cache that is a ring buffer: token p went to slot p mod slots, over what was there. Query i is token
 * p = written - queries + i and sees the slots whose token is not after p, so each query sees at most the last `slots`
 * tokens; slots not yet written are hidden.
 *
 * @throws ERR_OPTION
 */
export function ringCache(options: RingCacheOptions): Mask {
  checkOptions(options, ['slots', 'written', 'queries']);
  const { slots, written, queries } = options;
  checkTokens(slots, 'slots', 1);
  checkInteger(written, 'written', 0);
  checkTokens(queries, 'queries');
  checkInteger(queries, 'queries', 0, written);
  const hidden: [query: number, slot: number][] = [];
  for (let query = 0; query < queries; query++) {
    const next = written - queries + query + 1;
    // Tokens before the last `slots` ones are no longer there to be hidden.
    for (let token = Math.max(next, written - slots); token < written; token++) hidden.push([query, token % slots]);
  }
  const past = not(edges(hidden, { queries, keys: slots }));
  return written < slots ? and(prefix(written), past) : past;
}
