/**
 * Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (2011).
 */
export type Words4 = readonly [number, number, number, number];
export type Words2 = readonly [number, number];

const MULTIPLIER_0 = 0xd2511f53;
const MULTIPLIER_1 = 0xcd9e8d57;
const WEYL_0 = 0x9e3779b9; // golden ratio
const WEYL_1 = 0xbb67ae85; // sqrt(3) - 1

function highWord(a: number, b: number): number {
  // Every intermediate stays below 2^53, so the arithmetic is exact.
  const low = Math.floor((a * (b & 0xffff)) / 65536);
  return Math.floor((a * (b >>> 16) + low) / 65536) >>> 0;
}

function lowWord(a: number, b: number): number {
  return Math.imul(a, b) >>> 0;
}

export function philox4x32(counter: Words4, key: Words2): Words4 {
  let [c0, c1, c2, c3] = counter;
  let [k0, k1] = key;
  for (let round = 0; round < 10; round++) {
    const high0 = highWord(MULTIPLIER_0, c0);
    const high1 = highWord(MULTIPLIER_1, c2);
    const low0 = lowWord(MULTIPLIER_0, c0);
    const low1 = lowWord(MULTIPLIER_1, c2);
    c0 = (high1 ^ c1 ^ k0) >>> 0;
    c1 = low1;
    c2 = (high0 ^ c3 ^ k1) >>> 0;
    c3 = low0;
    k0 = (k0 + WEYL_0) >>> 0;
    k1 = (k1 + WEYL_1) >>> 0;
  }
  return [c0, c1, c2, c3];
}

export interface Dropout {
  readonly p: number;
  readonly seed: number | bigint;
}

/** Which of the first `keys` elements of a row are kept. `head` is batch * heads + head. */
export function keptElements(dropout: Dropout, head: number, row: number, keys: number): boolean[] {
  const seed = BigInt.asUintN(64, BigInt(dropout.seed));
  const key: Words2 = [Number(seed & 0xffffffffn), Number(seed >> 32n)];
  const threshold = Math.floor(dropout.p * 4294967296);
  const kept: boolean[] = [];
  for (let quad = 0; quad * 4 < keys; quad++) {
    const words = philox4x32([quad, row, head, 0], key);
    kept.push(...words.map((word) => word >= threshold));
  }
  return kept.slice(0, keys);
}
