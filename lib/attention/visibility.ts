// Who sees whom: the band around the diagonal, and masks compiled for the kernels.

import { isTyped } from '../base/arrays.js';
import { checkBoolean, checkInteger, checkOptions, checkWord, mustBe } from '../base/check.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { onReleased, release } from '../base/released.js';
import { Remember } from '../base/remember.js';
import { BlockMask } from '../blockmask/blockMask.js';
import { blockMask } from '../blockmask/build.js';
import { type AttentionProblem, unbounded } from '../kernels/attention.js';
import { and } from '../masks/combine.js';
import { type Coverage, Mask, type Region, type Row, setBits, showKeys } from '../masks/mask.js';
import { checkTensor, isTensor } from '../tensor/tensor.js';
import type { AttentionOptions, BooleanMask } from './options.js';
import type { Sequences } from './sequences.js';
import { broadcastShape } from './terms.js';

type Band = Pick<AttentionProblem, 'windowLeft' | 'windowRight' | 'topLeft' | 'offset'>;

/** Reads `causal`, `window`, `align` and `offset`. */
export function readBand(options: AttentionOptions, { queryLength, keyLength }: Sequences): Band {
  const { window = [-1, -1], causal = false, align, offset } = options;
  checkBoolean(causal, 'causal');
  if (!Array.isArray(window) || window.length !== 2)
    throw mustBe('window', window, '[left, right], integers >= 0, or -1 for infinite');
  const side = (at: 0 | 1) => {
    const tokens = checkInteger(window[at], `window[${at}]`, -1, unbounded - 1);
    return tokens === -1 ? unbounded : tokens;
  };
  let [windowLeft, windowRight] = [side(0), side(1)];
  if (causal) windowRight = Math.min(windowRight, 0);
  if (align !== undefined) checkWord(align, 'align', ['bottomRight', 'topLeft']);
  if (offset === undefined) return { windowLeft, windowRight, topLeft: align === 'topLeft', offset: 0 };
  checkInteger(offset, 'offset', -unbounded + 1, unbounded - 1);
  if (align !== undefined) throw optionError(`offset and align are both given; either says where the diagonal lies`);
  // A side beyond all keys is no side; so kernels stay within 32 bits.
  if (offset + windowRight >= keyLength) windowRight = unbounded;
  if (offset - windowLeft <= -queryLength) windowLeft = unbounded;
  return { windowLeft, windowRight, topLeft: true, offset };
}

/** The position among the keys of sequence b where its first query is: 0 is the first key. */
export function diagonalOf(p: AttentionProblem, b: number): number {
  const queries = p.sequences ? p.sequences[b * 4 + 1] : p.queryLength;
  const keys = p.sequences ? p.sequences[b * 4 + 3] : p.keyLength;
  return (p.topLeft ? 0 : keys - queries) + p.offset;
}

/** The keys [begin, end) that the band shows to query i of sequence b. */
export function bandOf(p: AttentionProblem, b: number): (i: number) => readonly [begin: number, end: number] {
  const keys = p.sequences ? p.sequences[b * 4 + 3] : p.keyLength;
  const diagonal = diagonalOf(p, b);
  return (i) => [
    p.windowLeft === unbounded ? 0 : Math.max(0, i + diagonal - p.windowLeft),
    p.windowRight === unbounded ? keys : Math.min(keys, i + diagonal + p.windowRight + 1),
  ];
}

/** Pairs that are given one by one. */
class ArrayMask extends Mask {
  override readonly batch: number;
  override readonly heads: number;
  readonly #data: ArrayLike<number | boolean>;
  /** The rows and columns that there are: 1 where all queries or keys share them. */
  readonly #queries: number;
  readonly #keys: number;

  constructor(data: ArrayLike<number | boolean>, shape: readonly [number, number, number, number]) {
    super();
    [this.batch, this.heads, this.#queries, this.#keys] = shape;
    this.#data = data;
  }

  classify(r: Region): Coverage {
    const [queryBegin, queryEnd] = this.#queries === 1 ? [0, 1] : [r.queryBegin, r.queryEnd];
    const [keyBegin, keyEnd] = this.#keys === 1 ? [0, 1] : [r.keyBegin, r.keyEnd];
    let seen = false;
    let hidden = false;
    for (let query = queryBegin; query < queryEnd; query++) {
      const row = this.#row(r.batch, r.head, query);
      for (let key = keyBegin; key < keyEnd; key++) {
        if (this.#data[row + key]) seen = true;
        else hidden = true;
        if (seen && hidden) return 'partial';
      }
    }
    return seen ? 'full' : 'empty';
  }

  writeRow(words: Uint32Array, row: Row): void {
    const at = this.#row(row.batch, row.head, this.#queries === 1 ? 0 : row.query);
    if (this.#keys !== 1) {
      for (let key = row.keyBegin; key < row.keyEnd; key++)
        if (this.#data[at + key]) showKeys(words, row, key, key + 1);
    } else if (this.#data[at]) setBits(words, 0, row.keyEnd - row.keyBegin);
  }

  #row(batch: number, head: number, query: number): number {
    const [b, h] = [this.batch === 1 ? 0 : batch, this.heads === 1 ? 0 : head];
    return ((b * this.heads + h) * this.#queries + query) * this.#keys;
  }
}

/** A block mask as a description, to be combined with others. */
class CompiledMask extends Mask {
  override readonly batch: number;
  override readonly heads: number;
  readonly #mask: BlockMask;

  constructor(mask: BlockMask) {
    super();
    this.batch = mask.batch;
    this.heads = mask.heads;
    this.#mask = mask;
  }

  classify(): Coverage {
    return 'partial';
  }

  writeRow(words: Uint32Array, row: Row): void {
    for (let key = row.keyBegin; key < row.keyEnd; key++)
      if (this.#mask.visible(row.batch, row.head, row.query, key)) showKeys(words, row, key, key + 1);
  }
}

function readBooleans(attnMask: BooleanMask, heads: number, sequences: Sequences): Mask {
  // Tensors, of whatever copy of this package, have methods of that name.
  if (typeof (attnMask as { data?: unknown } | null)?.data === 'function') checkTensor(attnMask, 'attnMask');
  checkOptions(attnMask, ['data', 'shape'], 'attnMask');
  const { data, shape } = attnMask;
  if (!Array.isArray(shape)) throw mustBe('attnMask.shape', shape, 'an array of 1 to 4 dims', 'ERR_SHAPE');
  if (!Array.isArray(data) && !isTyped(data, 'Uint8Array'))
    throw mustBe('attnMask.data', data, 'a Uint8Array or an array of booleans');
  const full = broadcastShape([...shape], 'attnMask', heads, sequences);
  const count = full.reduce((product, n) => product * n, 1);
  if (data.length !== count)
    throw shapeError(`attnMask.data has ${data.length} elements; attnMask.shape ${show(shape)} needs ${count}`);
  if (Array.isArray(data)) for (let at = 0; at < count; at++) checkBoolean(data[at], `attnMask.data[${at}]`);
  return new ArrayMask(data, full);
}

/** How many lengths a mask stays compiled for: those of a few layers or buckets, not of every step of a decoder. */
const lengthsKept = 8;

const compiled = new WeakMap<Mask, Remember<BlockMask>>();
onReleased((owner) => compiled.get(owner as Mask)?.clear());

/** Compiles a mask once for each of the lengths that it met last; device copies of the others are freed. */
function compileMask(mask: Mask, heads: number, s: Sequences): BlockMask {
  let known = compiled.get(mask);
  if (!known) {
    known = new Remember<BlockMask>(release, lengthsKept);
    compiled.set(mask, known);
  }
  const { batch, queryLength: nq, keyLength: nk } = s;
  return known.get([batch, heads, nq, nk], () => blockMask(mask, { batch, heads, nq, nk }));
}

function checkDims(mask: BlockMask, heads: number, s: Sequences): void {
  if (mask.queries !== s.queryLength || mask.keys !== s.keyLength)
    throw shapeError(
      `mask is for ${mask.queries} queries x ${mask.keys} keys; the problem has ${s.queryLength} x ${s.keyLength}`,
    );
  for (const [name, got, wanted] of [
    ['batch entries', mask.batch, s.batch],
    ['heads', mask.heads, heads],
  ] as const)
    if (got !== 1 && got !== wanted)
      throw shapeError(`mask is for ${got} ${name}; the problem has ${wanted}, and 1 fits all`);
}

/** The masks that were compiled for one call each. Their owners are calls: no cache lets go of them otherwise. */
const compiledOnce: BlockMask[] = [];

function keepFewCopies(mask: BlockMask): BlockMask {
  compiledOnce.push(mask);
  if (compiledOnce.length > lengthsKept) release(compiledOnce.shift() as BlockMask);
  return mask;
}

/** Reads `mask` and an `attnMask` of booleans. */
export function readMask(options: AttentionOptions, heads: number, s: Sequences): BlockMask | undefined {
  const { mask, attnMask } = options;
  if (mask !== undefined && !(mask instanceof Mask || mask instanceof BlockMask))
    throw mustBe('mask', mask, 'a mask or a block mask');
  if (mask instanceof BlockMask) checkDims(mask, heads, s);
  if (attnMask === undefined || isTensor(attnMask)) return mask instanceof Mask ? compileMask(mask, heads, s) : mask;
  const booleans = readBooleans(attnMask, heads, s);
  const described = mask instanceof BlockMask ? new CompiledMask(mask) : mask;
  const { batch, queryLength: nq, keyLength: nk } = s;
  return keepFewCopies(blockMask(described ? and(described, booleans) : booleans, { batch, heads, nq, nk }));
}
