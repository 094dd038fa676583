import { isIntegerList } from '../base/arrays.js';
import { checkBoolean, checkInteger, checkIntegers, checkOptions } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import {
  type Coverage,
  checkTokens,
  type Grid,
  Mask,
  mostTokens,
  type Region,
  type Row,
  setBits,
  showKeys,
} from './mask.js';

/** A set of positions, cut to a length, with how many of them lie before each one. */
class PositionSet {
  readonly #before: Int32Array;

  constructor(
    members: readonly number[],
    readonly length: number,
  ) {
    this.#before = new Int32Array(length + 1);
    for (const at of members) if (at < length) this.#before[at + 1] = 1;
    for (let at = 0; at < length; at++) this.#before[at + 1] += this.#before[at];
  }

  has(at: number): boolean {
    return this.#before[at + 1] > this.#before[at];
  }

  cover(begin: number, end: number): Coverage {
    const count = this.#before[end] - this.#before[begin];
    return count === 0 ? 'empty' : count === end - begin ? 'full' : 'partial';
  }
}

/** Which of its sides a token list applies to. */
export interface GlobalOptions {
  /** Every query sees the listed keys. Default true. */
  readonly asKeys?: boolean;
  /** The listed queries see every key. Default true. */
  readonly asQueries?: boolean;
}

/** Tokens that everybody sees and that see everybody. */
class GlobalMask extends Mask {
  readonly #tokens: readonly number[];
  readonly #options: Required<GlobalOptions>;
  #keys: PositionSet | undefined;
  #queries: PositionSet | undefined;

  constructor(tokens: readonly number[], options: Required<GlobalOptions>) {
    super();
    this.#tokens = tokens;
    this.#options = options;
  }

  classify(region: Region, grid: Grid): Coverage {
    const { asKeys, asQueries } = this.#options;
    const columns = asKeys ? this.#keySet(grid).cover(region.keyBegin, region.keyEnd) : 'empty';
    const rows = asQueries ? this.#querySet(grid).cover(region.queryBegin, region.queryEnd) : 'empty';
    if (columns === 'full' || rows === 'full') return 'full';
    return columns === 'empty' && rows === 'empty' ? 'empty' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row, grid: Grid): void {
    const { asKeys, asQueries } = this.#options;
    if (asQueries && this.#querySet(grid).has(row.query)) setBits(words, 0, row.keyEnd - row.keyBegin);
    else if (asKeys) for (const at of this.#tokens) showKeys(words, row, at, at + 1);
  }

  #keySet(grid: Grid): PositionSet {
    if (this.#keys?.length !== grid.keys) this.#keys = new PositionSet(this.#tokens, grid.keys);
    return this.#keys;
  }

  #querySet(grid: Grid): PositionSet {
    if (this.#queries?.length !== grid.queries) this.#queries = new PositionSet(this.#tokens, grid.queries);
    return this.#queries;
  }
}

function readTokens(tokens: unknown): readonly number[] {
  if (!isIntegerList(tokens)) return Array.from({ length: checkTokens(tokens, 'tokens') }, (_, i) => i);
  const list = Array.from(tokens, Number);
  const bad = list.find((at) => !Number.isSafeInteger(at) || at < 0);
  if (bad !== undefined) throw optionError(`tokens contains ${show(bad)}; positions are integers >= 0`);
  return list;
}

/**
 * The tokens at these positions (or the first `tokens` ones) see everything and are seen by everything. Positions count
 * from the first key, and as queries from the first query of the call: where the queries are only the last tokens, as in
 * decoding, none of them is one of the first, so give `asQueries: false`. Those beyond the sequence are ignored.
 *
 * @throws ERR_OPTION
 */
export function globalTokens(tokens: number | readonly number[], options: GlobalOptions = {}): Mask {
  checkOptions(options, ['asKeys', 'asQueries']);
  const { asKeys = true, asQueries = true } = options;
  return new GlobalMask(readTokens(tokens), {
    asKeys: checkBoolean(asKeys, 'asKeys'),
    asQueries: checkBoolean(asQueries, 'asQueries'),
  });
}

/** Keys in the last `summary` positions of every `stride`: Child et al.'s fixed attention, the summary half. */
class FixedMask extends Mask {
  readonly #stride: number;
  readonly #summary: number;

  constructor(stride: number, summary: number) {
    super();
    this.#stride = checkInteger(stride, 'stride', 1);
    this.#summary = checkInteger(summary, 'summary', 1, stride);
  }

  classify({ keyBegin, keyEnd }: Region): Coverage {
    const first = keyBegin % this.#stride;
    const start = this.#stride - this.#summary;
    const length = keyEnd - keyBegin;
    if (first >= start && first + length <= this.#stride) return 'full';
    if (this.#summary === this.#stride) return 'full';
    return first < start && first + length <= start ? 'empty' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    const start = this.#stride - this.#summary;
    for (let at = Math.floor(row.keyBegin / this.#stride) * this.#stride; at < row.keyEnd; at += this.#stride)
      showKeys(words, row, at + start, at + this.#stride);
  }
}

/**
 * Every query sees the last `summary` keys of each run of `stride` keys (Child et al. 2019, "fixed"). Combine with
 * `causal` and with `documents` of the stride for the whole pattern.
 */
export const fixed = (stride: number, summary = 1): Mask => new FixedMask(stride, summary);

/** Queries and keys of the same document see each other. */
class DocumentMask extends Mask {
  readonly #queryEnds: readonly number[];
  readonly #keyEnds: readonly number[];
  #queryDocument: Int32Array | undefined;

  constructor(queryLengths: readonly number[], keyLengths: readonly number[]) {
    super();
    if (queryLengths.length !== keyLengths.length)
      throw optionError(`there are ${queryLengths.length} documents of queries and ${keyLengths.length} of keys`);
    const ends = (lengths: readonly number[]) => {
      let end = 0;
      return lengths.map((n) => (end += n));
    };
    this.#queryEnds = ends(queryLengths);
    this.#keyEnds = ends(keyLengths);
  }

  override check(grid: Grid): void {
    for (const [name, ends, length] of [
      ['queries', this.#queryEnds, grid.queries],
      ['keys', this.#keyEnds, grid.keys],
    ] as const)
      if ((ends.at(-1) ?? 0) !== length)
        throw shapeError(`the documents have ${ends.at(-1) ?? 0} ${name} together; the mask is used with ${length}`);
  }

  classify(r: Region): Coverage {
    const documents = this.#documents();
    const first = documents[r.queryBegin];
    const last = documents[r.queryEnd - 1];
    const begin = this.#keyBegin(first);
    const end = this.#keyEnds[last];
    if (r.keyEnd <= begin || r.keyBegin >= end) return 'empty';
    return first === last && r.keyBegin >= begin && r.keyEnd <= end ? 'full' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    const document = this.#documents()[row.query];
    showKeys(words, row, this.#keyBegin(document), this.#keyEnds[document]);
  }

  #keyBegin(document: number): number {
    return document === 0 ? 0 : this.#keyEnds[document - 1];
  }

  #documents(): Int32Array {
    if (!this.#queryDocument) {
      this.#queryDocument = new Int32Array(this.#queryEnds.at(-1) ?? 0);
      for (const [document, end] of this.#queryEnds.entries())
        this.#queryDocument.fill(document, document === 0 ? 0 : this.#queryEnds[document - 1], end);
    }
    return this.#queryDocument;
  }
}

/**
 * Packed documents of these lengths, each seeing only itself; keys may have lengths of their own. The lengths must add up
 * to the queries, and to the keys, that the mask meets: which document a shorter sequence is a part of cannot be told.
 *
 * @throws ERR_OPTION
 */
export function documents(lengths: readonly number[], keyLengths: readonly number[] = lengths): Mask {
  const queries = checkIntegers(lengths, 'lengths', 0, mostTokens);
  return new DocumentMask(
    queries,
    keyLengths === lengths ? queries : checkIntegers(keyLengths, 'keyLengths', 0, mostTokens),
  );
}

/** Every query sees the first `count` keys. */
class PrefixMask extends Mask {
  readonly #count: number;

  constructor(count: number) {
    super();
    this.#count = checkInteger(count, 'prefix', 0);
  }

  classify(r: Region): Coverage {
    return r.keyEnd <= this.#count ? 'full' : r.keyBegin >= this.#count ? 'empty' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    showKeys(words, row, 0, this.#count);
  }
}

/**
 * Every query sees the first `count` keys, whatever its position: the prefix of a prefix language model. All keys where
 * there are fewer. @throws ERR_OPTION
 */
export const prefix = (count: number): Mask => new PrefixMask(count);
