import type { Random } from './random.js';

export const longestInput = 1 << 16;

const edges32 = [0, 1, 0x7f, 0x80, 0xff, 0x7fff, 0xffff, 0x7fffffff, 0x80000000, 0xffffffff];

type Mutation = (random: Random, input: Uint8Array, other: Uint8Array) => Uint8Array;

function edited(input: Uint8Array, edit: (copy: Uint8Array) => void): Uint8Array {
  const copy = input.slice();
  if (copy.length > 0) edit(copy);
  return copy;
}

const concatenated = (...parts: readonly Uint8Array[]) => new Uint8Array(Buffer.concat(parts));

/** A stretch of the input. */
function stretch(random: Random, input: Uint8Array): [begin: number, end: number] {
  const begin = random.below(input.length + 1);
  return [begin, Math.min(input.length, begin + random.below(random.chance(0.8) ? 9 : 257))];
}

const mutations: readonly Mutation[] = [
  // a bit, a byte, a word
  (random, input) => edited(input, (copy) => (copy[random.below(copy.length)] ^= 1 << random.below(8))),
  (random, input) => edited(input, (copy) => (copy[random.below(copy.length)] = random.below(256))),
  (random, input) =>
    edited(input, (copy) => {
      const view = new DataView(copy.buffer);
      if (copy.length >= 4) view.setUint32(random.below(copy.length - 3), random.pick(edges32), random.chance(0.5));
    }),
  (random, input) =>
    edited(input, (copy) => {
      const view = new DataView(copy.buffer);
      const at = 4 * random.below(Math.floor(copy.length / 4));
      if (copy.length >= 4) view.setUint32(at, view.getUint32(at, true) + random.integer(-2, 2), true);
    }),
  // less
  (random, input) => input.slice(0, random.below(input.length + 1)),
  (random, input) => {
    const [begin, end] = stretch(random, input);
    return concatenated(input.subarray(0, begin), input.subarray(end));
  },
  // more
  (random, input) => {
    const [begin, end] = stretch(random, input);
    return concatenated(input.subarray(0, end), input.subarray(begin));
  },
  (random, input) => {
    const [, at] = stretch(random, input);
    const added = Uint8Array.from({ length: random.below(9) }, () => random.below(256));
    return concatenated(input.subarray(0, at), added, input.subarray(at));
  },
  // parts of another input
  (random, input, other) => {
    const [begin, end] = stretch(random, other);
    const at = random.below(input.length + 1);
    return concatenated(input.subarray(0, at), other.subarray(begin, end), input.subarray(at));
  },
  (random, input, other) =>
    concatenated(input.subarray(0, random.below(input.length + 1)), other.subarray(random.below(other.length + 1))),
];

/** Changes bytes without knowing what they mean. */
export function mutateBytes(random: Random, input: Uint8Array, other: Uint8Array): Uint8Array {
  return random.pick(mutations)(random, input, other).subarray(0, longestInput);
}
