/** Dilated attention in segments; the branches are merged by their log-sum-exp. */
import { longnetAttention, longnetAttentionBackward, type Tensor } from 'flashattn';
import type { Adapter, ComputedTensor } from '../adapter.js';

type Shape4 = readonly [number, number, number, number];

export const longnet: Adapter = {
  systems: ['longnet'],
  async compute(file, workspace) {
    const load = (name: string): Tensor<'float32', Shape4> =>
      workspace.load(file, name) as Tensor<'float32'> as Tensor<'float32', Shape4>;
    const { out, saved } = longnetAttention(load('q'), load('k'), load('v'), {
      segmentLengths: file.params.numbers('segment_length') ?? [],
      dilatedRatios: file.params.numbers('dilated_ratio') ?? [],
      causal: file.params.boolean('causal') ?? false,
    });
    const tensors: Record<string, ComputedTensor> = { out: { values: await workspace.keep(out).toFloat32() } };
    // The original takes the weights of the branches as constants; the paper differentiates them.
    for (const [gradient, suffix] of [
      ['detached', ''],
      ['joint', '_joint'],
    ] as const) {
      const gradients = longnetAttentionBackward(load('dout'), saved, { gradient });
      for (const name of ['dq', 'dk', 'dv'] as const) {
        tensors[name + suffix] = { values: await workspace.keep(gradients[name]).toFloat32() };
      }
    }
    saved.dispose();
    return { tensors };
  },
};
