/** Waiting for a launch while workers finish it and the ones behind it, in every order that threads can have. */
import { afterEach, describe, expect, it, vi } from 'vitest';
import { LaunchQueue, queueBytes } from '../../../lib/backends/wasm/queue.js';

// Words of the queue, as in native/cpu/wasm/queue.h.
const [COMPLETED, EVENT] = [1, 2];
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
        // Asleep: only a worker that changes something can wake the host.
        if (done === 3) throw new Error(`sleeps for launch ${wanted} after the last wake-up`);
        reads = ends[done] ?? 0;
        work();
        return 'ok';
      }) as typeof Atomics.wait);
      queue.waitSync(wanted);
      expect(done).toBeGreaterThanOrEqual(wanted);
      vi.restoreAllMocks();
    }
  });
});
