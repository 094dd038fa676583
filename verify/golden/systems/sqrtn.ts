/** Blocks of ceil(sqrt(N)) tokens. */
import { patterns } from 'flashattn';
import type { Adapter } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { solveMasked } from './masked.js';

const OPTIONS: Readonly<Record<string, { strided: boolean; causal: boolean }>> = {
  block_diag: { strided: false, causal: false },
  block_strided: { strided: true, causal: false },
  block_strided_causal: { strided: true, causal: true },
};

function maskOf({ caseName }: GoldenFile, length: number) {
  const options = OPTIONS[caseName];
  if (!options) throw new GoldenError(`unknown case ${caseName}`);
  return patterns.sqrtN({ length, ...options });
}

export const sqrtn: Adapter = {
  systems: ['sqrtn'],
  async compute(file, workspace) {
    const length = file.tensor('q').shape[2] ?? 0;
    return { tensors: await solveMasked(file, workspace, maskOf(file, length)) };
  },
};
