import { addressOf, type Flat } from './operand.js';
import { operation } from './operation.js';
import { type CodeFormat, codeFormats, wordsOf } from './quantise.js';
import { struct } from './struct.js';

/** Rows of codes, as `quantise` writes them. */
export interface CodesOperand {
  /** int32 [batch, rows, words] */
  readonly codes: Flat;
  /** float32 [batch, rows], or [1] of all. */
  readonly scale: Flat;
  readonly format: CodeFormat;
  readonly hasRowScales: boolean;
}

/** C[b, i, j] = the sum over k of A[b, i, k] B[b, j, k], over the scales of row i and column j, + bias[j] */
export interface CodeMatmulOperands {
  /** Of bytes: [batch, rows, inner]. */
  readonly a: CodesOperand;
  /** [batch, columns, inner] */
  readonly b: CodesOperand;
  /** [batch, rows, columns] */
  readonly c: Flat;
  /** float32 [columns] */
  readonly bias?: Flat | undefined;
  readonly batch: number;
  readonly rows: number;
  readonly columns: number;
  readonly inner: number;
}

/** Sums of so many products of 8 bits fit in 32. */
export const mostCodes = 2 ** 17 - 1;

const codesRef = struct('CodesRef', {
  codes: 'address',
  scale: 'address',
  words: 'int32',
  format: 'int32',
  hasRowScales: 'int32',
  reserved: 'int32',
});

const params = struct('CodeMatmulParams', {
  a: codesRef,
  b: codesRef,
  c: 'address',
  bias: 'address',
  dtype: 'dtype',
  batch: 'int32',
  rows: 'int32',
  columns: 'int32',
  inner: 'int32',
  reserved: 'int32',
});

export const codeMatmul = operation('codeMatmul', params, (operands: CodeMatmulOperands) => {
  const { a, b, c, bias, batch, rows, columns, inner } = operands;
  if (batch * rows * columns === 0) return undefined;
  const refOf = ({ codes, scale, format, hasRowScales }: CodesOperand) => ({
    codes: addressOf(codes),
    scale: addressOf(scale),
    words: wordsOf(inner, format),
    format: codeFormats.indexOf(format),
    hasRowScales: hasRowScales ? 1 : 0,
  });
  const reads = [a.codes.buffer, a.scale.buffer, b.codes.buffer, b.scale.buffer];
  if (bias) reads.push(bias.buffer);
  return {
    params: {
      a: refOf(a),
      b: refOf(b),
      c: addressOf(c),
      bias: addressOf(bias),
      dtype: c.dtype,
      batch,
      rows,
      columns,
      inner,
    },
    reads,
    writes: [c.buffer],
    work: 2 * batch * rows * columns * Math.max(1, inner),
  };
});
