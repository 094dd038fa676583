import { checkInteger } from '../base/check.js';

/** Random numbers from [0, 1) on the host, the same for a seed: SplitMix32. For sampling, not for secrets. */
export function generator(seed: number): () => number {
  let state = checkInteger(seed, 'seed', 0) >>> 0;
  return () => {
    state = (state + 0x9e3779b9) >>> 0;
    let word = state ^ (state >>> 16);
    word = Math.imul(word, 0x21f0aaad);
    word = Math.imul(word ^ (word >>> 15), 0x735a2d97);
    return ((word ^ (word >>> 15)) >>> 0) / 2 ** 32;
  };
}
