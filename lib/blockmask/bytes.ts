import { isTyped } from '../base/arrays.js';
import { mustBe } from '../base/check.js';
import { FlashAttnError, show } from '../base/errors.js';
import { BlockMask } from './blockMask.js';

// Little-endian 32-bit words: magic, version, batch, heads, queries, keys, block size, numbers of full and partial
// blocks, then full offsets, full indices, partial offsets, partial indices, bits.
const magic = 0x4d424146; // 'FABM'
const version = 1;
const headerWords = 9;

const malformed = (message: string) => new FlashAttnError('ERR_OPTION', `bytes are not a block mask: ${message}`);

/** A block mask as bytes, the same on every machine. */
export function blockMaskToBytes(mask: BlockMask): Uint8Array {
  if (!(mask instanceof BlockMask)) throw mustBe('mask', mask, 'a block mask');
  const { batch, heads, queries, keys, blockSize, full, partial, bits } = mask;
  const header = [magic, version, batch, heads, queries, keys, blockSize, full.indices.length, partial.indices.length];
  const arrays = [header, full.offsets, full.indices, partial.offsets, partial.indices, bits];
  const bytes = new Uint8Array(4 * arrays.reduce((sum, { length }) => sum + length, 0));
  const view = new DataView(bytes.buffer);
  let at = 0;
  for (const array of arrays)
    for (const word of array) {
      view.setUint32(at, word, true);
      at += 4;
    }
  return bytes;
}

/** Reads what `blockMaskToBytes` wrote; anything else is refused. @throws ERR_OPTION, ERR_SHAPE */
export function blockMaskFromBytes(bytes: Uint8Array): BlockMask {
  if (!isTyped(bytes, 'Uint8Array')) throw malformed(`got ${show(bytes)}, not a Uint8Array`);
  if (bytes.byteLength % 4 !== 0 || bytes.byteLength < headerWords * 4)
    throw malformed(`${bytes.byteLength} bytes are not whole words with a header of ${headerWords}`);
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const words = Uint32Array.from({ length: bytes.byteLength / 4 }, (_, i) => view.getUint32(i * 4, true));
  const [gotMagic, gotVersion, batch, heads, queries, keys, blockSize, fullCount, partialCount] = words;
  if (gotMagic !== magic) throw malformed('the first word is not "FABM"');
  if (gotVersion !== version) throw malformed(`version ${gotVersion} is unknown, this one reads ${version}`);
  if (blockSize !== 64 && blockSize !== 128) throw malformed(`the block size is ${blockSize}, not 64 or 128`);
  const lists = batch * heads * Math.ceil(queries / blockSize);
  const lengths = [lists + 1, fullCount, lists + 1, partialCount, (partialCount * blockSize * blockSize) / 32];
  const expected = headerWords + lengths.reduce((a, b) => a + b);
  if (words.length !== expected) throw malformed(`it has ${words.length} words, its header says ${expected}`);
  let at = headerWords;
  const [fullOffsets, fullIndices, partialOffsets, partialIndices, bits] = lengths.map((length) =>
    words.slice(at, (at += length)),
  );
  const signed = (array: Uint32Array) => new Int32Array(array.buffer);
  return BlockMask.from({
    batch,
    heads,
    queries,
    keys,
    blockSize,
    full: { offsets: signed(fullOffsets), indices: signed(fullIndices) },
    partial: { offsets: signed(partialOffsets), indices: signed(partialIndices) },
    bits,
  });
}
