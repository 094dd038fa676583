import {
  attention,
  BlockMask,
  blockMask,
  blockMaskFromBytes,
  blockMaskToBytes,
  gatherRows,
  masks,
  patterns,
  RowMap,
  tensor,
  zeros,
} from 'flashattn';
import { describe, expect, it } from 'vitest';

const code = (f: () => unknown) => {
  try {
    f();
  } catch (error) {
    const { code, message } = error as { code: string; message: string };
    return `${code}: ${message}`;
  }
  return 'nothing was thrown';
};

describe('compiling', () => {
  it('takes time and memory by blocks: 65,536 tokens', () => {
    const length = 65_536;
    const mask = masks.or(
      masks.slidingWindow(256, 256),
      masks.globalTokens(32),
      masks.randomBlocks({ queries: length, keys: length, blockSize: 64, count: 3, seed: 1 }),
    );
    const { fullBlocks, partialBlocks, emptyBlocks, byteLength } = blockMask(mask, { nq: length }).statistics();
    expect(fullBlocks + partialBlocks + emptyBlocks).toBe(1024 * 1024);
    expect(partialBlocks).toBeLessThan(5000);
    expect(byteLength).toBeLessThan(8 * 2 ** 20);
  });

  it('stores a mask that does not depend on batch or head once', () => {
    const { batch, heads } = blockMask(masks.causal(), { nq: 100, batch: 7, heads: 5 });
    expect([batch, heads]).toEqual([1, 1]);
    expect(blockMask(masks.perHead([masks.causal(), masks.prefix(3)]), { nq: 100, heads: 2 }).heads).toBe(2);
  });

  it('keeps a mask for each batch entry and head apart', () => {
    const entry = (n: number) => masks.perHead([masks.prefix(n), masks.slidingWindow(n, n)]);
    const mask = blockMask(masks.perBatch([entry(3), entry(70), entry(90)]), { nq: 100, batch: 3, heads: 2 });
    for (const [b, n] of [3, 70, 90].entries())
      for (const [i, j] of [
        [0, 2],
        [0, 69],
        [10, 79],
        [99, 5],
        [5, 99],
      ]) {
        expect(mask.visible(b, 0, i, j)).toBe(j < n);
        expect(mask.visible(b, 1, i, j)).toBe(Math.abs(i - j) <= n);
      }
    // One mask for all, whatever it is combined with.
    const shared = masks.and(masks.perHead([masks.causal()]), masks.perHead([masks.prefix(9), masks.prefix(5)]));
    expect(blockMask(shared, { nq: 10, heads: 2 }).visible(0, 1, 9, 4)).toBe(true);
  });

  it('describes itself', () => {
    const mask = blockMask(masks.causal(), { nq: 130, nk: 130 });
    // Three rows of blocks, the last with two queries and two keys.
    expect(mask.statistics()).toMatchObject({
      fullBlocks: 3,
      partialBlocks: 3,
      emptyBlocks: 3,
      visiblePairs: (130 * 131) / 2,
      totalPairs: 130 * 130,
      blockDensity: 6 / 9,
    });
    expect(mask.toText()).toContain('▒▒····\n██▒▒··\n████▒▒');
    const svg = mask.toSVG({ title: 'a < b & c' });
    expect(svg).toMatch(/^<svg .*<\/svg>\n$/s);
    for (const part of [
      'a &lt; b &amp; c',
      'full',
      'partial',
      'empty',
      '50.4 % of the pairs visible',
      '33.3 % of the FLOPs saved',
    ])
      expect(svg).toContain(part);
    expect(code(() => mask.toSVG({ head: 1 }))).toContain('ERR_SHAPE');
  });

  it('random blocks follow the documented generator', () => {
    const make = (seed: number) =>
      blockMask(masks.randomBlocks({ queries: 640, keys: 640, blockSize: 64, count: 3, seed, heads: 2 }), { nq: 640 });
    expect(make(5)).toEqual(make(5));
    expect(make(5).full).not.toEqual(make(6).full);
    // mulberry32(7): the first three draws, modulo 10, 9 and 8, as a partial Fisher-Yates shuffle of 0..9.
    let state = 7;
    const draw = () => {
      state = (state + 0x6d2b79f5) | 0;
      let t = Math.imul(state ^ (state >>> 15), 1 | state);
      t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
      return (t ^ (t >>> 14)) >>> 0;
    };
    const pool = [...Array(10).keys()];
    for (let i = 0; i < 3; i++) {
      const at = i + (draw() % (10 - i));
      [pool[i], pool[at]] = [pool[at] as number, pool[i] as number];
    }
    expect([...make(7).full.indices.subarray(0, 3)]).toEqual(pool.slice(0, 3).sort((a, b) => a - b));
  });
});

describe('bad input', () => {
  it.each([
    [
      'block size',
      () => blockMask(masks.causal(), { nq: 64, blockSize: 32 as 64 }),
      'ERR_OPTION: blockSize is 32; it must be 64 or 128',
    ],
    ['length', () => blockMask(masks.causal(), { nq: -1 }), 'ERR_OPTION: queries is -1'],
    ['no mask', () => blockMask({} as never, { nq: 1 }), 'ERR_OPTION: mask is Object; it must be a mask'],
    [
      'heads',
      () => blockMask(masks.perHead([masks.causal(), masks.causal()]), { nq: 64, heads: 3 }),
      'ERR_OPTION: the mask is for 2 heads; heads is 3',
    ],
    [
      'heads nested',
      () => masks.perHead([masks.perHead([masks.causal(), masks.causal()])]),
      'ERR_OPTION: masks[0] is itself for 2 heads',
    ],
    [
      'heads combined',
      () =>
        masks.and(
          masks.perHead([masks.causal(), masks.causal()]),
          masks.perHead([masks.causal(), masks.causal(), masks.causal()]),
        ),
      'ERR_OPTION: masks for 2 and 3 heads cannot be combined',
    ],
    ['cycle', () => masks.tree([1, 2, 0]), 'ERR_OPTION: parents has a cycle through node 0'],
    ['self-loop', () => masks.tree([-1, 1]), 'ERR_OPTION: parents has a cycle through node 1'],
    ['parent', () => masks.tree([-1, 2]), 'ERR_OPTION: parents[1] is 2'],
    ['global position', () => masks.globalTokens([-1]), 'ERR_OPTION: tokens contains -1'],
    [
      'edge',
      () => masks.edges([[0, 5]], { queries: 5 }),
      'ERR_OPTION: the edge [0, 5] lies outside of 5 queries x 5 keys',
    ],
    [
      'documents',
      () => blockMask(masks.documents([3, 4]), { nq: 8 }),
      'ERR_SHAPE: the documents have 7 queries together; the mask is used with 8',
    ],
    [
      'tree size',
      () => blockMask(masks.tree([-1, 0], { prefix: 3 }), { nq: 2, nk: 4 }),
      'ERR_SHAPE: the mask is for 2 queries and 5 keys; it is used with 2 and 4',
    ],
    [
      'layout size',
      () => blockMask(masks.blocks([1], { shape: [1, 1], blockSize: 64 }), { nq: 65 }),
      'ERR_SHAPE: the layout has 1 x 1 blocks of 64; 65 queries x 65 keys need 2 x 2',
    ],
    ['layout', () => masks.blocks([1, 0], { shape: [2, 2], blockSize: 64 }), 'ERR_SHAPE: layout has 2 entries'],
    [
      'bsr order',
      () => masks.blocksFromBsr([0, 2], [1, 1], { shape: [1, 2], blockSize: 64 }),
      'ERR_OPTION: indices[1] is 1 after 1',
    ],
    [
      'ring',
      () => blockMask(masks.circularWindow(1, 1), { nq: 5, nk: 6 }),
      'ERR_SHAPE: a circular window needs as many queries as keys',
    ],
    ['prefix', () => masks.prefix(-1), 'ERR_OPTION: prefix is -1; it must be an integer >= 0'],
    ['window', () => masks.slidingWindow(-2, 0), 'ERR_OPTION: left is -2'],
    ['predicate type', () => masks.predicate(1 as never), 'ERR_OPTION: visible is 1'],
    [
      'predicate throws',
      () =>
        blockMask(
          masks.predicate((_b, _h, i, j) => {
            if (i === 3 && j === 2) throw new Error('no');
            return true;
          }),
          { nq: 8 },
        ),
      'ERR_OPTION: the predicate threw at (0, 0, 3, 2): no',
    ],
    [
      'predicate answers',
      () =>
        blockMask(
          masks.predicate(() => 1 as never),
          { nq: 8 },
        ),
      'ERR_OPTION: the predicate returned 1 at (0, 0, 0, 0)',
    ],
  ])('%s', (_, f, message) => {
    expect(code(f)).toContain(message);
  });

  it('masks that do not fit the problem', () => {
    using q = zeros([2, 100, 4, 8]);
    const of = (mask: BlockMask) => code(() => attention(q, q, q, { mask }));
    expect(of(blockMask(masks.causal(), { nq: 101, nk: 100 }))).toContain(
      'ERR_SHAPE: mask is for 101 queries x 100 keys; the problem has 100 x 100',
    );
    expect(of(blockMask(masks.causal(), { nq: 100, nk: 99 }))).toContain(
      'ERR_SHAPE: mask is for 100 queries x 99 keys',
    );
    const two = masks.perHead([masks.causal(), masks.causal()]);
    expect(of(blockMask(two, { nq: 100 }))).toContain('ERR_SHAPE: mask is for 2 heads; the problem has 4');
    expect(code(() => attention(q, q, q, { mask: two }))).toContain('ERR_OPTION: the mask is for 2 heads');
    expect(code(() => attention(q, q, q, { mask: (() => true) as never }))).toContain(
      'it must be a mask or a block mask',
    );
    expect(code(() => attention(q, q, q, { mask: masks.documents([99]) }))).toContain('ERR_SHAPE');
  });
});

describe('from outside', () => {
  const good = blockMask(masks.and(masks.causal(), masks.slidingWindow(70, 0)), { nq: 300 });
  const changed = (list: 'full' | 'partial', array: 'offsets' | 'indices', at: number, value: number) => {
    const copy = good[list][array].slice();
    copy[at] = value;
    return () => BlockMask.from({ ...good, [list]: { ...good[list], [array]: copy } });
  };

  it('takes what is right', () => {
    expect(BlockMask.from(good)).toEqual(good);
  });

  it.each([
    ['index too large', changed('partial', 'indices', 1, 5), 'partial.indices[1] is 5; there are 5 block columns'],
    ['index negative', changed('partial', 'indices', 0, -1), 'partial.indices[0] is -1'],
    ['duplicated', changed('partial', 'indices', 2, 0), 'the blocks of a row must rise'],
    ['offsets fall', changed('partial', 'offsets', 2, 0), 'partial.offsets[2] is 0 after 1'],
    ['offsets end', changed('full', 'offsets', 5, 9), 'full.offsets must have 6 entries'],
    ['bits', () => BlockMask.from({ ...good, bits: good.bits.slice(1) }), 'bits must be a Uint32Array of'],
    ['dims', () => BlockMask.from({ ...good, queries: 200 }), 'full.offsets must have 5 entries'],
    ['twice', () => BlockMask.from({ ...good, full: good.partial }), 'is listed as full and as partial'],
    ['no lists', () => BlockMask.from({ ...good, full: undefined as never }), 'full is undefined'],
    ['nothing', () => BlockMask.from(null as never), 'parts is null'],
    [
      'bits beyond the last query',
      () => BlockMask.from({ ...good, bits: good.bits.slice().fill(1, -1) }),
      /bits of partial block \d+ lie outside of the 300 queries x 300 keys/,
    ],
    [
      'more lists than kernels can count',
      () => BlockMask.from({ ...good, batch: 2 ** 20, heads: 2 ** 20, queries: 0 }),
      'lists of blocks; at most 268435456 can be held',
    ],
  ])('refuses %s', (_, f, message) => {
    expect(code(f)).toMatch(message);
  });

  it('does not see what is written to the arrays later', () => {
    const bits = good.bits.slice();
    const mask = BlockMask.from({ ...good, bits });
    bits.fill(0);
    expect(mask).toEqual(good);
  });

  it('reads its own bytes and refuses all others', () => {
    const bytes = blockMaskToBytes(good);
    expect(blockMaskFromBytes(bytes)).toEqual(good);
    for (let length = 0; length < bytes.length; length += 37)
      expect(code(() => blockMaskFromBytes(bytes.subarray(0, length)))).toContain('ERR_OPTION');
    for (let at = 0; at < 9 * 4; at++) {
      if (at >= 16 && at < 24) continue; // other lengths can be right for the same lists
      const broken = bytes.slice();
      broken[at] = broken[at] ^ 0x55;
      expect(
        code(() => blockMaskFromBytes(broken)),
        `byte ${at}`,
      ).toContain('ERR_');
    }
    expect(code(() => blockMaskFromBytes('FABM' as never))).toContain('not a Uint8Array');
  });
});

describe('gatherRows', () => {
  it('adds up the rows of each list', async () => {
    using source = tensor([...Array(12).keys()], [2, 3, 2]);
    const map = RowMap.fromLists([[2], [], [0, 1], [1, 1]], 3);
    using gathered = gatherRows(source, map, { scale: 0.5 });
    expect(gathered.shape).toEqual([2, 4, 2]);
    expect([...(await gathered.data())]).toEqual([2, 2.5, 0, 0, 1, 2, 2, 3, 5, 5.5, 0, 0, 7, 8, 8, 9]);
  });

  it('the transposed map is its adjoint, in every dtype and for views', async () => {
    for (const dtype of ['float32', 'float16', 'bfloat16'] as const) {
      const numbers = (n: number) => Array.from({ length: n }, (_, i) => ((i * 7) % 11) - 5);
      using base = tensor(numbers(2 * 5 * 300), [5, 2, 300], { dtype });
      using x = base.transpose(0, 1);
      using y = tensor(numbers(2 * 4 * 300), [2, 4, 300], { dtype });
      const map = RowMap.fromLists([[4, 0], [1], [], [2, 1, 0]], 5);
      using forward = gatherRows(x, map);
      using backward = gatherRows(y, map.transposed());
      const dot = async (a: typeof x, b: typeof y) => {
        const [left, right] = [await a.toFloat32(), await b.toFloat32()];
        return left.reduce((sum, value, i) => sum + value * (right[i] as number), 0);
      };
      expect(await dot(forward as typeof x, y)).toBe(await dot(x, backward as typeof y));
    }
  });

  it('refuses what does not fit', () => {
    using source = zeros([2, 3, 2]);
    expect(code(() => gatherRows(source, RowMap.of([0], 4)))).toContain(
      'ERR_SHAPE: source has shape [2, 3, 2]; it must be [batch, 4, ...]',
    );
    expect(code(() => RowMap.of([3], 3))).toContain('ERR_OPTION: sources[0] is 3; it must be');
    expect(code(() => gatherRows(source, RowMap.of([0, -1], 3), { scale: Number.NaN }))).toContain('scale is NaN');
    using swapped = source.transpose(1, 2);
    using three = zeros([2, 3, 4, 5]);
    using inner = three.transpose(2, 3);
    expect(code(() => gatherRows(inner, RowMap.of([0], 3)))).toContain('source must be contiguous from axis 2 on');
    expect(code(() => gatherRows(swapped, RowMap.of([0], 3)))).toContain('ERR_SHAPE');
  });
});

describe('the gallery', () => {
  it.each(patterns.gallery.map((entry) => [entry.name, entry] as const))('%s draws at several lengths', (_, entry) => {
    for (const length of [512, 1000, 1024]) {
      const mask = blockMask(entry.make(length), { nq: length });
      expect(mask.statistics().visiblePairs).toBeGreaterThan(0);
      expect(mask.toSVG()).toContain('</svg>');
    }
  });
});
