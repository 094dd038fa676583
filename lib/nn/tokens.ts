import { closeSync, fstatSync, openSync, readSync } from 'node:fs';
import { type MappedFile, mapFile } from '../backends/cpu/threads/mappedFile.js';
import { isTyped } from '../base/arrays.js';
import { checkBoolean, checkInteger, checkOptions, checkString, checkWord, mustBe } from '../base/check.js';
import { optionError, shapeError } from '../base/errors.js';
import { asFileError, checkPath, checkRegular, type FilePath, fileError, readFlags } from './file.js';
import type { Tokenizer } from './tokenizer.js';

/** A text as numbers, of which any stretch can be read. */
export interface Tokens {
  /** How many. */
  readonly length: number;
  /** `count` tokens from `begin` on, in memory of their own. @throws ERR_SHAPE when there are not as many, ERR_FILE */
  read(begin: number, count: number): Int32Array<ArrayBuffer>;
}

function checkRange(begin: number, count: number, length: number): void {
  checkInteger(begin, 'begin', 0, undefined, 'ERR_SHAPE');
  checkInteger(count, 'count', 0, undefined, 'ERR_SHAPE');
  if (begin + count > length)
    throw shapeError(`tokens [${begin}, ${begin + count}) must lie within the ${length} that there are`);
}

/** Tokens in memory: a copy of `ids`. @throws ERR_OPTION when there are none */
export function tokensOf(ids: Int32Array): Tokens {
  if (!isTyped(ids, 'Int32Array')) throw mustBe('ids', ids, 'an Int32Array');
  if (ids.length === 0) throw optionError('ids is empty; there must be tokens');
  const own = new Int32Array(ids);
  return {
    length: own.length,
    read(begin, count) {
      checkRange(begin, count, own.length);
      return own.slice(begin, begin + count);
    },
  };
}

/** The tokens of a text. @throws ERR_OPTION when it is empty, or has what the tokenizer does not know */
export function textTokens(text: string, tokenizer: Pick<Tokenizer, 'encode'>): Tokens {
  if (checkString(text, 'text') === '') throw optionError('text is empty; there must be tokens');
  return tokensOf(tokenizer.encode(text));
}

export interface TokenFileOptions {
  /** Of each token. Default what the file says, 'uint16' if it says nothing. */
  readonly dtype?: 'uint16' | 'uint32';
  /** How many different tokens there are: reading one beyond is an error. Default 2^31. */
  readonly vocabulary?: number;
  /**
   * Whether the file is mapped into memory, so that reading copies tokens without a call of the system and the pages are
   * shared with other processes. It takes the addon for native threads; without that, or where Node or the system refuses, and
   * with false, the file is read in pieces. A file must not be cut off while it is mapped: this is looked for before each
   * read, but a process that touches what goes away in that very moment is ended by the system (SIGBUS), which also network
   * file systems can do. Default true.
   */
  readonly map?: boolean;
}

const arrays = { uint16: Uint16Array, uint32: Uint32Array } as const;

type TokenDType = keyof typeof arrays;

/**
 * Files of llm.c begin with 256 int32: magic, version, number of tokens, zeros. As text of GPT-2 the magics would be tokens
 * beyond its vocabulary. https://github.com/karpathy/llm.c/blob/master/dev/data/data_common.py
 */
const headerBytes = 1024;
const headers: readonly { magic: number; version: number; dtype: TokenDType }[] = [
  { magic: 20240520, version: 1, dtype: 'uint16' }, // GPT-2
  { magic: 20240801, version: 7, dtype: 'uint32' }, // Llama 3
];

/** Read at once, and kept: neighbours are often wanted next. */
const pieceBytes = 1 << 14;
const mostPieces = 16;

/** A file of tokens that is open for reading. Close it, or use `using`. */
export class TokenFile implements Tokens, Disposable {
  readonly path: string;
  readonly dtype: TokenDType;
  readonly length: number;
  /** Whether it is read as memory: see `TokenFileOptions.map`. */
  readonly mapped: boolean;
  readonly #file: number;
  #map: MappedFile | undefined;
  readonly #begin: number;
  readonly #vocabulary: number;
  readonly #pieces = new Map<number, Uint16Array | Uint32Array>();
  #closed = false;

  /** @internal Use `openTokens`. */
  constructor(path: string, file: number, options: TokenFileOptions) {
    this.path = path;
    this.#file = file;
    this.#vocabulary = checkInteger(options.vocabulary ?? 2 ** 31, 'vocabulary', 1, 2 ** 31);
    const dtype = options.dtype === undefined ? undefined : checkWord(options.dtype, 'dtype', ['uint16', 'uint32']);
    const size = checkRegular(path, fstatSync(file));
    const header = this.#readHeader(size);
    this.#begin = header ? headerBytes : 0;
    this.dtype = header?.dtype ?? dtype ?? 'uint16';
    if (dtype !== undefined && dtype !== this.dtype)
      throw fileError(path, `is a file of llm.c with ${this.dtype}; dtype is '${dtype}'`);
    const [bytes, each] = [size - this.#begin, arrays[this.dtype].BYTES_PER_ELEMENT];
    if (bytes % each !== 0)
      throw fileError(path, `${bytes} bytes of tokens are no multiple of the ${each} of ${this.dtype}`);
    this.length = bytes / each;
    if (header && header.count !== this.length)
      throw fileError(path, `has ${this.length} tokens; its header says ${header.count}`);
    if (this.length === 0) throw fileError(path, 'is empty; there must be tokens');
    this.#map = checkBoolean(options.map ?? true, 'map') ? mapFile(file, size) : undefined;
    this.mapped = this.#map !== undefined;
  }

  /** From the file, or from what was read of it before. @throws ERR_SHAPE, ERR_FILE */
  read(begin: number, count: number): Int32Array<ArrayBuffer> {
    checkRange(begin, count, this.length);
    if (this.#closed) throw fileError(this.path, 'has been closed');
    const result = this.#map ? this.#readMapped(this.#map, begin, count) : this.#readPieces(begin, count);
    this.#check(result, begin);
    return result;
  }

  #readMapped({ buffer }: MappedFile, begin: number, count: number): Int32Array<ArrayBuffer> {
    const tokens = arrays[this.dtype];
    const position = this.#begin + begin * tokens.BYTES_PER_ELEMENT;
    const size = this.#sizeNow();
    if (size < position + count * tokens.BYTES_PER_ELEMENT)
      throw fileError(this.path, `is cut off: it ends at byte ${size}`);
    // A view for each read: of a whole file it could have more elements than a view may.
    return new Int32Array(new tokens(buffer, position, count));
  }

  #sizeNow(): number {
    try {
      return fstatSync(this.#file).size;
    } catch (error) {
      throw asFileError(this.path, 'cannot be read', error);
    }
  }

  #readPieces(begin: number, count: number): Int32Array<ArrayBuffer> {
    const result = new Int32Array(count);
    const perPiece = pieceBytes / arrays[this.dtype].BYTES_PER_ELEMENT;
    for (let done = 0; done < count; ) {
      const at = begin + done;
      const piece = this.#piece(Math.floor(at / perPiece));
      const tokens = piece.subarray(at % perPiece, (at % perPiece) + count - done);
      result.set(tokens, done);
      done += tokens.length;
    }
    return result;
  }

  /** What has not been read can no longer be read. Closing twice is harmless. */
  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#pieces.clear();
    this.#map?.dispose();
    this.#map = undefined;
    closeSync(this.#file);
  }

  [Symbol.dispose](): void {
    this.close();
  }

  #readHeader(size: number): { dtype: TokenDType; count: number } | undefined {
    if (size < headerBytes) return undefined;
    const [magic, version, count] = new Int32Array(this.#bytes(0, headerBytes).buffer);
    const known = headers.find((header) => header.magic === magic);
    if (!known) return undefined;
    if (known.version === version) return { dtype: known.dtype, count };
    throw fileError(this.path, `is a file of llm.c of version ${version}; only version ${known.version} is known`);
  }

  #check(tokens: Int32Array, begin: number): void {
    const vocabulary = this.#vocabulary;
    for (let at = 0; at < tokens.length; at++) {
      const token = tokens[at] >>> 0; // ids from 2^31 on are negative as int32
      if (token >= vocabulary)
        throw fileError(this.path, `token ${begin + at} is ${token}; the vocabulary has ${vocabulary} tokens`);
    }
  }

  #piece(index: number): Uint16Array | Uint32Array {
    const known = this.#pieces.get(index);
    if (known) return known;
    const { BYTES_PER_ELEMENT: each } = arrays[this.dtype];
    const offset = index * pieceBytes;
    const bytes = this.#bytes(this.#begin + offset, Math.min(pieceBytes, this.length * each - offset));
    const piece = new arrays[this.dtype](bytes.buffer);
    for (const oldest of this.#pieces.keys()) {
      if (this.#pieces.size < mostPieces) break;
      this.#pieces.delete(oldest);
    }
    this.#pieces.set(index, piece);
    return piece;
  }

  #readSome(bytes: Uint8Array, position: number): number {
    try {
      return readSync(this.#file, bytes, 0, bytes.length, position);
    } catch (error) {
      throw asFileError(this.path, 'cannot be read', error);
    }
  }

  #bytes(position: number, length: number): Uint8Array<ArrayBuffer> {
    const bytes = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const count = this.#readSome(bytes.subarray(done), position + done);
      if (count === 0) throw fileError(this.path, `is cut off: it ends at byte ${position + done}`);
      done += count;
    }
    return bytes;
  }
}

/**
 * Opens a file of tokens: those that nanoGPT writes, which are nothing but uint16 (or uint32 with `dtype`), and those of
 * llm.c, which begin with a header and are known by it. It is mapped into memory or read in pieces (`map`), as they are
 * wanted, so that it may be larger than memory.
 *
 * @throws ERR_FILE when the file is empty, of odd length, not as long as its header says, or cannot be read; ERR_OPTION
 */
export function openTokens(path: FilePath, options: TokenFileOptions = {}): TokenFile {
  const name = checkPath(path);
  checkOptions(options, ['dtype', 'vocabulary', 'map']);
  let file: number | undefined;
  try {
    file = openSync(name, readFlags);
    return new TokenFile(name, file, options);
  } catch (error) {
    if (file !== undefined) closeSync(file);
    throw asFileError(name, 'cannot be opened', error);
  }
}
