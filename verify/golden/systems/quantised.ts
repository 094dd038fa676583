/** Attention and layers with numbers of few bits. Integers are compared exactly. */
import type { Tensor } from 'flashattn';
import {
  biBertSelfAttention,
  bitLinear1,
  bitLinear158,
  bitLinear158Codes,
  int8SmoothKAttention,
  int8SymmetricAttention,
  quantisedKvCacheAttention,
  quantiseKvCache,
  ternaryAttention,
} from 'flashattn/systems';
import type { Adapter, ComputedTensor, Workspace } from '../adapter.js';
import { type GoldenFile, numberOf } from '../file.js';
import { headsFirst, optionsOf } from './linearAttention.js';
import { solveTaped, tapedTensors } from './taped.js';

type Heads = Tensor<'float32', readonly [number, number, number, number]>;
const four = (t: Tensor) => t as unknown as Heads;

const withClip = (attend: typeof ternaryAttention, system: string): Adapter => ({
  systems: [system],
  compute(file, workspace) {
    const options = optionsOf(file.params, { clip: 'clip' });
    return solveTaped(
      file,
      workspace,
      headsFirst((q, k, v) => attend(four(q), four(k), four(v), options) as unknown as Tensor),
    );
  },
});

export const int8Symmetric = withClip(int8SymmetricAttention, 'quantised_attention_int8_sym');
export const ternary = withClip(ternaryAttention, 'quantised_attention_ternary_twn');

/** Inputs of a file without gradients, [batch, heads, seq, dim], as [batch, seq, heads, dim]. */
const loadHeads = (file: GoldenFile, workspace: Workspace): [Heads, Heads, Heads] =>
  ['q', 'k', 'v'].map((name) => workspace.keep(four(workspace.load(file, name).transpose(1, 2)) as never)) as never;

/** The elements of [batch, seq, heads, ...] in the order of a file. */
async function inFile(workspace: Workspace, t: Tensor, exact = false): Promise<ComputedTensor> {
  return { values: await workspace.keep(t.transpose(1, 2)).toFloat32(), exact };
}

const only32 = (workspace: Workspace, file: GoldenFile) =>
  workspace.dtype === 'float32'
    ? undefined
    : { unsupported: `no ${workspace.dtype} reference for ${file.expected.join(', ')}` };

export const int8SmoothK: Adapter = {
  systems: ['quantised_attention_int8_smoothk'],
  async compute(file, workspace) {
    const { out, q, k } = int8SmoothKAttention(...loadHeads(file, workspace));
    for (const t of [out, q.codes, q.step, k.codes, k.step]) workspace.keep(t as unknown as Tensor);
    const values = (t: unknown, exact = false) => inFile(workspace, t as Tensor, exact);
    return (
      only32(workspace, file) ?? {
        tensors: {
          out: await values(out),
          q_int8: await values(q.codes, true),
          k_int8: await values(k.codes, true),
          q_scale: await values(q.step),
          k_scale: await values(k.step),
        },
      }
    );
  },
};

export const kvCache: Adapter = {
  systems: ['quantised_kv_cache_attention'],
  async compute(file, workspace) {
    const [q, k, v] = loadHeads(file, workspace);
    const cache = quantiseKvCache(k, v, { bits: numberOf(file, 'bits') });
    for (const { codes, step, least } of [cache.k, cache.v])
      for (const t of [codes, step, least]) workspace.keep(t as unknown as Tensor);
    const out = workspace.keep(quantisedKvCacheAttention(q, cache) as unknown as Tensor);
    return (
      only32(workspace, file) ?? {
        tensors: {
          out: await inFile(workspace, out),
          k_int: await inFile(workspace, cache.k.codes as unknown as Tensor, true),
          v_int: await inFile(workspace, cache.v.codes as unknown as Tensor, true),
        },
      }
    );
  },
};

export const biBert: Adapter = {
  systems: ['binary_attention_bibert'],
  compute(file, workspace) {
    const heads = numberOf(file, 'heads');
    const attentionMask = workspace.load(file, 'attention_mask');
    return solveTaped(file, workspace, (input) => {
      const weights = {
        query: input('query__weight'),
        queryBias: input('query__bias'),
        key: input('key__weight'),
        keyBias: input('key__bias'),
        value: input('value__weight'),
        valueBias: input('value__bias'),
      };
      return { out: biBertSelfAttention(input('x'), weights, { heads, attentionMask }) };
    });
  },
};

export const bitLinears: Adapter = {
  systems: ['bitlinear_b1', 'bitlinear_b158'],
  async compute(file, workspace) {
    const unsupported = only32(workspace, file);
    if (unsupported) return unsupported;
    const is158 = file.system === 'bitlinear_b158';
    const layer = is158 ? bitLinear158 : bitLinear1;
    const tensors = await tapedTensors(file, workspace, (input) => ({ out: layer(input('x'), input('weight')) }));
    if (!is158) return { tensors };
    const { x, weight } = bitLinear158Codes(workspace.load(file, 'x'), workspace.load(file, 'weight'));
    for (const t of [x.codes, x.scale, weight.codes, weight.scale]) workspace.keep(t);
    return {
      tensors: {
        ...tensors,
        x_int8: { values: await x.codes.toFloat32(), exact: true },
        w_int: { values: await weight.codes.toFloat32(), exact: true },
        x_scale: { values: await x.scale.toFloat32() },
        w_scale: { values: await weight.scale.toFloat32() },
      },
    };
  },
};
