/** What keeps apart prefixes that must not be shared though their tokens are the same, such as those of two users. */
export type Salt = string | number;

const noParent = -1;

/** A number of 32 bits as two code units. */
const units = (n: number) => String.fromCharCode(n >>> 16, n & 0xffff);

/** Begins with a code unit that no block number begins with; what follows it and comes before the tokens is the salt. */
function rootKey(salt: Salt | undefined): string {
  if (salt === undefined) return '\ufffd';
  return typeof salt === 'number' ? `\ufffe${salt}` : `\uffff${salt}`;
}

/**
 * A radix tree over token ids, in steps of whole blocks: a node is a block, and what leads to it are the tokens that it
 * holds and, through its parents, all tokens before them. Tokens are compared, not only their hashes.
 *
 * All edges lie in one map, by the parent's block number and the tokens of the child; a number means the same node as long
 * as it has children, because only leaves are deleted. So the tree has at most one edge for each block.
 */
export class PrefixTree {
  readonly #blockSize: number;
  readonly #edges = new Map<string, number>();
  /** By block: the edge that leads to it; undefined where it is not in the tree. */
  readonly #keys: (string | undefined)[];
  readonly #parents: Int32Array;
  readonly #children: Int32Array;

  constructor(blocks: number, blockSize: number) {
    this.#blockSize = blockSize;
    this.#keys = new Array<string | undefined>(blocks).fill(undefined);
    this.#parents = new Int32Array(blocks);
    this.#children = new Int32Array(blocks);
  }

  has(block: number): boolean {
    return this.#keys[block] !== undefined;
  }

  isLeaf(block: number): boolean {
    return this.#children[block] === 0;
  }

  #key(parent: number | undefined, tokens: ArrayLike<number>, start: number, salt: Salt | undefined): string {
    let key = parent === undefined ? rootKey(salt) : units(parent);
    for (let at = start; at < start + this.#blockSize; at++) key += units(tokens[at]);
    return key;
  }

  /** The block that holds the tokens from `start` on and follows `parent` (undefined: begins a sequence). */
  find(parent: number | undefined, tokens: ArrayLike<number>, start: number, salt?: Salt): number | undefined {
    return this.#edges.get(this.#key(parent, tokens, start, salt));
  }

  /** The block that `find` finds; where there is none, `block` becomes it. */
  findOrInsert(
    block: number,
    parent: number | undefined,
    tokens: ArrayLike<number>,
    start: number,
    salt?: Salt,
  ): number {
    const key = this.#key(parent, tokens, start, salt);
    const known = this.#edges.get(key);
    if (known !== undefined) return known;
    this.#edges.set(key, block);
    this.#keys[block] = key;
    this.#parents[block] = parent ?? noParent;
    if (parent !== undefined) this.#children[parent]++;
    return block;
  }

  /** Forgets a leaf. */
  delete(block: number): void {
    const key = this.#keys[block];
    if (key === undefined || !this.isLeaf(block)) throw new Error(`block ${block} is no leaf of the tree`);
    this.#edges.delete(key);
    this.#keys[block] = undefined;
    if (this.#parents[block] !== noParent) this.#children[this.#parents[block]]--;
  }
}
