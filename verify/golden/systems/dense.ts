/** Dense attention with grouped heads, padding, windows and soft-capping: one set of parameters serves them all. */
import type { AttentionOptions } from 'flashattn';
import { type Adapter, solveAttention } from '../adapter.js';
import type { Params } from '../file.js';

function windowOf(params: Params): readonly [number, number] | undefined {
  const [left = -1, right = -1] = params.numbers('window') ?? [];
  return left < 0 && right < 0 ? undefined : [left, right];
}

function optionsOf(params: Params): AttentionOptions {
  const scale = params.number('scale');
  const softcap = params.number('softcap');
  const window = windowOf(params);
  const qLens = params.numbers('q_lens');
  const kLens = params.numbers('k_lens');
  return {
    layout: 'bhsd',
    causal: params.boolean('causal') ?? false,
    ...(scale !== undefined && { scale }),
    ...(softcap && { softcap }),
    ...(window && { window }),
    ...(qLens && { qLens }),
    ...(kLens && { kLens }),
  };
}

export const dense: Adapter = {
  systems: ['dense_mha', 'gqa', 'mqa', 'sliding_window', 'softcap'],
  async compute(file, workspace) {
    return { tensors: await solveAttention(file, workspace, optionsOf(file.params)) };
  },
};
