import { type FileHandle, open } from 'node:fs/promises';
import { crc32 } from 'node:zlib';
import { typedArrayName } from '../base/arrays.js';
import { checkBoolean, checkFunction, checkObject, checkOptions, checkString, mustBe } from '../base/check.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { checkShape, elementCount } from '../tensor/shape.js';
import { type FileSystem, replaceFile } from './atomicFile.js';
import { asFileError, checkPath, checkRegular, type FilePath, fileError, readFlags } from './file.js';
import {
  arrayTypes,
  checksumKey,
  formatHeader,
  type Header,
  isSafetensorsDType,
  lengthBytes,
  metadataName,
  parseHeader,
  parseLength,
  type SafetensorsDType,
  type SafetensorsElements,
  type StoredTensor,
} from './safetensorsHeader.js';

export type { SafetensorsDType, SafetensorsElements, StoredTensor } from './safetensorsHeader.js';

/** So much is read at once. */
const pieceBytes = 1 << 24;

/** Fills `bytes` from a place of the file, piece by piece. @throws ERR_FILE */
async function readAt(
  path: string,
  file: FileHandle,
  bytes: Uint8Array,
  position: number,
  what: string,
): Promise<void> {
  for (let done = 0; done < bytes.length; ) {
    const length = Math.min(pieceBytes, bytes.length - done);
    const { bytesRead } = await file.read(bytes, done, length, position + done).catch((error: unknown) => {
      throw asFileError(path, `${what} cannot be read`, error);
    });
    if (bytesRead === 0) throw fileError(path, `${what} is cut off: the file ends at byte ${position + done}`);
    done += bytesRead;
  }
}

function allocate(path: string, bytes: number, what: string): ArrayBuffer {
  try {
    return new ArrayBuffer(bytes);
  } catch (error) {
    throw new FlashAttnError('ERR_OUT_OF_MEMORY', `${path}: there is no memory for ${what} of ${bytes} bytes`, {
      cause: error,
    });
  }
}

/** A safetensors file that is open for reading: what it holds, and one tensor at a time. Close it, or use `await using`. */
export class SafetensorsFile implements AsyncDisposable {
  readonly #file: FileHandle;
  readonly #header: Header;

  /** @internal Use `openSafetensors`. */
  constructor(
    readonly path: string,
    file: FileHandle,
    header: Header,
  ) {
    this.#file = file;
    this.#header = header;
  }

  get metadata(): Readonly<Record<string, string>> {
    return this.#header.metadata;
  }

  /** By name, in the order of their bytes. */
  get tensors(): ReadonlyMap<string, StoredTensor> {
    return this.#header.tensors;
  }

  /**
   * The elements of a tensor in row-major order, in memory of their own. float16 and bfloat16 are their bits.
   *
   * @param dtype what it must be, for those who know
   * @throws ERR_FILE when there is no such tensor, the file was cut off meanwhile, or the bytes are not those of the
   *   checksum, if the file has one; ERR_DTYPE, ERR_OUT_OF_MEMORY
   */
  async read<D extends SafetensorsDType>(name: string, dtype?: D): Promise<SafetensorsElements[D]> {
    const { path } = this;
    const stored = this.tensors.get(checkString(name, 'name'));
    const what = `tensor ${show(name)}`;
    if (!stored) throw fileError(path, `there is no ${what}`);
    if (dtype !== undefined && stored.dtype !== dtype)
      throw new FlashAttnError('ERR_DTYPE', `${path}: ${what} is ${stored.dtype}; it must be ${show(dtype)}`);
    const buffer = allocate(path, stored.byteLength, what);
    const bytes = new Uint8Array(buffer);
    await readAt(path, this.#file, bytes, stored.byteOffset, what);
    this.#compare(name, crc32(bytes));
    return new arrayTypes[stored.dtype](buffer) as SafetensorsElements[D];
  }

  /** Reads all tensors and compares them with their checksums; does nothing if the file has none. @throws ERR_FILE */
  async verify(): Promise<void> {
    if (!this.#header.checksums) return;
    let piece = new Uint8Array();
    for (const [name, { byteOffset, byteLength }] of this.tensors) {
      const needed = Math.min(pieceBytes, byteLength);
      if (piece.length < needed) piece = new Uint8Array(needed);
      let sum = 0;
      for (let done = 0; done < byteLength; done += piece.length) {
        const bytes = piece.subarray(0, Math.min(piece.length, byteLength - done));
        await readAt(this.path, this.#file, bytes, byteOffset + done, `tensor ${show(name)}`);
        sum = crc32(bytes, sum);
      }
      this.#compare(name, sum);
    }
  }

  close(): Promise<void> {
    return this.#file.close();
  }

  [Symbol.asyncDispose](): Promise<void> {
    return this.close();
  }

  #compare(name: string, sum: number): void {
    if ((this.#header.checksums?.get(name) ?? sum) === sum) return;
    throw fileError(
      this.path,
      `the bytes of tensor ${show(name)} have changed since they were written, as the checksums in ${checksumKey} of the metadata tell`,
    );
  }
}

/**
 * Opens a safetensors file and reads its header, nothing else. All that a header says is checked, so that a damaged or
 * hostile file is refused with a message that names the tensor and what is wrong.
 *
 * @throws ERR_FILE, ERR_OPTION
 */
export async function openSafetensors(path: FilePath): Promise<SafetensorsFile> {
  const name = checkPath(path);
  const file = await open(name, readFlags).catch((error: unknown) => {
    throw asFileError(name, 'cannot be opened', error);
  });
  try {
    const size = checkRegular(name, await file.stat());
    if (size < lengthBytes) throw fileError(name, `has ${size} bytes; a safetensors file has at least ${lengthBytes}`);
    const length = new Uint8Array(lengthBytes);
    await readAt(name, file, length, 0, 'the header');
    const header = new Uint8Array(allocate(name, parseLength(name, length, size), 'a header'));
    await readAt(name, file, header, lengthBytes, 'the header');
    return new SafetensorsFile(name, file, parseHeader(name, header, size));
  } catch (error) {
    await file.close();
    throw error;
  }
}

/** A tensor to write. */
export interface SafetensorsEntry {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /**
   * The elements in row-major order, in the array that `SafetensorsElements` names or as bytes; or a function that gives
   * them when it is their turn, so that no more than one tensor need be in memory.
   */
  readonly data: ArrayBufferView | (() => ArrayBufferView | Promise<ArrayBufferView>);
}

export interface SafetensorsOptions {
  /** Texts about the file. */
  readonly metadata?: Readonly<Record<string, string>>;
  /**
   * Adds the CRC-32 of the header and of each tensor to the metadata, and later reading compares them. Other readers see
   * one more text there. Who changes the file with another program has to remove it. Default false.
   */
  readonly checksums?: boolean;
}

const isIterable = (value: unknown): boolean =>
  typeof value === 'object' && value !== null && (Symbol.iterator in value || Symbol.asyncIterator in value);

function checkEntry(entry: SafetensorsEntry): SafetensorsEntry {
  checkObject(entry, 'an entry');
  const { name, dtype, shape, data } = entry;
  if (checkString(name, 'name') === metadataName || !name.isWellFormed())
    throw mustBe('name', name, `Unicode other than ${metadataName}`);
  if (!isSafetensorsDType(dtype))
    throw mustBe(`the dtype of ${show(name)}`, dtype, `one of ${Object.keys(arrayTypes).join(', ')}`, 'ERR_DTYPE');
  if (!ArrayBuffer.isView(data)) checkFunction(data, `data of ${show(name)}`);
  return { name, dtype, shape: checkShape(shape, `the shape of ${show(name)}`), data };
}

function checkMetadata(metadata: Readonly<Record<string, string>>): Record<string, string> {
  checkObject(metadata, 'metadata');
  for (const [key, text] of Object.entries(metadata)) {
    if (!key.isWellFormed() || key === checksumKey)
      throw mustBe('a key of metadata', key, `Unicode, not ${checksumKey}`);
    if (!checkString(text, `metadata[${show(key)}]`).isWellFormed())
      throw mustBe(`metadata[${show(key)}]`, text, 'Unicode');
  }
  return { ...metadata };
}

/**
 * The order of tensors in a file: those with longer elements first, so that each begins at a multiple of its element size,
 * then by name. It does not depend on the order that they were given in.
 */
const inFileOrder = (a: SafetensorsEntry, b: SafetensorsEntry) =>
  arrayTypes[b.dtype].BYTES_PER_ELEMENT - arrayTypes[a.dtype].BYTES_PER_ELEMENT ||
  (a.name < b.name ? -1 : a.name > b.name ? 1 : 0);

type Placed = SafetensorsEntry & StoredTensor;

/** Where each entry goes, from the start of the data. @throws ERR_OPTION when a name comes twice */
function place(entries: readonly SafetensorsEntry[]): Map<string, Placed> {
  const placed = new Map<string, Placed>();
  let byteOffset = 0;
  for (const entry of [...entries].sort(inFileOrder)) {
    if (placed.has(entry.name)) throw optionError(`there are two entries with the name ${show(entry.name)}`);
    const byteLength = elementCount(entry.shape) * arrayTypes[entry.dtype].BYTES_PER_ELEMENT;
    placed.set(entry.name, { ...entry, byteOffset, byteLength });
    byteOffset += byteLength;
  }
  return placed;
}

async function bytesOf({ name, dtype, shape, data, byteLength }: Placed): Promise<Uint8Array> {
  const view = typeof data === 'function' ? await data() : data;
  const type = ArrayBuffer.isView(view) ? typedArrayName(view) : undefined;
  const known = [arrayTypes[dtype].name, 'Uint8Array', ...(dtype === 'F16' ? ['Float16Array'] : [])];
  if (type === undefined || !known.includes(type))
    throw mustBe(`data of ${show(name)}`, view, `of ${dtype}: ${[...new Set(known)].join(' or ')}`, 'ERR_DTYPE');
  if (view.byteLength !== byteLength)
    throw shapeError(
      `data of ${show(name)} has ${view.byteLength} bytes; ${dtype} ${show(shape)} needs ${byteLength} bytes`,
    );
  return new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
}

/** @internal `writeSafetensors`, on a file system that may fail. */
export async function writeSafetensorsOn(
  system: FileSystem | undefined,
  path: FilePath,
  entries: Iterable<SafetensorsEntry> | AsyncIterable<SafetensorsEntry>,
  options: SafetensorsOptions,
): Promise<void> {
  const target = checkPath(path);
  checkOptions(options, ['metadata', 'checksums']);
  const metadata = checkMetadata(options.metadata ?? {});
  if (!isIterable(entries)) throw mustBe('entries', entries, 'an iterable or an async iterable of tensors');
  const listed: SafetensorsEntry[] = [];
  for await (const entry of entries) listed.push(checkEntry(entry));
  const tensors = place(listed);
  const checksums = checkBoolean(options.checksums ?? false, 'checksums') ? new Map<string, number>() : undefined;
  const header = formatHeader({ metadata, tensors, checksums });
  const produce = async (write: (bytes: Uint8Array, position: number) => Promise<void>) => {
    await write(header, 0);
    for (const entry of tensors.values()) {
      const bytes = await bytesOf(entry);
      await write(bytes, header.length + entry.byteOffset);
      checksums?.set(entry.name, crc32(bytes));
    }
    if (checksums) await write(formatHeader({ metadata, tensors, checksums }), 0);
  };
  await replaceFile(target, produce, system);
}

/**
 * Writes a safetensors file, tensor by tensor, in place of the one that may be there. The old file stays whole until the
 * new one is on disk: whoever opens the path finds either, whenever this program ends. An error leaves the old file and no
 * other behind. The same tensors and metadata give the same bytes, in whatever order they come.
 *
 * A process that is killed leaves a temporary file, `.NAME.*.tmp`, which the next write to the same path removes.
 *
 * @param entries all are listed before the first `data` is read
 * @throws ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_FILE
 */
export function writeSafetensors(
  path: FilePath,
  entries: Iterable<SafetensorsEntry> | AsyncIterable<SafetensorsEntry>,
  options: SafetensorsOptions = {},
): Promise<void> {
  return writeSafetensorsOn(undefined, path, entries, options);
}
