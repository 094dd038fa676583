// Whole numbers of few bits in words, and their exact products.
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import { type CodesOperand, codeMatmul as codeMatmulOperation, mostCodes } from '../kernels/codeMatmul.js';
import { type CodeFormat, quantise as quantiseOperation, wordsOf } from '../kernels/quantise.js';
import { sameShape } from '../tensor/shape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { Operands } from './operands.js';

/**
 * Rows of whole numbers, x [...batch, rows, inner] being about codes / scale: what `quantiseRows` makes. Words are numbers of 32
 * bits. Of 'bytes', from -128 to 127, code 4w + i is byte i of word w, the lowest first, and the word behind the last is the sum
 * of the row; of 'trits', from -1 to 1, code 16w + 4q + i, plus 1, is bits 8i + 2q and 8i + 2q + 1 of word w. Every device
 * has the same words.
 */
export interface Codes {
  /** [...batch, rows, words] */
  readonly words: Tensor<'int32', Shape>;
  /** float32 [...batch, rows, 1], or [1] of all rows. NaN where a row has no codes: one of its numbers is not finite. */
  readonly scale: Tensor<'float32', Shape>;
  readonly inner: number;
  readonly format: CodeFormat;
}

export interface QuantiseOptions {
  /** Default 'bytes'. */
  readonly format?: CodeFormat;
  /** float32 of one element; without, each row has its own: 127 / max(max|x|, least). */
  readonly scale?: Tensor<'float32', Shape>;
  readonly least?: number;
  /** Bounds of the codes. Defaults -128 and 127, of trits -1 and 1. */
  readonly smallest?: number;
  readonly largest?: number;
}

/** Whether products of rows of so many codes are exact. */
export const areExact = (inner: number): boolean => inner <= mostCodes;

/**
 * Codes round(x * scale) of rows, ties to even. Nothing is recorded for gradients.
 *
 * @internal
 * @param x [...batch, rows, inner] of any floating-point dtype
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function quantiseRows(x: Tensor, options: QuantiseOptions = {}): Codes {
  checkTensor(x, 'x');
  const { shape, backend } = x;
  if (shape.length < 2) throw shapeError(`x has shape ${show(shape)}; it must be [...batch, rows, inner]`);
  const { format = 'bytes', scale, least = 0 } = options;
  const { smallest = format === 'trits' ? -1 : -128, largest = format === 'trits' ? 1 : 127 } = options;
  if (scale !== undefined && scale.size !== 1)
    throw shapeError(`scale has shape ${show(scale.shape)}; it must be one number`);
  const inner = shape[shape.length - 1];
  const rows = shape.slice(0, -1).reduce((product, n) => product * n, 1);
  const operands = new Operands(backend);
  try {
    return allocating(backend, (allocate) => {
      const words = allocate([...shape.slice(0, -1), wordsOf(inner, format)], 'int32');
      const rowScale = scale ? undefined : allocate([...shape.slice(0, -1), 1], 'float32');
      backend.launch(quantiseOperation, {
        x: { ...operands.flat(x, 'x'), rowStride: inner },
        scale: scale && operands.flat(scale as unknown as Tensor, 'scale'),
        codes: words.flat('codes', backend),
        rowScale: rowScale?.flat('scale', backend),
        rows,
        inner,
        format,
        least,
        smallest,
        largest,
      });
      return { words, scale: rowScale ?? (scale as Tensor<'float32', Shape>).reshape([1]), inner, format };
    });
  } finally {
    operands.dispose();
  }
}

/**
 * out[..., i, j] = (the sum over k of a[..., i, k] b[..., j, k]) / (a's scale of row i) / (b's of row j) + bias[j]: sums are exact, in 32
 * bits; scales are divided by as products with their reciprocals. Nothing is recorded for gradients.
 *
 * @internal
 * @param a [...batch, rows, inner], of bytes
 * @param b [...batch, columns, inner], or [columns, inner] for all of the batch
 * @returns [...batch, rows, columns] of dtype `dtype`; the same bits on every processor
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function codeMatmul<D extends FloatDType>(
  a: Codes,
  b: Codes,
  dtype: D,
  bias?: Tensor<'float32', Shape>,
): Tensor<D, Shape> {
  const { backend } = a.words;
  if (a.format !== 'bytes') throw new FlashAttnError('ERR_DTYPE', `a has ${a.format}; it must have bytes`);
  if (a.inner !== b.inner)
    throw shapeError(`rows of a have ${a.inner} codes and those of b ${b.inner}; they must have as many`);
  if (!areExact(a.inner)) throw shapeError(`rows have ${a.inner} codes; they must have at most ${mostCodes}`);
  const [shapeA, shapeB] = [a.words.shape, b.words.shape];
  const batch = shapeB.slice(0, -2);
  const isShared = batch.length === 0;
  if (!isShared && !sameShape(batch, shapeA.slice(0, -2)))
    throw shapeError(`a has words of shape ${show(shapeA)} and b of ${show(shapeB)}; they must have the same batch`);
  const columns = shapeB[shapeB.length - 2];
  if (bias !== undefined && !sameShape(bias.shape, [columns]))
    throw shapeError(`bias has shape ${show(bias.shape)}; it must be [${columns}]`);
  const entries = batch.reduce((product, n) => product * n, 1);
  const outer = shapeA.slice(0, -1);
  const rows = isShared ? outer.reduce((product, n) => product * n, 1) : shapeA[shapeA.length - 2];
  const operands = new Operands(backend);
  const operandOf = ({ words, scale, format }: Codes, argument: string): CodesOperand => ({
    codes: operands.flat(words as unknown as Tensor, argument),
    scale: operands.flat(scale as unknown as Tensor, `the scale of ${argument}`),
    format,
    hasRowScales: scale.shape.length > 1,
  });
  try {
    return allocating(backend, (allocate) => {
      const result = allocate([...outer, columns], dtype);
      backend.launch(codeMatmulOperation, {
        a: operandOf(a, 'a'),
        b: operandOf(b, 'b'),
        c: result.flat('the result', backend),
        bias: bias && operands.flat(bias as unknown as Tensor, 'bias'),
        batch: entries,
        rows,
        columns,
        inner: a.inner,
      });
      return result;
    });
  } finally {
    operands.dispose();
  }
}
