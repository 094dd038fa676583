import fc from 'fast-check';
import {
  openSafetensors,
  type SafetensorsDType,
  type SafetensorsEntry,
  type StoredTensor,
} from '../../lib/nn/safetensors.js';

/** Written out here once more: a test must not take them from what it tests. */
export const bytesPerElement: Record<SafetensorsDType, number> = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  U16: 2,
  I16: 2,
  F16: 2,
  BF16: 2,
  U32: 4,
  I32: 4,
  F32: 4,
  U64: 8,
  I64: 8,
  F64: 8,
};

export interface Entry extends SafetensorsEntry {
  readonly data: Uint8Array;
}

const names = fc.oneof(
  fc.string({ unit: 'grapheme', maxLength: 8 }),
  fc.constantFrom(
    '__proto__',
    'constructor',
    'toString',
    '"',
    '\\',
    '{',
    '}:',
    '\u0000',
    'model.h.0.attn.c_attn.weight',
  ),
);

const entry: fc.Arbitrary<Entry> = fc
  .record({
    name: names,
    dtype: fc.constantFrom(...(Object.keys(bytesPerElement) as SafetensorsDType[])),
    shape: fc.array(fc.integer({ min: 0, max: 4 }), { maxLength: 4 }),
  })
  .chain(({ name, dtype, shape }) => {
    const length = shape.reduce((product, n) => product * n, bytesPerElement[dtype]);
    return fc
      .uint8Array({ minLength: length, maxLength: length })
      .map((data) => ({ name, dtype, shape, data: Uint8Array.from(data) }));
  });

export const arbitraryEntries = fc.uniqueArray(entry, { selector: ({ name }) => name, maxLength: 6 });

export const arbitraryMetadata = fc.dictionary(names, fc.string({ unit: 'grapheme', maxLength: 12 }), { maxKeys: 3 });

export interface Contents {
  readonly metadata: Readonly<Record<string, string>>;
  readonly tensors: Record<string, Pick<StoredTensor, 'dtype' | 'shape'> & { readonly bytes: Uint8Array }>;
}

export const contentsOf = (entries: readonly Entry[], metadata: Readonly<Record<string, string>> = {}): Contents => ({
  metadata: Object.fromEntries(Object.entries(metadata)),
  tensors: Object.fromEntries(entries.map(({ name, dtype, shape, data }) => [name, { dtype, shape, bytes: data }])),
});

/** All that a file holds. */
export async function readContents(path: string): Promise<Contents> {
  await using file = await openSafetensors(path);
  const tensors = [];
  for (const [name, { dtype, shape }] of file.tensors) {
    const { buffer } = await file.read(name);
    tensors.push([name, { dtype, shape, bytes: new Uint8Array(buffer) }] as const);
  }
  return { metadata: Object.fromEntries(Object.entries(file.metadata)), tensors: Object.fromEntries(tensors) };
}

export const ramp = (length: number, from = 0) => Float32Array.from({ length }, (_, at) => from + at);
