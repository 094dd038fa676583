import { availableParallelism } from 'node:os';
import { Worker } from 'node:worker_threads';
import { FlashAttnError, optionError, show } from '../../base/errors.js';
import { assetUrl } from './assets.js';
import type { Heap } from './heap.js';
import { LaunchQueue, queueBytes } from './queue.js';

const stackBytes = 65536;
// How often an idle worker looks for work before it sleeps: about 20 us, against 80 us for being woken.
const idleSpins = 2000;

/** FLASHATTN_THREADS, or one thread for each processor. */
export function threadCount(): number {
  const { FLASHATTN_THREADS: setting } = process.env;
  if (setting === undefined || setting === '') return availableParallelism();
  const threads = Number(setting);
  if (Number.isInteger(threads) && threads >= 1 && threads <= 256) return threads;
  throw optionError(
    `the environment variable FLASHATTN_THREADS is ${show(setting)}; it must be an integer from 1 to 256`,
  );
}

export interface PoolSetup {
  readonly heap: Heap;
  readonly module: WebAssembly.Module;
  readonly threads: number;
  readonly workspaceBytes: number;
  /** How many launches came before this pool. */
  readonly launched: number;
}

/**
 * Worker threads on one launch queue. They start at the first launch and live as long as the environment; an idle pool
 * does not keep the process alive. When a worker dies the whole pool is given up: pending reads are rejected and the
 * backend makes a new pool.
 */
export class Pool {
  readonly queue: LaunchQueue;
  readonly #setup: PoolSetup;
  readonly #regions: { address: number; byteLength: number }[] = [];
  readonly #workers: Worker[] = [];
  #failed = false;
  #waiters = 0;

  constructor(setup: PoolSetup) {
    this.#setup = setup;
    this.queue = new LaunchQueue(setup.heap.memory, this.#allocate(queueBytes), setup.launched, idleSpins);
  }

  start(): void {
    if (this.#workers.length > 0) return;
    const { memory } = this.#setup.heap;
    const { module, threads, workspaceBytes } = this.#setup;
    for (let i = 0; i < threads; i++) {
      const workspace = this.#allocate(workspaceBytes);
      const stackTop = this.#allocate(stackBytes) + stackBytes;
      const worker = new Worker(assetUrl('worker.mjs'), {
        workerData: { module, memory, queue: this.queue.address, workspace, stackTop },
        // The thread runs our code alone: flags of the process such as --require or --inspect are not for it.
        execArgv: [],
        stdin: false,
      });
      worker.unref();
      worker.on('error', () => this.#fail());
      worker.on('exit', () => this.#fail());
      this.#workers.push(worker);
    }
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

  /** @internal For tests: kills one worker, as a crash would. */
  async killOneWorker(): Promise<void> {
    this.start();
    await (this.#workers[0] as Worker).terminate();
  }

  #checkDone(number: number): void {
    if (this.queue.completed < number) throw workerError();
  }

  #fail(): void {
    if (this.#failed) return;
    this.#failed = true;
    this.queue.fault();
    // Memory of the pool may be reused only when no thread of it runs any more.
    void Promise.all(this.#workers.map((worker) => worker.terminate())).then(() => {
      for (const { address, byteLength } of this.#regions) this.#setup.heap.free(address, byteLength, 0);
    });
  }

  #allocate(byteLength: number): number {
    const { heap } = this.#setup;
    const address = heap.allocate(byteLength, 0);
    if (address === undefined) throw heap.outOfMemory(byteLength);
    this.#regions.push({ address, byteLength });
    return address;
  }
}

export const workerError = () =>
  new FlashAttnError('ERR_WORKER', 'a worker thread died before this result was computed; later calls use new threads');
