/** A learned logit per head in the softmax denominator. */
import { type Adapter, solveAttention } from '../adapter.js';

export const attentionSink: Adapter = {
  systems: ['attention_sink'],
  async compute(file, workspace) {
    // q is [N, Hkv, m, D]: query head kv * m + index, so the two head axes are one already. There is no batch axis.
    const [length = 0, kvHeads = 0, group = 0, dim = 0] = file.tensor('q').shape;
    const key = [1, length, kvHeads, dim];
    const query = [1, length, kvHeads * group, dim];
    const window = file.params.number('window') ?? 0;
    const options = {
      causal: true,
      sink: workspace.load(file, 'sinks'),
      // `window` counts the keys a query sees, itself included.
      ...(window > 0 && { window: [window - 1, 0] as const }),
    };
    const shapes = { q: query, k: key, v: key, out: query };
    return { tensors: await solveAttention(file, workspace, options, { shapes, extra: { dsinks: 'dSink' } }) };
  },
};
