/** The options of layers: all that are described are taken, and others refused. */
import { describe, expect, it } from 'vitest';
import { masks, memory } from '../../lib/index.js';
import {
  Dropout,
  Embedding,
  GPT,
  LayerNorm,
  Linear,
  type LinearOptions,
  MLP,
  type MLPOptions,
  MultiHeadAttention,
  type MultiHeadAttentionOptions,
  type NormLayerOptions,
  RMSNorm,
  TransformerBlock,
  type TransformerBlockOptions,
} from '../../lib/nn/index.js';
import { expectFailure } from '../support/failure.js';

const device = 'wasm';
// Required: an option that a type gains is missing here until it is tried.
const linear: Required<LinearOptions> = {
  device,
  dtype: 'bfloat16',
  seed: 3,
  bias: false,
  initial: { kind: 'normal', std: 0.02 },
};
const norm: Required<NormLayerOptions> = { device, dtype: 'float32', seed: 1, epsilon: 1e-3 };
const attention: Required<MultiHeadAttentionOptions> = {
  ...linear,
  width: 8,
  heads: 4,
  kvHeads: 2,
  headDim: 2,
  rope: { base: 100, dims: 2, pairs: 'interleaved' },
  initialOut: { kind: 'zeros' },
  causal: true,
  window: [3, 0],
  mask: masks.causal(),
  softcap: 2,
  alibi: [1, 2, 3, 4],
  scoreMod: (score) => score.mul(0.5),
  scale: 0.5,
  deterministic: true,
};
const mlp: Required<MLPOptions> = {
  ...linear,
  width: 8,
  hidden: 12,
  activation: 'swiglu',
  initialOut: { kind: 'zeros' },
};
const block: Required<Omit<TransformerBlockOptions, 'attention'>> = {
  ...attention,
  ...mlp,
  norm: 'rms',
  epsilon: 1e-4,
  dropout: 0.1,
  checkpoint: true,
};

const layers = {
  Linear: (options: object) => new Linear(2, 3, options),
  Embedding: (options: object) => new Embedding(2, 3, options),
  LayerNorm: (options: object) => new LayerNorm(3, options),
  RMSNorm: (options: object) => new RMSNorm(3, options),
  Dropout: (options: object) => new Dropout(0.5, options),
  MultiHeadAttention: (options: object) => new MultiHeadAttention(options as MultiHeadAttentionOptions),
  MLP: (options: object) => new MLP(options as MLPOptions),
  TransformerBlock: (options: object) => new TransformerBlock(options as TransformerBlockOptions),
  GPT: (options: object) => new GPT({ vocabulary: 3, context: 4, layers: 1, ...options } as never),
};

describe('the options of layers', () => {
  const { bias: _, ...embedding } = linear;
  const taken: [keyof typeof layers, object][] = [
    ['Linear', linear],
    ['Embedding', embedding],
    ['LayerNorm', norm],
    ['RMSNorm', norm],
    ['Dropout', { seed: 4 }],
    ['MultiHeadAttention', attention],
    ['MLP', mlp],
    ['TransformerBlock', block],
  ];

  it.each(taken)('%s takes all of its own', (name, options) => {
    using layer = layers[name](options);
    for (const t of layer.parameters()) expect(t.device).toBe(device);
  });

  it('reach the parts of a block', () => {
    using layer = new TransformerBlock(block);
    expect(layer.norm1.epsilon).toBe(1e-4);
    expect(layer.mlp.hidden).toBe(12);
    expect([layer.attention.kvHeads, layer.attention.qkv.bias]).toEqual([2, undefined]);
    expect(layer.drop.p).toBe(0.1);
    expect(layer.parameters().every((t) => t.dtype === 'bfloat16')).toBe(true);
    expect(Math.max(...layer.mlp.down.weight.toFloat32Sync())).toBe(0);
  });

  const refused: [keyof typeof layers, object, RegExp][] = [
    ['Linear', { device, biass: false }, /no option "biass"; did you mean "bias"/],
    ['Linear', { device, epsilon: 1 }, /no option "epsilon"/],
    ['Linear', { device, bias: 1 }, /bias is 1/],
    ['Embedding', { device, bias: false }, /no option "bias"/],
    ['LayerNorm', { device, eps: 1e-5 }, /no option "eps"/],
    ['RMSNorm', { device, epsilonn: 1e-5 }, /did you mean "epsilon"/],
    ['Dropout', { device }, /no option "device"/],
    ['MultiHeadAttention', { device, width: 8, heads: 2, casual: true }, /did you mean "causal"/],
    ['MLP', { device, width: 8, heads: 2 }, /no option "heads"/],
    ['TransformerBlock', { device, width: 8, heads: 2, drop: 0.1 }, /no option "drop"/],
    ['GPT', { device, width: 8, heads: 2, causal: false }, /no option "causal"/],
  ];

  it.each(refused)('%s refuses %j, with nothing left', async (name, options, message) => {
    const before = memory(device).tensors;
    await expectFailure(() => layers[name](options), 'ERR_OPTION', message);
    expect(memory(device).tensors).toBe(before);
  });

  it.each(Object.keys(layers) as (keyof typeof layers)[])('%s refuses what are no options', async (name) => {
    if (name !== 'GPT') await expectFailure(() => layers[name](1 as never), 'ERR_OPTION', /options is 1/);
  });
});
