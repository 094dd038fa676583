import { Worker } from 'node:worker_threads';
import { FlashAttnError } from '../../../base/errors.js';
import type { Heap } from '../heap.js';
import { describeCause, workerError } from '../host.js';
import { type CountItems, type InPlace, LaunchQueue, queueBytes } from './queue.js';
import { obituaryUnits, threadState, type WorkerData, workerSource } from './worker.js';

const stackBytes = 65536;
// How often an idle worker looks for work before it sleeps: about 20 us, against 80 us for being woken.
const idleSpins = 40_000;
/**
 * Floating-point operations up to which the calling thread runs a launch itself: at some 10 to 20 GFLOP/s this is
 * 100 to 200 us, what it costs to wake threads and to be woken by them.
 */
const inPlaceWork = 2e6;
/** How long a new pool waits for threads of a dead one to leave the item they are in. */
const leaveMilliseconds = 1000;

/** Node's permission model, where the process runs under it. */
const { permission } = process as { permission?: { has(scope: string): boolean } };

/** Why no thread can be started, as far as that shows before one is tried. */
function threadsForbidden(): string | undefined {
  return permission?.has('worker') === false
    ? 'the process may not start threads: Node runs without --allow-worker'
    : undefined;
}

interface Region {
  readonly address: number;
  readonly byteLength: number;
}

export interface PoolSetup {
  readonly heap: Heap;
  readonly memory: WebAssembly.Memory;
  readonly module: WebAssembly.Module;
  readonly inPlace: InPlace;
  readonly threads: number;
  readonly workspaceBytes: number;
  /** How many launches came before this pool. */
  readonly launched: number;
}

/**
 * Worker threads on one launch queue, and the calling thread, which runs what is too small to be handed over. Threads
 * start at the first launch for them and live as long as the environment; an idle pool does not keep the process alive.
 *
 * Threads that cannot be started are done without: the pool has fewer, or none, and then the calling thread does all of
 * the work. When a thread dies at work, the whole pool is given up: pending reads are rejected and the backend makes a
 * new pool.
 */
export class Pool {
  readonly queue: LaunchQueue;
  readonly #setup: PoolSetup;
  readonly #ring: Region;
  readonly #workers = new Set<Worker>();
  readonly #states: Int32Array;
  readonly #obituary = new Uint16Array(new SharedArrayBuffer(2 * obituaryUnits));
  #started = false;
  #threadless = threadsForbidden();
  #cause: unknown;
  #waiters = 0;

  constructor(setup: PoolSetup) {
    const { memory, inPlace, launched } = setup;
    this.#setup = setup;
    this.#states = new Int32Array(new SharedArrayBuffer(4 * setup.threads));
    this.#ring = this.#allocate(queueBytes);
    this.queue = new LaunchQueue(memory, this.#ring.address, launched, idleSpins, {
      run: (launch, params, items) => inPlace.run(launch, params, items),
      runPending: (queue) => {
        try {
          inPlace.runPending(queue);
        } catch (error) {
          this.#fail(error);
        }
      },
    });
  }

  /** How many threads work on a launch. */
  get threads(): number {
    if (this.#threadless !== undefined) return 1;
    return this.#started ? this.#workers.size : this.#setup.threads;
  }

  /** Why the calling thread does all of the work; undefined where there are threads. */
  get threadless(): string | undefined {
    return this.#threadless;
  }

  /** Why the queue has faulted. */
  get cause(): unknown {
    const length = this.#obituary[0] as number;
    if (this.#cause === undefined && length > 0)
      this.#cause = new Error(String.fromCharCode(...this.#obituary.subarray(1, 1 + length)));
    return this.#cause;
  }

  /**
   * Runs the launches from `first` on, one after the other, as many as there are but at most `count`: here and now when
   * they are small and nothing is pending, or on the threads.
   *
   * @param work floating-point operations, roughly
   * @returns the number of the launch that has to be done for all of them to be
   */
  launch(first: number, count: number, params: Uint32Array, countItems: CountItems, work: number): number {
    const { queue } = this;
    const small = work <= inPlaceWork && queue.idle;
    if (!small) this.#start();
    const handOver = !small && this.#threadless === undefined;
    let number = queue.published;
    for (let launch = first; launch < first + count; launch++) {
      const last = handOver ? queue.publish(launch, params, countItems) : queue.runInPlace(launch, params, countItems);
      if (last < 0) break;
      number = last;
    }
    if (handOver) queue.announce();
    return number;
  }

  /** Resolves when launch `number` is done. @throws ERR_WORKER */
  async wait(number: number): Promise<void> {
    if (this.queue.completed >= number) return;
    // A pending wait does not keep Node alive; a referenced worker does.
    if (this.#waiters++ === 0) for (const worker of this.#workers) worker.ref();
    try {
      await this.queue.wait(number);
    } finally {
      if (--this.#waiters === 0) for (const worker of this.#workers) worker.unref();
    }
    this.#checkDone(number);
  }

  /** Blocks until launch `number` is done. @throws ERR_WORKER */
  waitSync(number: number): void {
    this.queue.waitSync(number);
    this.#checkDone(number);
  }

  /** Blocks until no thread of a dead pool can touch memory any more. */
  settle(): void {
    const deadline = performance.now() + leaveMilliseconds;
    for (let i = 0; i < this.#states.length; i++) {
      const left = deadline - performance.now();
      // One that was ended from outside does not say so: its 'exit' event waits for the event loop.
      if (left > 0) Atomics.wait(this.#states, i, threadState.working, left);
    }
  }

  #start(): void {
    if (this.#started) return;
    this.#started = true;
    for (let i = 0; i < this.#setup.threads && this.#threadless === undefined; i++) {
      try {
        this.#startWorker(i);
      } catch (error) {
        if (this.#workers.size > 0) return;
        if (error instanceof FlashAttnError) {
          // No memory now says nothing of later.
          this.#started = false;
          throw error;
        }
        this.#doWithout(error);
      }
    }
  }

  #startWorker(index: number): void {
    const { memory, module, workspaceBytes } = this.#setup;
    const region = this.#allocate(stackBytes + workspaceBytes);
    const stackTop = region.address + stackBytes;
    const data: WorkerData = {
      module,
      memory,
      queue: this.queue.address,
      workspace: stackTop,
      stackTop,
      index,
      states: this.#states,
      obituary: this.#obituary,
    };
    let worker: Worker;
    try {
      // The thread runs our code alone: flags of the process and of NODE_OPTIONS, such as --require or --inspect, are
      // not for it, and an environment of its own keeps them out.
      worker = new Worker(workerSource, { eval: true, workerData: data, execArgv: [], env: {}, stdin: false });
    } catch (error) {
      this.#free(region);
      throw error;
    }
    worker.unref();
    this.#workers.add(worker);
    let cause: unknown;
    worker.on('error', (error) => {
      cause = error;
    });
    worker.on('exit', (code) => {
      this.#free(region);
      this.#workers.delete(worker);
      this.#ended(index, cause ?? new Error(`the thread ended with exit code ${code}`));
    });
  }

  #ended(index: number, cause: unknown): void {
    const state = Atomics.exchange(this.#states, index, threadState.ended);
    // A thread that never came to work held no item: the others go on.
    if (state !== threadState.starting) this.#fail(cause);
    else if (this.#workers.size === 0 && !this.queue.faulted) this.#doWithout(cause);
    if (this.#workers.size === 0 && this.queue.faulted) this.#free(this.#ring);
  }

  /** Goes on without threads, which could not be started. */
  #doWithout(cause: unknown): void {
    this.#threadless = `no thread could be started: ${describeCause(cause)}`;
    this.queue.waitSync(this.queue.published);
  }

  #fail(cause: unknown): void {
    this.#cause = this.cause ?? cause;
    this.queue.fault();
  }

  #checkDone(number: number): void {
    if (this.queue.completed < number) throw workerError(this.cause);
  }

  #allocate(byteLength: number): Region {
    return { address: this.#setup.heap.claim(byteLength), byteLength };
  }

  #free({ address, byteLength }: Region): void {
    this.#setup.heap.free(address, byteLength, 0);
  }
}
