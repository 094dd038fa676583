/**
 * The header of a safetensors file: 8 bytes of length, then JSON that says for each tensor its dtype, its shape and which
 * of the bytes behind the header are its own. Little-endian; the tensors follow each other without gaps or overlaps.
 * https://huggingface.co/docs/safetensors
 */
import { crc32 } from 'node:zlib';
import { optionError, show } from '../base/errors.js';
import { fileError } from './file.js';

/** The array that elements of a dtype are read into: float16 and bfloat16 as their bits, BOOL as bytes. */
export interface SafetensorsElements {
  BOOL: Uint8Array<ArrayBuffer>;
  U8: Uint8Array<ArrayBuffer>;
  I8: Int8Array<ArrayBuffer>;
  U16: Uint16Array<ArrayBuffer>;
  I16: Int16Array<ArrayBuffer>;
  F16: Uint16Array<ArrayBuffer>;
  BF16: Uint16Array<ArrayBuffer>;
  U32: Uint32Array<ArrayBuffer>;
  I32: Int32Array<ArrayBuffer>;
  F32: Float32Array<ArrayBuffer>;
  U64: BigUint64Array<ArrayBuffer>;
  I64: BigInt64Array<ArrayBuffer>;
  F64: Float64Array<ArrayBuffer>;
}

export type SafetensorsDType = keyof SafetensorsElements;

interface ArrayType<A> {
  new (buffer: ArrayBuffer): A;
  readonly name: string;
  readonly BYTES_PER_ELEMENT: number;
}

export const arrayTypes: { readonly [D in SafetensorsDType]: ArrayType<SafetensorsElements[D]> } = {
  BOOL: Uint8Array,
  U8: Uint8Array,
  I8: Int8Array,
  U16: Uint16Array,
  I16: Int16Array,
  F16: Uint16Array,
  BF16: Uint16Array,
  U32: Uint32Array,
  I32: Int32Array,
  F32: Float32Array,
  U64: BigUint64Array,
  I64: BigInt64Array,
  F64: Float64Array,
};

export const isSafetensorsDType = (value: unknown): value is SafetensorsDType =>
  typeof value === 'string' && Object.hasOwn(arrayTypes, value);

/** Where a tensor lies in a file. */
export interface StoredTensor {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  /** From the start of the file. */
  readonly byteOffset: number;
  readonly byteLength: number;
}

export interface Header {
  readonly metadata: Readonly<Record<string, string>>;
  /** In the order of their bytes. */
  readonly tensors: ReadonlyMap<string, StoredTensor>;
  /** CRC-32 of the bytes of each tensor, where the file has them. */
  readonly checksums: ReadonlyMap<string, number> | undefined;
}

export const lengthBytes = 8;
/** As in the reference implementation. */
const longestHeader = 100_000_000;

export const metadataName = '__metadata__';
/** The entry of the metadata that holds checksums: of the header, then of each tensor in the order of names. */
export const checksumKey = 'flashattn.crc32';

const byCodeUnits = ([a]: readonly [string, ...unknown[]], [b]: readonly [string, ...unknown[]]) =>
  a < b ? -1 : a > b ? 1 : 0;

const sortedNames = (tensors: ReadonlyMap<string, StoredTensor>) =>
  [...tensors].sort(byCodeUnits).map(([name]) => name);

const hexadecimal = (word: number) => word.toString(16).padStart(8, '0');

/** The checksum of all that a header says, however it is written. */
function headerChecksum({ metadata, tensors }: Header): number {
  const [first] = tensors.values();
  const described = [...tensors].map(
    ([name, { dtype, shape, byteOffset }]) => [name, dtype, shape, byteOffset - first.byteOffset] as const,
  );
  return crc32(JSON.stringify([Object.entries(metadata).sort(byCodeUnits), described.sort(byCodeUnits)]));
}

/**
 * The bytes of a header, a multiple of 8; of the same length for whatever checksums.
 *
 * @param tensors in the order of their bytes, the first at 0
 * @throws ERR_OPTION when it would be too long
 */
export function formatHeader(header: Header): Uint8Array {
  const { metadata, tensors, checksums } = header;
  const entries = Object.entries(metadata).sort(byCodeUnits);
  if (checksums) {
    const words = [headerChecksum(header), ...sortedNames(tensors).map((name) => checksums.get(name) ?? 0)];
    entries.push([checksumKey, words.map(hexadecimal).join(' ')]);
  }
  const member = (name: string, value: unknown) => `${JSON.stringify(name)}:${JSON.stringify(value)}`;
  const members = entries.length > 0 ? [member(metadataName, Object.fromEntries(entries))] : [];
  for (const [name, { dtype, shape, byteOffset, byteLength }] of tensors)
    members.push(member(name, { dtype, shape, data_offsets: [byteOffset, byteOffset + byteLength] }));
  const text = new TextEncoder().encode(`{${members.join(',')}}`);
  const length = Math.ceil(text.length / 8) * 8;
  if (length > longestHeader)
    throw optionError(
      `names, shapes and metadata take ${length} bytes; a safetensors file has room for 100 MB of them`,
    );
  const bytes = new Uint8Array(lengthBytes + length).fill(0x20);
  new DataView(bytes.buffer).setBigUint64(0, BigInt(length), true);
  bytes.set(text, lengthBytes);
  return bytes;
}

/** How many bytes the header has behind its length. @throws ERR_FILE */
export function parseLength(path: string, bytes: Uint8Array, fileLength: number): number {
  const length = new DataView(bytes.buffer, bytes.byteOffset).getBigUint64(0, true);
  if (length > BigInt(longestHeader))
    throw fileError(path, `its header has ${length} bytes, more than the 100 MB that it may: no safetensors file`);
  const left = fileLength - lengthBytes;
  if (Number(length) > left) throw fileError(path, `its header has ${length} bytes, but only ${left} are there`);
  return Number(length);
}

type Json = Readonly<Record<string, unknown>>;

const isObject = (value: unknown): value is Json =>
  typeof value === 'object' && value !== null && !Array.isArray(value);

/** Deeper than any header, and less deep than would cost a parser its memory. */
const deepest = 16;

/** What JSON.parse would not object to: a key that stands twice in an object, and nesting without end. */
function objection(json: string): string | undefined {
  const open: Set<string>[] = [];
  for (let at = 0; at < json.length; at++) {
    const character = json[at];
    if (character === '{' || character === '[') open.push(new Set());
    else if (character === '}' || character === ']') open.pop();
    if (open.length > deepest) return 'is nested too deep';
    if (character !== '"') continue;
    const begin = at++;
    for (; at < json.length && json[at] !== '"'; at++) if (json[at] === '\\') at++;
    let next = at + 1;
    while (next < json.length && ' \t\n\r'.includes(json[next])) next++;
    if (json[next] !== ':') continue; // a value
    const key: string = JSON.parse(json.slice(begin, at + 1));
    const keys = open.at(-1);
    if (keys?.has(key)) return `names ${show(key)} twice`;
    keys?.add(key);
  }
  return undefined;
}

function parseJson(path: string, bytes: Uint8Array): Json {
  let text: string;
  try {
    text = new TextDecoder('utf-8', { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch (error) {
    throw fileError(path, 'its header is not UTF-8', error);
  }
  let problem: string | undefined;
  try {
    problem = objection(text);
    const header: unknown = problem === undefined && JSON.parse(text);
    if (isObject(header)) return header;
  } catch (error) {
    throw fileError(path, `its header is not JSON: ${error instanceof Error ? error.message : error}`, error);
  }
  throw fileError(path, `its header ${problem ?? 'is not a JSON object'}`);
}

function parseMetadata(path: string, value: unknown): Record<string, string> {
  if (!isObject(value)) throw fileError(path, `${metadataName} is ${show(value)}, not a JSON object`);
  const wrong = Object.entries(value).find(([, text]) => typeof text !== 'string');
  if (wrong) throw fileError(path, `${metadataName} has ${show(wrong[1])} as ${show(wrong[0])}, which is no string`);
  return { ...(value as Record<string, string>) };
}

const isSize = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;
const isSizes = (value: unknown): value is number[] => Array.isArray(value) && value.every(isSize);

/** The bytes of a tensor; undefined where they are no exact number. Empty axes do not hide that others are too long. */
function bytesOf(dtype: SafetensorsDType, shape: readonly number[]): number | undefined {
  const bytes = shape.reduce((product, n) => (n === 0 ? product : product * n), arrayTypes[dtype].BYTES_PER_ELEMENT);
  if (!Number.isSafeInteger(bytes)) return undefined;
  return shape.includes(0) ? 0 : bytes;
}

function parseTensor(path: string, name: string, value: unknown): StoredTensor {
  const wrong = (problem: string) => fileError(path, `tensor ${show(name)} ${problem}`);
  if (!name.isWellFormed()) throw wrong('has a name that is not Unicode');
  if (!isObject(value)) throw wrong(`is ${show(value)}, not a JSON object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isSafetensorsDType(dtype)) throw wrong(`has the unknown dtype ${show(dtype)}`);
  if (!isSizes(shape)) throw wrong(`has the shape ${show(shape)}, not a list of integers >= 0`);
  const byteLength = bytesOf(dtype, shape);
  if (byteLength === undefined) throw wrong(`has the shape ${show(shape)}, which is more than 2^53 bytes`);
  if (!isSizes(offsets) || offsets.length !== 2)
    throw wrong(`has the data_offsets ${show(offsets)}, not two integers >= 0`);
  const [begin, end] = offsets;
  if (end - begin !== byteLength)
    throw wrong(`needs ${byteLength} bytes for ${dtype} ${show(shape)}, its data_offsets are ${show(offsets)}`);
  return { dtype, shape: Object.freeze(shape.map((n) => n + 0)), byteOffset: begin + 0, byteLength };
}

type Named = readonly [name: string, tensor: StoredTensor];

/** Every byte behind the header belongs to one tensor. */
function checkOffsets(path: string, tensors: readonly Named[], available: number): void {
  let at = 0;
  for (const [name, { byteOffset, byteLength }] of tensors) {
    const wrong = (problem: string) => fileError(path, `tensor ${show(name)} ${problem}`);
    const end = byteOffset + byteLength;
    if (byteOffset < at) throw wrong(`overlaps the tensor before it: it begins at byte ${byteOffset}, before ${at}`);
    if (byteOffset > at) throw wrong(`leaves a gap before it: it begins at byte ${byteOffset}, behind ${at}`);
    if (end > available) throw wrong(`is cut off: it ends at byte ${end} of the data, which has ${available}`);
    at = end;
  }
  if (at < available) throw fileError(path, `${available - at} bytes behind the last tensor belong to none`);
}

/** @throws ERR_FILE when the header is not the one that was written */
function parseChecksums(path: string, text: string, header: Header): ReadonlyMap<string, number> {
  const names = sortedNames(header.tensors);
  const words = text.split(' ');
  if (words.length !== names.length + 1 || !words.every((word) => /^[0-9a-f]{8}$/.test(word)))
    throw fileError(path, `${checksumKey} of its metadata is not a checksum of the header and of each tensor`);
  const [first, ...rest] = words.map((word) => Number.parseInt(word, 16));
  if (first !== headerChecksum(header))
    throw fileError(
      path,
      `its header has changed since it was written, as the checksums in ${checksumKey} of its metadata tell`,
    );
  return new Map(names.map((name, at) => [name, rest[at]]));
}

/**
 * @param bytes of the JSON
 * @param fileLength of the whole file
 * @throws ERR_FILE
 */
export function parseHeader(path: string, bytes: Uint8Array, fileLength: number): Header {
  const json = parseJson(path, bytes);
  const stored = Object.hasOwn(json, metadataName) ? parseMetadata(path, json[metadataName]) : {};
  const { [checksumKey]: sums, ...metadata }: Partial<Record<string, string>> & Record<string, string> = stored;
  const begin = lengthBytes + bytes.length;
  const parsed = Object.entries(json)
    .filter(([name]) => name !== metadataName)
    .map(([name, value]): Named => [name, parseTensor(path, name, value)])
    .sort(([, a], [, b]) => a.byteOffset - b.byteOffset || a.byteLength - b.byteLength);
  checkOffsets(path, parsed, fileLength - begin);
  const tensors = new Map(
    parsed.map(([name, tensor]) => [name, Object.freeze({ ...tensor, byteOffset: begin + tensor.byteOffset })]),
  );
  const header: Header = { metadata: Object.freeze(metadata), tensors, checksums: undefined };
  return sums === undefined ? header : { ...header, checksums: parseChecksums(path, sums, header) };
}
