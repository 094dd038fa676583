import { checkBoolean, checkInteger, checkObject, checkOptions } from '../base/check.js';
import { optionError, show } from '../base/errors.js';
import { permutation } from './permutation.js';
import type { Tokens } from './tokens.js';

export interface TokenBatchesOptions {
  readonly tokens: Tokens;
  /** How many windows a batch has. */
  readonly batch: number;
  /** How many tokens a window has. */
  readonly context: number;
  /** What the order is drawn from, an integer >= 0. Default 0. */
  readonly seed?: number;
  /** Whether windows come in a random order, another one each epoch. Default true. */
  readonly shuffle?: boolean;
  /** For data parallel training: the `index`-th of `count` parts. Default all. */
  readonly shard?: { readonly index: number; readonly count: number };
}

/** Where a walk through tokens stands: plain JSON. */
export interface TokenBatchesState {
  /** How many windows each shard has given. */
  readonly windows: number;
  readonly tokens: number;
  readonly context: number;
  readonly seed: number;
  readonly shuffle: boolean;
  readonly shards: number;
}

/** The model sees `inputs[i]` and all before it in its window, and is to say `targets[i]`. */
export interface TokenBatch {
  /** [batch, context] */
  readonly inputs: Int32Array<ArrayBuffer>;
  /** [batch, context], the tokens that follow each of `inputs`. */
  readonly targets: Int32Array<ArrayBuffer>;
}

/**
 * Batches of windows of tokens, for ever. Window w begins at token w * context. In each epoch every window comes once, in
 * an order that depends on seed and epoch alone; a batch may end one epoch and begin the next. Shards take turns, window
 * by window; what does not go round is left out, in each epoch others. Nothing is kept but a number.
 */
export class TokenBatches {
  readonly #tokens: Tokens;
  readonly #batch: number;
  readonly #index: number;
  readonly #walk: Omit<TokenBatchesState, 'windows'>;
  readonly #perShard: number;
  readonly #total: number;
  #windows = 0;
  #epoch = -1;
  #order: (place: number) => number = (place) => place;

  /** @throws ERR_OPTION, also when there is no window for each shard */
  constructor(options: TokenBatchesOptions) {
    checkOptions(options, ['tokens', 'batch', 'context', 'seed', 'shuffle', 'shard']);
    const { tokens, shard = { index: 0, count: 1 } } = options;
    checkObject(tokens, 'tokens');
    checkOptions(shard, ['index', 'count'], 'shard');
    const shards = checkInteger(shard.count, 'shard.count', 1);
    const context = checkInteger(options.context, 'context', 1, 2 ** 31 - 2);
    this.#tokens = tokens;
    this.#batch = checkInteger(options.batch, 'batch', 1, Math.floor(2 ** 31 / context));
    this.#index = checkInteger(shard.index, 'shard.index', 0, shards - 1);
    this.#walk = {
      tokens: checkInteger(tokens.length, 'tokens.length', 0),
      context,
      seed: checkInteger(options.seed ?? 0, 'seed', 0),
      shuffle: checkBoolean(options.shuffle ?? true, 'shuffle'),
      shards,
    };
    this.#total = Math.floor((tokens.length - 1) / context);
    this.#perShard = Math.floor(this.#total / shards);
    if (this.#perShard < 1)
      throw optionError(
        `tokens has ${tokens.length} tokens; a window of context ${context} and the token behind it for each of ${shards} shards needs ${shards * context + 1}`,
      );
  }

  /** How many windows a batch has. */
  get batch(): number {
    return this.#batch;
  }

  /** How many tokens a window has. */
  get context(): number {
    return this.#walk.context;
  }

  /** How many windows this shard has in an epoch. */
  get windowsPerEpoch(): number {
    return this.#perShard;
  }

  /** How many epochs are done, with the part of the one under way: 1.5 in the middle of the second. */
  get epoch(): number {
    return this.#windows / this.#perShard;
  }

  /** The next batch. @throws ERR_FILE, after which the same batch is the next one */
  next(): TokenBatch {
    const { context } = this.#walk;
    const inputs = new Int32Array(this.#batch * context);
    const targets = new Int32Array(this.#batch * context);
    for (let row = 0; row < this.#batch; row++) {
      const window = this.#tokens.read(this.#windowAt(this.#windows + row) * context, context + 1);
      inputs.set(window.subarray(0, context), row * context);
      targets.set(window.subarray(1), row * context);
    }
    this.#windows += this.#batch;
    return { inputs, targets };
  }

  /** Where this walk stands. That of one shard is that of all. */
  state(): TokenBatchesState {
    return { windows: this.#windows, ...this.#walk };
  }

  /** Goes on from a state of the same walk; the number of windows in a batch may be another. @throws ERR_OPTION */
  restore(state: TokenBatchesState): void {
    checkOptions(state, ['windows', 'tokens', 'context', 'seed', 'shuffle', 'shards'], 'state');
    for (const [name, own] of Object.entries(this.#walk)) {
      const found = state[name as keyof TokenBatchesState];
      if (found !== own)
        throw optionError(`state.${name} is ${show(found)}; these batches have ${show(own)} and cannot go on from it`);
    }
    this.#windows = checkInteger(state.windows, 'state.windows', 0);
  }

  /** The window that comes at a place of this shard. */
  #windowAt(place: number): number {
    const epoch = Math.floor(place / this.#perShard);
    const { seed, shuffle, shards } = this.#walk;
    if (shuffle && epoch !== this.#epoch) {
      this.#order = permutation(this.#total, seed, epoch);
      this.#epoch = epoch;
    }
    return this.#order((place % this.#perShard) * shards + this.#index);
  }
}
