import type { AttentionLayerOptions, Layer } from 'flashattn/nn';
import {
  DynamicConv,
  GatedDeltaNet,
  GatedLinearAttention,
  InfiniAttention,
  LightweightConv,
  LinearAttention,
  Mamba2,
  MultiHeadLatentAttention,
  MultiScaleRetention,
  NativeSparseAttention,
  ReformerAttention,
  RoutingAttention,
  TransformerXLAttention,
  TTTLinear,
  TTTMlp,
} from 'flashattn/systems';

/** What can mix the tokens of a block in the place of softmax attention, each as its authors have it. */
export const layers: Readonly<Record<string, ((options: AttentionLayerOptions) => Layer) | undefined>> = {
  linear: (options) => new LinearAttention(options),
  retnet: (options) => new MultiScaleRetention(options),
  gla: (options) => new GatedLinearAttention(options),
  mamba2: (options) => new Mamba2(options),
  'gated-deltanet': (options) => new GatedDeltaNet(options),
  ttt: (options) => new TTTLinear(options),
  'ttt-mlp': (options) => new TTTMlp(options),
  infini: (options) => new InfiniAttention({ ...options, segment: 32, rope: {} }),
  mla: (options) => {
    const { width, heads } = options;
    const dim = width / heads;
    return new MultiHeadLatentAttention({
      ...options,
      ...{ nopeDim: dim, ropeDim: 2 * Math.ceil(dim / 4), valueDim: dim, kvRank: Math.ceil(width / 2) },
    });
  },
  'transformer-xl': (options) => new TransformerXLAttention({ ...options, memory: 32, segment: 32, preNorm: true }),
  routing: (options) =>
    new RoutingAttention({ ...options, localHeads: options.heads >> 1, clusters: 4, window: 32, causal: true }),
  reformer: (options) => new ReformerAttention({ ...options, numBuckets: 8, chunkLength: 16, rounds: 2, causal: true }),
  nsa: (options) => new NativeSparseAttention({ ...options, blockSize: 8, blockCount: 4, window: 16, rope: {} }),
  'lightweight-conv': (options) =>
    new LightweightConv({ ...options, kernelSize: 7, causal: true, weightSoftmax: true }),
  'dynamic-conv': (options) => new DynamicConv({ ...options, kernelSize: 7, causal: true, weightSoftmax: true }),
};

export const attentionNames: readonly string[] = ['softmax', ...Object.keys(layers)];

/** Those that know no positions but what comes first: a model adds learned ones. */
export const needPositions: readonly string[] = ['linear', 'routing', 'reformer'];
