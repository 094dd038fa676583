/** Positions that decay, and keys and values that are made of a latent. */
import { scope, type Tensor } from 'flashattn';
import { multiHeadLatentAttention, xpos, xposAttention, xposTables } from 'flashattn/systems';
import type { Adapter } from '../adapter.js';
import { numberOf } from '../file.js';
import { solveTaped } from './taped.js';

export const xposPositions: Adapter = {
  systems: ['xpos'],
  compute(file, workspace) {
    const { device } = workspace;
    const [heads, length, dim] = [numberOf(file, 'H'), numberOf(file, 'N'), numberOf(file, 'D')];
    const { queries, keys } = xposTables({ length, dim, scaleBase: numberOf(file, 'scale_base'), device });
    for (const t of [queries.cos, queries.sin, keys.cos, keys.sin]) workspace.keep(t as Tensor);
    const tables = { queries, keys };
    return solveTaped(file, workspace, (input) => {
      // [batch * heads, length, dim]
      const of = (name: string) => input(name).reshape([-1, heads, length, dim]).transpose(1, 2) as Tensor;
      const [q, k, v] = [of('q'), of('k'), of('v')];
      const { out, lse } = xposAttention(q, k, v, { tables });
      return {
        out: out.transpose(1, 2),
        lse,
        q_rot: xpos(q, queries).transpose(1, 2),
        k_rot: xpos(k, keys).transpose(1, 2),
      };
    });
  },
};

export const mla: Adapter = {
  systems: ['mla'],
  compute(file, workspace) {
    const angles = file.tensor('rope_angles');
    const table = (f: (angle: number) => number) => workspace.tensor(angles.values.map(f), angles.shape);
    const [heads, seq, decoded] = [numberOf(file, 'H'), numberOf(file, 'T'), numberOf(file, 'dec')];
    const options = { heads, scale: numberOf(file, 'scale'), angles: { cos: table(Math.cos), sin: table(Math.sin) } };
    return solveTaped(file, workspace, (input) => {
      const weights = {
        ...(file.has('wq') ? { q: input('wq') } : { q: input('wq_b'), qDown: input('wq_a'), qNorm: input('q_norm') }),
        kvDown: input('wkv_a'),
        kvNorm: input('kv_norm'),
        kvUp: input('wkv_b'),
      };
      const x = input('x');
      const { out, lse, cache } = multiHeadLatentAttention(x.slice(1, 0, seq), weights, options);
      const rest = scope(() => x.slice(1, seq, seq + decoded).detach());
      const { out: behind, cache: all } = multiHeadLatentAttention(rest, weights, {
        ...options,
        form: 'absorbed',
        cache,
      });
      return { out, lse, out_decode: behind, core_c: all.latent, core_k_pe: all.ropeKeys };
    });
  },
};
