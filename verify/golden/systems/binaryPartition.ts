/** Attention along the edges of a binary partition of a sequence. */
import type { Tensor } from 'flashattn';
import {
  type BinaryPartition,
  binaryPartition,
  binaryPartitionAttention,
  binaryPartitionGraphAttention,
} from 'flashattn/systems';
import type { Adapter, ComputedTensor } from '../adapter.js';
import type { GoldenFile } from '../file.js';
import { number } from './selecting.js';
import { solveTaped, tapedByInput } from './taped.js';

/** Edges as a file has them, in an order of its own: those of a graph in the order of the file where they are the same ones. */
function edgesOf(graph: BinaryPartition, file: GoldenFile, names: readonly string[]): Record<string, ComputedTensor> {
  const lists = names.map((name) => [...file.integers(name)]);
  const wanted = (lists[0] ?? []).map((_, edge) => lists.map((list) => list[edge] as number));
  const keys = (edges: readonly (readonly number[])[]) => edges.map((edge) => edge.join()).sort();
  const own = graph.edges;
  const isSame = keys(own).join(';') === keys(wanted).join(';');
  return Object.fromEntries(
    names.map((name, i) => [name, { values: (isSame ? wanted : own).map((edge) => edge[i] as number), exact: true }]),
  );
}

export const bpt: Adapter = {
  systems: ['bpt'],
  async compute(file, workspace) {
    const graph = binaryPartition(number(file, 'n'), {
      step: number(file, 'step'),
      causal: file.params.boolean('triu') ?? false,
      clipDistance: number(file, 'clip_dist'),
    });
    const outcome = await tapedByInput(file, workspace, (input) => {
      const nodes = (name: string) => {
        const t = input(name);
        return t.reshape([1, ...t.shape]) as Tensor as Tensor<'float32', readonly [number, number, number, number]>;
      };
      const out = binaryPartitionAttention(nodes('q'), nodes('k'), nodes('v'), { graph, relative: input('rel_emb') });
      return { out: out as Tensor as Tensor };
    });
    if (!('tensors' in outcome)) return outcome;
    return { tensors: { ...outcome.tensors, ...edgesOf(graph, file, ['edge_src', 'edge_dst', 'edge_type']) } };
  },
};

export const bptGraph: Adapter = {
  systems: ['bp_transformer_graph_attention'],
  async compute(file, workspace) {
    const graph = binaryPartition(number(file, 'length'), {
      step: number(file, 'step'),
      causal: file.params.boolean('causal') ?? false,
      clipDistance: number(file, 'clip_dist'),
    });
    const outcome = await solveTaped(file, workspace, (input) => {
      const [Wq, Wk, Wv, Wo] = ['Wq', 'Wk', 'Wv', 'Wo'].map(input) as [Tensor, Tensor, Tensor, Tensor];
      const h = input('h');
      const weights = { Wq, Wk, Wv, Wo, relative: input('ak') };
      return {
        out: binaryPartitionGraphAttention(h.reshape([1, ...h.shape]), weights, {
          graph,
          heads: number(file, 'heads'),
        }),
      };
    });
    if (!('tensors' in outcome)) return outcome;
    return { tensors: { ...outcome.tensors, ...edgesOf(graph, file, ['src_', 'dst', 'etype']) } };
  },
};
