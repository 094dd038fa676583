// Arrays of another realm: jest and vm contexts have Array, Float32Array and all others of their own.
import { createContext, runInContext } from 'node:vm';
import { describe, expect, it } from 'vitest';
import {
  BlockMask,
  blockMask,
  blockMaskFromBytes,
  blockMaskToBytes,
  masks,
  patterns,
  RowMap,
  tensor,
  zeros,
} from '../../lib/index.js';

const elsewhere = createContext({});
/** The value of an expression in another realm, where `x` is a name for `given`. */
function foreign<T>(code: string, given?: unknown): T {
  elsewhere.x = given;
  return runInContext(code, elsewhere) as T;
}

describe('arrays of another realm', () => {
  it('really are foreign', () => {
    expect(foreign('new Float32Array(1)') instanceof Float32Array).toBe(false);
  });

  it.each([
    ['[1, 2, 3]', 'float32'],
    ['Float32Array.of(1, 2, 3)', 'float32'],
    ['Float64Array.of(1, 2, 3)', 'float32'],
    ['Float32Array.of(1, 2, 3)', 'float16'],
    ['Float64Array.of(1, 2, 3)', 'bfloat16'],
    ['Uint16Array.of(0x3c00, 0x4000, 0x4200)', 'float16'],
    ['Uint16Array.of(0x3f80, 0x4000, 0x4040)', 'bfloat16'],
    ['new Float32Array(new SharedArrayBuffer(12)).fill(1).map((_, i) => i + 1)', 'float32'],
  ] as const)('%s fills a %s tensor', (code, dtype) => {
    using t = tensor(foreign<number[]>(code), foreign<number[]>('[3]'), foreign<object>(`({ dtype: '${dtype}' })`));
    expect([...t.toFloat32Sync()]).toEqual([1, 2, 3]);
    t.write(foreign<number[]>(code));
    expect([...t.toFloat32Sync()]).toEqual([1, 2, 3]);
  });

  it('of another kind are refused by their name', () => {
    expect(() => tensor(foreign<number[]>('new Int8Array(1)'), [1])).toThrow(
      'data is Int8Array; it must be a Float32Array, Float64Array, Float16Array, Uint16Array or an array of numbers',
    );
    expect(() => tensor(foreign<number[]>('new Uint16Array(1)'), [1])).toThrow('Uint16Array of bit patterns');
  });

  it('are shapes, and reshape as such', () => {
    using t = zeros([2, 3]);
    using view = t.reshape(foreign<number[]>('[3, -1]'));
    expect(view.shape).toEqual([3, 2]);
  });

  it('describe masks and patterns', () => {
    const same = (a: () => unknown, b: () => unknown) => expect(a()).toEqual(b());
    const of = (mask: ReturnType<typeof masks.causal>, nq: number) => [...blockMaskToBytes(blockMask(mask, { nq }))];
    same(
      () => of(masks.documents(foreign('BigInt64Array.of(3n, 5n)')), 8),
      () => of(masks.documents([3, 5]), 8),
    );
    same(
      () => of(masks.globalTokens(foreign('Int32Array.of(1, 4)')), 8),
      () => of(masks.globalTokens([1, 4]), 8),
    );
    same(
      () => of(masks.tree(foreign('[-1, 0, 0]')), 3),
      () => of(masks.tree([-1, 0, 0]), 3),
    );
    same(
      () => of(masks.edges(foreign('[[0, 1], [1, 0]]'), { queries: 2 }), 2),
      () =>
        of(
          masks.edges(
            [
              [0, 1],
              [1, 0],
            ],
            { queries: 2 },
          ),
          2,
        ),
    );
    const layout = { shape: foreign<number[]>('[2, 2]'), blockSize: 4 };
    same(
      () => of(masks.blocks(foreign('Uint8Array.of(1, 0, 0, 1)'), layout), 8),
      () => of(masks.blocks([true, false, false, true] as never, layout), 8),
    );
    const longformer = { window: 1, globals: foreign<number[][]>('[[0], [2]]') };
    const compiled = blockMask(patterns.longformer(longformer), { nq: 4 });
    expect([compiled.batch, compiled.visible(1, 0, 0, 2), compiled.visible(0, 0, 0, 2)]).toEqual([2, true, true]);
  });

  it('are block masks, their bytes and row maps', () => {
    const mask = blockMask(masks.and(masks.causal(), masks.slidingWindow(70, 0)), { nq: 300 });
    const copy = (array: ArrayLike<number>, name: string) => foreign<Int32Array>(`${name}.from(x)`, array);
    const lists = ({ offsets, indices }: typeof mask.full) => ({
      offsets: copy(offsets, 'Int32Array'),
      indices: copy(indices, 'Int32Array'),
    });
    const bits = copy(mask.bits, 'Uint32Array') as unknown as Uint32Array;
    expect(BlockMask.from({ ...mask, full: lists(mask.full), partial: lists(mask.partial), bits })).toEqual(mask);
    const bytes = copy(blockMaskToBytes(mask), 'Uint8Array') as unknown as Uint8Array;
    expect(blockMaskFromBytes(bytes)).toEqual(mask);
    expect([...RowMap.of(foreign<number[]>('[1, -1, 0]'), 2).indices]).toEqual([1, 0]);
  });

  it('survive structuredClone', () => {
    using t = tensor(structuredClone(Float32Array.of(1, 2)), structuredClone([2]));
    expect([...t.dataSync()]).toEqual([1, 2]);
  });
});
