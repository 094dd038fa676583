import type { Uploaded } from './memory.js';
import { addressOf, blockLists, type Flat, type Operand } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

/** Row i of the result is the sum of the source rows indices[offsets[i]] to indices[offsets[i + 1] - 1]. Immutable. */
export interface RowLists {
  readonly offsets: Int32Array;
  readonly indices: Int32Array;
  /** Rows of the result. */
  readonly rows: number;
}

export interface GatherOperands {
  /** [batch, source rows, row elements], its rows contiguous. */
  readonly source: Operand & { readonly batchStride: number; readonly rowStride: number };
  /** Contiguous [batch, rows, row elements]. */
  readonly result: Flat;
  /** Offsets and indices of `RowLists`. */
  readonly lists: Uploaded;
  readonly batch: number;
  readonly rows: number;
  readonly rowElements: number;
  readonly scale: number;
}

const params = struct('GatherParams', {
  source: 'address',
  result: 'address',
  sourceBatch: 'int64',
  sourceRow: 'int64',
  lists: blockLists,
  dtype: 'dtype',
  batch: 'int32',
  rows: 'int32',
  rowElements: 'int32',
  scale: 'float32',
  reserved: 'int32',
});

/** result[b, i] = scale * the sum of source[b, r] over the rows r of list i. */
export const gather = operation('gather', params, (operands: GatherOperands) => {
  const { source, result, lists, batch, rows, rowElements, scale } = operands;
  if (batch === 0 || rows === 0 || rowElements === 0) return undefined;
  const [offsets, indices] = lists.addresses as [number, number];
  return {
    params: {
      source: addressOf(source),
      result: addressOf(result),
      sourceBatch: source.batchStride,
      sourceRow: source.rowStride,
      lists: { offsets, indices },
      dtype: source.dtype,
      batch,
      rows,
      rowElements,
      scale,
    },
    reads: [source.buffer, lists.buffer],
    writes: [result.buffer],
    work: elementWork * batch * rows * rowElements,
  };
});
