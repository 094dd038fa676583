import { field } from './queue.js';

/** What a thread of the pool is given. */
export interface WorkerData {
  readonly module: WebAssembly.Module;
  readonly memory: WebAssembly.Memory;
  readonly queue: number;
  readonly workspace: number;
  readonly stackTop: number;
  /** Index of the thread in the pool. */
  readonly index: number;
  readonly states: Int32Array;
  readonly obituary: Uint16Array;
}

/** What `WorkerData.states` tells of a thread. */
export const threadState = {
  /** It holds no item and never did. */
  starting: 0,
  /** It may hold an item. */
  working: 1,
  /** It will never touch memory again. */
  ended: 2,
} as const;

/** Room for the message of the error that ended a thread: a length and as many UTF-16 units. */
export const obituaryUnits = 1024;

/**
 * The program of a thread of the pool: plain JavaScript, handed over as text, so that a thread needs no file, no module
 * loader and none of their hooks. Deno runs it inside a function that has names of CommonJS already: `module` is one.
 *
 * Whoever blocks for the queue cannot see a thread's 'error' event. Before the thread declares the queue dead it
 * therefore leaves its error's message in shared memory.
 */
export const workerSource = `
'use strict';
const { workerData } = require('node:worker_threads');
const { module: kernels, memory, queue, workspace, stackTop, index, states, obituary } = workerData;
const { exports: thread } = new WebAssembly.Instance(kernels, { env: { memory } });
thread.__stack_pointer.value = stackTop;
const end = () => {
  Atomics.store(states, index, ${threadState.ended});
  Atomics.notify(states, index);
};
Atomics.store(states, index, ${threadState.working});
try {
  thread.work(queue, workspace);
} catch (error) {
  const text = String(error).slice(0, obituary.length - 1);
  for (let i = 0; i < text.length; i++) obituary[i + 1] = text.charCodeAt(i);
  obituary[0] = text.length;
  const words = new Int32Array(memory.buffer, queue, ${field.fault + 1});
  Atomics.store(words, ${field.fault}, 1);
  Atomics.notify(words, ${field.completed});
  Atomics.add(words, ${field.event}, 1);
  Atomics.notify(words, ${field.event});
  throw error;
} finally {
  end();
}
`;
