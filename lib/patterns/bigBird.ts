import { checkInteger, checkOptions } from '../base/check.js';
import { checkTokens, type Mask } from '../masks/mask.js';
import { BlockGrid, checkRandomColumns, type RandomColumns, sampler } from './blockGrid.js';

export interface BigBirdOptions {
  /** Tokens of the sequence. */
  readonly length: number;
  /** Tokens of a block. Default 64. */
  readonly block?: number;
  /** Random blocks of a row. Default 3. */
  readonly numRandomBlocks?: number;
  /** Heads with random blocks of their own. Default 1, shared by all. */
  readonly heads?: number;
  /** Of the generator of random blocks (mulberry32, row by row and head by head). Default 0. */
  readonly seed?: number;
  /** The random blocks themselves: the block columns of rows 1 to n - 2 for each head. */
  readonly random?: RandomColumns;
}

/**
 * BigBird with internal global blocks (Zaheer et al. 2020, "Big Bird: Transformers for Longer Sequences"; google-research
 * bigbird and Hugging Face's block_sparse attention), with the defaults of its authors. In blocks 0 to n - 1: rows 0 and
 * n - 1 see everything; row r sees columns 0, r - 1, r, r + 1 and n - 1, and `numRandomBlocks` random ones, which are
 * drawn among those that it does not see yet. A column that is visible twice counts once. A length that is no multiple
 * of the block ends with a short block, and a row of a short sequence with fewer blocks left than it is to draw takes all.
 *
 * @throws ERR_OPTION
 */
export function bigBird(options: BigBirdOptions): Mask {
  checkOptions(options, ['length', 'block', 'numRandomBlocks', 'heads', 'seed', 'random']);
  const { length, block = 64, numRandomBlocks = 3, heads = 1, seed = 0, random } = options;
  const size = Math.ceil(checkTokens(length, 'length', 1) / checkInteger(block, 'block', 1));
  const grid = new BlockGrid(checkInteger(heads, 'heads', 1), size);
  checkInteger(numRandomBlocks, 'numRandomBlocks', 0);
  const given = random === undefined ? undefined : checkRandomColumns(random, heads, Math.max(0, size - 2), size);
  const draw = sampler(seed);
  const columns = Array.from({ length: size }, (_, column) => column);
  for (let head = 0; head < heads; head++) {
    for (const edge of [0, size - 1]) {
      grid.show(head, edge, edge + 1, 0, size);
      grid.show(head, 0, size, edge, edge + 1);
    }
    for (let row = 1; row < size - 1; row++) {
      grid.show(head, row, row + 1, row - 1, row + 2);
      const hidden = columns.filter((column) => !grid.visible(head, row, column));
      const chosen = given ? given[head][row - 1] : draw(Math.min(numRandomBlocks, hidden.length), hidden);
      for (const column of chosen) grid.show(head, row, row + 1, column, column + 1);
    }
  }
  return grid.toMask(block);
}
