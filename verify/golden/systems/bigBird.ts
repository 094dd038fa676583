/** The original BigBird, with the random blocks of the file. */
import { type Mask, patterns } from 'flashattn';
import { type Adapter, type ComputedTensor, type Outcome, solveAttention, type Workspace } from '../adapter.js';
import { GoldenError, type GoldenFile } from '../file.js';
import { required, visibility } from './masked.js';

/** Random columns of each row of each head. The authors draw once for all batch entries. */
function randomBlocks(file: GoldenFile): number[][][] {
  const { values, shape } = file.tensor('rand_blocks');
  const [batch = 0, heads = 0, rows = 0, count = 0] = shape;
  const size = heads * rows * count;
  for (let n = size; n < batch * size; n++)
    if (values[n] !== values[n % size]) throw new GoldenError('random blocks that differ between batch entries');
  return Array.from({ length: heads }, (_, h) =>
    Array.from({ length: rows }, (_, r) => {
      const begin = (h * rows + r) * count;
      return [...values.subarray(begin, begin + count)];
    }),
  );
}

/** The first token of each block tells whether the block is visible. */
function layoutOf(
  mask: Mask,
  block: number,
  [batch = 0, heads = 0, rows = 0, columns = 0]: readonly number[],
): ComputedTensor {
  const { values: tokens } = visibility(mask, [batch, heads, rows * block, columns * block]);
  const values = Uint8Array.from({ length: batch * heads * rows * columns }, (_, n) => {
    const row = Math.floor(n / columns);
    return tokens[(row * block * columns + (n % columns)) * block] ?? 0;
  });
  return { values, exact: true };
}

async function compute(file: GoldenFile, workspace: Workspace): Promise<Outcome> {
  const block = required(file.params.number('block'), 'block');
  const lengths = required(file.params.numbers('lens'), 'lens');
  const mask = patterns.bigBird({
    length: file.tensor('q').shape[2] ?? 0,
    block,
    heads: required(file.params.number('H'), 'H'),
    numRandomBlocks: required(file.params.number('num_random'), 'num_random'),
    random: randomBlocks(file),
  });
  const layout = layoutOf(mask, block, file.tensor('layout').shape);
  const options = { layout: 'bhsd', mask, qLens: lengths, kLens: lengths } as const;
  return { tensors: { layout, ...(await solveAttention(file, workspace, options)) } };
}

export const bigBird: Adapter = { systems: ['bigbird'], compute };
