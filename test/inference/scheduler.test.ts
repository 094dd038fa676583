import { describe, expect, it } from 'vitest';
import { BlockPool } from '../../lib/inference/blockPool.js';
import { type Job, Scheduler } from '../../lib/inference/scheduler.js';
import { uniform } from '../../verify/oracle/random.js';

interface Named extends Job {
  readonly name: string;
  readonly tokens: number[];
  /** How many tokens it comes to. */
  readonly most: number;
}

let tokenOfNobody = 0;

/** A job with a prompt that nobody else has. */
const job = (name: string, prompt: number, most = 1000): Named => ({
  name,
  key: name[0],
  salt: undefined,
  tokens: Array.from({ length: prompt }, () => tokenOfNobody++),
  most,
  sequence: undefined,
});

/** Takes a step: all that was planned is stored, and a token follows where the last position was computed. */
function step(scheduler: Scheduler<Named>): Record<string, number> {
  const { entries, failed } = scheduler.plan();
  expect(failed.size).toBe(0);
  const counts: Record<string, number> = {};
  for (const [{ name, tokens }, { sequence, count, logits }] of entries) {
    counts[name] = count;
    expect(logits).toBe(sequence.length === tokens.length);
    sequence.commit();
    if (logits) tokens.push(tokenOfNobody++);
  }
  for (const each of entries.keys()) if (each.tokens.length >= each.most) scheduler.remove(each);
  return counts;
}

const setUp = (blocks: number, blockSize: number, tokenBudget: number, maxSequences: number) => {
  const pool = new BlockPool({ blocks, blockSize });
  return { pool, scheduler: new Scheduler<Named>({ pool, tokenBudget, maxSequences }) };
};

describe('Scheduler', () => {
  it('takes a token of each that decodes, then prompts in the order of their coming, up to the budget', () => {
    const { scheduler } = setUp(100, 4, 8, 4);
    for (const [name, length] of [
      ['a', 2],
      ['b', 10],
      ['c', 5],
      ['d', 1],
      ['e', 1],
    ] as const)
      scheduler.add(job(name, length));
    expect(step(scheduler)).toEqual({ a: 2, b: 6 });
    expect(step(scheduler)).toEqual({ a: 1, b: 4, c: 3 });
    expect(step(scheduler)).toEqual({ a: 1, b: 1, c: 2, d: 1 });
    expect([scheduler.running, scheduler.waiting]).toEqual([4, 1]);
    expect(step(scheduler)).toEqual({ a: 1, b: 1, c: 1, d: 1 });
  });

  it('admits a job when there is room for its prompt and for one more block of each that runs', () => {
    const { pool, scheduler } = setUp(10, 2, 100, 10);
    const [a, b, c] = [job('a', 8), job('b', 8), job('c', 1)];
    for (const each of [a, b, c]) scheduler.add(each);
    expect(step(scheduler)).toEqual({ a: 8, b: 8 }); // 6 are left, 4 and one for a are wanted; then one and two for c
    expect(pool.available).toBe(2);
    expect([scheduler.running, scheduler.waiting]).toEqual([2, 1]);
  });

  it('does not let one that fits now overtake one that does not', () => {
    const { scheduler } = setUp(10, 2, 100, 10);
    const a = job('a', 12);
    for (const each of [a, job('b', 12), job('c', 1)]) scheduler.add(each);
    expect(step(scheduler)).toEqual({ a: 12 });
    expect(step(scheduler)).toEqual({ a: 1 });
    scheduler.remove(a);
    expect(step(scheduler)).toEqual({ b: 12, c: 1 });
  });

  it('does not look up the same prompt again as long as blocks are short', () => {
    const { pool, scheduler } = setUp(10, 2, 100, 10);
    scheduler.add(job('a', 4));
    step(scheduler);
    scheduler.add(job('b', 14));
    step(scheduler);
    const { misses } = pool.stats;
    for (let n = 0; n < 5; n++) expect(step(scheduler)).toEqual({ a: 1 });
    expect(pool.stats.misses).toBe(misses);
  });

  it('takes blocks from the youngest, who comes first again', () => {
    const { scheduler } = setUp(4, 2, 100, 10);
    const [a, b, c] = [job('a', 2), job('b', 2), job('c', 2)];
    scheduler.add(a);
    scheduler.add(b);
    expect(step(scheduler)).toEqual({ a: 2, b: 2 });
    scheduler.add(c);
    expect(step(scheduler)).toEqual({ a: 1, b: 1 });
    expect(step(scheduler)).toEqual({ a: 1, b: 1 });
    expect(step(scheduler)).toEqual({ a: 1 });
    expect([scheduler.preemptions, scheduler.running, scheduler.waiting]).toEqual([1, 1, 2]);
    expect(b.sequence).toBeUndefined();
    scheduler.remove(a);
    const counts = step(scheduler);
    expect(Object.keys(counts)).toEqual(['b']); // c has to wait: two blocks are b's, one more may be
    expect(counts.b).toBeLessThan(b.tokens.length); // its first block was still there
  });

  it('fails a job alone whose block cannot be copied', () => {
    const pool = new BlockPool({
      blocks: 10,
      blockSize: 2,
      copy: () => {
        throw new Error('no copy');
      },
    });
    const scheduler = new Scheduler<Named>({ pool, tokenBudget: 100, maxSequences: 10 });
    const [a, b] = [job('a', 3), job('b', 3)];
    for (const each of [a, b]) scheduler.add(each);
    step(scheduler);
    const other = a.sequence?.fork();
    const { entries, failed } = scheduler.plan();
    expect([...entries.keys()]).toEqual([b]);
    expect([...failed]).toEqual([[a, new Error('no copy')]]);
    expect([scheduler.running, scheduler.waiting, scheduler.preemptions]).toEqual([1, 0, 0]);
    scheduler.remove(b);
    other?.free();
    expect(pool.available).toBe(10);
  });

  it('forgets one that waits, runs, or is unknown', () => {
    const { pool, scheduler } = setUp(10, 2, 100, 1);
    const [a, b] = [job('a', 3), job('b', 3)];
    for (const each of [a, b]) scheduler.add(each);
    step(scheduler);
    scheduler.remove(job('x', 1));
    scheduler.remove(b);
    expect([scheduler.running, scheduler.waiting]).toEqual([1, 0]);
    scheduler.remove(a);
    scheduler.remove(a);
    expect([scheduler.running, scheduler.waiting, pool.available]).toEqual([0, 0, 10]);
  });

  it('brings all to their end within its limits: random walks', () => {
    let preemptions = 0;
    for (let seed = 0; seed < 300; seed++) {
      const next = uniform(seed);
      const below = (n: number) => Math.floor(next() * n);
      const blockSize = 1 + below(4);
      const blocks = Math.ceil(24 / blockSize) + below(10);
      const tokenBudget = 1 + below(16);
      const maxSequences = 1 + below(tokenBudget);
      const { pool, scheduler } = setUp(blocks, blockSize, tokenBudget, maxSequences);
      const all: Named[] = [];
      let oldest: Named | undefined;
      for (let turn = 0; turn < 3000; turn++) {
        if (all.length < 12 && below(3) === 0) {
          const length = 1 + below(12);
          all.push(job('abc'[below(3)] + turn, length, length + 1 + below(12)));
          scheduler.add(all.at(-1) as Named);
        }
        const running = new Set(all.filter(({ sequence }) => sequence));
        const counts = step(scheduler);
        const total = Object.values(counts).reduce((sum, count) => sum + count, 0);
        expect(total).toBeLessThanOrEqual(tokenBudget);
        expect(Object.keys(counts).length).toBeLessThanOrEqual(maxSequences);
        // Who was first of all that run goes on, and is never preempted.
        if (oldest && running.has(oldest)) expect(counts[oldest.name] ?? 0).toBeGreaterThan(0);
        if (!oldest?.sequence) {
          const now = all.filter(({ sequence }) => sequence);
          oldest = now.length === 1 ? now[0] : undefined;
        }
        if (all.length === 12 && scheduler.running + scheduler.waiting === 0) break;
      }
      expect(all.length).toBe(12);
      for (const { tokens, most } of all) expect(tokens.length).toBe(most);
      expect(pool.available).toBe(blocks);
      preemptions += scheduler.preemptions;
    }
    expect(preemptions).toBeGreaterThan(100);
  });
});
