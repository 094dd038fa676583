import { causal } from './band.js';
import { or } from './combine.js';
import type { Mask } from './mask.js';
import { prefix } from './positions.js';

export {
  type AlignOptions,
  causal,
  circularWindow,
  type DilatedOptions,
  dilated,
  slidingWindow,
  strided,
} from './band.js';
export { type BlockLayout, blocks, blocksFromBsr, type RandomBlocksOptions, randomBlocks } from './blocks.js';
export { and, not, or, type Predicate, type PredicateOptions, perBatch, perHead, predicate } from './combine.js';
export { documents, fixed, type GlobalOptions, globalTokens, prefix } from './positions.js';
export { type EdgesOptions, edges, type TreeOptions, tree } from './sparse.js';

/** Bidirectional over the first `count` keys, causal after them. */
export const prefixLM = (count: number): Mask => or(prefix(count), causal());
