/** Attention with masks that are learned. */
import { matmul, type Tensor } from 'flashattn';
import {
  differentiableAttentionMask,
  sparseBertAttention,
  sparseBertMask,
  sparseBertUnstructuredAttention,
} from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { number } from './selecting.js';
import { solveTaped } from './taped.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;

export const sparseBert: Adapter = {
  systems: ['sparsebert_dam'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => {
      const x = input('x');
      const [batch = 0, seq = 0, width = 0] = x.shape;
      const heads = number(file, 'heads');
      const project = (name: string) => {
        const made = matmul(x, input(`${name}__weight`).transpose(0, 1), { bias: input(`${name}__bias`) });
        return made.reshape([batch, seq, heads, width / heads]) as Tensor as Tensor<'float32'> as Tokens;
      };
      const keep = differentiableAttentionMask(input('alphas'), {
        noise: workspace.load(file, 'expo') as Tensor,
        temperature: number(file, 'tau'),
      });
      const attentionMask = workspace.load(file, 'attention_mask') as Tensor;
      const out = sparseBertAttention(project('query'), project('key'), project('value'), { keep, attentionMask });
      const joined = (out as Tensor as Tensor).reshape([batch, seq, width]);
      return { out: joined, mask: sparseBertMask(keep) } as unknown as Record<string, Tensor>;
    }),
};

/** [batch, heads, seq, dim] <-> [batch, seq, heads, dim]. */
const swapped = (t: Tensor): Tokens => t.transpose(1, 2) as Tensor<'float32'> as Tokens;

export const sparseBertUnstructured: Adapter = {
  systems: ['sparsebert_dam_unstructured'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => {
      const { out, mask } = sparseBertUnstructuredAttention(
        swapped(input('q')),
        swapped(input('k')),
        swapped(input('v')),
        {
          alphas: input('alphas'),
          noise: workspace.load(file, 'noise') as Tensor,
          temperature: number(file, 'tau'),
        },
      );
      return { out: swapped(out as Tensor as Tensor), mask } as unknown as Record<string, Tensor>;
    }),
};
