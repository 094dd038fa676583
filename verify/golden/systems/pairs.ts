/** Systems with weights of pairs that are no plain softmax of q . k. */
import { cast, type Tensor } from 'flashattn';
import {
  aftFull,
  flashQuadAttention,
  forgettingAttention,
  type GatedAttentionWeights,
  gatedAttentionUnit,
  kernelAttention,
} from 'flashattn/systems';
import type { Adapter, Workspace } from '../adapter.js';
import type { GoldenFile } from '../file.js';
import { headsFirst, inOrder, optionsOf } from './linearAttention.js';
import { type Inputs, solveTaped } from './taped.js';

/** A tensor of zeros and ones as a mask. */
const maskOf = (file: GoldenFile, workspace: Workspace) =>
  file.has('mask') ? { mask: cast(workspace.load(file, 'mask'), 'bool') } : {};

export const kernels: Adapter = {
  systems: [
    'kernel_attention_gaussian_normalised',
    'kernel_attention_gaussian_unnormalised',
    'kernel_attention_laplacian_normalised',
  ],
  async compute(file, workspace) {
    const masked = maskOf(file, workspace);
    const options = {
      ...masked,
      ...optionsOf(file.params, { sigma: 'sigma' }),
      kernel: file.system.includes('laplacian') ? 'laplacian' : 'gaussian',
      normalize: file.params.boolean('normalised') ?? true,
    } as const;
    try {
      return await solveTaped(
        file,
        workspace,
        headsFirst((q, k, v) => kernelAttention(q, k, v, options)),
      );
    } finally {
      masked.mask?.dispose();
    }
  },
};

export const forgetting: Adapter = {
  systems: ['forgetting_attention'],
  compute: (file, workspace) =>
    solveTaped(
      file,
      workspace,
      inOrder((q, k, v, inputs) => forgettingAttention(q, k, v, inputs('g') as Tensor<'float32'>)),
    ),
};

export const aft: Adapter = {
  systems: ['aft_full'],
  compute(file, workspace) {
    const causal = file.params.boolean('causal') ?? false;
    return solveTaped(
      file,
      workspace,
      inOrder((q, k, v, inputs) => aftFull(q, k, v, inputs('w'), { causal })),
    );
  },
};

/** Weights by the names that they have in the original code. */
function weightsOf(inputs: Inputs, offsetScale: string, out: string): GatedAttentionWeights {
  const t = (name: string) => inputs(name);
  return {
    normWeight: t('norm__weight'),
    normBias: t('norm__bias'),
    hiddenWeight: t('to_hidden__0__weight'),
    hiddenBias: t('to_hidden__0__bias'),
    qkWeight: t('to_qk__0__weight'),
    qkBias: t('to_qk__0__bias'),
    gamma: t(`${offsetScale}__gamma`),
    beta: t(`${offsetScale}__beta`),
    relativeBias: t('rel_pos_bias__relative_attention_bias__weight'),
    outWeight: t(`${out}__weight`),
    outBias: t(`${out}__bias`),
  };
}

export const gatedUnit: Adapter = {
  systems: ['gated_attention_unit'],
  compute(file, workspace) {
    const causal = file.params.boolean('causal') ?? false;
    return solveTaped(file, workspace, (inputs) => ({
      out: gatedAttentionUnit(inputs('x'), weightsOf(inputs, 'offsetscale', 'to_out__0'), { causal }),
    }));
  },
};

export const flashQuad: Adapter = {
  systems: ['flash_quad'],
  async compute(file, workspace) {
    const { params } = file;
    const masked = maskOf(file, workspace);
    const options = {
      ...masked,
      ...optionsOf(params, { groupSize: 'group_size' }),
      causal: params.boolean('causal') ?? false,
      laplace: params.boolean('laplace_attn_fn') ?? false,
    };
    try {
      return await solveTaped(file, workspace, (inputs) => ({
        out: flashQuadAttention(inputs('x'), weightsOf(inputs, 'qk_offset_scale', 'to_out'), options),
      }));
    } finally {
      masked.mask?.dispose();
    }
  },
};
