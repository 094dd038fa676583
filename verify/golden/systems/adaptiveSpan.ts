/** A soft mask over the distance, learned by each head. */
import { adaptiveSpanAttention, adaptiveSpanAttentionBackward, type Tensor } from 'flashattn';
import type { Adapter, ComputedTensor } from '../adapter.js';
import { GoldenError } from '../file.js';

type Shape4 = readonly [number, number, number, number];

export const adaptiveSpan: Adapter = {
  systems: ['adaptive_span'],
  async compute(file, workspace) {
    const batch = file.params.number('B');
    const heads = file.params.number('H');
    const ramp = file.params.number('ramp');
    if (!batch || !heads || !ramp) throw new GoldenError('parameter B, H or ramp is missing');
    // [batch * heads, tokens, dim] -> [batch, tokens, heads, dim]
    const load = (name: string): Tensor<'float32', Shape4> => {
      const [, tokens = 0, dim = 0] = file.tensor(name).shape;
      const t = workspace.load(file, name, [batch, heads, tokens, dim]);
      return workspace.keep(t.transpose(1, 2)) as Tensor<'float32'> as Tensor<'float32', Shape4>;
    };
    const { out, saved } = adaptiveSpanAttention(load('q'), load('k'), load('v'), {
      span: workspace.load(file, 'span', [heads]),
      ramp,
      keyPe: workspace.load(file, 'key_pe', file.tensor('key_pe').shape.slice(1)),
    });
    const { dq, dk, dv, dSpan, dKeyPe } = adaptiveSpanAttentionBackward(load('dout'), saved);
    saved.dispose();
    const tensors: Record<string, ComputedTensor> = {
      dspan: { values: await workspace.keep(dSpan).toFloat32() },
      ...(dKeyPe && { dkey_pe: { values: await workspace.keep(dKeyPe).toFloat32() } }),
    };
    for (const [name, result] of Object.entries({ out, dq, dk, dv })) {
      const headsFirst = workspace.keep(workspace.keep(result as Tensor).transpose(1, 2));
      tensors[name] = { values: await headsFirst.toFloat32() };
    }
    return { tensors };
  },
};
