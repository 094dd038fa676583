/** What a mask shows, held against a formula for each pair. */
import { blockMask, type Mask } from 'flashattn';
import { expect } from 'vitest';

export type Sees = (i: number, j: number, head: number, batch: number) => boolean;

interface Dims {
  readonly queries: number;
  readonly keys?: number;
  readonly heads?: number;
  readonly batch?: number;
}

/** Compares every pair, with blocks of both sizes. */
export function expectVisible(mask: Mask, dims: Dims, sees: Sees): void {
  const { queries, keys = queries, heads = 1, batch = 1 } = dims;
  for (const blockSize of [64, 128] as const) {
    const compiled = blockMask(mask, { nq: queries, nk: keys, blockSize });
    const wrong: string[] = [];
    for (let b = 0; b < batch; b++)
      for (let h = 0; h < heads; h++)
        for (let i = 0; i < queries; i++)
          for (let j = 0; j < keys; j++)
            if (compiled.visible(b, h, i, j) !== sees(i, j, h, b)) wrong.push(`batch ${b} head ${h}: ${i} -> ${j}`);
    expect(wrong.slice(0, 5)).toEqual([]);
  }
}

export const div = (a: number, b: number) => Math.floor(a / b);
export const mod = (a: number, b: number) => ((a % b) + b) % b;
export const range = (begin: number, end: number) =>
  Array.from({ length: Math.max(0, end - begin) }, (_, n) => begin + n);
export const LENGTHS = [1, 50, 64, 65, 150];
