import { optionError } from '../errors.js';
import { type Coverage, type Grid, Mask, type Region, type Row } from '../masks/mask.js';

/** A mask of its own for each batch entry; none may depend on the head. */
class PerBatchMask extends Mask {
  override readonly batch: number;
  readonly #masks: readonly Mask[];

  constructor(parts: readonly Mask[]) {
    super();
    if (parts.length === 0) throw optionError('there must be a mask for at least one batch entry');
    this.#masks = parts;
    this.batch = parts.length;
  }

  override check(grid: Grid): void {
    for (const part of this.#masks) part.check(grid);
  }

  classify(region: Region, grid: Grid): Coverage {
    return this.#of(region.batch).classify(region, grid);
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    this.#of(row.batch).writeRow(words, row, grid);
  }

  #of(entry: number): Mask {
    return this.#masks[this.batch === 1 ? 0 : entry];
  }
}

/** @internal */
export const perBatch = (parts: readonly Mask[]): Mask => new PerBatchMask(parts);
