// Built-in arrays are told by what they are, never with `instanceof`: those of another realm (a vm context, jest's
// environments, an iframe) have constructors of their own.

interface TypedArrays {
  Int8Array: Int8Array;
  Uint8Array: Uint8Array;
  Uint8ClampedArray: Uint8ClampedArray;
  Int16Array: Int16Array;
  Uint16Array: Uint16Array;
  Int32Array: Int32Array;
  Uint32Array: Uint32Array;
  Float32Array: Float32Array;
  Float64Array: Float64Array;
  BigInt64Array: BigInt64Array;
  BigUint64Array: BigUint64Array;
}

type TypedArrayName = keyof TypedArrays;

// This getter reads an internal slot: it works in every realm and cannot be fooled.
const nameOf = Object.getOwnPropertyDescriptor(Object.getPrototypeOf(Uint8Array.prototype), Symbol.toStringTag)
  ?.get as () => string | undefined;

/** The name of a typed array's type, such as 'Float32Array'; undefined for anything else. */
export const typedArrayName = (value: unknown): string | undefined => nameOf.call(value);

/** Whether `value` is a typed array of one of these types, of whatever realm. */
export function isTyped<Name extends TypedArrayName>(value: unknown, ...names: Name[]): value is TypedArrays[Name] {
  const name = typedArrayName(value);
  return name !== undefined && (names as string[]).includes(name);
}

const integerArrays = [
  'Int8Array',
  'Uint8Array',
  'Uint8ClampedArray',
  'Int16Array',
  'Uint16Array',
  'Int32Array',
  'Uint32Array',
  'BigInt64Array',
  'BigUint64Array',
] as const satisfies readonly TypedArrayName[];

/** What integers may be listed in. */
export type IntegerList = readonly (number | bigint)[] | TypedArrays[(typeof integerArrays)[number]];

export const isIntegerList = (value: unknown): value is IntegerList =>
  Array.isArray(value) || isTyped(value, ...integerArrays);
