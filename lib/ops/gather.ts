import type { DType } from '../base/dtype.js';
import { optionError, shapeError, show } from '../base/errors.js';
import { release } from '../base/released.js';
import type { RowLists } from '../kernels/gather.js';
import { Mask } from '../masks/mask.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/**
 * For each row of a result the rows of a source that are added up to make it. Immutable; the adjoint of
 * `gatherRows(source, map)` is `gatherRows(gradient, map.transposed())`.
 */
export class RowMap implements RowLists {
  #transposed: RowMap | undefined;

  /** @internal List i is indices[offsets[i]] to indices[offsets[i + 1] - 1]. */
  constructor(
    readonly offsets: Int32Array,
    readonly indices: Int32Array,
    readonly sourceRows: number,
  ) {}

  /** One source row for each result row; -1 makes a row of zeros. */
  static of(sources: ArrayLike<number>, sourceRows: number): RowMap {
    return RowMap.fromLists(
      Array.from(sources, (row) => (row === -1 ? [] : [row])),
      sourceRows,
    );
  }

  /** Any number of source rows for each result row. */
  static fromLists(lists: readonly (readonly number[])[], sourceRows: number): RowMap {
    const offsets = new Int32Array(lists.length + 1);
    for (const [i, list] of lists.entries()) {
      offsets[i + 1] = offsets[i] + list.length;
      const bad = list.find((row) => !Number.isInteger(row) || row < 0 || row >= sourceRows);
      if (bad !== undefined) throw optionError(`row ${i} of the map names source row ${show(bad)} of ${sourceRows}`);
    }
    return new RowMap(offsets, Int32Array.from(lists.flat()), sourceRows);
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
    if (!this.#transposed) {
      const lists: number[][] = Array.from({ length: this.sourceRows }, () => []);
      for (let row = 0; row < this.rows; row++)
        for (let at = this.offsets[row]; at < this.offsets[row + 1]; at++) lists[this.indices[at]].push(row);
      this.#transposed = RowMap.fromLists(lists, this.rows);
    }
    return this.#transposed;
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
export function gatherRows<D extends DType>(
  source: Tensor<D, Shape>,
  map: RowMap,
  options: GatherOptions = {},
): Tensor<D, Shape> {
  checkTensor(source, 'source');
  if (!(map instanceof RowMap)) throw optionError(`map is ${show(map)}; it must be a RowMap`);
  const { scale = 1 } = options;
  if (!Number.isFinite(scale)) throw optionError(`scale is ${show(scale)}; it must be a finite number`);
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
    backend.gatherRows(map, {
      source: { ...operand, dtype: source.dtype, batchStride: strides[0], rowStride: strides[1] },
      result: result.flat('result', backend),
      batch,
      rowElements,
      scale,
    });
    return result as Tensor<D, Shape>;
  });
}
