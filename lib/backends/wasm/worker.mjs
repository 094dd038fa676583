// A thread of the pool: it never returns to JavaScript.
// Plain JavaScript, so that it runs from the sources and from the package alike.
import { workerData } from 'node:worker_threads';

const { module, memory, queue, workspace, stackTop } = workerData;
const completedWord = 1;
const faultWord = 4;
const startedWord = 5;
const words = new Int32Array(memory.buffer, queue, startedWord + 1);

try {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stackTop;
  Atomics.add(words, startedWord, 1);
  exports.work(queue, workspace);
} catch (error) {
  // Whoever blocks on the queue cannot see the 'error' event: tell it through memory.
  Atomics.store(words, faultWord, 1);
  Atomics.notify(words, completedWord);
  throw error;
}
