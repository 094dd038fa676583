/** Windows on a ring of positions, and a key/value cache that is a ring. */
import { masks, patterns } from 'flashattn';
import { type Adapter, type ComputedTensor, type Outcome, solveAttention, type Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile, type TensorSource } from '../file.js';
import { required, solveMasked, visibility } from './masked.js';

async function solveRingCache(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const slots = required(file.params.number('L'), 'L');
  const written = required(file.params.number('T'), 'T');
  const queries = required(file.params.number('nq'), 'nq');
  const mask = patterns.ringCache({ slots, written, queries });
  const cache: TensorSource = {
    tensor: (name) => file.tensor(name === 'k' || name === 'v' ? `${name}_cache` : name),
  };
  const { dk, dv, ...computed } = await solveAttention(cache, workspace, { layout: 'bhsd', mask });
  if (!dk || !dv) throw new GoldenError('no gradients');
  const slotPosition = Int32Array.from({ length: slots }, (_, s) => written - 1 - ((written - 1 - s) % slots));
  const queryPosition = Int32Array.from({ length: queries }, (_, i) => written - queries + i);
  const tensors: Record<string, ComputedTensor> = {
    ...computed,
    dk_cache: dk,
    dv_cache: dv,
    mask: visibility(mask, file.tensor('mask').shape),
    slot_pos: { values: slotPosition, exact: true },
    q_pos: { values: queryPosition, exact: true },
  };
  return { tensors };
}

export const circularWindow: Adapter = {
  systems: ['circular_window'],
  async compute(file, workspace) {
    if (file.caseName === 'ring_cache') return solveRingCache(file, workspace);
    const reach = required(file.params.number('w'), 'w');
    const mask = masks.circularWindow(reach, file.caseName === 'sym' ? reach : 0);
    return { tensors: await solveMasked(file, workspace, mask) };
  },
};
