// Structs that cross to native code, described as native/structs defines them. Fields have fixed sizes on every side and lie
// at multiples of them, so a place follows from the order. `checkFields` compares names and places with what was compiled.
import type { DType } from '../base/dtype.js';
import { FlashAttnError } from '../base/errors.js';

/** Kinds of numbers. 'address' and 'int64' are whole numbers below 2^53. */
export type Scalar = 'address' | 'int64' | 'int32' | 'uint32' | 'float32' | 'dtype';

/** Several in a row. Fewer may be given: what lies behind them is left as it was. */
export interface Repeated<Of extends Scalar | Struct<Fields> = Scalar | Struct<Fields>> {
  readonly of: Of;
  readonly count: number;
}

/** 'int32Rest': of whole numbers what the nearest float is short of, which kernels of programs alone read. */
export type StoredDType = DType | 'int32Rest';

export type FieldKind = Scalar | Repeated | Struct<Fields>;
export type Fields = { readonly [name: string]: FieldKind };

export interface Field {
  readonly name: string;
  readonly kind: FieldKind;
  /** In bytes. */
  readonly offset: number;
  readonly size: number;
}

type ValueOf<K extends FieldKind> = K extends 'dtype'
  ? StoredDType | undefined
  : K extends Scalar
    ? number
    : K extends Repeated<infer Of>
      ? readonly ValueOf<Of>[]
      : K extends Struct<infer F>
        ? ValuesOf<F> | undefined
        : never;

/** What is written: `undefined` in the place of a struct is zeros. Fields named `reserved` are left out. */
export type ValuesOf<F extends Fields> = { readonly [name in Exclude<keyof F, 'reserved'>]: ValueOf<F[name]> };

export interface Struct<F extends Fields = Fields> {
  readonly name: string;
  readonly fields: readonly Field[];
  readonly byteLength: number;
  /** Only a type. */
  readonly values?: ValuesOf<F>;
}

const isStruct = (kind: FieldKind): kind is Struct<Fields> => typeof kind === 'object' && 'fields' in kind;

function sizeOf(kind: FieldKind): number {
  if (typeof kind === 'object') return isStruct(kind) ? kind.byteLength : kind.count * sizeOf(kind.of);
  return kind === 'address' || kind === 'int64' ? 8 : 4;
}

const alignmentOf = (kind: FieldKind): number =>
  isStruct(kind)
    ? Math.max(...kind.fields.map((field) => alignmentOf(field.kind)))
    : typeof kind === 'object'
      ? alignmentOf(kind.of)
      : sizeOf(kind);

/** Describes the struct `name` of native/structs, whose fields have the same names in snake case. */
export function struct<const F extends Fields>(name: string, kinds: F): Struct<F> {
  let end = 0;
  const fields = Object.entries(kinds).map(([field, kind]) => {
    const alignment = alignmentOf(kind);
    const offset = Math.ceil(end / alignment) * alignment;
    const size = sizeOf(kind);
    end = offset + size;
    return { name: field, kind, offset, size };
  });
  // As in C++, a struct ends where the next one of an array may begin.
  const alignment = Math.max(...fields.map((field) => alignmentOf(field.kind)));
  return { name, fields, byteLength: Math.ceil(end / alignment) * alignment };
}

const snakeCase = (name: string) => name.replace(/[A-Z]/g, (letter) => `_${letter.toLowerCase()}`);

/** 'lse@160:8' is the field lse of 8 bytes at byte 160. */
const placeOf = ({ name, offset, size }: Field) => `${snakeCase(name)}@${offset}:${size}`;

/** What native code says of itself: its operations, the instructions of its programs, and the fields of each struct. */
export interface NativeDescription {
  readonly operations: readonly string[];
  readonly opcodes: readonly string[];
  readonly structs: ReadonlyMap<string, readonly string[]>;
}

/** Reads the text that native/structs/fields.h writes. */
export function parseDescription(text: string): NativeDescription {
  const structs = new Map<string, readonly string[]>();
  for (const line of text.split('\n')) {
    const [name, ...words] = line.split(' ');
    if (name) structs.set(name, words);
  }
  return { operations: structs.get('operations') ?? [], opcodes: structs.get('opcodes') ?? [], structs };
}

/**
 * Compares a struct, and those within it, with what was compiled.
 *
 * @throws ERR_DEVICE, naming the fields that differ
 */
export function checkFields({ structs }: Pick<NativeDescription, 'structs'>, described: Struct, build: string): void {
  const expected = described.fields.map(placeOf);
  const found = structs.get(described.name) ?? [];
  const missing = expected.filter((place) => !found.includes(place));
  const unknown = found.filter((place) => !expected.includes(place));
  if (missing.length > 0 || unknown.length > 0)
    throw new FlashAttnError(
      'ERR_DEVICE',
      `${build} is of another version: its ${described.name} has ${unknown.join(', ') || 'nothing'} where this version has ` +
        `${missing.join(', ') || 'nothing'} (field@byte:size); build it again`,
    );
  for (const { kind } of described.fields) {
    const inner = typeof kind === 'object' && !isStruct(kind) ? kind.of : kind;
    if (isStruct(inner)) checkFields({ structs }, inner, build);
  }
}
