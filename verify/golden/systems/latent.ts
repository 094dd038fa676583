/** Positions that decay, and keys and values that are made of a latent. */
import { scope, type Tensor } from 'flashattn';
import { multiHeadLatentAttention, xpos, xposAttention, xposTables } from 'flashattn/systems';
import type { Adapter, Outcome, Workspace } from '../adapter.js';
import type { GoldenFile } from '../file.js';
import { number } from './lowRank.js';
import { type Inputs, type NamedTensors, tapedTensors } from './taped.js';

/** As `solveTaped`, for files in which the gradient of X is dX. */
export async function solveTapedInputs(
  file: GoldenFile,
  workspace: Workspace,
  run: (input: Inputs) => NamedTensors,
): Promise<Outcome> {
  if (workspace.dtype !== 'float32') return { unsupported: `no ${workspace.dtype} reference for ${file.system}` };
  const inputs = file.names.flatMap((name) =>
    name.startsWith('d') && name !== 'dout' && file.has(name.slice(1)) ? [name.slice(1)] : [],
  );
  const tensors = await tapedTensors(file, workspace, run, inputs);
  return {
    tensors: Object.fromEntries(Object.entries(tensors).map(([name, values]) => [name.replace(/^grad_/, 'd'), values])),
  };
}

export const xposPositions: Adapter = {
  systems: ['xpos'],
  compute(file, workspace) {
    const { device } = workspace;
    const [heads, length, dim] = [number(file, 'H'), number(file, 'N'), number(file, 'D')];
    const { queries, keys } = xposTables({ length, dim, scaleBase: number(file, 'scale_base'), device });
    for (const t of [queries.cos, queries.sin, keys.cos, keys.sin]) workspace.keep(t as Tensor);
    const tables = { queries, keys };
    return solveTapedInputs(file, workspace, (input) => {
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
    const [heads, seq, decoded] = [number(file, 'H'), number(file, 'T'), number(file, 'dec')];
    const options = { heads, scale: number(file, 'scale'), angles: { cos: table(Math.cos), sin: table(Math.sin) } };
    return solveTapedInputs(file, workspace, (input) => {
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
