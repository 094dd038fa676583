/** What the adapters of attention patterns share. */
import { type AttentionOptions, blockMask, type Mask } from 'flashattn';
import { type ComputedTensor, solveAttention, type Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';

/** What the mask shows as 0 and 1, for a tensor [..., batch, heads, queries, keys]; axes may be left out in front. */
export function visibility(mask: Mask, shape: readonly number[]): ComputedTensor {
  const [batch = 1, heads = 1, queries = 0, keys = 0] = [...Array<number>(4 - shape.length).fill(1), ...shape];
  const compiled = blockMask(mask, { nq: queries, nk: keys });
  const values = new Uint8Array(batch * heads * queries * keys);
  let at = 0;
  for (let b = 0; b < batch; b++)
    for (let h = 0; h < heads; h++)
      for (let i = 0; i < queries; i++)
        for (let j = 0; j < keys; j++) values[at++] = compiled.visible(b, h, i, j) ? 1 : 0;
  return { values, exact: true };
}

/** The file's attention under a mask, with the mask itself where the file has it. */
export async function solveMasked(
  file: GoldenFile,
  workspace: Workspace,
  mask: Mask,
  options: Pick<AttentionOptions, 'causal' | 'layout'> = { layout: 'bhsd' },
): Promise<Record<string, ComputedTensor>> {
  const computed = await solveAttention(file, workspace, { ...options, mask } as AttentionOptions);
  if (file.has('mask')) computed.mask = visibility(mask, file.tensor('mask').shape);
  return computed;
}

export function required<T>(value: T | undefined, name: string): T {
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}
