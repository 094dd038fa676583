/** Su Jianlin's atrous and local attention. Whether a case is causal stands in its name alone. */
import { type Mask, patterns } from 'flashattn';
import type { Adapter } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { required, solveMasked } from './masked.js';

function maskOf({ system, params, caseName }: GoldenFile): Mask {
  const k = required(params.number('k'), 'k');
  const options = { causal: caseName === 'causal' };
  switch (system) {
    case 'atrous':
      return patterns.atrous(k, options);
    case 'local_sj':
      return patterns.local(k, options);
    case 'sparse_sj':
      return patterns.sparse(k, options);
    case 'local_dilated':
      return patterns.localDilated(k, required(params.number('rate'), 'rate'), options);
    default:
      throw new GoldenError(`unknown system ${system}`);
  }
}

export const strides: Adapter = {
  systems: ['atrous', 'local_sj', 'sparse_sj', 'local_dilated'],
  compute: async (file, workspace) => ({ tensors: await solveMasked(file, workspace, maskOf(file)) }),
};
