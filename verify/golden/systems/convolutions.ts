/** Convolutions along a sequence with kernels of softmaxes. Files of fairseq lie [seq, batch, channels]. */
import type { Tensor } from 'flashattn';
import { dynamicConv, lightweightConv } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { GoldenError, type GoldenFile, numberOf } from '../file.js';
import { solveTaped } from './taped.js';

/** Whether all padding is on the left; otherwise the position itself must be in the middle. */
function causalOf(file: GoldenFile): boolean {
  const kernel = numberOf(file, 'kernel');
  const left = numberOf(file, file.params.number('padding_l') === undefined ? 'padding' : 'padding_l');
  if (left === kernel - 1) return true;
  if (2 * left === kernel - 1) return false;
  throw new GoldenError(`unknown padding ${left} of kernel ${kernel}`);
}

export const lightweight: Adapter = {
  systems: ['lightweight_conv'],
  compute(file, workspace) {
    const causal = causalOf(file);
    const weightSoftmax = file.params.boolean('weight_softmax') ?? true;
    const channelsFirst = file.params.string('layout') === 'BCT';
    const turned = (t: Tensor) => (channelsFirst ? t.transpose(1, 2) : t.transpose(0, 1));
    return solveTaped(file, workspace, (input) => {
      const weights = {
        kernels: input('weight').select(1, 0),
        bias: file.has('bias') ? input('bias') : undefined,
      };
      const channels = channelsFirst ? 'interleaved' : 'consecutive';
      return { out: turned(lightweightConv(turned(input('x')), weights, { causal, weightSoftmax, channels })) };
    });
  },
};

export const dynamicConvolution: Adapter = {
  systems: ['dynamic_conv'],
  compute(file, workspace) {
    const { params } = file;
    const options = {
      heads: numberOf(file, 'heads'),
      kernelSize: numberOf(file, 'kernel'),
      causal: causalOf(file),
      weightSoftmax: params.boolean('weight_softmax') ?? true,
      renormPadding: params.boolean('renorm_padding') ?? false,
      inputProjection: params.boolean('in_proj') ?? false,
    };
    return solveTaped(file, workspace, (input) => {
      const optional = (name: string) => (file.has(name) ? input(name) : undefined);
      const weights = {
        kernels: input('weight_linear__weight'),
        kernelsBias: optional('weight_linear__bias'),
        bias: optional('conv_bias'),
      };
      return { out: dynamicConv(input('x').transpose(0, 1), weights, options).transpose(0, 1) };
    });
  },
};
