import { checkInteger, mustBe } from '../base/check.js';
import { optionError } from '../base/errors.js';

/** Queries, or keys, that a mask may be for: kernels count positions in 32 bits. */
export const mostTokens = 2 ** 30 - 1;

/** A number of tokens, from `least` to what a mask may be for. @throws ERR_OPTION */
export const checkTokens = (value: unknown, argument: string, least = 0): number =>
  checkInteger(value, argument, least, mostTokens);

/** The dims that a mask is used with. */
export interface Grid {
  readonly batch: number;
  readonly heads: number;
  readonly queries: number;
  readonly keys: number;
}

/** A block of query-key pairs of one head: queries [queryBegin, queryEnd) x keys [keyBegin, keyEnd), not empty. */
export interface Region {
  readonly batch: number;
  readonly head: number;
  readonly queryBegin: number;
  readonly queryEnd: number;
  readonly keyBegin: number;
  readonly keyEnd: number;
}

export type Coverage = 'empty' | 'partial' | 'full';

/**
 * Which keys each query sees: a description, independent of any tensor. Combine masks with `masks.and`, `or` and `not`;
 * compile one with `blockMask`.
 *
 * A mask answers two questions. `classify` must never call a block empty or full that is not; 'partial' is allowed when
 * in doubt, and `blockMask` then looks at the block's bits. `writeRow` gives those bits, a row at a time.
 */
export abstract class Mask {
  /** 1 when all batch entries (heads) see the same. */
  readonly batch: number = 1;
  readonly heads: number = 1;

  /** @throws ERR_SHAPE or ERR_OPTION when the mask cannot be used with these dims. */
  check(_grid: Grid): void {}

  /** Without visiting the block's elements. */
  abstract classify(region: Region, grid: Grid): Coverage;

  /**
   * Sets bit j - keyBegin of `words` (32 a word, lowest first) for each visible key j in [keyBegin, keyEnd).
   * `words` arrives cleared.
   */
  abstract writeRow(words: Uint32Array, row: Row, grid: Grid): void;
}

/** @throws ERR_OPTION */
export function checkMask(value: unknown, argument: string): asserts value is Mask {
  if (value instanceof Mask) return;
  const { classify, writeRow } = (value ?? {}) as Partial<Mask>;
  const isForeign = typeof classify === 'function' && typeof writeRow === 'function';
  if (isForeign) throw optionError(`${argument} is a mask of another copy of this package; it must be a mask`);
  throw mustBe(argument, value, 'a mask');
}

/** One query and a range of keys. */
export interface Row {
  readonly batch: number;
  readonly head: number;
  readonly query: number;
  readonly keyBegin: number;
  readonly keyEnd: number;
}

/** Sets bits [from, to). */
export function setBits(words: Uint32Array, from: number, to: number): void {
  for (let word = from >> 5; word << 5 < to; word++) {
    const low = Math.max(0, from - (word << 5));
    const high = Math.min(32, to - (word << 5));
    if (low >= high) continue;
    const ones = high - low === 32 ? -1 : ((1 << (high - low)) - 1) << low;
    words[word] |= ones;
  }
}

/** Sets the bits of the keys [begin, end) that lie in the row. */
export function showKeys(words: Uint32Array, row: Row, begin: number, end: number): void {
  const from = Math.max(begin, row.keyBegin) - row.keyBegin;
  const to = Math.min(end, row.keyEnd) - row.keyBegin;
  if (from < to) setBits(words, from, to);
}

/** How many bits are set. */
export function countBits(words: Uint32Array): number {
  let count = 0;
  for (let word of words) {
    word -= (word >>> 1) & 0x55555555;
    word = (word & 0x33333333) + ((word >>> 2) & 0x33333333);
    count += (((word + (word >>> 4)) & 0x0f0f0f0f) * 0x01010101) >>> 24;
  }
  return count;
}
