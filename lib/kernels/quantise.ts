import type { DType } from '../base/dtype.js';
import { addressOf, type Flat, type Operand } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

/** How codes lie in words: 'bytes' of 8 bits, with their sum behind them, or 'trits' from -1 to 1: native/structs/quantise.h. */
export const codeFormats = ['bytes', 'trits'] as const;
export type CodeFormat = (typeof codeFormats)[number];

// Kernels read words by whole vectors. Rows of bytes are one line of a cache longer than that, so that those of a power of
// two of elements do not all meet in the same place of it.
const wordsAtOnce = 16;

/** Words of a row of so many codes. */
export function wordsOf(inner: number, format: CodeFormat): number {
  const whole = (words: number) => Math.ceil(words / wordsAtOnce) * wordsAtOnce;
  return format === 'trits' ? whole(Math.ceil(inner / 16)) : whole(Math.ceil(inner / 4)) + wordsAtOnce;
}

export interface QuantiseOperands {
  /** [rows, inner], its rows contiguous. */
  readonly x: Operand & { readonly rowStride: number };
  /** float32 [1], of all rows; undefined: of each row 127 / max(max|x|, least). */
  readonly scale?: Flat | undefined;
  /** int32 [rows, words] */
  readonly codes: Flat;
  /** float32 [rows], where there is no scale. */
  readonly rowScale?: Flat | undefined;
  readonly rows: number;
  readonly inner: number;
  readonly format: CodeFormat;
  readonly least: number;
  readonly smallest: number;
  readonly largest: number;
}

const params = struct('QuantiseParams', {
  x: 'address',
  scale: 'address',
  codes: 'address',
  rowScale: 'address',
  xRow: 'int64',
  dtype: 'dtype',
  rows: 'int32',
  inner: 'int32',
  words: 'int32',
  format: 'int32',
  least: 'float32',
  smallest: 'float32',
  largest: 'float32',
});

/** codes = round(x * scale), ties to even, from `smallest` to `largest`. */
export const quantise = operation('quantise', params, (operands: QuantiseOperands) => {
  const { x, scale, codes, rowScale, rows, inner, format, least, smallest, largest } = operands;
  if (rows === 0) return undefined;
  const reads = [x.buffer];
  if (scale) reads.push(scale.buffer);
  const writes = [codes.buffer];
  if (rowScale) writes.push(rowScale.buffer);
  return {
    params: {
      x: addressOf(x),
      scale: addressOf(scale),
      codes: addressOf(codes),
      rowScale: addressOf(rowScale),
      xRow: x.rowStride,
      dtype: x.dtype as DType,
      rows,
      inner,
      words: wordsOf(inner, format),
      format: codeFormats.indexOf(format),
      least,
      smallest,
      largest,
    },
    reads,
    writes,
    work: elementWork * rows * Math.max(1, inner),
  };
});
