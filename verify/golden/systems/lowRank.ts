/** Attention through a matrix of low rank: projected lengths, landmarks, and singular values. */
import { cast, matmul, type Tensor } from 'flashattn';
import {
  linformerAttention,
  lowRankSvdAttention,
  nystromAttentionPadded,
  nystromformerAttention,
} from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { numberOf } from '../file.js';
import { type Inputs, solveTaped } from './taped.js';

/** [batch, heads, seq, dim] <-> [batch, seq, heads, dim]. */
const swapped = (t: Tensor): Tensor => t.transpose(1, 2);

const headsFirst = (input: Inputs): [q: Tensor, k: Tensor, v: Tensor] => [
  swapped(input('q')),
  swapped(input('k')),
  swapped(input('v')),
];

const times = (x: Tensor, weight: Tensor, bias?: Tensor): Tensor =>
  matmul(x, weight.transpose(0, 1), bias ? { bias } : {});

/** [batch, seq, heads * dim] -> [batch, seq, heads, dim] */
const split = (t: Tensor, count: number): Tensor => {
  const [batch = 0, seq = 0, width = 0] = t.shape;
  return (t.isContiguous ? t : t.contiguous()).reshape([batch, seq, count, width / count]);
};

const joined = (t: Tensor): Tensor => {
  const [batch = 0, seq = 0, heads = 0, dim = 0] = t.shape;
  return t.reshape([batch, seq, heads * dim]);
};

export const linformer: Adapter = {
  systems: ['linformer'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => {
      if (file.has('q')) {
        const options = { keyProjection: input('E'), valueProjection: input('Fp') };
        return { out: swapped(linformerAttention(...headsFirst(input), options)) };
      }
      const heads = numberOf(file, 'heads');
      const shared = file.params.boolean('share_kv') ?? false;
      const kvHeads = file.params.boolean('one_kv_head') ? 1 : heads;
      const x = input('x');
      const of = (name: string, count: number) => split(times(x, input(`${name}__weight`)), count);
      const k = of('to_k', kvHeads);
      const out = linformerAttention(of('to_q', heads), k, shared ? k : of('to_v', kvHeads), {
        keyProjection: input('proj_k'),
        ...(!shared && { valueProjection: input('proj_v') }),
      });
      return { out: times(joined(out), input('to_out__weight'), input('to_out__bias')) };
    }),
};

export const nystromformer: Adapter = {
  systems: ['nystromformer'],
  async compute(file, workspace) {
    using mask = cast(workspace.load(file, 'mask'), 'bool');
    return await solveTaped(file, workspace, (input) => {
      const out = nystromformerAttention(...headsFirst(input), {
        landmarks: numberOf(file, 'landmarks'),
        iterations: numberOf(file, 'pinv_iters'),
        mask,
        ...(file.has('conv_weight') && { convWeight: input('conv_weight') }),
      });
      return { out: swapped(out) };
    });
  },
};

export const nystromPadded: Adapter = {
  systems: ['nystrom_attention_padded'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => {
      const heads = numberOf(file, 'heads');
      const qkv = times(input('x'), input('to_qkv__weight'));
      const inner = heads * numberOf(file, 'dim_head');
      const [q, k, v] = [0, 1, 2].map((at) => split(qkv.slice(2, at * inner, (at + 1) * inner), heads)) as [
        Tensor,
        Tensor,
        Tensor,
      ];
      const out = nystromAttentionPadded(q, k, v, {
        landmarks: numberOf(file, 'landmarks'),
        iterations: numberOf(file, 'pinv_iters'),
        ...(file.has('res_conv__weight') && { convWeight: input('res_conv__weight') }),
      });
      return { out: times(joined(out), input('to_out__0__weight'), input('to_out__0__bias')) };
    }),
};

export const lowRankSvd: Adapter = {
  systems: ['lowrank_svd_attention'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => {
      const { out, singularValues } = lowRankSvdAttention(...headsFirst(input), {
        rank: numberOf(file, 'rank'),
        causal: file.params.boolean('causal') ?? false,
      });
      return { out: swapped(out), singular_values: singularValues };
    }),
};
