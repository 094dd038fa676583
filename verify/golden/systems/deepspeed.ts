/** The sparsity configurations of DeepSpeed: the layouts exactly, and attention under them. */
import { type Mask, patterns } from 'flashattn';
import type { Adapter, ComputedTensor, Outcome, Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile, type Params } from '../file.js';
import { required, solveMasked } from './masked.js';

type Config = patterns.DeepSpeedConfig;
type Attention = 'bidirectional' | 'unidirectional';

/** Parameters of the file under the names of the library; those that a case leaves out keep their defaults. */
function configOf(system: string, params: Params, length: number): Config {
  const attention = params.string('attention') as Attention | undefined;
  const options = {
    mode: system.replace('deepspeed_', ''),
    length,
    heads: required(params.number('H'), 'H'),
    block: params.number('block'),
    differentLayoutPerHead: params.boolean('different_layout_per_head'),
    attention,
    numLocalBlocks: params.number('num_local_blocks'),
    numGlobalBlocks: params.number('num_global_blocks'),
    numRandomBlocks: params.number('num_random_blocks'),
    numSlidingWindowBlocks: params.number('num_sliding_window_blocks'),
    horizontalGlobalAttention: params.boolean('horizontal_global_attention'),
    numDifferentGlobalPatterns: params.number('num_different_global_patterns'),
    localWindowBlocks: params.numbers('local_window_blocks'),
    globalBlockIndices: params.numbers('global_block_indices'),
    globalBlockEndIndices: params.numbers('global_block_end_indices'),
  };
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as unknown as Config;
}

/**
 * The random blocks of a file, which come out of Python's generator: whatever its layout shows beyond the rest of the
 * pattern, at most as many in a row as were drawn.
 */
function withRandomBlocks(config: Config, file: GoldenFile): Config {
  if (config.mode !== 'bigbird' && config.mode !== 'variable') return config;
  const count = config.numRandomBlocks ?? (config.mode === 'bigbird' ? 1 : 0);
  if (count === 0) return config;
  const { values, shape } = file.tensor('layout');
  const size = shape[1] ?? 0;
  const rest = patterns.deepspeedLayout({ ...config, numRandomBlocks: 0 });
  const heads = config.differentLayoutPerHead ? (config.heads ?? 1) : 1;
  const random = Array.from({ length: heads }, (_, head) =>
    Array.from({ length: size }, (_, row) => {
      const begin = (head * size + row) * size;
      const columns = Array.from({ length: size }, (_, column) => column);
      const drawn = columns.filter((column) => values[begin + column] !== 0 && rest[begin + column] === 0);
      if (drawn.length > count) throw new GoldenError(`row ${row} of head ${head} has blocks beyond the pattern`);
      return drawn;
    }),
  );
  return { ...config, random };
}

function maskOf(config: Config): Mask {
  switch (config.mode) {
    case 'dense':
      return patterns.deepspeedDense(config);
    case 'fixed':
      return patterns.deepspeedFixed(config);
    case 'variable':
      return patterns.deepspeedVariable(config);
    case 'bigbird':
      return patterns.deepspeedBigBird(config);
    case 'bslongformer':
      return patterns.deepspeedBSLongformer(config);
    case 'localslidingwindow':
      return patterns.deepspeedLocalSlidingWindow(config);
  }
}

const layoutOf = (config: Config): ComputedTensor => ({ values: patterns.deepspeedLayout(config), exact: true });

function solveLayouts(file: GoldenFile): Outcome {
  const lengths = required(file.params.numbers('seqs'), 'seqs');
  const tensors = lengths.map((length) => {
    return [`layout_seq${length}`, layoutOf(configOf(file.system, file.params, length))] as const;
  });
  return { tensors: Object.fromEntries(tensors) };
}

async function compute(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  if (!file.has('q')) return solveLayouts(file);
  const length = required(file.params.number('seq_len'), 'seq_len');
  const config = withRandomBlocks(configOf(file.system, file.params, length), file);
  const mask = maskOf(config);
  const tensors = { layout: layoutOf(config), ...(await solveMasked(file, workspace, mask)) };
  if (!file.has('out_causal')) return { tensors };
  const causal = await solveMasked(file, workspace, mask, { layout: 'bhsd', causal: true });
  const renamed = Object.entries(causal).map(([name, computed]) => [`${name}_causal`, computed] as const);
  return { tensors: { ...tensors, ...Object.fromEntries(renamed) } };
}

export const deepspeed: Adapter = {
  systems: [
    'deepspeed_bigbird',
    'deepspeed_bslongformer',
    'deepspeed_dense',
    'deepspeed_fixed',
    'deepspeed_localslidingwindow',
    'deepspeed_variable',
  ],
  compute,
};
