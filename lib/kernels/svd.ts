import type { DeviceBuffer } from './memory.js';
import { operation } from './operation.js';
import { struct } from './struct.js';

/** Everything is contiguous and float32, from the start of its memory. */
export interface SvdOperands {
  /** [matrices, count, length], count <= length: what is decomposed, and then orthonormal rows u. */
  readonly vectors: DeviceBuffer;
  /** [matrices, count], falling. */
  readonly values: DeviceBuffer;
  /** [matrices, count, count]: orthonormal rows v, so that what was decomposed is the sum over k of v[k] values[k] u[k]. */
  readonly others: DeviceBuffer;
  readonly matrices: number;
  readonly count: number;
  readonly length: number;
}

const params = struct('SvdParams', {
  vectors: 'address',
  values: 'address',
  others: 'address',
  matrices: 'int64',
  count: 'int32',
  length: 'int32',
});

/** About as many sweeps over all pairs of rows are needed. */
const usualSweeps = 8;

export const svd = operation('svd', params, ({ vectors, values, others, matrices, count, length }: SvdOperands) => {
  if (matrices === 0 || count === 0) return undefined;
  return {
    params: {
      vectors: vectors.address,
      values: values.address,
      others: others.address,
      matrices,
      count,
      length,
    },
    reads: [vectors],
    writes: [vectors, values, others],
    work: usualSweeps * matrices * count * count * (6 * length + 3 * count),
  };
});
