/** Longformer: windows, dilated per head or not, and global tokens with projections of their own. */
import { patterns } from 'flashattn';
import { type Adapter, type ComputedTensor, type Outcome, solveAttention, type Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile, type TensorSource } from '../file.js';
import { required, solveMasked } from './masked.js';

/** Positions of the set entries of a tensor [batch, length], for each batch entry. */
function positions(file: GoldenFile, name: string): number[][] {
  const { values, shape } = file.tensor(name);
  const [batch = 0, length = 0] = shape;
  return Array.from({ length: batch }, (_, b) => {
    const row = values.subarray(b * length, (b + 1) * length);
    return [...row.keys()].filter((at) => row[at] !== 0);
  });
}

/** Lengths without the padding, which lies at the end. */
function realLengths(file: GoldenFile): number[] {
  const length = file.tensor('is_pad').shape[1] ?? 0;
  return positions(file, 'is_pad').map((pads) => {
    if (pads.some((at, n) => at !== length - pads.length + n)) throw new GoldenError('padding inside of a sequence');
    return length - pads.length;
  });
}

async function solveLongformer(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const window = required(file.params.number('one_sided_window'), 'one_sided_window');
  const globals = positions(file, 'is_global');
  const lengths = realLengths(file);
  const padding = { qLens: lengths, kLens: lengths };
  const mask = patterns.longformer({ window, globals, queries: 'local' });
  const local = await solveAttention(file, workspace, { ...padding, mask });
  if (!file.has('qg')) return { tensors: local };

  const projected: TensorSource = { tensor: (name) => file.tensor(name === 'dout' ? name : `${name}g`) };
  const globalMask = patterns.longformer({ window, globals, queries: 'global' });
  const global = await solveAttention(projected, workspace, { ...padding, mask: globalMask });
  const sum = (a: ArrayLike<number>, b: ArrayLike<number>) => Array.from(a, (value, n) => value + (b[n] ?? NaN));
  const tensors: Record<string, ComputedTensor> = {
    ...local,
    out: { values: sum(local.out?.values ?? [], global.out?.values ?? []) },
  };
  for (const name of ['dq', 'dk', 'dv']) tensors[`${name}g`] = { values: global[name]?.values ?? [] };
  return { tensors };
}

async function solveDilated(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const mask = patterns.longformer({
    window: required(file.params.number('one_sided_window'), 'one_sided_window'),
    dilation: required(file.params.numbers('dilation'), 'dilation'),
    autoregressive: required(file.params.boolean('autoregressive'), 'autoregressive'),
  });
  return { tensors: await solveMasked(file, workspace, mask, { layout: 'bshd' }) };
}

export const longformer: Adapter = {
  systems: ['longformer', 'longformer_dilated'],
  compute: (file, workspace) =>
    file.system === 'longformer' ? solveLongformer(file, workspace) : solveDilated(file, workspace),
};
