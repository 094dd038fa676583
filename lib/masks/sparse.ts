import { checkIntegers, checkOptions, mustBe } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { type Coverage, checkTokens, type Grid, Mask, type Region, type Row, showKeys } from './mask.js';

/** A list of keys for each query, sorted: any sparse pattern. */
class SparseMask extends Mask {
  readonly #begins: Int32Array;
  readonly #keys: Int32Array;
  readonly #queryCount: number;
  readonly #keyCount: number;

  constructor(rows: readonly (readonly number[])[], keyCount: number) {
    super();
    this.#queryCount = rows.length;
    this.#keyCount = keyCount;
    this.#begins = new Int32Array(rows.length + 1);
    const sorted = rows.map((row) => [...new Set(row)].sort((a, b) => a - b));
    for (const [i, row] of sorted.entries()) this.#begins[i + 1] = this.#begins[i] + row.length;
    this.#keys = Int32Array.from(sorted.flat());
  }

  override check(grid: Grid): void {
    if (grid.queries !== this.#queryCount || grid.keys !== this.#keyCount)
      throw shapeError(
        `the mask is for ${this.#queryCount} queries and ${this.#keyCount} keys; it is used with ${grid.queries} and ${grid.keys}`,
      );
  }

  classify(r: Region): Coverage {
    let count = 0;
    for (let i = r.queryBegin; i < r.queryEnd; i++) count += this.#find(i, r.keyEnd) - this.#find(i, r.keyBegin);
    if (count === 0) return 'empty';
    return count === (r.queryEnd - r.queryBegin) * (r.keyEnd - r.keyBegin) ? 'full' : 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    for (let at = this.#find(row.query, row.keyBegin); at < this.#begins[row.query + 1]; at++) {
      const key = this.#keys[at];
      if (key >= row.keyEnd) break;
      showKeys(words, row, key, key + 1);
    }
  }

  /** Where keys >= `key` begin in the list of a query. */
  #find(query: number, key: number): number {
    let low = this.#begins[query];
    let high = this.#begins[query + 1];
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.#keys[middle] < key) low = middle + 1;
      else high = middle;
    }
    return low;
  }
}

export interface EdgesOptions {
  readonly queries: number;
  /** Default: as many as queries. */
  readonly keys?: number;
}

/** Exactly the listed pairs [query, key], all of which must lie within the queries and keys. @throws ERR_OPTION */
export function edges(pairs: Iterable<readonly [query: number, key: number]>, options: EdgesOptions): Mask {
  checkOptions(options, ['queries', 'keys']);
  const { queries, keys = queries } = options;
  checkTokens(queries, 'queries');
  checkTokens(keys, 'keys');
  if (typeof pairs?.[Symbol.iterator] !== 'function') throw mustBe('pairs', pairs, 'a list of pairs [query, key]');
  const rows: number[][] = Array.from({ length: queries }, () => []);
  for (const pair of pairs) {
    const [query, key] = (Array.isArray(pair) ? pair : []) as [query: number, key: number];
    const inside =
      Number.isInteger(query) && Number.isInteger(key) && query >= 0 && query < queries && key >= 0 && key < keys;
    if (!inside) throw optionError(`the edge ${show(pair)} lies outside of ${queries} queries x ${keys} keys`);
    rows[query].push(key);
  }
  return new SparseMask(rows, keys);
}

/** A copy. @throws ERR_OPTION for parents out of range and for cycles. */
export function checkParents(given: unknown): readonly number[] {
  const parents = checkIntegers(given, 'parents');
  const state = new Uint8Array(parents.length); // 1: on the current path, 2: known to reach a root
  for (const [node, parent] of parents.entries())
    if (parent < -1 || parent >= parents.length)
      throw optionError(
        `parents[${node}] is ${show(parent)}; it must be -1 for a root or a node below ${parents.length}`,
      );
  for (const start of parents.keys()) {
    const path: number[] = [];
    for (let node = start; node >= 0 && state[node] !== 2; node = parents[node]) {
      if (state[node] === 1) throw optionError(`parents has a cycle through node ${node}`);
      state[node] = 1;
      path.push(node);
    }
    for (const node of path) state[node] = 2;
  }
  return parents;
}

export interface TreeOptions {
  /** Keys before those of the tree that every node sees. Default 0. */
  readonly prefix?: number;
}

/**
 * Token trees of speculative decoding (Medusa, SpecInfer): node t sees the prefix, itself and its ancestors.
 *
 * @param parents the parent of each node, -1 for a root; keys are the prefix and then the nodes
 */
export function tree(parents: readonly number[], options: TreeOptions = {}): Mask {
  checkOptions(options, ['prefix']);
  const { prefix = 0 } = options;
  checkTokens(prefix, 'prefix');
  const parentOf = checkParents(parents);
  const rows = parentOf.map((_, start) => {
    const keys = Array.from({ length: prefix }, (_, key) => key);
    for (let node = start; node >= 0; node = parentOf[node]) keys.push(prefix + node);
    return keys;
  });
  return new SparseMask(rows, prefix + parentOf.length);
}
