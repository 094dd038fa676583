/** A finalizer of MurmurHash3 (Appleby 2011): every bit of the result depends on every bit of x. */
function mix(x: number): number {
  let h = x | 0;
  h = Math.imul(h ^ (h >>> 16), 0x85ebca6b);
  h = Math.imul(h ^ (h >>> 13), 0xc2b2ae35);
  return (h ^ (h >>> 16)) >>> 0;
}

const rounds = 8;

/** As many keys as rounds, from numbers of up to 53 bits. */
function keysFrom(numbers: readonly number[]): readonly number[] {
  let state = 0;
  for (const n of numbers)
    for (const word of [n % 2 ** 32, Math.floor(n / 2 ** 32)]) state = mix(state ^ mix(word + 1));
  return Array.from({ length: rounds }, () => {
    state = (state + 0x9e3779b9) >>> 0;
    return mix(state);
  });
}

/**
 * A random order of the integers below `length`, without a list of them: the number at each place is computed. A Feistel
 * network permutes all numbers of an even number of bits; what lands outside of the range is permuted again until it does
 * not (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
 *
 * @param length at most 2^52
 * @param numbers what the order depends on, integers of up to 53 bits
 */
export function permutation(length: number, ...numbers: readonly number[]): (place: number) => number {
  const keys = keysFrom(numbers);
  // A wider network mixes small ranges better, and walks a little longer.
  let half = 16;
  while (half * half < length) half *= 2;
  return (place) => {
    let at = place;
    do {
      let [left, right] = [Math.floor(at / half), at % half];
      for (const key of keys) [left, right] = [right, (left ^ mix(right ^ key)) & (half - 1)];
      at = left * half + right;
    } while (at >= length);
    return at;
  };
}
