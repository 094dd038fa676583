/** Waiting for a launch while workers finish it and the ones behind it, in every order that threads can have. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import { field, LaunchQueue, queueBytes } from '../../../../lib/backends/cpu/wasm/queue.js';

const { completed: COMPLETED, event: EVENT, awaited: AWAITED } = field;
const ADDRESS = 1024;

/** A queue with three pending launches and no workers: the test plays them. */
function pendingQueue(): { queue: LaunchQueue; words: Int32Array } {
  const pages = Math.ceil((ADDRESS + queueBytes) / 65536);
  const memory = new WebAssembly.Memory({ initial: pages, maximum: pages, shared: true });
  const idle = { run: () => undefined, runPending: () => undefined };
  const queue = new LaunchQueue(memory, ADDRESS, 0, 0, idle);
  for (let n = 0; n < 3; n++) {
    queue.publish(0, new Uint32Array(1), () => 1);
  }
  return { queue, words: new Int32Array(memory.buffer, ADDRESS) };
}

describe('waitSync', () => {
  afterEach(() => vi.restoreAllMocks());

  // The three launches end after this many reads of shared memory each: all interleavings of host and workers.
  const schedules = [0, 1, 2, 3].flatMap((a) => [0, 1, 2].flatMap((b) => [0, 1, 2].map((c) => [a, a + b, a + b + c])));

  it.each(schedules)('launches end after %i, %i and %i reads', (...ends) => {
    for (const wanted of [1, 2, 3]) {
      const { queue, words } = pendingQueue();
      let reads = 0;
      let done = 0;
      const work = (): void => {
        while (done < 3 && reads >= (ends[done] ?? 0)) {
          words[COMPLETED] = ++done;
          words[EVENT] = (words[EVENT] ?? 0) + 1;
        }
      };
      const load = Atomics.load.bind(Atomics) as (array: Int32Array, index: number) => number;
      vi.spyOn(Atomics, 'load').mockImplementation(((array: Int32Array, index: number) => {
        const value = load(array, index);
        reads++;
        work();
        return value;
      }) as typeof Atomics.load);
      vi.spyOn(Atomics, 'wait').mockImplementation(((array: Int32Array, index: number, value: number) => {
        if (array[index] !== value) return 'not-equal';
        // Asleep: only a worker that completes an awaited launch wakes the host.
        while (done < 3) {
          reads = ends[done] ?? 0;
          work();
          if (done - (words[AWAITED] ?? 0) >= 0) return 'ok';
        }
        throw new Error(`sleeps for launch ${wanted} after the last wake-up`);
      }) as typeof Atomics.wait);
      queue.waitSync(wanted);
      expect(done).toBeGreaterThanOrEqual(wanted);
      vi.restoreAllMocks();
    }
  });
});

describe('wait', () => {
  /** What a worker does when it has done a launch; the number of threads that it woke. */
  function complete(words: Int32Array, launch: number): number {
    Atomics.store(words, COMPLETED, launch);
    return launch - Atomics.load(words, AWAITED) >= 0 ? Atomics.notify(words, COMPLETED) : 0;
  }
  const turn = () => new Promise((resolve) => setImmediate(resolve));

  const orders = [
    [1, 2, 3],
    [3, 2, 1],
    [2, 3, 1],
    [3, 3, 2, 2],
  ];
  it.each(orders)('resolves what is done, whatever was asked for first: %i, %i, %i', async (...asked) => {
    const { queue, words } = pendingQueue();
    const told: number[] = [];
    const waits = asked.map(async (number) => {
      await queue.wait(number);
      told.push(number);
    });
    for (const launch of [1, 2, 3]) {
      await turn();
      expect(told.every((number) => number < launch)).toBe(true);
      complete(words, launch);
      while (told.filter((number) => number <= launch).length < asked.filter((number) => number <= launch).length)
        await turn();
    }
    await Promise.all(waits);
    expect(told).toEqual(asked.toSorted());
  });

  it('is not woken by launches that nobody waits for', async () => {
    const { queue, words } = pendingQueue();
    const wait = queue.wait(3);
    await turn();
    expect([complete(words, 1), complete(words, 2), complete(words, 3)]).toEqual([0, 0, 1]);
    await wait;
  });

  it('resolves at once what was done before', async () => {
    const { queue, words } = pendingQueue();
    complete(words, 2);
    await queue.wait(2);
    await queue.wait(1);
  });

  it('ends when the queue is given up', async () => {
    const { queue } = pendingQueue();
    const waits = [queue.wait(1), queue.wait(3)];
    await turn();
    queue.fault();
    await Promise.all(waits);
    await queue.wait(2);
  });
});
