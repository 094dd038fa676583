import { addressOf, type Operand } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

/** Rows whose elements lie side by side. */
export interface Rows extends Operand {
  /** In elements. */
  readonly rowStride: number;
}

export interface RowsByIndexOperands {
  /** [rows, row elements] */
  readonly table: Rows;
  /** [count, row elements] */
  readonly values: Rows;
  /** Contiguous [count] of int32. What is not in [0, rows) names no row. */
  readonly ids: Operand;
  readonly rows: number;
  readonly count: number;
  readonly rowElements: number;
}

const params = struct('RowsByIndexParams', {
  table: 'address',
  values: 'address',
  ids: 'address',
  tableRow: 'int64',
  valuesRow: 'int64',
  tableDtype: 'dtype',
  valuesDtype: 'dtype',
  rows: 'int32',
  count: 'int32',
  rowElements: 'int32',
  accumulate: 'int32',
});

const paramsOf = ({ table, values, ids, rows, count, rowElements }: RowsByIndexOperands, accumulate: boolean) => ({
  table: addressOf(table),
  values: addressOf(values),
  ids: addressOf(ids),
  tableRow: table.rowStride,
  valuesRow: values.rowStride,
  tableDtype: table.dtype,
  valuesDtype: values.dtype,
  rows,
  count,
  rowElements,
  accumulate: accumulate ? 1 : 0,
});

/** values[i] = table[ids[i]], of one dtype; NaN where an id names no row. */
export const takeRows = operation('takeRows', params, (operands: RowsByIndexOperands) => {
  const { table, values, ids, count, rowElements } = operands;
  if (count === 0 || rowElements === 0) return undefined;
  return {
    params: paramsOf(operands, false),
    reads: [table.buffer, ids.buffer],
    writes: [values.buffer],
    work: elementWork * count * rowElements,
  };
});

export interface AddRowsOperands extends RowsByIndexOperands {
  /** Whether to add to the table, in float32. */
  readonly accumulate: boolean;
}

/** table[v] = the sum of values[i] over all i with ids[i] = v, in the order of i, in float32. */
export const addRows = operation('addRows', params, (operands: AddRowsOperands) => {
  const { table, values, ids, rows, count, rowElements, accumulate } = operands;
  if (rows === 0 || rowElements === 0 || (count === 0 && accumulate)) return undefined;
  return {
    params: paramsOf(operands, accumulate),
    reads: [values.buffer, ids.buffer],
    writes: [table.buffer],
    work: elementWork * (count + rows) * rowElements,
  };
});
