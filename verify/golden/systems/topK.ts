/** The largest logits of each row, renormalised or not. */
import { type Tensor, topKAttention, topKAttentionBackward } from 'flashattn';
import type { Adapter, ComputedTensor } from '../adapter.js';

type Shape4 = readonly [number, number, number, number];

export const topK: Adapter = {
  systems: ['topk', 'topk_norenorm'],
  async compute(file, workspace) {
    // Heads come before tokens in the file.
    const load = async (name: string): Promise<Tensor<'float32', Shape4>> => {
      const view = workspace.keep(workspace.load(file, name).transpose(1, 2));
      const copy = workspace.tensor(Float64Array.from(await view.toFloat32()), view.shape);
      return copy as Tensor<'float32'> as Tensor<'float32', Shape4>;
    };
    const { out, lse, saved } = topKAttention(await load('q'), await load('k'), await load('v'), {
      keep: file.params.number('k') ?? 0,
      causal: file.params.boolean('causal') ?? false,
      renormalize: file.system === 'topk',
    });
    const gradients = topKAttentionBackward(await load('dout'), saved);
    saved.dispose();
    const tensors: Record<string, ComputedTensor> = { lse: { values: await workspace.keep(lse).toFloat32() } };
    for (const [name, result] of Object.entries({ out, ...gradients })) {
      const headsFirst = workspace.keep(workspace.keep(result as Tensor).transpose(1, 2));
      tensors[name] = { values: await headsFirst.toFloat32() };
    }
    return { tensors };
  },
};
