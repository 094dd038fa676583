import { checkInteger, checkOptions, mustBe } from '../base/check.js';
import { checkFloatDType, type FloatDType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import type { Backend } from '../kernels/device.js';
import { addRows, type Rows, takeRows } from '../kernels/rowsByIndex.js';
import { converted } from '../tape/arithmetic.js';
import { checkReplay, isCapturing, keepWithCapture } from '../tape/captures.js';
import { needsRecord, record, withoutRecording } from '../tape/tape.js';
import { areWithin } from '../tensor/integers.js';
import { checkDisjoint } from '../tensor/overlap.js';
import { elementCount, isContiguous, placeOf } from '../tensor/shape.js';
import {
  type AnyTensor,
  allocating,
  checkIndices,
  checkTensor,
  isTensor,
  type Shape,
  type Tensor,
} from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';
import { checkWritable } from '../tensor/writable.js';

/** Kernels count rows, ids and the elements of a row in 32 bits, and in steps of several. */
const most = 2 ** 31 - 2 ** 10;

export type Indices = Tensor<'int32', Shape>;

/**
 * Refuses ids outside of [0, count), but for `allowed`, where the host has written them: others are left to the kernels.
 * What is captured compares them again before every replay.
 *
 * @throws ERR_OPTION, naming the first one
 */
export function checkWithin(ids: Indices, argument: string, count: number, needed: string, allowed?: number): void {
  if (isCapturing() && ids.integers) {
    const kept = keepWithCapture(unwatched(() => ids.detach()));
    checkReplay(() => compareAll(kept, argument, count, needed, allowed));
  }
  compareAll(ids, argument, count, needed, allowed);
}

function compareAll(ids: Indices, argument: string, count: number, needed: string, allowed?: number): void {
  const { integers } = ids;
  if (!integers || areWithin(integers, count, allowed)) return;
  // Something in this memory is not: whether it is of this view, and where, only the elements tell.
  const values = ids.dataSync();
  const at = values.findIndex((id) => (id < 0 || id >= count) && id !== allowed);
  if (at < 0) return;
  throw optionError(`${argument}${placeOf(ids.shape, at)} is ${values[at]}; it must be ${needed}`);
}

/** A tensor as it is where `fits` holds, else a contiguous copy that `use` has until it returns; neither is recorded. */
export function withContiguous<T extends AnyTensor, R>(t: T, fits: boolean, use: (t: T) => R): R {
  if (fits) return use(t);
  const copy = withoutRecording(() => t.contiguous()) as unknown as T;
  try {
    return use(copy);
  } finally {
    copy.dispose();
  }
}

/** Whether the elements of each row lie side by side; rows are whatever is at an index of the first `axes` axes. */
function hasWholeRows({ shape, strides }: AnyTensor, axes: number): boolean {
  return isContiguous(shape.slice(axes), strides.slice(axes));
}

/** [rows, ...rest], its rows whole, as the kernels see it. */
function tableOf(table: Tensor, argument: string, backend: Backend): Rows {
  const { buffer, offset } = table.operand(argument, backend);
  return { buffer, offset, dtype: table.dtype, rowStride: table.strides[0] };
}

function checkTable(table: unknown, argument: string): asserts table is Tensor {
  checkTensor(table, argument);
  if (table.shape.length === 0 || table.shape[0] > most || elementCount(table.shape.slice(1)) > most)
    throw shapeError(
      `${argument} has shape ${show(table.shape)}; it must be [rows, ...], with at most 2^31 - 2^10 rows of as many elements`,
    );
}

function checkIds(ids: unknown, rows: number): asserts ids is Indices {
  checkIndices(ids, 'ids');
  if (ids.size > most) throw shapeError(`ids has shape ${show(ids.shape)}; there may be at most 2^31 - 2^10 of them`);
  checkWithin(ids, 'ids', rows, rows === 0 ? 'of a table that has rows' : `a row of the table, from 0 to ${rows - 1}`);
}

/**
 * Rows of a table by their index, as of token embeddings: out[i..., ...] = table[ids[i...], ...].
 *
 * An id that is no row is refused where the host has written the ids; where an operation has made them, nobody looks at them
 * beforehand, and the row of such an id is NaN.
 *
 * @param table [vocabulary, ...rest], such as [vocabulary, dim]
 * @param ids of any shape, int32, on the device of the table
 * @returns [...ids.shape, ...rest], of the table's dtype
 * @throws ERR_OPTION naming the id and its place, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function embedding<D extends FloatDType>(table: Tensor<D, Shape>, ids: Indices): Tensor<D, Shape> {
  checkTable(table, 'table');
  const { backend } = table;
  table.operand('table', backend);
  checkIndices(ids, 'ids');
  ids.operand('ids', backend);
  checkIds(ids, table.shape[0]);
  const [vocabulary, ...rest] = table.shape;
  const rowElements = elementCount(rest);
  return withContiguous(table, hasWholeRows(table, 1), (rows) =>
    withContiguous(ids, ids.isContiguous, (flatIds) =>
      allocating(backend, (allocate) => {
        const result = allocate([...ids.shape, ...rest], table.dtype);
        backend.launch(takeRows, {
          table: tableOf(rows, 'table', backend),
          values: { ...result.flat('the result', backend), rowStride: rowElements },
          ids: flatIds.flat('ids', backend),
          rows: vocabulary,
          count: ids.size,
          rowElements,
        });
        record('embedding', [table], [result], [ids], ([gradient], [kept]) => [
          gradient && {
            toDense: () => scatterAdd(vocabulary, kept as Indices, gradient),
            addTo: (sum) => void scatterAdd(sum, kept as Indices, gradient),
          },
        ]);
        return result as Tensor<D, Shape>;
      }),
    ),
  );
}

export interface ScatterAddOptions<D extends FloatDType = FloatDType> {
  /** Of a new result. Default that of the source. */
  readonly dtype?: D;
}

function shapeOfTarget(target: unknown, ids: AnyTensor, source: Tensor): number[] {
  const axes = ids.shape.length;
  const rest = source.shape.slice(axes);
  if (source.shape.length < axes || ids.shape.some((n, axis) => n !== source.shape[axis]))
    throw shapeError(
      `source has shape ${show(source.shape)}; it must be [...ids.shape, ...], and ids has ${show(ids.shape)}`,
    );
  if (!isTensor(target)) return [checkInteger(target, 'target', 0, most), ...rest];
  checkTable(target, 'target');
  const { shape } = target;
  if (shape.length !== rest.length + 1 || rest.some((n, axis) => n !== shape[axis + 1]))
    throw shapeError(`target has shape ${show(shape)}; its rows must be ${show(rest)}, as those of source`);
  if (!hasWholeRows(target, 1))
    throw shapeError(`target has strides ${show(target.strides)}; its rows must be contiguous`);
  if (shape[0] > 1 && target.strides[0] === 0 && target.size > 0)
    throw shapeError('target repeats one row; it must have rows of its own');
  return [...shape];
}

/**
 * Rows added up by index, the adjoint of `embedding`: out[v, ...] = the sum of source[i..., ...] over all i with ids[i...] = v.
 * Sums are float32 with what rounding cuts off, in the order of the ids: the same bits every time. Rows that no id names
 * are zeros, or are left as they are.
 *
 * An id that is no row is refused where the host has written the ids; where an operation has made them, what belongs to it
 * is left out.
 *
 * @param target how many rows a new result has; or a tensor [rows, ...rest] of any dtype with contiguous rows, in memory of
 *   its own, that they are added to, in float32, and that is returned
 * @param ids of any shape, int32
 * @param source [...ids.shape, ...rest]
 * @returns [rows, ...rest]
 * @throws ERR_AUTOGRAD where a target would need a gradient, ERR_OPTION, ERR_SHAPE, ERR_DTYPE, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function scatterAdd<D extends FloatDType>(
  target: Tensor<D, Shape>,
  ids: Indices,
  source: Tensor<FloatDType, Shape>,
): Tensor<D, Shape>;
export function scatterAdd<S extends FloatDType, D extends FloatDType = S>(
  target: number,
  ids: Indices,
  source: Tensor<S, Shape>,
  options?: ScatterAddOptions<D>,
): Tensor<D, Shape>;
export function scatterAdd(
  target: number | Tensor,
  ids: Indices,
  source: Tensor,
  options: ScatterAddOptions = {},
): Tensor {
  checkTensor(source, 'source');
  checkIndices(ids, 'ids');
  checkOptions(options, ['dtype']);
  const { dtype } = options;
  if (dtype !== undefined) checkFloatDType(dtype, 'dtype');
  if (dtype !== undefined && isTensor(target)) throw mustBe('dtype', dtype, 'left to the target, which has one');
  const { backend, dtype: from } = source;
  source.operand('source', backend);
  ids.operand('ids', backend);
  const shape = shapeOfTarget(target, ids, source);
  checkIds(ids, shape[0]);
  if (isTensor(target)) {
    checkDisjoint({ ids, source }, { target });
    checkWritable(target as Tensor, 'target');
    if (needsRecord([target, source]))
      throw new FlashAttnError(
        'ERR_AUTOGRAD',
        'a target cannot be differentiated: call it within noGrad(), or give the number of rows and add() the result',
      );
  }
  const rowElements = elementCount(shape.slice(1));
  const axes = ids.shape.length;
  // Rows at any stride, where one stride tells where they are.
  const isFlat = source.isContiguous || (axes === 1 && hasWholeRows(source, 1));
  return withContiguous(source, isFlat, (values) =>
    withContiguous(ids, ids.isContiguous, (flatIds) =>
      allocating(backend, (allocate) => {
        const into = isTensor(target) ? (target as Tensor) : allocate(shape, dtype ?? from);
        backend.launch(addRows, {
          table: tableOf(into, 'target', backend),
          values: {
            ...values.operand('source', backend),
            dtype: values.dtype,
            rowStride: axes === 1 ? values.strides[0] : rowElements,
          },
          ids: flatIds.flat('ids', backend),
          rows: shape[0],
          count: ids.size,
          rowElements,
          accumulate: isTensor(target),
        });
        if (isTensor(target)) into.written();
        else
          record('scatterAdd', [source], [into], [ids], ([gradient], [kept]) => [
            gradient && converted(embedding(gradient, kept as Indices), from),
          ]);
        return into;
      }),
    ),
  );
}
