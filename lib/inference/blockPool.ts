import { isIntegerList } from '../base/arrays.js';
import { checkFunction, checkInteger, checkIntegers, checkOptions, mustBe } from '../base/check.js';
import { FlashAttnError } from '../base/errors.js';
import { type BlockPoolStats, Blocks } from './blocks.js';
import type { Salt } from './prefixTree.js';

export type { BlockPoolStats } from './blocks.js';
export type { Salt } from './prefixTree.js';

/** The largest token id: kernels read them as int32. */
const largestToken = 2 ** 31 - 1;

const isToken = (token: unknown) =>
  Number.isInteger(token) && (token as number) >= 0 && (token as number) <= largestToken;

/** A copy of token ids. */
function checkTokens(tokens: ArrayLike<number>): readonly number[] {
  if (isIntegerList(tokens)) {
    const copy = Array.from(tokens as ArrayLike<number>);
    if (copy.every(isToken)) return copy;
  }
  return checkIntegers(tokens, 'tokens', 0, largestToken); // tells which one is wrong
}

export interface BlockPoolOptions {
  /** How many blocks there are. */
  readonly blocks: number;
  /** How many positions a block has. */
  readonly blockSize: number;
  /** Told to copy what a block holds before a sequence writes into its own copy of it. */
  readonly copy?: (from: number, to: number) => void;
}

export interface SequenceOptions {
  /** Prefixes are shared among sequences of the same salt (or of none) only. */
  readonly salt?: Salt;
}

/**
 * Blocks of `blockSize` positions each, and which sequence has which: block tables as in vLLM (Kwon et al. 2023, "Efficient
 * memory management for large language model serving with PagedAttention"), with prefixes shared through a radix tree over
 * token ids (Zheng et al. 2024, "SGLang"). It knows nothing of what is in the blocks. No block is ever in two hands unless
 * both have the same past in it, and none that others have is ever written.
 */
export class BlockPool {
  readonly blocks: number;
  readonly blockSize: number;
  readonly #blocks: Blocks;

  /** @throws ERR_OPTION */
  constructor(options: BlockPoolOptions) {
    checkOptions(options, ['blocks', 'blockSize', 'copy']);
    this.blocks = checkInteger(options.blocks, 'blocks', 1, largestToken);
    this.blockSize = checkInteger(options.blockSize, 'blockSize', 1, largestToken);
    const copy = checkFunction(options.copy ?? (() => {}), 'copy');
    this.#blocks = new Blocks(this.blocks, this.blockSize, copy);
  }

  /** Blocks that can be had now: free ones, and those that are kept only for their prefix. */
  get available(): number {
    return this.#blocks.available;
  }

  get stats(): BlockPoolStats {
    return this.#blocks.stats;
  }

  /** How many blocks so many positions take. */
  blocksFor(positions: number): number {
    return Math.ceil(positions / this.blockSize);
  }

  /**
   * A new sequence. Of `tokens`, its prompt that is not yet stored, the longest known prefix of whole blocks is shared, and
   * the sequence begins with that; at least one token is left to compute.
   *
   * @throws ERR_OPTION for what is no token id, from 0 to 2^31 - 1
   */
  sequence(tokens: ArrayLike<number> = [], options: SequenceOptions = {}): CachedSequence {
    checkOptions(options, ['salt']);
    const { salt } = options;
    if (salt !== undefined && typeof salt !== 'string' && !Number.isFinite(salt))
      throw mustBe('salt', salt, 'a string or a finite number');
    const prompt = checkTokens(tokens);
    const table: number[] = [];
    for (let end = this.blockSize; end < prompt.length; end += this.blockSize) {
      const block = this.#blocks.tree.find(table.at(-1), prompt, end - this.blockSize, salt);
      if (block === undefined) break;
      this.#blocks.share(block);
      table.push(block);
    }
    const cached = table.length * this.blockSize;
    this.#blocks.countPrompt(cached, prompt.length - cached);
    return new CachedSequence(this.#blocks, this.blockSize, table, prompt.slice(0, cached), cached, salt);
  }
}

/** Positions of one sequence in the blocks of a pool. Made by `BlockPool.sequence` and `fork`. */
export class CachedSequence implements Disposable {
  readonly #blocks: Blocks;
  readonly #blockSize: number;
  readonly #table: number[];
  readonly #tokens: number[];
  readonly #salt: Salt | undefined;
  readonly #cached: number;
  /** Positions that are stored. */
  #committed: number;
  /** How many blocks of the table, from its beginning, are in the tree. */
  #known: number;
  #isFree = false;

  /** @internal */
  constructor(
    blocks: Blocks,
    blockSize: number,
    table: number[],
    tokens: number[],
    cached: number,
    salt: Salt | undefined,
    known = table.length,
  ) {
    this.#blocks = blocks;
    this.#blockSize = blockSize;
    this.#table = table;
    this.#tokens = tokens;
    this.#cached = cached;
    this.#salt = salt;
    this.#committed = tokens.length;
    this.#known = known;
  }

  /**
   * Block numbers, in the order of positions: position p is in block `table[floor(p / blockSize)]`, at `p % blockSize`. The
   * same array always; `extend`, `commit` and `truncate` change it.
   */
  get table(): readonly number[] {
    this.#checkLiving();
    return this.#table;
  }

  /** Positions that are stored, or are by the step that is under way. */
  get length(): number {
    this.#checkLiving();
    return this.#tokens.length;
  }

  /** The tokens of those positions; the same array always. */
  get tokens(): readonly number[] {
    this.#checkLiving();
    return this.#tokens;
  }

  /** How many of the prompt's tokens were found stored when it was made: `length` began there. */
  get cached(): number {
    return this.#cached;
  }

  /** Positions that are known to be stored: up to here `commit` was called. */
  get committed(): number {
    this.#checkLiving();
    return this.#committed;
  }

  #checkLiving(): void {
    if (this.#isFree) throw new FlashAttnError('ERR_DISPOSED', 'the sequence has been freed');
  }

  /**
   * Makes room for more tokens at the end. A last block that others have too is copied first.
   *
   * @throws ERR_OUT_OF_MEMORY with the numbers where the blocks do not suffice, ERR_OPTION for what is no token id, and what
   *   `copy` throws; nothing has changed then
   */
  extend(tokens: ArrayLike<number>): void {
    this.#checkLiving();
    const more = checkTokens(tokens);
    if (more.length === 0) return;
    const length = this.#tokens.length + more.length;
    const wanted = Math.ceil(length / this.#blockSize) - this.#table.length;
    const isWithin = this.#tokens.length % this.#blockSize !== 0;
    const last = this.#table.length - 1;
    this.#blocks.check(wanted + (isWithin && !this.#blocks.isSole(this.#table[last]) ? 1 : 0));
    // The new ones come first: a block that is only in the tree besides then has no others behind it, or there is one more.
    const taken: number[] = [];
    while (taken.length < wanted) taken.push(this.#blocks.take());
    if (isWithin) {
      try {
        this.#table[last] = this.#blocks.writable(this.#table[last]);
      } catch (error) {
        for (const block of taken.reverse()) this.#blocks.release(block);
        throw error;
      }
    }
    for (const block of taken) this.#table.push(block);
    for (const token of more) this.#tokens.push(token);
  }

  /**
   * What has been extended is stored, or the launches that store it are queued: whole blocks may be found by others from now
   * on. Where a block with the same past is known already, it takes the place of this one in `table`.
   */
  commit(): void {
    this.#checkLiving();
    this.#committed = this.#tokens.length;
    for (; (this.#known + 1) * this.#blockSize <= this.#committed; this.#known++) {
      const at = this.#known;
      const own = this.#table[at];
      const parent = at > 0 ? this.#table[at - 1] : undefined;
      const known = this.#blocks.tree.findOrInsert(own, parent, this.#tokens, at * this.#blockSize, this.#salt);
      if (known === own) continue;
      this.#blocks.share(known);
      this.#table[at] = known;
      this.#blocks.release(own);
    }
  }

  /**
   * Forgets positions from `length` on: those of speculation that was refused, or of a step that failed.
   *
   * @throws ERR_OPTION
   */
  truncate(length: number): void {
    this.#checkLiving();
    checkInteger(length, 'length', 0, this.#tokens.length);
    const blocks = Math.ceil(length / this.#blockSize);
    while (this.#table.length > blocks) this.#blocks.release(this.#table.pop() as number);
    this.#tokens.length = length;
    this.#committed = Math.min(this.#committed, length);
    this.#known = Math.min(this.#known, Math.floor(length / this.#blockSize));
  }

  /**
   * Another sequence with the same past, sharing all blocks.
   *
   * @throws ERR_OPTION while positions are not committed: should their step fail, the other would have them nevertheless
   */
  fork(): CachedSequence {
    this.#checkLiving();
    const open = this.#tokens.length - this.#committed;
    if (open > 0)
      throw mustBe('the length of a sequence that is forked', this.#tokens.length, `committed, and ${open} are not`);
    for (const block of this.#table) this.#blocks.share(block);
    return new CachedSequence(
      this.#blocks,
      this.#blockSize,
      [...this.#table],
      [...this.#tokens],
      this.#cached,
      this.#salt,
      this.#known,
    );
  }

  /** Gives its blocks back; whole committed ones can be found until others need them. Twice is harmless. */
  free(): void {
    if (this.#isFree) return;
    this.truncate(0);
    this.#isFree = true;
  }

  [Symbol.dispose](): void {
    this.free();
  }
}
