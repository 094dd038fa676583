import { describe, expect, it } from 'vitest';
import { FairQueue } from '../../lib/inference/fairQueue.js';
import { uniform } from '../../verify/oracle/random.js';

interface Job {
  readonly key: string;
  readonly name: string;
}

const job = (name: string): Job => ({ key: name[0], name });

describe('FairQueue', () => {
  it('gives keys turns, and is first in, first out for each', () => {
    const queue = new FairQueue<Job>();
    for (const name of ['a1', 'a2', 'a3', 'b1', 'c1', 'b2']) queue.push(job(name));
    expect(queue.size).toBe(6);
    const order = Array.from({ length: 7 }, () => queue.shift()?.name);
    expect(order).toEqual(['a1', 'b1', 'c1', 'a2', 'b2', 'a3', undefined]);
    expect(queue.size).toBe(0);
  });

  it('serves who returns before all others, without a turn of the key', () => {
    const queue = new FairQueue<Job>();
    for (const name of ['a1', 'a2', 'b1']) queue.push(job(name));
    queue.unshift(job('a9'));
    queue.unshift(job('c8'));
    expect(Array.from({ length: 5 }, () => queue.shift()?.name)).toEqual(['c8', 'a9', 'a1', 'b1', 'a2']);
  });

  it('is what a list that is searched every time is: random walks', () => {
    for (let seed = 0; seed < 100; seed++) {
      const next = uniform(seed);
      const below = (n: number) => Math.floor(next() * n);
      const queue = new FairQueue<Job>();
      let returned: Job[] = [];
      let keys: string[] = [];
      let waiting: Job[] = [];
      for (let step = 0; step < 100; step++) {
        const kind = below(5);
        if (kind < 2) {
          const added = job('abcd'[below(4)] + step);
          queue.push(added);
          waiting.push(added);
          if (!keys.includes(added.key)) keys.push(added.key);
        } else if (kind === 2) {
          const first = returned[0] ?? waiting.find(({ key }) => key === keys[0]);
          expect(queue.first).toBe(first);
          expect(queue.shift()).toBe(first);
          if (first && returned.length === 0) keys = [...keys.slice(1), first.key];
          returned = returned.filter((other) => other !== first);
          waiting = waiting.filter((other) => other !== first);
        } else if (kind === 3) {
          const all = [...returned, ...waiting];
          const gone = all.length > 0 && below(4) > 0 ? all[below(all.length)] : job('a?');
          expect(queue.delete(gone)).toBe(all.includes(gone));
          returned = returned.filter((other) => other !== gone);
          waiting = waiting.filter((other) => other !== gone);
        } else if (below(4) === 0) {
          const back = job('abcd'[below(4)] + step);
          queue.unshift(back);
          returned.unshift(back);
        }
        keys = keys.filter((key) => waiting.some((other) => other.key === key));
        expect(queue.size).toBe(returned.length + waiting.length);
      }
    }
  });
});
