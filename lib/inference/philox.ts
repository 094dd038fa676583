// Random numbers on the host that are a function of a seed and of a counter alone: Philox4x32-10, Salmon et al., "Parallel
// random numbers: as easy as 1, 2, 3" (2011). Which other sequences are in a batch can change none of them.

/** The high and the low word of a product of two words. */
function multiply(a: number, b: number): readonly [high: number, low: number] {
  // Each product has at most 48 bits, so that all of this is exact.
  const carry = Math.floor((a * (b & 0xffff)) / 65536);
  return [Math.floor((a * (b >>> 16) + carry) / 65536) >>> 0, Math.imul(a, b) >>> 0];
}

type Words4 = readonly [number, number, number, number];

/** Four words of 32 bits for each counter and key. */
export function philox(counter: Words4, key: readonly [low: number, high: number]): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const [high0, low0] = multiply(0xd2511f53, c0);
    const [high1, low1] = multiply(0xcd9e8d57, c2);
    [c0, c1, c2, c3] = [(high1 ^ c1 ^ k0) >>> 0, low1, (high0 ^ c3 ^ k1) >>> 0, low0];
    [k0, k1] = [(k0 + 0x9e3779b9) >>> 0, (k1 + 0xbb67ae85) >>> 0];
  }
  return [c0, c1, c2, c3];
}

/**
 * A number from [0, 1) in steps of 2^-53.
 *
 * @param seed its two words: see `checkSeed`
 * @param position of the token that is drawn
 * @param draw which of several numbers for that position
 */
export function uniformAt(seed: readonly [low: number, high: number], position: number, draw = 0): number {
  const [first, second] = philox([position >>> 0, Math.floor(position / 2 ** 32), draw, 0], seed);
  return ((first >>> 5) * 2 ** 26 + (second >>> 6)) / 2 ** 53;
}
