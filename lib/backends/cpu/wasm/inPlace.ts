import { FlashAttnError } from '../../../base/errors.js';
import type { Heap } from '../heap.js';
import type { InPlace } from './queue.js';

/** What the host's own instance of the module runs launches with. */
export interface RunExports {
  run_pending(queue: number, workspace: number): void;
  run_launch(launch: number, params: number, items: number, workspace: number): void;
  readonly __stack_pointer: { value: number };
}

/** The calling thread as a worker: it runs what is too small to be handed over, and what it has to wait for anyway. */
export class CallingThread implements InPlace {
  readonly #exports: RunExports;
  readonly #workspace: number;

  constructor(exports: RunExports, heap: Heap, workspaceBytes: number) {
    this.#exports = exports;
    this.#workspace = heap.claim(workspaceBytes);
  }

  runPending(queue: number): void {
    this.#run(() => this.#exports.run_pending(queue, this.#workspace));
  }

  run(launch: number, params: number, items: number): void {
    this.#run(() => this.#exports.run_launch(launch, params, items, this.#workspace));
  }

  #run(work: () => void): void {
    const stack = this.#exports.__stack_pointer;
    const top = stack.value;
    try {
      work();
    } catch (error) {
      // A trap leaves the stack where it was.
      stack.value = top;
      throw new FlashAttnError('ERR_WORKER', `a kernel stopped on the calling thread: ${error}`, { cause: error });
    }
  }
}
