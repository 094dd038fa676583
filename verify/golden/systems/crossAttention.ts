/** Cross-attention behind a gate: to media, and to the nodes of a graph. */
import { cast, type Tensor } from 'flashattn';
import { gatedCrossAttention, transnarCrossAttention } from 'flashattn/systems';
import type { Adapter, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile, numberOf } from '../file.js';
import { solveTaped } from './taped.js';

/** A tensor of zeros and ones as booleans, under the name of an option. */
function booleans<K extends string>(file: GoldenFile, workspace: Workspace, name: string, option: K) {
  if (!file.has(name)) return {};
  const made = cast(workspace.load(file, name), 'bool');
  workspace.keep(made as unknown as Tensor);
  return { [option]: made } as { readonly [name in K]: typeof made };
}

export const flamingo: Adapter = {
  systems: ['gated_cross_attention_tanh'],
  compute(file, workspace) {
    const options = {
      heads: numberOf(file, 'heads'),
      onlyImmediate: file.params.boolean('only_attend_immediate_media') ?? true,
      ...booleans(file, workspace, 'media_locations', 'mediaLocations'),
    };
    return solveTaped(file, workspace, (input) => {
      const weights = {
        attentionGate: input('attn_gate'),
        feedForwardGate: input('ff_gate'),
        normWeight: input('attn__norm__weight'),
        normBias: input('attn__norm__bias'),
        query: input('attn__to_q__weight'),
        keyValue: input('attn__to_kv__weight'),
        out: input('attn__to_out__weight'),
        feedForwardNormWeight: input('ff__0__weight'),
        feedForwardNormBias: input('ff__0__bias'),
        up: input('ff__1__weight'),
        down: input('ff__3__weight'),
      };
      return { out: gatedCrossAttention(input('x'), input('media'), weights, options) };
    });
  },
};

export const transnar: Adapter = {
  systems: ['transnar_cross_attention'],
  compute(file, workspace) {
    const gating = file.params.string('gate');
    if (gating !== 'sigmoid' && gating !== 'tanh') throw new GoldenError(`unknown gate ${gating}`);
    const options = {
      heads: numberOf(file, 'heads'),
      gating,
      ...booleans(file, workspace, 'nar_mask', 'mask'),
    } as const;
    return solveTaped(file, workspace, (input) => {
      const weights = {
        gate: input('gate'),
        query: input('q_proj__weight'),
        queryBias: input('q_proj__bias'),
        key: input('k_proj__weight'),
        keyBias: input('k_proj__bias'),
        value: input('v_proj__weight'),
        valueBias: input('v_proj__bias'),
        out: input('out_proj__weight'),
        outBias: input('out_proj__bias'),
      };
      return { out: transnarCrossAttention(input('text_h'), input('nar_h'), weights, options) };
    });
  },
};
