import { checkArray, checkFunction, checkInteger, checkOptions, mustBe } from '../base/check.js';
import { FlashAttnError, optionError, show } from '../base/errors.js';
import { type Coverage, checkMask, type Grid, Mask, type Region, type Row, setBits } from './mask.js';

const countOf = (n: number | string, dim: 'batch' | 'heads') => `${n} ${dim === 'heads' ? 'heads' : 'batch entries'}`;

/** The common number of batch entries or heads of several masks; 1 fits everything. */
function common(masks: readonly Mask[], dim: 'batch' | 'heads'): number {
  const counts = [...new Set(masks.map((mask) => mask[dim]))].filter((n) => n !== 1);
  if (counts.length > 1) throw optionError(`masks for ${countOf(counts.join(' and '), dim)} cannot be combined`);
  return counts[0] ?? 1;
}

abstract class Combination extends Mask {
  override readonly batch: number;
  override readonly heads: number;

  constructor(protected readonly parts: readonly Mask[]) {
    super();
    if (parts.length === 0) throw optionError('a combination needs at least one mask');
    for (const [i, part] of parts.entries()) checkMask(part, `masks[${i}]`);
    this.batch = common(parts, 'batch');
    this.heads = common(parts, 'heads');
  }

  override check(grid: Grid): void {
    for (const part of this.parts) part.check(grid);
  }
}

/** Sees what all of its parts see (`settled` 'empty') or what any of them sees ('full'). */
class Junction extends Combination {
  readonly #settled: 'empty' | 'full';

  constructor(parts: readonly Mask[], settled: 'empty' | 'full') {
    super(parts);
    this.#settled = settled;
  }

  classify(region: Region, grid: Grid): Coverage {
    let partial = false;
    for (const part of this.parts) {
      const cover = part.classify(region, grid);
      if (cover === this.#settled) return cover;
      if (cover === 'partial') partial = true;
    }
    return partial ? 'partial' : this.#settled === 'empty' ? 'full' : 'empty';
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    const [first, ...rest] = this.parts as [Mask, ...Mask[]];
    first.writeRow(words, row, grid);
    const other = new Uint32Array(words.length);
    for (const part of rest) {
      other.fill(0);
      part.writeRow(other, row, grid);
      for (const [at, word] of other.entries())
        words[at] = this.#settled === 'empty' ? words[at] & word : words[at] | word;
    }
  }
}

class Complement extends Combination {
  classify(region: Region, grid: Grid): Coverage {
    const cover = this.parts[0].classify(region, grid);
    return cover === 'empty' ? 'full' : cover === 'full' ? 'empty' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    this.parts[0].writeRow(words, row, grid);
    const all = new Uint32Array(words.length);
    setBits(all, 0, row.keyEnd - row.keyBegin);
    for (const [at, word] of all.entries()) words[at] = word & ~words[at];
  }
}

/** What all of the masks see. */
export const and = (...parts: readonly Mask[]): Mask => new Junction(parts, 'empty');

/** What any of the masks sees. */
export const or = (...parts: readonly Mask[]): Mask => new Junction(parts, 'full');

/** What the mask does not see. */
export const not = (part: Mask): Mask => new Complement([part]);

/** A mask of its own for each index of one dim. */
class Selection extends Mask {
  override readonly batch: number;
  override readonly heads: number;
  readonly #masks: readonly Mask[];
  readonly #dim: 'batch' | 'heads';

  constructor(parts: readonly Mask[], dim: 'batch' | 'heads') {
    super();
    const needed = 'an array of at least one mask';
    const masks = checkArray(parts, 'masks', needed, (part, argument) => {
      checkMask(part, argument);
      if (part[dim] !== 1)
        throw optionError(`${argument} is itself for ${countOf(part[dim], dim)}; each must be for one`);
      return part;
    });
    if (masks.length === 0) throw mustBe('masks', masks, needed);
    this.#masks = masks;
    this.#dim = dim;
    this.batch = dim === 'batch' ? masks.length : common(masks, 'batch');
    this.heads = dim === 'heads' ? masks.length : common(masks, 'heads');
  }

  override check(grid: Grid): void {
    for (const part of this.#masks) part.check(grid);
  }

  classify(region: Region, grid: Grid): Coverage {
    return this.#select(region).classify(region, grid);
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    this.#select(row).writeRow(words, row, grid);
  }

  #select({ batch, head }: Region | Row): Mask {
    // A single mask fits all, as it does everywhere else.
    return this.#masks[this.#masks.length === 1 ? 0 : this.#dim === 'batch' ? batch : head];
  }
}

/** A mask of its own for each head. */
export const perHead = (parts: readonly Mask[]): Mask => new Selection(parts, 'heads');

/** A mask of its own for each batch entry. */
export const perBatch = (parts: readonly Mask[]): Mask => new Selection(parts, 'batch');

/** Whether a query sees a key. */
export type Predicate = (batch: number, head: number, query: number, key: number) => boolean;

/** Asks a function about every single pair. */
class PredicateMask extends Mask {
  override readonly batch: number;
  override readonly heads: number;
  readonly #visible: Predicate;

  constructor(visible: Predicate, batch: number, heads: number) {
    super();
    this.#visible = visible;
    this.batch = batch;
    this.heads = heads;
  }

  classify(): Coverage {
    return 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    for (let key = row.keyBegin; key < row.keyEnd; key++)
      if (this.#ask(row.batch, row.head, row.query, key)) setBits(words, key - row.keyBegin, key - row.keyBegin + 1);
  }

  #ask(batch: number, head: number, query: number, key: number): boolean {
    const at = `(${batch}, ${head}, ${query}, ${key})`;
    let answer: unknown;
    try {
      answer = this.#visible(batch, head, query, key);
    } catch (cause) {
      throw new FlashAttnError('ERR_OPTION', `the predicate threw at ${at}: ${(cause as Error)?.message ?? cause}`, {
        cause,
      });
    }
    if (typeof answer !== 'boolean')
      throw optionError(`the predicate returned ${show(answer)} at ${at}; it must return true or false`);
    return answer;
  }
}

export interface PredicateOptions {
  /** Whether the function depends on the batch entry: then how many there are. Default 1, it does not. */
  readonly batch?: number;
  /** Whether the function depends on the head: then how many there are. Default 1, it does not. */
  readonly heads?: number;
}

/**
 * Any function of (batch, head, query, key). It is asked once for every pair when the mask is compiled, never by a
 * kernel; prefer the other masks where they will do.
 */
export const predicate = (visible: Predicate, options: PredicateOptions = {}): Mask => {
  checkFunction(visible, 'visible');
  checkOptions(options, ['batch', 'heads']);
  const { batch = 1, heads = 1 } = options;
  return new PredicateMask(visible, checkInteger(batch, 'batch', 1), checkInteger(heads, 'heads', 1));
};
