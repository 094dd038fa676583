import type { BlockPool, CachedSequence } from './blockPool.js';

/** What a step computes of one sequence. */
export interface StepEntry {
  readonly sequence: CachedSequence;
  /** The last `count` positions of the sequence are computed: those that were extended and not yet committed. */
  readonly count: number;
  /** Whether the logits of its last position are wanted; or of how many of its last positions, at most `count`. */
  readonly logits: boolean | number;
}

/** A model that decodes: next tokens of many sequences at once, whose keys and values (or states) lie in blocks of a pool. */
export interface DecoderModel {
  /** How many tokens there are. */
  readonly vocabulary: number;
  /** The most positions that a sequence may have. */
  readonly context: number;
  readonly pool: BlockPool;
  /**
   * Computes one packed step.
   *
   * @returns logits [vocabulary] of each position that they are wanted of, in order
   * @throws (rejects) what the device throws; nothing has changed then but positions that are not committed
   */
  step(entries: readonly StepEntry[]): Promise<readonly Float32Array[]>;
}
