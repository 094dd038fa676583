/** Keys and values in pages, by block tables. */
import { pagedAttention } from 'flashattn/inference';
import type { Adapter } from '../adapter.js';
import { numberOf } from '../file.js';
import { solveTaped } from './taped.js';

export const paged: Adapter = {
  systems: ['paged_kv'],
  compute(file, workspace) {
    const [, pages = 0] = file.tensor('block_table').shape;
    const lengths = [...file.integers('seq_lens')];
    const table = [...file.integers('block_table')];
    const blockTable = lengths.map((_, b) => table.slice(b * pages, (b + 1) * pages));
    const window = numberOf(file, 'window');
    return solveTaped(file, workspace, (input) => {
      const options = { blockTable, lengths, ...(window >= 0 && { window: [window, 0] as const }) };
      const { out } = pagedAttention(input('q'), input('k_pages'), input('v_pages'), options);
      return { out };
    });
  },
};
