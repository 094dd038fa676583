import { type AngleOperands, type RotaryProblem, rotaryAngles } from './attention.js';
import { addressOf, type Operand, refOf, tensorRef, type View } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

export interface StoreRowsOperands {
  /** [count, heads, dim], as a view without a batch. */
  readonly from: View;
  /** [rows, heads, dim], likewise; of any float dtype. */
  readonly to: View;
  /** int32 [count], contiguous: rows of `to`, each at most once; below 0: the row goes nowhere. */
  readonly rows: Operand;
  readonly count: number;
  readonly heads: number;
  readonly dim: number;
  /** How rows are turned on their way. */
  readonly rotary?: RotaryProblem & {
    readonly angles: AngleOperands;
    /** int32 [count], contiguous: rows of the angles. */
    readonly positions: Operand;
  };
}

const params = struct('StoreRowsParams', {
  from: tensorRef,
  to: tensorRef,
  rows: 'address',
  positions: 'address',
  angles: rotaryAngles,
  pairs: 'int32',
  interleaved: 'int32',
  count: 'int32',
  heads: 'int32',
  dim: 'int32',
  reserved: 'int32',
});

/** to[rows[i]] = from[i]: how keys and values go to their places in a cache. */
export const storeRows = operation('storeRows', params, (operands: StoreRowsOperands) => {
  const { from, to, rows, count, heads, dim, rotary } = operands;
  if (count === 0 || heads === 0 || dim === 0) return undefined;
  return {
    params: {
      from: refOf(from),
      to: refOf(to),
      rows: addressOf(rows),
      positions: addressOf(rotary?.positions),
      angles: rotary && { cos: addressOf(rotary.angles.cos), sin: addressOf(rotary.angles.sin) },
      pairs: rotary?.pairs ?? 0,
      interleaved: rotary?.interleaved ? 1 : 0,
      count,
      heads,
      dim,
    },
    reads: [
      from.buffer,
      rows.buffer,
      ...(rotary ? [rotary.positions.buffer, rotary.angles.cos.buffer, rotary.angles.sin.buffer] : []),
    ],
    writes: [to.buffer],
    work: elementWork * count * heads * dim,
  };
});
