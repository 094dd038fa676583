/** Systems that route tokens by content: sorted by hashes, or gathered by clusters. */
import { cast, type Tensor } from 'flashattn';
import { lshAttention, lshBuckets } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { GoldenError } from '../file.js';
import { number } from './selecting.js';
import { tapedByInput } from './taped.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;

export const reformer: Adapter = {
  systems: ['reformer_lsh'],
  async compute(file, workspace) {
    const masked = file.has('attention_mask') ? { mask: cast(workspace.load(file, 'attention_mask'), 'bool') } : {};
    const rotations = workspace.load(file, 'rotations') as Tensor as Tensor<'float32'>;
    const numBuckets = file.params.numberOrList('num_buckets');
    if (numBuckets === undefined) throw new GoldenError('parameter num_buckets is missing');
    const buckets = lshBuckets(workspace.load(file, 'qk') as Tensor, { numBuckets, rotations, ...masked });
    try {
      const outcome = await tapedByInput(file, workspace, (input) => {
        const tokens = (name: string) => input(name) as Tensor<'float32'> as Tokens;
        const out = lshAttention(tokens('qk'), tokens('v'), {
          buckets,
          chunkLength: number(file, 'chunk'),
          chunksBefore: number(file, 'chunks_before'),
          chunksAfter: number(file, 'chunks_after'),
          causal: file.params.boolean('causal') ?? false,
          ...masked,
        });
        return { out: out as Tensor as Tensor };
      });
      if (!('tensors' in outcome)) return outcome;
      return { tensors: { ...outcome.tensors, buckets: { values: await buckets.data(), exact: true } } };
    } finally {
      for (const t of [buckets, ...Object.values(masked)]) t.dispose();
    }
  },
};
