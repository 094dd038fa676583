/** Attention whose heads are mixed. */
import type { Tensor } from 'flashattn';
import { dcmha, talkingHeadsAttention } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { headsFirst, optionsOf } from './linearAttention.js';
import { type Inputs, solveTaped } from './taped.js';

/** Matrices of the equation lie [heads in, heads out], those of CaiT are weights of linear layers. */
const projectionsOf = (inputs: Inputs, ofEquation: boolean) =>
  ofEquation
    ? { logitsProjection: inputs('P_l').transpose(0, 1), weightsProjection: inputs('P_w').transpose(0, 1) }
    : {
        logitsProjection: inputs('proj_l'),
        logitsBias: inputs('proj_l_bias'),
        weightsProjection: inputs('proj_w'),
        weightsBias: inputs('proj_w_bias'),
      };

export const talkingHeads: Adapter = {
  systems: ['talking_heads'],
  compute(file, workspace) {
    const causal = file.params.boolean('causal') ?? false;
    return solveTaped(
      file,
      workspace,
      headsFirst((q, k, v, inputs) =>
        talkingHeadsAttention(q, k, v, { ...projectionsOf(inputs, file.has('P_l')), causal }),
      ),
    );
  },
};

/** Without the axis of groups, of which there is one. */
const ungrouped = (t: Tensor, axis: number): Tensor => t.select(axis, 0);

export const dcmhaAdapter: Adapter = {
  systems: ['dcmha'],
  compute(file, workspace) {
    const options = optionsOf(file.params, { window: 'window' });
    return solveTaped(
      file,
      workspace,
      headsFirst((q, k, v, inputs) => {
        const weights = {
          dw1: ungrouped(inputs('dw1'), 1),
          qkw: ungrouped(inputs('qkw'), 0),
          dd: ungrouped(inputs('dd'), 1),
          ...(file.has('sw_pre') && { swPre: inputs('sw_pre') }),
          ...(file.has('sw_post') && { swPost: inputs('sw_post') }),
        };
        return dcmha(q, k, v, inputs('x'), weights, options);
      }),
    );
  },
};
