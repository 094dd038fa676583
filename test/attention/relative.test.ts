/** The tables of T5 and Swin and the slopes of ALiBi, from their definitions. */
import { alibiSlopes, swinRelativeBias, t5RelativeBias, zeros } from 'flashattn';
import { describe, expect, it } from 'vitest';

function bucketAt(bias: ReturnType<typeof t5RelativeBias>, i: number, j: number): number | undefined {
  return bias.buckets[(bias.keyPosition?.[j] ?? j) - (bias.queryPosition?.[i] ?? i) + bias.origin];
}

describe('Swin', () => {
  it.each<[string, number | readonly [number, number], number, number]>([
    ['square', 4, 4, 4],
    ['wide', [3, 5], 3, 5],
    ['a column', [6, 1], 6, 1],
    ['one token', 1, 1, 1],
  ])('%s window', (_, window, height, width) => {
    const bias = swinRelativeBias(zeros([(2 * height - 1) * (2 * width - 1), 2]), { window });
    for (let i = 0; i < height * width; i++) {
      for (let j = 0; j < height * width; j++) {
        const dy = Math.floor(i / width) - Math.floor(j / width);
        const dx = (i % width) - (j % width);
        expect(bucketAt(bias, i, j)).toBe((dy + height - 1) * (2 * width - 1) + dx + width - 1);
      }
    }
  });
});

describe('T5', () => {
  // The first distance of every bucket of the default encoder (32 buckets, 128): exact to 7, then logarithmic.
  const starts = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 23, 32, 46, 64, 91];

  it.each([true, false])('buckets of the encoder, key after query: %s', (after) => {
    const bias = t5RelativeBias(zeros([32, 1]), { queryLength: 301, keyLength: 301 });
    for (let distance = after ? 1 : 0; distance <= 300; distance++) {
      const bucket = starts.findLastIndex((start) => start <= distance);
      expect(after ? bucketAt(bias, 0, distance) : bucketAt(bias, distance, 0)).toBe(after ? 16 + bucket : bucket);
    }
  });

  it('the decoder has one side, and keys after the query share bucket 0', () => {
    const bias = t5RelativeBias(zeros([32, 1]), { queryLength: 301, keyLength: 301, bidirectional: false });
    for (let distance = 0; distance < 16; distance++) expect(bucketAt(bias, distance, 0)).toBe(distance);
    expect(bucketAt(bias, 127, 0)).toBe(31);
    expect(bucketAt(bias, 300, 0)).toBe(31);
    expect(bucketAt(bias, 0, 300)).toBe(0);
  });
});

describe('ALiBi', () => {
  it('is a geometric sequence for powers of two', () => {
    expect(Array.from(alibiSlopes(8))).toEqual([1, 2, 3, 4, 5, 6, 7, 8].map((n) => 2 ** -n));
    expect(Array.from(alibiSlopes(1))).toEqual([2 ** -8]);
  });

  it('takes every second slope of the next power beyond it', () => {
    expect(Array.from(alibiSlopes(3))).toEqual([2 ** -4, 2 ** -8, 2 ** -2]);
    const twelve = Array.from(alibiSlopes(12));
    expect(twelve.slice(0, 8)).toEqual(Array.from(alibiSlopes(8)));
    expect(twelve.slice(8)).toEqual([0, 2, 4, 6].map((h) => Math.fround(2 ** (-(h + 1) / 2))));
  });
});
