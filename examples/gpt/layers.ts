import type { AttentionLayerOptions, Layer } from 'flashattn/nn';
import {
  GatedDeltaNet,
  GatedLinearAttention,
  InfiniAttention,
  LinearAttention,
  Mamba2,
  MultiScaleRetention,
  TTTLinear,
} from 'flashattn/systems';

/** What can mix the tokens of a block in the place of softmax attention, each as its authors have it. */
export const layers: Readonly<Record<string, ((options: AttentionLayerOptions) => Layer) | undefined>> = {
  linear: (options) => new LinearAttention(options),
  retnet: (options) => new MultiScaleRetention(options),
  gla: (options) => new GatedLinearAttention(options),
  mamba2: (options) => new Mamba2(options),
  'gated-deltanet': (options) => new GatedDeltaNet(options),
  ttt: (options) => new TTTLinear(options),
  infini: (options) => new InfiniAttention({ ...options, segment: 32, rope: {} }),
};

export const attentionNames: readonly string[] = ['softmax', ...Object.keys(layers)];

/** Those that know no positions but what comes first: a model adds learned ones. */
export const needPositions: readonly string[] = ['linear'];
