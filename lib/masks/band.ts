import { checkInteger, checkOptions, checkWord, mustBe } from '../base/check.js';
import { shapeError } from '../base/errors.js';
import { type Coverage, type Grid, Mask, type Region, type Row, showKeys } from './mask.js';

export interface AlignOptions {
  /** Where the diagonal lies when there are not as many queries as keys; as in `attention`. */
  readonly align?: 'bottomRight' | 'topLeft';
}

const diagonalOf = (grid: Grid, align: AlignOptions['align']) => (align === 'topLeft' ? 0 : grid.keys - grid.queries);

function readAlign(options: AlignOptions): AlignOptions['align'] {
  const { align } = options;
  return align === undefined ? align : checkWord(align, 'align', ['bottomRight', 'topLeft'] as const);
}

function alignOf(options: AlignOptions): AlignOptions['align'] {
  checkOptions(options, ['align']);
  return readAlign(options);
}

/** Least and largest j - i in a region. */
const distances = (r: Region): [least: number, most: number] => [
  r.keyBegin - (r.queryEnd - 1),
  r.keyEnd - 1 - r.queryBegin,
];

function coverBand(r: Region, low: number, high: number): Coverage {
  const [least, most] = distances(r);
  if (least > high || most < low) return 'empty';
  return least >= low && most <= high ? 'full' : 'partial';
}

/** Query i sees key j iff low <= j - i - diagonal <= high. */
class BandMask extends Mask {
  readonly #low: number;
  readonly #high: number;
  readonly #align: AlignOptions['align'];

  constructor(low: number, high: number, align: AlignOptions['align']) {
    super();
    this.#low = low;
    this.#high = high;
    this.#align = align;
  }

  classify(region: Region, grid: Grid): Coverage {
    const diagonal = diagonalOf(grid, this.#align);
    return coverBand(region, diagonal + this.#low, diagonal + this.#high);
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    const at = row.query + diagonalOf(grid, this.#align);
    showKeys(words, row, at + this.#low, at + this.#high + 1);
  }
}

/** Keys up to the query's own position. */
export const causal = (options: AlignOptions = {}): Mask => new BandMask(Number.NEGATIVE_INFINITY, 0, alignOf(options));

function checkSide(value: unknown, argument: string): number {
  if (!(Number.isInteger(value) && (value as number) >= -1))
    throw mustBe(argument, value, 'an integer >= 0, or -1 for infinite');
  return value === -1 ? Number.POSITIVE_INFINITY : (value as number);
}

/** `left` keys before the query's position, itself, and `right` after it; -1 is infinite. */
export const slidingWindow = (left: number, right: number, options: AlignOptions = {}): Mask =>
  new BandMask(-checkSide(left, 'left'), checkSide(right, 'right'), alignOf(options));

/** A sliding window on a ring: positions wrap around, so the first token also sees the last ones. */
class CircularMask extends Mask {
  readonly #left: number;
  readonly #right: number;

  constructor(left: number, right: number) {
    super();
    this.#left = checkInteger(left, 'left', 0);
    this.#right = checkInteger(right, 'right', 0);
  }

  override check(grid: Grid): void {
    if (grid.queries !== grid.keys)
      throw shapeError(`a circular window needs as many queries as keys, got ${grid.queries} and ${grid.keys}`);
  }

  classify(region: Region, grid: Grid): Coverage {
    if (this.#left + this.#right + 1 >= grid.keys) return 'full';
    const turns = [-grid.keys, 0, grid.keys].map((turn) => coverBand(region, turn - this.#left, turn + this.#right));
    if (turns.includes('full')) return 'full';
    return turns.includes('partial') ? 'partial' : 'empty';
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    for (const turn of [-grid.keys, 0, grid.keys])
      showKeys(words, row, row.query + turn - this.#left, row.query + turn + this.#right + 1);
  }
}

/** Query i sees the keys i - left to i + right, modulo the length. */
export const circularWindow = (left: number, right: number): Mask => new CircularMask(left, right);

/** Keys whose distance along the diagonal is a multiple of `step`, within `reach` multiples on each side. */
class DilatedMask extends Mask {
  readonly #step: number;
  readonly #left: number;
  readonly #right: number;
  readonly #align: AlignOptions['align'];

  constructor(step: number, left: number, right: number, align: AlignOptions['align']) {
    super();
    this.#step = checkInteger(step, 'step', 1);
    this.#left = left * step;
    this.#right = right * step;
    this.#align = align;
  }

  classify(region: Region, grid: Grid): Coverage {
    const diagonal = diagonalOf(grid, this.#align);
    const cover = coverBand(region, diagonal - this.#left, diagonal + this.#right);
    if (cover === 'empty' || this.#step === 1) return cover;
    const [least, most] = distances(region).map((d) => d - diagonal) as [number, number];
    const first = Math.max(least, -this.#left);
    const last = Math.min(most, this.#right);
    if (Math.floor(last / this.#step) * this.#step < first) return 'empty';
    return least === most ? 'full' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    const at = row.query + diagonalOf(grid, this.#align);
    const first = Math.max(row.keyBegin, at - this.#left);
    const last = Math.min(row.keyEnd - 1, at + this.#right);
    for (let j = at + Math.ceil((first - at) / this.#step) * this.#step; j <= last; j += this.#step)
      showKeys(words, row, j, j + 1);
  }
}

export interface DilatedOptions extends AlignOptions {
  /** Default -1, all of them. */
  readonly left?: number;
  /** Default -1, all of them. */
  readonly right?: number;
}

/** Every `step`-th key around the query's position: `left` of them before it and `right` after it (atrous attention). */
export function dilated(step: number, options: DilatedOptions = {}): Mask {
  checkOptions(options, ['align', 'left', 'right']);
  const { left = -1, right = -1 } = options;
  return new DilatedMask(step, checkSide(left, 'left'), checkSide(right, 'right'), readAlign(options));
}

/** Every `step`-th key up to the query's position: the long-range half of Child et al.'s strided attention. */
export const strided = (step: number, options: AlignOptions = {}): Mask =>
  new DilatedMask(step, Number.POSITIVE_INFINITY, 0, alignOf(options));
