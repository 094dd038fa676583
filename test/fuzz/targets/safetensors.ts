import {
  formatHeader,
  type Header,
  lengthBytes,
  parseHeader,
  parseLength,
  type StoredTensor,
} from '../../../lib/nn/safetensorsHeader.js';
import { parseSafetensors, SafetensorsError, type SafetensorsFile } from '../../../verify/golden/safetensors.js';
import type { Random } from '../random.js';
import { assert, assertSameBytes, type FuzzTarget, withBoundedMemory } from '../target.js';

const bytesOf = { BOOL: 1, U8: 1, I8: 1, F16: 2, BF16: 2, U16: 2, I32: 4, F32: 4, I64: 8, F64: 8 } as const;
const dtypes = Object.keys(bytesOf) as (keyof typeof bytesOf)[];
const codes = new Set(['ERR_TRUNCATED', 'ERR_HEADER', 'ERR_DTYPE', 'ERR_SHAPE', 'ERR_OFFSETS']);

/** JSON that stands where something else should. */
const strange = [
  'null',
  'true',
  '-1',
  '0.5',
  '1e999',
  '9007199254740993',
  '4294967296',
  '""',
  '"F32"',
  '[]',
  '{}',
  '{"toString":null,"valueOf":null}',
  '{"__proto__":null}',
  '[9007199254740991,9007199254740991,0]',
];
/** Deeper than a recursive function can go. */
const deep = `${'['.repeat(15_000)}${']'.repeat(15_000)}`;
const strangeJson = (random: Random) => (random.chance(0.01) ? deep : random.pick(strange));
const tokens = ['"', '{', '}', '[', ']', ',', ':', '\\u0000', '\\', '__metadata__', '__proto__', 'data_offsets', ' '];

/** A file with this header and data. */
function assemble(header: string, data: Uint8Array): Uint8Array {
  const text = new TextEncoder().encode(header);
  const file = new Uint8Array(8 + text.length + data.length);
  new DataView(file.buffer).setBigUint64(0, BigInt(text.length), true);
  file.set(text, 8);
  file.set(data, 8 + text.length);
  return file;
}

/** A file that is right but for what `spoil` makes of a value's JSON. */
function randomFile(random: Random, spoil: (json: string) => string): Uint8Array {
  let end = 0;
  const entries = Array.from({ length: random.below(4) }, (_, index) => {
    const dtype = random.pick(dtypes);
    const shape = Array.from({ length: random.below(4) }, () => random.below(4));
    const begin = end;
    end += shape.reduce((size, dim) => size * dim, bytesOf[dtype]);
    const name = random.chance(0.1) ? random.pick(['__proto__', '', 'constructor', '\\ud800']) : `t${index}`;
    const fields = {
      dtype: JSON.stringify(dtype),
      shape: JSON.stringify(shape),
      data_offsets: JSON.stringify([begin, end]),
    };
    const text = Object.entries(fields).map(([field, json]) => `"${field}":${spoil(json)}`);
    return `"${name}":${spoil(`{${text.join(',')}}`)}`;
  });
  if (random.chance(0.3)) entries.unshift(`"__metadata__":${spoil('{"a":"b"}')}`);
  const data = Uint8Array.from({ length: end }, () => random.below(256));
  return assemble(spoil(`{${entries.join(',')}}`), data);
}

/** Changes the header as text and keeps its length right. */
function changeHeader(random: Random, input: Uint8Array): Uint8Array {
  if (input.length < 8) return input;
  const length = Number(new DataView(input.buffer, input.byteOffset).getBigUint64(0, true));
  const header = new TextDecoder().decode(input.subarray(8, 8 + length));
  const at = random.below(header.length + 1);
  const removed = random.chance(0.5) ? random.below(8) : 0;
  const added = random.chance(0.7) ? (random.chance(0.5) ? random.pick(tokens) : strangeJson(random)) : '';
  return assemble(header.slice(0, at) + added + header.slice(at + removed), input.subarray(8 + length));
}

/** The same contents as a file again. */
function encode({ metadata, tensors }: SafetensorsFile): Uint8Array {
  let end = 0;
  const described = [...tensors].map(([name, { dtype, shape, values }]) => {
    const begin = end;
    end += values.byteLength;
    return [name, { dtype, shape, data_offsets: [begin, end] }] as const;
  });
  const data = new Uint8Array(end);
  let at = 0;
  for (const { values } of tensors.values()) {
    data.set(new Uint8Array(values.buffer), at);
    at += values.byteLength;
  }
  const members = [['__metadata__', Object.fromEntries(metadata)] as const, ...described];
  const json = members.map(([name, value]) => `${JSON.stringify(name)}:${JSON.stringify(value)}`);
  return assemble(`{${json.join(',')}}`, data);
}

function checkSame(got: SafetensorsFile, wanted: SafetensorsFile): void {
  assert(got.tensors.size === wanted.tensors.size, 'encoding again changes the number of tensors');
  for (const [name, { dtype, shape, values }] of wanted.tensors) {
    const other = got.tensors.get(name);
    assert(other !== undefined && other.dtype === dtype, `encoding again changes tensor ${name}`);
    assert(JSON.stringify(other.shape) === JSON.stringify(shape), `encoding again changes the shape of ${name}`);
    assertSameBytes(new Uint8Array(other.values.buffer), new Uint8Array(values.buffer), `tensor ${name}`);
  }
}

const parse = (input: Uint8Array): Header => {
  const length = parseLength('fuzzed', input, input.length);
  return parseHeader('fuzzed', input.subarray(lengthBytes, lengthBytes + length), input.length);
};

/** The reader of the package, which takes nothing that the one of golden files would not, and finds the same in it. */
function checkPackage(input: Uint8Array, file: SafetensorsFile | undefined): void {
  if (input.length < lengthBytes) return; // never given to it
  let header: Header;
  try {
    header = withBoundedMemory(input, parse);
  } catch (error) {
    if (error instanceof Error && (error as { code?: unknown }).code === 'ERR_FILE') return;
    throw error;
  }
  assert(file !== undefined, 'the package takes what the reader of golden files refuses');
  assert(header.tensors.size === file.tensors.size, 'the package finds another number of tensors');
  let begin = input.length;
  for (const { byteOffset } of header.tensors.values()) begin = Math.min(begin, byteOffset);
  const moved = new Map<string, StoredTensor>();
  for (const [name, tensor] of header.tensors) {
    const other = file.tensors.get(name);
    assert(other?.dtype === tensor.dtype, `the package finds another dtype of ${name}`);
    assert(JSON.stringify(other.shape) === JSON.stringify(tensor.shape), `the package finds another shape of ${name}`);
    const { byteOffset, byteLength } = tensor;
    const bytes = input.subarray(byteOffset, byteOffset + byteLength);
    assertSameBytes(bytes, new Uint8Array(other.values.buffer), `tensor ${name} of the package`);
    moved.set(name, { ...tensor, byteOffset: byteOffset - begin });
  }
  const text = formatHeader({ ...header, tensors: moved });
  const again = parse(new Uint8Array(Buffer.concat([text, input.subarray(begin)])));
  const described = ({ metadata, tensors }: Header) =>
    JSON.stringify([metadata, Array.from(tensors, ([name, { dtype, shape }]) => [name, dtype, shape]).sort()]);
  assert(described(again) === described(header), 'writing the header again changes it');
}

export const target: FuzzTarget = {
  seeds: () => [
    assemble('{}', new Uint8Array()),
    assemble(
      '{"__metadata__":{"format":"pt"},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}',
      new Uint8Array(8),
    ),
    assemble(
      '{"b":{"dtype":"BF16","shape":[1,3],"data_offsets":[4,10]},"a":{"dtype":"I32","shape":[],"data_offsets":[0,4]}}',
      new Uint8Array(10),
    ),
  ],

  mutate(random, input) {
    if (random.chance(0.5)) return changeHeader(random, input);
    const share = random.pick([0, 0.02, 0.1]);
    return randomFile(random, (json) => (random.chance(share) ? strangeJson(random) : json));
  },

  run(input) {
    let file: SafetensorsFile | undefined;
    try {
      file = withBoundedMemory(input, parseSafetensors);
    } catch (error) {
      if (!(error instanceof SafetensorsError && codes.has(error.code))) throw error;
    }
    checkPackage(input, file);
    if (!file) return;
    const { byteLength } = [...file.tensors.values()].reduce(
      (sum, { values }) => ({ byteLength: sum.byteLength + values.byteLength }),
      { byteLength: 0 },
    );
    assert(byteLength <= input.length, `tensors of ${byteLength} bytes out of ${input.length}`);
    checkSame(parseSafetensors(encode(file)), file);
  },
};
