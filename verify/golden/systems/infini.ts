/** A memory of segments beside attention within them, and mixtures of softmax and linear attention. */
import { matmul, type Tensor } from 'flashattn';
import { hybridGatedWindowLinear, hybridLocalLinear, infiniAttention, infiniAttentionPaper } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { type Inputs, tapedTensors } from './taped.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;

/** [batch, heads, seq, dim] <-> [batch, seq, heads, dim]. */
const swapped = (t: Tensor): Tensor => t.transpose(1, 2);

const heads = (input: Inputs): [q: Tokens, k: Tokens, v: Tokens] => {
  const of = (name: string) => swapped(input(name)) as Tensor<'float32'> as Tokens;
  return [of('q'), of('k'), of('v')];
};

function number(file: GoldenFile, name: string): number {
  const value = file.params.number(name);
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}

export const infini: Adapter = {
  systems: ['infini_attention', 'infini_attention_paper'],
  async compute(file, workspace) {
    const run = file.system === 'infini_attention' ? infiniAttention : infiniAttentionPaper;
    const tensors = await tapedTensors(file, workspace, (input) => {
      const { out, memory } = run(...heads(input), {
        gate: input('gate'),
        segment: number(file, 'segment'),
        delta: file.params.boolean('delta') ?? false,
      });
      return { out: swapped(out as Tensor as Tensor), final_M: memory.M, final_z: memory.z };
    });
    return { tensors };
  },
};

export const hybridGated: Adapter = {
  systems: ['hybrid_gated_window_linear'],
  async compute(file, workspace) {
    const tensors = await tapedTensors(file, workspace, (input) => {
      const options = { gate: input('gate'), window: number(file, 'window') };
      return { out: swapped(hybridGatedWindowLinear(...heads(input), options) as Tensor as Tensor) };
    });
    return { tensors };
  },
};

export const hybridLocal: Adapter = {
  systems: ['hybrid_local_linear'],
  async compute(file, workspace) {
    const tensors = await tapedTensors(file, workspace, (input) => {
      const x = input('x');
      const [batch = 0, seq = 0, model = 0] = x.shape;
      const count = number(file, 'heads');
      const project = (name: string) =>
        matmul(x, input(`${name}__weight`).transpose(0, 1)).reshape([
          batch,
          seq,
          count,
          model / count,
        ]) as Tensor as Tensor<'float32'> as Tokens;
      const out = hybridLocalLinear(project('to_q'), project('to_k'), project('to_v'), {
        localHeads: number(file, 'local_heads'),
        window: number(file, 'window'),
        causal: file.params.boolean('causal') ?? false,
        blindspot: number(file, 'blindspot'),
      });
      const joined = (out as Tensor as Tensor).reshape([batch, seq, model]);
      return { out: matmul(joined, input('to_out__weight').transpose(0, 1), { bias: input('to_out__bias') }) };
    });
    return { tensors };
  },
};
