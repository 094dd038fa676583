import { type FuzzTarget, withBoundedMemory } from '../target.js';

const isWord = (input: Uint8Array, word: string) => Buffer.from(input).toString('latin1') === word;

/**
 * A decoder with bugs, which show that the fuzzer notices each kind: one that only bytes found one after the other
 * reach, and others for inputs that are given.
 */
function decode(input: Uint8Array): unknown {
  while (isWord(input, 'hang'));
  if (isWord(input, 'allocate')) return new Uint8Array(1 << 28);
  if (isWord(input, 'exhaust')) for (const all: number[][] = []; ; ) all.push(new Array<number>(1000).fill(0.5));
  if (input[0] !== 0xf0) return 'other';
  if (input[1] !== 0x9f) return 'start';
  if (input[2] !== 0x8d) return 'two';
  if (input[3] !== 0x84) return 'three';
  throw new TypeError('planted');
}

export const target: FuzzTarget = {
  seeds: () => [new Uint8Array(4)],
  mutate: (_, input) => input,
  run: (input) => {
    withBoundedMemory(input, decode);
  },
};
