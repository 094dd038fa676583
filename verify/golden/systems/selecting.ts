/** Native sparse attention: queries with blocks of keys of their own. */
import type { Tensor } from 'flashattn';
import { nativeSparseAttention } from 'flashattn/systems';
import type { Adapter, Outcome } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { type Inputs, tapedByInput } from './taped.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;

export function number(file: GoldenFile, name: string): number {
  const value = file.params.number(name);
  if (value === undefined) throw new GoldenError(`parameter ${name} is missing`);
  return value;
}

export const heads = (input: Inputs): [q: Tokens, k: Tokens, v: Tokens] => {
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
