/** Systems that route tokens by content: sorted by hashes, or gathered by clusters. */
import { cast, type Tensor } from 'flashattn';
import { lshAttention, lshBuckets, routingAttention, sharedRoutingAttention } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { GoldenError } from '../file.js';
import { number, withIndices } from './selecting.js';
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

/** [batch, heads, seq, dim] <-> [batch, seq, heads, dim]. */
const swapped = (t: Tensor): Tokens => t.transpose(1, 2) as Tensor<'float32'> as Tokens;

export const routing: Adapter = {
  systems: ['routing_transformer'],
  async compute(file, workspace) {
    const means = workspace.load(file, 'means') as Tensor;
    const indices: Record<string, ArrayLike<number>> = {};
    const outcome = await tapedByInput(file, workspace, (input) => {
      const options = {
        means,
        window: number(file, 'window'),
        causal: file.params.boolean('causal') ?? false,
        ...(file.has('mem_key') && { memory: { keys: input('mem_key'), values: input('mem_value') } }),
      };
      const tokens = (name: string) => swapped(input(name));
      const { out, queryIndices, keyIndices } = file.params.boolean('shared_qk')
        ? sharedRoutingAttention(tokens('qk'), tokens('v'), options)
        : routingAttention(tokens('q'), tokens('k'), tokens('v'), options);
      indices.q_index = queryIndices.dataSync();
      indices.k_index = keyIndices.dataSync();
      return { out: swapped(out as Tensor as Tensor) as Tensor as Tensor };
    });
    return withIndices(file, outcome, indices);
  },
};
