import { describe, expect, it } from 'vitest';
import { BlockPool, type CachedSequence } from '../../lib/inference/blockPool.js';
import { uniform } from '../../verify/oracle/random.js';
import { codeOf, errorOf } from '../support/codeOf.js';
import { isExhausted, NaiveCache, type NaiveSequence } from './naiveCache.js';
import { digest, SimulatedDevice } from './simulatedDevice.js';

const counting = (count: number, from = 0) => Array.from({ length: count }, (_, at) => from + at);

/** A sequence with these tokens, stored. */
function stored(pool: BlockPool, tokens: readonly number[], salt?: string | number): CachedSequence {
  const sequence = pool.sequence(tokens, salt === undefined ? {} : { salt });
  sequence.extend(tokens.slice(sequence.length));
  sequence.commit();
  return sequence;
}

describe('BlockPool', () => {
  it('gives a sequence blocks as it grows', () => {
    const pool = new BlockPool({ blocks: 4, blockSize: 3 });
    const sequence = pool.sequence();
    expect([sequence.length, sequence.table.length, pool.available]).toEqual([0, 0, 4]);
    sequence.extend([5, 6]);
    sequence.extend(Int32Array.of(7));
    expect([sequence.length, sequence.table.length, pool.available]).toEqual([3, 1, 3]);
    sequence.extend([8]);
    expect(sequence.tokens).toEqual([5, 6, 7, 8]);
    expect(new Set(sequence.table).size).toBe(2);
    sequence.free();
    sequence.free();
    expect(pool.available).toBe(4);
  });

  it('shares whole committed blocks of a prompt, and leaves a token to compute', () => {
    const pool = new BlockPool({ blocks: 16, blockSize: 4 });
    const first = pool.sequence();
    first.extend(counting(10));
    expect(pool.sequence(counting(10)).cached).toBe(0); // not committed
    first.commit();
    for (const [length, cached] of [
      [3, 0],
      [4, 0],
      [5, 4],
      [8, 4],
      [9, 8],
      [10, 8],
      [12, 8],
    ]) {
      const other = pool.sequence(counting(length));
      expect([other.cached, other.length, other.table]).toEqual([cached, cached, first.table.slice(0, cached / 4)]);
      other.free();
    }
    expect(pool.sequence([0, 1, 2, 4, 5]).cached).toBe(0);
    expect(pool.sequence(counting(6), { salt: 'a' }).cached).toBe(0);
    first.free();
    expect(pool.stats).toMatchObject({ used: 0, cached: 2, free: 14, shared: 0 });
    expect(pool.sequence(counting(10)).cached).toBe(8);
    expect(pool.stats).toMatchObject({ used: 2, cached: 0, free: 14 });
  });

  it('tells salts of other kinds and of other lengths apart', () => {
    const pool = new BlockPool({ blocks: 64, blockSize: 2 });
    const salts = [undefined, '', 1, '1', 11, '11', '\u0000\u0001', '\ufffd', 1.5, '1.5'];
    const sequences = salts.map((salt) => stored(pool, [0, 49, 0, 49, 0], salt));
    expect(new Set(sequences.map(({ table }) => table[0])).size).toBe(salts.length);
    for (const [at, salt] of salts.entries())
      expect(pool.sequence([0, 49, 0, 49, 9], salt === undefined ? {} : { salt }).table).toEqual(
        sequences[at].table.slice(0, 2),
      );
  });

  it('tells tokens of 32 bits apart', () => {
    const pool = new BlockPool({ blocks: 64, blockSize: 1 });
    const tokens = [0, 1, 255, 65535, 65536, 65537, 2 ** 20, 2 ** 31 - 1, 0xd800, 0xdc00, 0xd8000000 / 2];
    const tables = tokens.map((token) => stored(pool, [token, 0]).table[0]);
    expect(new Set(tables).size).toBe(tokens.length);
    for (const [at, token] of tokens.entries()) expect(pool.sequence([token, 1]).table).toEqual([tables[at]]);
  });

  it('holds one block of sequences that came to the same past by themselves', () => {
    const pool = new BlockPool({ blocks: 8, blockSize: 2 });
    const [a, b] = [pool.sequence(), pool.sequence()];
    for (const sequence of [a, b]) sequence.extend([1, 2, 3, 4, 5]);
    expect(pool.available).toBe(2);
    a.commit();
    b.commit();
    expect(pool.available).toBe(4);
    expect(b.table.slice(0, 2)).toEqual(a.table.slice(0, 2));
    expect(b.table[2]).not.toBe(a.table[2]);
  });

  it('copies a shared block before it is written, and only then', () => {
    const copies: number[][] = [];
    const pool = new BlockPool({ blocks: 8, blockSize: 4, copy: (...pair) => copies.push(pair) });
    const a = stored(pool, [1, 2, 3, 4, 5, 6]);
    const b = a.fork();
    expect(b.table).toEqual(a.table);
    expect(pool.stats).toMatchObject({ used: 2, shared: 2 });
    const before = a.table[1];
    b.extend([7]);
    expect(copies).toEqual([[before, b.table[1]]]);
    expect(b.table[0]).toBe(a.table[0]);
    a.extend([8]);
    expect(copies.length).toBe(1);
    expect(a.table[1]).toBe(before);
    expect([a.tokens, b.tokens]).toEqual([
      [1, 2, 3, 4, 5, 6, 8],
      [1, 2, 3, 4, 5, 6, 7],
    ]);
    expect(pool.stats.copies).toBe(1);
  });

  it('forgets a whole block that its only sequence writes anew, and copies it where others follow', () => {
    const copies: number[][] = [];
    const pool = new BlockPool({ blocks: 8, blockSize: 2, copy: (...pair) => copies.push(pair) });
    const a = stored(pool, [1, 2, 3, 4]);
    const second = a.table[1];
    a.truncate(3);
    a.extend([9]);
    expect([copies, a.table[1]]).toEqual([[], second]);
    expect(pool.sequence([1, 2, 3, 4, 5]).cached).toBe(2);
    const b = stored(pool, [5, 6, 7, 8]);
    b.truncate(1);
    const first = b.table[0];
    b.extend([0]);
    expect(copies).toEqual([[first, b.table[0]]]);
    expect(pool.sequence([5, 6, 7, 8, 9]).cached).toBe(4);
  });

  it('writes in place where the followers of a block had to go for it', () => {
    const pool = new BlockPool({ blocks: 3, blockSize: 2 });
    const a = stored(pool, [1, 2, 3, 4, 5, 6]);
    a.truncate(1);
    a.extend([7, 8, 9, 10, 11]);
    expect(a.tokens).toEqual([1, 7, 8, 9, 10, 11]);
    expect(new Set(a.table).size).toBe(3);
  });

  it('evicts what was used least recently, ends before beginnings', () => {
    const pool = new BlockPool({ blocks: 6, blockSize: 2 });
    stored(pool, [1, 2, 3, 4]).free();
    stored(pool, [5, 6, 7, 8]).free();
    pool.sequence([1, 2, 0]).free(); // used again
    const found = () =>
      [
        [1, 2, 3, 4, 0],
        [5, 6, 7, 8, 0],
      ].map((tokens) => {
        const sequence = pool.sequence(tokens);
        sequence.free();
        return sequence.cached;
      });
    const other = pool.sequence();
    other.extend(counting(6, 100));
    expect(pool.stats.evictions).toBe(1);
    other.extend([0]);
    expect(pool.stats).toMatchObject({ evictions: 2, cached: 2 });
    // [3, 4] went first, then [7, 8].
    expect(found()).toEqual([2, 2]);
  });

  it('says what was wanted when blocks do not suffice, and changes nothing', () => {
    const pool = new BlockPool({ blocks: 4, blockSize: 2 });
    const a = stored(pool, [1, 2, 3]);
    const b = a.fork();
    const before = pool.stats;
    expect(errorOf(() => b.extend([4, 5, 6, 7]))).toBe(
      'ERR_OUT_OF_MEMORY: 3 more blocks are wanted and 2 of 4 are available: sequences hold 2, of which 2 are shared',
    );
    expect([b.tokens, b.table, pool.stats]).toEqual([[1, 2, 3], a.table, before]);
    b.extend([4, 5]);
    expect(pool.available).toBe(0);
    expect(codeOf(() => a.extend([4, 5]))).toBe('ERR_OUT_OF_MEMORY');
    a.extend([4]);
  });

  it('changes nothing when a copy fails', () => {
    let fails = true;
    const pool = new BlockPool({
      blocks: 4,
      blockSize: 2,
      copy: () => {
        if (fails) throw new Error('no copy');
      },
    });
    const a = stored(pool, [1]);
    const b = a.fork();
    const before = pool.stats;
    expect(() => b.extend([2, 3, 4])).toThrow('no copy');
    expect([b.tokens, b.table, pool.stats]).toEqual([[1], a.table, before]);
    fails = false;
    b.extend([2, 3, 4]);
    expect(b.tokens).toEqual([1, 2, 3, 4]);
  });

  it('forgets positions of a step that failed', () => {
    const pool = new BlockPool({ blocks: 8, blockSize: 2 });
    const a = stored(pool, [1, 2, 3]);
    a.extend([4, 5, 6]);
    expect([a.length, a.committed]).toEqual([6, 3]);
    a.truncate(a.committed);
    expect([a.length, a.table.length, pool.available]).toEqual([3, 2, 6]);
    expect(pool.sequence([1, 2, 3, 4, 5]).cached).toBe(2);
  });

  it('refuses what is wrong', () => {
    expect(codeOf(() => new BlockPool({ blocks: 0, blockSize: 2 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new BlockPool({ blocks: 2, blockSize: 1.5 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new BlockPool({ blocks: 2, blockSize: 1, copy: 3 as never }))).toBe('ERR_OPTION');
    const pool = new BlockPool({ blocks: 4, blockSize: 2 });
    expect(codeOf(() => pool.sequence([1], { salt: Number.NaN }))).toBe('ERR_OPTION');
    expect(codeOf(() => pool.sequence([1], { salt: {} as never }))).toBe('ERR_OPTION');
    const a = stored(pool, [1, 2, 3]);
    for (const tokens of [[-1], [1.5], [2 ** 31], [Number.NaN], ['1'], 'text', Float32Array.of(1)])
      expect(codeOf(() => a.extend(tokens as never))).toBe('ERR_OPTION');
    expect(errorOf(() => a.extend([4, -1]))).toMatch(/tokens\[1\] is -1/);
    for (const length of [-1, 4, 1.5]) expect(codeOf(() => a.truncate(length))).toBe('ERR_OPTION');
    a.extend([4]);
    expect(errorOf(() => a.fork())).toMatch(/ERR_OPTION: .* committed, and 1 are not/);
    expect(a.tokens).toEqual([1, 2, 3, 4]);
    a.free();
    const uses: ((sequence: CachedSequence) => unknown)[] = [
      (sequence) => sequence.extend([1]),
      (sequence) => sequence.commit(),
      (sequence) => sequence.truncate(0),
      (sequence) => sequence.fork(),
      (sequence) => sequence.table,
      (sequence) => sequence.tokens,
      (sequence) => sequence.length,
    ];
    for (const use of uses) expect(codeOf(() => use(a))).toBe('ERR_DISPOSED');
  });
});

/** One run: a random walk over everything that can be done with a small pool, next to the naive cache. */
function walk(seed: number, steps: number): { exhausted: number; evictions: number; copies: number; hits: number } {
  const next = uniform(seed);
  const below = (n: number) => Math.floor(next() * n);
  const blockSize = 1 + below(5);
  const blocks = 1 + below(24);
  const device = new SimulatedDevice({ blocks, blockSize });
  const { pool } = device;
  const naive = new NaiveCache(blocks, blockSize);
  const salts = [undefined, 7];
  const alphabet = 1 + below(3); // few tokens: the same prefixes come again
  const some = (most: number) => Array.from({ length: below(most + 1) }, () => below(alphabet));
  const any = () => [...naive.living][below(naive.living.size)];
  let exhausted = 0;
  const extend = (sequence: NaiveSequence, tokens: readonly number[]) => {
    const { real } = sequence;
    const before = { stats: pool.stats, table: [...real.table], length: real.length };
    const elsewhere = () => [...naive.living].filter((other) => other !== sequence);
    const outcome = naive.extend(sequence, tokens);
    expect(isExhausted(() => real.extend(tokens))).toBe(outcome === 'exhausted');
    if (outcome === 'exhausted') {
      exhausted++;
      expect({ stats: pool.stats, table: [...real.table], length: real.length }).toEqual(before);
      return;
    }
    // Blocks that are written now are nobody else's.
    if (tokens.length > 0)
      for (const block of real.table.slice(Math.floor(before.length / blockSize)))
        expect(elsewhere().some((other) => other.real.table.includes(block))).toBe(false);
    device.write(real, before.length, sequence.salt);
  };
  const actions: [weight: number, act: () => void][] = [
    [
      2,
      () => {
        const salt = salts[below(2)];
        // A prompt that is new, or begins like one that lives.
        const prompt = below(2) && naive.living.size > 0 ? [...any().tokens, ...some(3)] : some(4 * blockSize);
        const found = naive.find(prompt, salt);
        const real = pool.sequence(prompt, salt === undefined ? {} : { salt });
        expect([real.cached, real.length]).toEqual([found, found]);
        const sequence = naive.add(real, prompt.slice(0, found), salt);
        if (below(2)) extend(sequence, prompt.slice(found));
      },
    ],
    [6, () => naive.living.size > 0 && extend(any(), some(2 * blockSize))],
    [
      6,
      () => {
        if (naive.living.size === 0) return;
        const sequence = any();
        naive.commit(sequence);
        sequence.real.commit();
      },
    ],
    [
      2,
      () => {
        if (naive.living.size === 0) return;
        const sequence = any();
        const length = below(sequence.tokens.length + 1);
        naive.truncate(sequence, length);
        sequence.real.truncate(length);
      },
    ],
    [
      4,
      () => {
        if (naive.living.size === 0) return;
        const sequence = any();
        if (sequence.committed < sequence.tokens.length) expect(codeOf(() => sequence.real.fork())).toBe('ERR_OPTION');
        else naive.fork(sequence, sequence.real.fork());
      },
    ],
    [
      2,
      () => {
        if (naive.living.size === 0) return;
        const sequence = any();
        naive.free(sequence);
        sequence.real.free();
      },
    ],
  ];
  const lottery = actions.flatMap(([weight, act]) => Array.from({ length: weight }, () => act));
  for (let step = 0; step < steps; step++) {
    lottery[below(lottery.length)]();
    const { used, shared, cached, free, evictions, copies } = pool.stats;
    expect([used + cached + free, used, shared, cached, evictions, pool.available, copies]).toEqual([
      blocks,
      naive.used,
      naive.shared,
      naive.cached,
      naive.evictions,
      naive.available,
      device.copies,
    ]);
    naive.checkBeginnings();
    for (const { real, tokens, salt, committed } of naive.living) {
      expect([real.length, real.committed, real.table.length, real.tokens.join()]).toEqual([
        tokens.length,
        committed,
        Math.ceil(tokens.length / blockSize),
        tokens.join(),
      ]);
      let past = salt ?? 0;
      for (const [at, token] of tokens.entries()) {
        past = digest(past, token);
        const cell = device.read(real, at);
        if (cell?.token !== token || cell.past !== past) expect.fail(`position ${at} holds ${JSON.stringify(cell)}`);
      }
    }
  }
  for (const sequence of naive.living) sequence.real.free();
  expect(pool.available).toBe(blocks);
  const { evictions, copies, hits } = pool.stats;
  return { exhausted, evictions, copies, hits };
}

describe('a pool beside a naive cache', () => {
  it('holds for every sequence exactly its tokens, whatever the others do: 600 random walks', () => {
    const seen = { exhausted: 0, evictions: 0, copies: 0, hits: 0 };
    for (let seed = 0; seed < 600; seed++) {
      const run = walk(seed, 80);
      for (const event of Object.keys(seen) as (keyof typeof seen)[]) seen[event] += run[event];
    }
    // The walks went where it matters.
    expect(Math.min(...Object.values(seen))).toBeGreaterThan(300);
  });
});
