/**
 * A validating reader of safetensors: 8 bytes of header length, a JSON header, and the raw little-endian tensors
 * one after the other with neither holes nor overlaps.
 */
export type SafetensorsErrorCode =
  | 'ERR_TRUNCATED' // the file ends before its header or its data does
  | 'ERR_HEADER' // the header is not the JSON it must be
  | 'ERR_DTYPE' // a tensor of an unknown type
  | 'ERR_SHAPE' // a shape that is none, or that does not match the bytes
  | 'ERR_OFFSETS'; // bytes outside of the data, in a hole, or used twice

export class SafetensorsError extends Error {
  override readonly name = 'SafetensorsError';

  constructor(
    readonly code: SafetensorsErrorCode,
    message: string,
  ) {
    super(message);
  }
}

export type SafetensorsDType =
  | 'BOOL'
  | 'U8'
  | 'I8'
  | 'I16'
  | 'U16'
  | 'F16'
  | 'BF16'
  | 'I32'
  | 'U32'
  | 'F32'
  | 'I64'
  | 'U64'
  | 'F64';

export type Values =
  | Uint8Array
  | Int8Array
  | Int16Array
  | Uint16Array
  | Int32Array
  | Uint32Array
  | Float32Array
  | Float64Array
  | BigInt64Array
  | BigUint64Array;

interface ElementType {
  readonly bytes: number;
  read(buffer: ArrayBuffer): Values;
}

/** float16 and bfloat16 are handed out as their bits. */
const ELEMENT_TYPES: Readonly<Record<SafetensorsDType, ElementType>> = {
  BOOL: { bytes: 1, read: (buffer) => new Uint8Array(buffer) },
  U8: { bytes: 1, read: (buffer) => new Uint8Array(buffer) },
  I8: { bytes: 1, read: (buffer) => new Int8Array(buffer) },
  I16: { bytes: 2, read: (buffer) => new Int16Array(buffer) },
  U16: { bytes: 2, read: (buffer) => new Uint16Array(buffer) },
  F16: { bytes: 2, read: (buffer) => new Uint16Array(buffer) },
  BF16: { bytes: 2, read: (buffer) => new Uint16Array(buffer) },
  I32: { bytes: 4, read: (buffer) => new Int32Array(buffer) },
  U32: { bytes: 4, read: (buffer) => new Uint32Array(buffer) },
  F32: { bytes: 4, read: (buffer) => new Float32Array(buffer) },
  I64: { bytes: 8, read: (buffer) => new BigInt64Array(buffer) },
  U64: { bytes: 8, read: (buffer) => new BigUint64Array(buffer) },
  F64: { bytes: 8, read: (buffer) => new Float64Array(buffer) },
};

export interface StoredTensor {
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly values: Values;
}

export interface SafetensorsFile {
  readonly metadata: ReadonlyMap<string, string>;
  readonly tensors: ReadonlyMap<string, StoredTensor>;
}

interface Entry {
  readonly name: string;
  readonly dtype: SafetensorsDType;
  readonly shape: readonly number[];
  readonly begin: number;
  readonly end: number;
}

const LENGTH_BYTES = 8;
const LARGEST_HEADER = 100_000_000;

export function parseSafetensors(bytes: Uint8Array): SafetensorsFile {
  const headerLength = readHeaderLength(bytes);
  const dataBegin = LENGTH_BYTES + headerLength;
  const header = parseHeader(bytes.subarray(LENGTH_BYTES, dataBegin));
  const metadata = parseMetadata(header.__metadata__);
  const entries = Object.entries(header)
    .filter(([name]) => name !== '__metadata__')
    .map(([name, value]) => parseEntry(name, value));
  checkOffsets(entries, bytes.length - dataBegin);

  const tensors = new Map<string, StoredTensor>();
  for (const { name, dtype, shape, begin, end } of entries) {
    // A copy, because a typed array has to begin at a multiple of its element size.
    const copy = Uint8Array.from(bytes.subarray(dataBegin + begin, dataBegin + end));
    tensors.set(name, { dtype, shape, values: ELEMENT_TYPES[dtype].read(copy.buffer) });
  }
  return { metadata, tensors };
}

function readHeaderLength(bytes: Uint8Array): number {
  if (bytes.length < LENGTH_BYTES) {
    throw new SafetensorsError('ERR_TRUNCATED', `file has ${bytes.length} bytes, the header length alone needs 8`);
  }
  const length = new DataView(bytes.buffer, bytes.byteOffset, bytes.length).getBigUint64(0, true);
  if (length > BigInt(LARGEST_HEADER)) {
    throw new SafetensorsError('ERR_HEADER', `header length ${length} is beyond the limit of ${LARGEST_HEADER} bytes`);
  }
  const available = bytes.length - LENGTH_BYTES;
  if (Number(length) > available) {
    throw new SafetensorsError('ERR_TRUNCATED', `header needs ${length} bytes, file has ${available} left`);
  }
  return Number(length);
}

/** A value of the header as messages show it: whatever it is, and not all of it. */
function show(value: unknown): string {
  if (Array.isArray(value)) return `an array of ${value.length}`;
  if (isRecord(value)) return 'an object';
  return String(value).slice(0, 40);
}

function showList(value: unknown): string {
  if (!Array.isArray(value)) return show(value);
  return `[${value.slice(0, 8).map(show).join(',')}${value.length > 8 ? ',...' : ''}]`;
}

function isRecord(value: unknown): value is Record<string, unknown> {
  return typeof value === 'object' && value !== null && !Array.isArray(value);
}

function parseHeader(bytes: Uint8Array): Record<string, unknown> {
  let header: unknown;
  try {
    header = JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (error) {
    throw new SafetensorsError('ERR_HEADER', `header is not JSON: ${error instanceof Error ? error.message : error}`);
  }
  if (!isRecord(header)) throw new SafetensorsError('ERR_HEADER', 'header is not a JSON object');
  return header;
}

function parseMetadata(value: unknown): Map<string, string> {
  if (value === undefined) return new Map();
  if (!isRecord(value)) throw new SafetensorsError('ERR_HEADER', '__metadata__ is not a JSON object');
  return new Map(
    Object.entries(value).map(([key, text]) => {
      if (typeof text !== 'string') throw new SafetensorsError('ERR_HEADER', `__metadata__.${key} is not a string`);
      return [key, text];
    }),
  );
}

function isSize(value: unknown): value is number {
  return typeof value === 'number' && Number.isSafeInteger(value) && value >= 0;
}

function isElementType(value: unknown): value is SafetensorsDType {
  return typeof value === 'string' && Object.hasOwn(ELEMENT_TYPES, value);
}

function parseEntry(name: string, value: unknown): Entry {
  if (!isRecord(value)) throw new SafetensorsError('ERR_HEADER', `tensor ${name} is not described by a JSON object`);
  const { dtype, shape, data_offsets: offsets } = value;
  if (!isElementType(dtype)) throw new SafetensorsError('ERR_DTYPE', `tensor ${name} has dtype ${show(dtype)}`);
  if (!Array.isArray(shape) || !shape.every(isSize)) {
    throw new SafetensorsError('ERR_SHAPE', `tensor ${name} has shape ${showList(shape)}`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isSize)) {
    throw new SafetensorsError('ERR_OFFSETS', `tensor ${name} has data_offsets ${showList(offsets)}`);
  }
  const [begin, end] = offsets as [number, number];
  const needs = shape.reduce((size, dim) => size * dim, ELEMENT_TYPES[dtype].bytes);
  if (end - begin !== needs) {
    throw new SafetensorsError(
      'ERR_SHAPE',
      `tensor ${name} of ${dtype}[${shape.join(',')}] needs ${needs} bytes, data_offsets give ${end - begin}`,
    );
  }
  return { name, dtype, shape, begin, end };
}

function checkOffsets(entries: readonly Entry[], available: number): void {
  let position = 0;
  for (const { name, begin, end } of [...entries].sort((a, b) => a.begin - b.begin || a.end - b.end)) {
    if (begin !== position) {
      const what = begin < position ? 'overlaps the tensor before it' : 'leaves a hole before it';
      throw new SafetensorsError('ERR_OFFSETS', `tensor ${name} at byte ${begin} ${what}, expected ${position}`);
    }
    if (end > available) {
      throw new SafetensorsError('ERR_TRUNCATED', `tensor ${name} ends at byte ${end}, file has ${available}`);
    }
    position = end;
  }
  if (position !== available) {
    throw new SafetensorsError('ERR_OFFSETS', `${available - position} bytes after the last tensor belong to none`);
  }
}
