import {
  checkArray,
  checkFloat32,
  checkInt32s,
  checkInteger,
  checkIntegers,
  checkOptions,
  mustBe,
} from '../base/check.js';
import type { FloatDType } from '../base/dtype.js';
import { shapeError, show } from '../base/errors.js';
import { release } from '../base/released.js';
import { gather, type RowLists } from '../kernels/gather.js';
import { Mask } from '../masks/mask.js';
import { inRows } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/** Kernels count rows in 32 bits. */
const mostRows = 2 ** 31 - 1;

/**
 * For each row of a result the rows of a source that are added up to make it. Immutable; the adjoint of
 * `gatherRows(source, map)` is `gatherRows(gradient, map.transposed())`.
 */
export class RowMap implements RowLists {
  readonly offsets: Int32Array;
  readonly indices: Int32Array;
  readonly sourceRows: number;
  #transposed: RowMap | undefined;

  /** List i is indices[offsets[i]] to indices[offsets[i + 1] - 1]. */
  private constructor(offsets: Int32Array, indices: Int32Array, sourceRows: number) {
    this.offsets = offsets;
    this.indices = indices;
    this.sourceRows = sourceRows;
  }

  /**
   * One source row for each result row; -1 makes a row of zeros.
   *
   * @throws ERR_OPTION
   */
  static of(sources: Int32Array | readonly number[], sourceRows: number): RowMap {
    checkInteger(sourceRows, 'sourceRows', 0, mostRows);
    const rows = checkInt32s(sources, 'sources');
    const bad = rows.findIndex((row) => row < -1 || row >= sourceRows);
    if (bad >= 0) throw mustBe(`sources[${bad}]`, rows[bad], `-1 or a row of the source, from 0 to ${sourceRows - 1}`);
    const offsets = new Int32Array(rows.length + 1);
    for (const [i, row] of rows.entries()) offsets[i + 1] = offsets[i] + (row < 0 ? 0 : 1);
    return new RowMap(
      offsets,
      rows.filter((row) => row >= 0),
      sourceRows,
    );
  }

  /**
   * Any number of source rows for each result row.
   *
   * @throws ERR_OPTION
   */
  static fromLists(lists: readonly (readonly number[])[], sourceRows: number): RowMap {
    checkInteger(sourceRows, 'sourceRows', 0, mostRows);
    const checked = checkArray(lists, 'lists', 'an array of lists of rows', (list, name) =>
      checkIntegers(list, name, 0, sourceRows - 1),
    );
    const offsets = new Int32Array(checked.length + 1);
    for (const [i, list] of checked.entries()) offsets[i + 1] = offsets[i] + list.length;
    return new RowMap(offsets, Int32Array.from(checked.flat()), sourceRows);
  }

  /** Rows of the result. */
  get rows(): number {
    return this.offsets.length - 1;
  }

  /** @internal */
  get hasTransposed(): boolean {
    return this.#transposed !== undefined;
  }

  transposed(): RowMap {
    this.#transposed ??= this.#transpose();
    return this.#transposed;
  }

  #transpose(): RowMap {
    const offsets = new Int32Array(this.sourceRows + 1);
    for (const row of this.indices) offsets[row + 1]++;
    for (let row = 0; row < this.sourceRows; row++) offsets[row + 1] += offsets[row];
    const next = offsets.slice();
    const indices = new Int32Array(this.indices.length);
    for (let row = 0; row < this.rows; row++)
      for (let at = this.offsets[row]; at < this.offsets[row + 1]; at++) indices[next[this.indices[at]]++] = row;
    return new RowMap(offsets, indices, this.rows);
  }
}

/**
 * Frees the device copies of the row maps and masks in what a cache lets go of; they are made again should somebody still
 * use it.
 *
 * @internal
 */
export function releaseCopies(value: unknown): void {
  if (value instanceof RowMap) {
    release(value);
    if (value.hasTransposed) release(value.transposed());
  } else if (value instanceof Mask) {
    release(value);
  } else if (value !== null && typeof value === 'object' && !Array.isArray(value) && !ArrayBuffer.isView(value)) {
    for (const part of Object.values(value)) releaseCopies(part);
  }
}

export interface GatherOptions {
  /** Multiplies every sum. Default 1. */
  readonly scale?: number;
}

/**
 * out[b, i, ...] = scale * the sum over the rows r of list i of source[b, r, ...]; an empty list gives zeros.
 *
 * @param source [batch, map.sourceRows, ...rest], the rest contiguous
 * @returns [batch, map.rows, ...rest]
 * @throws ERR_SHAPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function gatherRows<D extends FloatDType>(
  source: Tensor<D, Shape>,
  map: RowMap,
  options: GatherOptions = {},
): Tensor<D, Shape> {
  checkTensor(source, 'source');
  if (!(map instanceof RowMap)) throw mustBe('map', map, 'a RowMap');
  checkOptions(options, ['scale']);
  const { scale = 1 } = options;
  checkFloat32(scale, 'scale');
  const { shape, strides, backend } = source;
  const [batch, rows, ...rest] = shape;
  if (shape.length < 2 || rows !== map.sourceRows)
    throw shapeError(`source has shape ${show(shape)}; it must be [batch, ${map.sourceRows}, ...]`);
  const rowElements = rest.reduce((product, n) => product * n, 1);
  let expected = 1;
  for (let axis = shape.length - 1; axis >= 2; axis--) {
    if (shape[axis] !== 1 && strides[axis] !== expected && source.size > 0)
      throw shapeError(`source must be contiguous from axis 2 on; the stride of axis ${axis} is ${strides[axis]}`);
    expected *= shape[axis];
  }
  const operand = source.operand('source', backend);
  return allocating(backend, (allocate) => {
    const result = allocate([batch, map.rows, ...rest], source.dtype);
    backend.launch(gather, {
      source: { ...operand, dtype: source.dtype, batchStride: strides[0], rowStride: strides[1] },
      result: result.flat('result', backend),
      lists: backend.upload(map, ({ offsets, indices }) => [offsets, indices]),
      batch,
      rows: map.rows,
      rowElements,
      scale,
    });
    record('gatherRows', [source], [result], [], ([gradient]) => [
      gradient && gatherRows(inRows(gradient), map.transposed(), { scale }),
    ]);
    return result as Tensor<D, Shape>;
  });
}
