import {
  BlockMask,
  blockMask,
  blockMaskFromBytes,
  blockMaskToBytes,
  FlashAttnError,
  type Mask,
  masks,
} from 'flashattn';
import type { Random } from '../random.js';
import { assert, assertSameBytes, type FuzzTarget, withBoundedMemory } from '../target.js';

const headerWords = 9;
const limits = [0, 1, 2, 31, 32, 63, 64, 65, 127, 128, 129, 2 ** 24, 2 ** 26, 2 ** 28, 2 ** 30 - 1, 2 ** 30, 2 ** 31];
const interesting = [...limits, 2 ** 31 - 1, 2 ** 32 - 1];

const toBytes = (words: readonly number[]) => {
  const view = new DataView(new ArrayBuffer(4 * words.length));
  for (const [at, word] of words.entries()) view.setUint32(4 * at, word, true);
  return new Uint8Array(view.buffer);
};

/** As many offsets as there are lists, and then some, with the indices that they promise. */
function randomLists(random: Random, lists: number, columns: number): { offsets: number[]; indices: number[] } {
  const offsets = [0];
  const indices: number[] = [];
  for (let list = 0; list < lists; list++) {
    for (let index = random.below(3); index < columns && indices.length < 20; index += random.integer(1, 4))
      indices.push(index);
    offsets.push(indices.length);
  }
  return { offsets, indices };
}

/** Words whose header and lengths agree, with contents that mostly do. */
function randomWords(random: Random): number[] {
  const small = () => random.integer(1, 3);
  const tokens = () => (random.chance(0.1) ? random.pick(interesting) : random.below(300));
  const [batch, heads, queries, keys] = [small(), small(), tokens(), tokens()];
  const blockSize = random.pick([64, 128]);
  const lists = Math.min(100, batch * heads * Math.ceil(queries / blockSize));
  const columns = Math.ceil(keys / blockSize);
  const full = randomLists(random, lists, columns);
  const partial = random.chance(0.5) ? randomLists(random, lists, columns) : randomLists(random, lists, 0);
  const bits = partial.indices.flatMap(() =>
    Array.from({ length: (blockSize * blockSize) / 32 }, () => (random.chance(0.01) ? random.pick(interesting) : 0)),
  );
  const counts = [full.indices.length, partial.indices.length];
  const header = [0x4d424146, 1, batch, heads, queries, keys, blockSize, ...counts];
  return [...header, ...full.offsets, ...full.indices, ...partial.offsets, ...partial.indices, ...bits];
}

function changeWord(random: Random, input: Uint8Array, words: number): Uint8Array {
  const copy = input.slice(0, input.length - (input.length % 4));
  if (copy.length === 0) return copy;
  const at = 4 * random.below(Math.min(words, copy.length / 4));
  const value = random.chance(0.5) ? random.pick(interesting) : random.below(8);
  new DataView(copy.buffer).setUint32(at, value, true);
  return copy;
}

/** Everything that follows from a mask follows without an error and agrees with itself. */
function checkMask(mask: BlockMask, input: Uint8Array): void {
  assertSameBytes(blockMaskToBytes(mask), input, 'encoding again');
  BlockMask.from(mask);
  const { visiblePairs, totalPairs, density, fullBlocks, partialBlocks, emptyBlocks } = mask.statistics();
  assert(visiblePairs >= 0 && visiblePairs <= totalPairs, `${visiblePairs} of ${totalPairs} pairs are visible`);
  assert(density >= 0 && density <= 1, `the density is ${density}`);
  assert(emptyBlocks >= 0, `${fullBlocks} full and ${partialBlocks} partial blocks leave ${emptyBlocks} empty`);
  const lists = mask.batch * mask.heads * mask.columns;
  if (lists > 1 << 12) return;
  const { full, partial, partialBlocks: blocks } = mask.transposed;
  assert(full.offsets[lists] === fullBlocks && partial.offsets[lists] === partialBlocks, 'the other direction differs');
  assert(new Set(blocks).size === partialBlocks, 'the other direction does not have every partial block once');
  if (mask.rows <= 1 << 8) mask.toText();
}

export const target: FuzzTarget = {
  seeds: () =>
    (
      [
        [masks.causal(), 64],
        [masks.causal(), 130],
        [masks.documents([40, 60]), 100],
        [masks.perHead([masks.causal(), masks.slidingWindow(20, 0)]), 200],
        [masks.not(masks.causal()), 1],
      ] as [Mask, number][]
    ).map(([mask, nq]) => blockMaskToBytes(blockMask(mask, { nq }))),

  mutate(random, input) {
    if (random.chance(0.3)) return toBytes(randomWords(random));
    return changeWord(random, input, random.chance(0.5) ? headerWords : Number.POSITIVE_INFINITY);
  },

  run(input) {
    let mask: BlockMask;
    try {
      mask = withBoundedMemory(input, blockMaskFromBytes);
    } catch (error) {
      if (error instanceof FlashAttnError && (error.code === 'ERR_OPTION' || error.code === 'ERR_SHAPE')) return;
      throw error;
    }
    checkMask(mask, input);
  },
};
