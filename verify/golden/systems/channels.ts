/** Gates of channels and of places. */
import { type ChannelPool, cbam, cbamChannelGate, squeezeExcitation } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { GoldenError } from '../file.js';
import { solveTaped } from './taped.js';

export const excitation: Adapter = {
  systems: ['squeeze_excitation'],
  compute: (file, workspace) =>
    solveTaped(file, workspace, (input) => ({
      out: squeezeExcitation(input('x'), { reduce: input('fc__0__weight'), expand: input('fc__2__weight') }),
    })),
};

export const cbamGates: Adapter = {
  systems: ['cbam'],
  compute(file, workspace) {
    const { params } = file;
    const pools = params.strings('pools') as ChannelPool[] | undefined;
    const bn = params.string('bn');
    if (bn !== 'running statistics' && bn !== 'batch statistics') throw new GoldenError(`unknown statistics ${bn}`);
    return solveTaped(file, workspace, (input) => {
      const [mlp, spatial] = ['ChannelGate__mlp__', 'SpatialGate__spatial__'];
      const gate = {
        reduce: input(`${mlp}1__weight`),
        reduceBias: input(`${mlp}1__bias`),
        expand: input(`${mlp}3__weight`),
        expandBias: input(`${mlp}3__bias`),
      };
      const options = pools ? { pools } : {};
      const channel_out = cbamChannelGate(input('x'), gate, options);
      if (params.boolean('no_spatial')) return { channel_out, out: cbam(input('x'), { channel: gate }, options) };
      const running = (name: string) => workspace.load(file, `${spatial}bn__running_${name}`);
      const places = {
        conv: input(`${spatial}conv__weight`),
        gain: input(`${spatial}bn__weight`),
        bias: input(`${spatial}bn__bias`),
        ...(bn === 'running statistics' && { mean: running('mean'), variance: running('var') }),
      };
      return { channel_out, out: cbam(input('x'), { channel: gate, spatial: places }, options) };
    });
  },
};
