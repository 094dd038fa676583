/** Native sparse attention: queries with blocks of keys of their own. */
import { cos, mul, sin, type Tensor, tensor } from 'flashattn';
import { type NsaCompression, nativeSparseAttention, nativeSparseAttentionLucidrains } from 'flashattn/systems';
import type { Adapter, Outcome } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { type Inputs, tapedByInput } from './taped.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;

export function number(file: GoldenFile, name: string): number {
  const value = file.params.number(name);
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}

const heads = (input: Inputs): [q: Tokens, k: Tokens, v: Tokens] => {
  const of = (name: string) => input(name) as Tensor<'float32'> as Tokens;
  return [of('q'), of('k'), of('v')];
};

/** Lists of indices of which the order says nothing, in the order of the file where they are the same ones. */
function inOrderOf(file: GoldenFile, name: string, values: ArrayLike<number>): number[] {
  const { shape, values: expected } = file.tensor(name);
  const count = shape.at(-1) ?? 1;
  return Array.from({ length: values.length / count }, (_, row) => {
    const own = Array.from({ length: count }, (_, i) => values[row * count + i] as number);
    const wanted = [...expected.slice(row * count, (row + 1) * count)];
    return [...own].sort((a, b) => a - b).join() === [...wanted].sort((a, b) => a - b).join() ? wanted : own;
  }).flat();
}

/** With lists of indices, which are compared exactly. */
export function withIndices(
  file: GoldenFile,
  outcome: Outcome,
  indices: Readonly<Record<string, ArrayLike<number>>>,
): Outcome {
  if (!('tensors' in outcome)) return outcome;
  const exact = Object.entries(indices).map(
    ([name, values]) => [name, { values: inOrderOf(file, name, values), exact: true }] as const,
  );
  return { tensors: { ...outcome.tensors, ...Object.fromEntries(exact) } };
}

export const nsa: Adapter = {
  systems: ['nsa'],
  async compute(file, workspace) {
    const window = number(file, 'window');
    const indices: Record<string, ArrayLike<number>> = {};
    const outcome = await tapedByInput(file, workspace, (input) => {
      const { out, compressed, selected, blockIndices } = nativeSparseAttention(...heads(input), {
        gates: {
          compressed: input('g_cmp'),
          selected: input('g_slc'),
          ...(window > 0 && { sliding: input('g_swa') }),
        },
        blockSize: number(file, 'block_size'),
        blockCount: number(file, 'S'),
        window,
      });
      indices.block_indices = blockIndices.dataSync();
      return { out, out_cmp: compressed, out_slc: selected } as unknown as Record<string, Tensor>;
    });
    return withIndices(file, outcome, indices);
  },
};

const compressionOf = (input: Inputs, of: 'k' | 'v'): NsaCompression => ({
  memory: input('compress_mem_kv').select(0, of === 'k' ? 0 : 1),
  positions: input(`${of}_intrablock_positions`),
  W1: input(`${of}_compress_1_weight`),
  b1: input(`${of}_compress_1_bias`),
  W2: input(`${of}_compress_3_weight`),
  b2: input(`${of}_compress_3_bias`),
});

/** Lists of blocks [batch, seq, kv heads, slots] as which of `count` each query has, [batch, kv heads, seq, count], its own left out. */
function asFlags(list: Tensor<'int32'>, count: number): Uint8Array {
  const [batch = 0, seq = 0, kvHeads = 0, slots = 0] = list.shape;
  const flags = new Uint8Array(batch * kvHeads * seq * count);
  for (const [at, block] of list.dataSync().entries()) {
    const [row, slot] = [Math.floor(at / slots), at % slots];
    const [b, i, h] = [Math.floor(row / kvHeads / seq), Math.floor(row / kvHeads) % seq, row % kvHeads];
    if (slot < slots - 1 && block >= 0) flags[((b * kvHeads + h) * seq + i) * count + block] = 1;
  }
  return flags;
}

export const nsaLucidrains: Adapter = {
  systems: ['nsa_lucidrains'],
  async compute(file, workspace) {
    const [, seq = 0, , dim = 0] = file.tensor('q').shape;
    const at = (n: number, f: (i: number) => number) =>
      tensor(
        Float64Array.from({ length: n }, (_, i) => f(i)),
        [n],
        { device: workspace.device },
      );
    const flags: Record<string, ArrayLike<number>> = {};
    const outcome = await tapedByInput(file, workspace, (input) => {
      const angles = mul(
        at(seq, (i) => i).reshape([seq, 1]),
        at(dim / 2, (pair) => 10_000 ** ((-2 * pair) / dim)),
      );
      const { out, compressed, selected, sliding, blockIndices } = nativeSparseAttentionLucidrains(...heads(input), {
        gates: input('gates').transpose(1, 2),
        keyCompression: compressionOf(input, 'k'),
        valueCompression: compressionOf(input, 'v'),
        stride: number(file, 'stride'),
        blockSize: number(file, 'sel_block'),
        blockCount: number(file, 'S'),
        window: number(file, 'window'),
        differentiableTopK: file.params.boolean('diff_topk') ?? false,
        rope: { cos: cos(angles), sin: sin(angles), pairs: 'interleaved' },
      });
      flags.selected_blocks = asFlags(
        blockIndices as unknown as Tensor<'int32'>,
        file.tensor('selected_blocks').shape[3] ?? 0,
      );
      return { out, out_cmp: compressed, out_fine: selected, out_sliding: sliding } as unknown as Record<
        string,
        Tensor
      >;
    });
    return withIndices(file, outcome, flags);
  },
};
