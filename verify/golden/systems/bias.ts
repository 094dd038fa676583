/** Terms added to the logits: a dense bias, ALiBi, and the relative position buckets of T5. */
import { alibiSlopes, t5RelativeBias } from 'flashattn';
import { type Adapter, type ComputedTensor, type Outcome, solveAttention, type Workspace } from '../adapter.js';
import type { GoldenFile } from '../file.js';

export const denseBias: Adapter = {
  systems: ['dense_bias'],
  async compute(file, workspace) {
    const bias = workspace.load(file, 'bias');
    const tensors = await solveAttention(file, workspace, { layout: 'bhsd', bias }, { extra: { dbias: 'dBias' } });
    return { tensors };
  },
};

function slopeTables(file: GoldenFile): Record<string, ComputedTensor> {
  const names = file.names.filter((name) => /^slopes_\d+$/.test(name));
  return Object.fromEntries(
    names.map((name) => {
      const heads = Number(name.slice('slopes_'.length));
      return [name, { values: alibiSlopes(heads) }];
    }),
  );
}

export const alibi: Adapter = {
  systems: ['alibi'],
  async compute(file, workspace): Promise<Outcome> {
    if (!file.has('q')) return { tensors: slopeTables(file) };
    const heads = file.tensor('q').shape[1] ?? 0;
    const slopes = alibiSlopes(heads);
    const options = { layout: 'bhsd', causal: file.params.boolean('causal') ?? false, alibi: slopes } as const;
    const tensors = await solveAttention(file, workspace, options);
    return { tensors: { ...tensors, slopes: { values: slopes } } };
  },
};

async function solveT5(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const queryLength = file.tensor('q').shape[2] ?? 0;
  const keyLength = file.tensor('k').shape[2] ?? 0;
  const bidirectional = file.params.boolean('bidirectional') ?? true;
  const relativeBias = t5RelativeBias(workspace.load(file, 'bias_table'), {
    queryLength,
    keyLength,
    bidirectional,
    maxDistance: file.params.number('max_distance') ?? 128,
  });
  const buckets = new Int32Array(queryLength * keyLength);
  for (let i = 0; i < queryLength; i++) {
    for (let j = 0; j < keyLength; j++) {
      const distance = (relativeBias.keyPosition?.[j] ?? j) - (relativeBias.queryPosition?.[i] ?? i);
      buckets[i * keyLength + j] = relativeBias.buckets[distance + relativeBias.origin] ?? -1;
    }
  }
  // T5 does not scale its logits, and its causal mask is aligned with the first key.
  const options = { layout: 'bhsd', scale: 1, causal: !bidirectional, align: 'topLeft', relativeBias } as const;
  const tensors = await solveAttention(file, workspace, options, { extra: { dbias_table: 'dRelativeBias' } });
  return { tensors: { ...tensors, bucket: { values: buckets, exact: true } } };
}

export const t5Bias: Adapter = { systems: ['t5_bias'], compute: solveT5 };
