/** Block masks of about a wanted density. */
import { type BlockMask, blockMask, masks } from 'flashattn';

export interface Pattern {
  readonly name: string;
  readonly blockSize: 64 | 128;
  /** What the mask really shows, 0 to 1. */
  readonly density: number;
  readonly mask: BlockMask;
}

/** Uniformly random blocks, and a sliding window, whose edges are partial blocks. */
export function sparsePatterns(length: number, blockSize: 64 | 128, density: number): Pattern[] {
  const count = Math.round((density * length) / blockSize);
  // A window of w keys on each side shows (2 w + 1) n - w (w + 1) pairs of n^2.
  const side = Math.round(length * (1 - Math.sqrt(1 - density)));
  const random = masks.randomBlocks({ queries: length, keys: length, blockSize, count, seed: 1 });
  return Object.entries({ 'random blocks': random, 'sliding window': masks.slidingWindow(side, side) }).map(
    ([name, mask]) => {
      const compiled = blockMask(mask, { nq: length, blockSize });
      return { name, blockSize, density: compiled.statistics().density, mask: compiled };
    },
  );
}
