import { checkArray, checkInteger, checkIntegers, mustBe } from '../base/check.js';
import { blocks, hiddenBlocks, mulberry32, sample } from '../masks/blocks.js';
import type { Mask } from '../masks/mask.js';

/** Block columns for each block row of each head: [head][row] -> columns. */
export type RandomColumns = readonly (readonly (readonly number[])[])[];

/** Square layouts of blocks, one for each head, all hidden at first. */
export class BlockGrid {
  readonly cells: Uint8Array;

  constructor(
    readonly heads: number,
    /** Blocks of a row, as many as there are rows. */
    readonly size: number,
  ) {
    this.cells = hiddenBlocks(heads, size, size);
  }

  /** Shows block rows [rowBegin, rowEnd) x columns [columnBegin, columnEnd), cut to the grid. */
  show(head: number, rowBegin: number, rowEnd: number, columnBegin: number, columnEnd: number): void {
    const end = Math.min(columnEnd, this.size);
    for (let row = Math.max(0, rowBegin); row < Math.min(rowEnd, this.size); row++) {
      const at = (head * this.size + row) * this.size;
      if (columnBegin < end) this.cells.fill(1, at + Math.max(0, columnBegin), at + end);
    }
  }

  /** Hides the blocks above the diagonal. */
  hideFuture(head: number): void {
    for (let row = 0; row < this.size; row++) {
      const at = (head * this.size + row) * this.size;
      this.cells.fill(0, at + row + 1, at + this.size);
    }
  }

  visible(head: number, row: number, column: number): boolean {
    return this.cells[(head * this.size + row) * this.size + column] === 1;
  }

  /** The layouts for `heads` heads: those of the grid over and over. */
  repeat(heads: number): Uint8Array {
    const layout = hiddenBlocks(heads, this.size, this.size);
    for (let at = 0; at < layout.length; at += this.cells.length)
      layout.set(this.cells.subarray(0, layout.length - at), at);
    return layout;
  }

  toMask(blockSize: number): Mask {
    return blocks(this.cells, { shape: [this.heads, this.size, this.size], blockSize });
  }
}

/** Random columns that are given rather than drawn: the rows of `rows` for each of `heads` heads. */
export function checkRandomColumns(random: unknown, heads: number, rows: number, columns: number): RandomColumns {
  const list = <T>(
    value: unknown,
    argument: string,
    count: number,
    read: (entry: unknown, argument: string) => T,
  ): T[] => {
    const needed = `a list of ${count}`;
    const entries = checkArray(value, argument, needed, read);
    if (entries.length !== count) throw mustBe(argument, value, needed);
    return entries;
  };
  return list(random, 'random', heads, (head, inHead) =>
    list(head, inHead, rows, (row, inRow) => checkIntegers(row, inRow, 0, columns - 1)),
  );
}

/** A source of `count` different elements of a list; mulberry32 seeded with `seed` feeds a Fisher-Yates shuffle. */
export function sampler(seed: unknown): (count: number, from: readonly number[]) => readonly number[] {
  const random = mulberry32(checkInteger(seed, 'seed', Number.NEGATIVE_INFINITY));
  return (count, from) => sample(random, count, from.length).map((at) => from[at]);
}
