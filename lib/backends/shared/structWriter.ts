// Structs of lib/kernels/struct.ts in memory.
import type { Field, FieldKind, Fields, Repeated, StoredDType, Struct, ValuesOf } from '../../kernels/struct.js';

/** `DType` of native/structs/types.h, and `kInt32Rest` of elementwise.h beside it. */
const dtypeCode: Readonly<Record<StoredDType, number>> = {
  float32: 0,
  float16: 1,
  bfloat16: 2,
  int32: 3,
  bool: 4,
  int32Rest: 5,
};

const high = 2 ** 32;

/** Memory as words and as floats. */
export class StructMemory {
  readonly words: Uint32Array;
  readonly #floats: Float32Array;

  constructor(buffer: ArrayBufferLike) {
    this.words = new Uint32Array(buffer);
    this.#floats = new Float32Array(buffer);
  }

  /** Writes every field, from byte `at` on: zeros where there is no value. */
  write<F extends Fields>(struct: Struct<F>, values: ValuesOf<F> | undefined, at = 0): void {
    const record = values as Readonly<Record<string, unknown>> | undefined;
    for (const field of struct.fields) this.#writeField(field, record?.[field.name], (at + field.offset) / 4);
  }

  read<F extends Fields>(struct: Struct<F>, at = 0): ValuesOf<F> {
    const values: Record<string, number> = {};
    for (const { name, kind, offset } of struct.fields) values[name] = this.#readNumber(kind, (at + offset) / 4);
    return values as ValuesOf<F>;
  }

  #writeField({ kind, size }: Field, value: unknown, word: number): void {
    if (value === undefined) {
      this.words.fill(0, word, word + size / 4);
    } else if (typeof kind === 'object') {
      if ('fields' in kind) this.write(kind, value as ValuesOf<Fields>, word * 4);
      else this.#writeRepeated(kind, value as readonly unknown[], word);
    } else if (kind === 'dtype') {
      this.words[word] = dtypeCode[value as StoredDType];
    } else if (kind === 'float32') {
      this.#floats[word] = value as number;
    } else if (size === 8) {
      this.#writeLong(value as number, word);
    } else {
      this.words[word] = value as number;
    }
  }

  #writeRepeated({ of, count }: Repeated, values: readonly unknown[], word: number): void {
    if (of === 'uint32' || of === 'int32') this.words.set(values as readonly number[], word);
    else if (of === 'float32') this.#floats.set(values as readonly number[], word);
    else if (of === 'int64') for (let i = 0; i < count; i++) this.#writeLong(values[i] as number, word + 2 * i);
    else if (typeof of === 'object') {
      for (let i = 0; i < values.length; i++)
        this.write(of, values[i] as ValuesOf<Fields>, 4 * word + i * of.byteLength);
    }
  }

  #writeLong(value: number, word: number): void {
    this.words[word] = value % high;
    this.words[word + 1] = Math.floor(value / high);
  }

  #readNumber(kind: FieldKind, word: number): number {
    const low = this.words[word];
    if (kind === 'int32') return low | 0;
    if (kind === 'int64' || kind === 'address') return low + high * this.words[word + 1];
    return kind === 'float32' ? this.#floats[word] : low;
  }
}
