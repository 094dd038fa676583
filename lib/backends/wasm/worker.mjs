// A thread of the pool: it never returns to JavaScript.
// Plain JavaScript, so that it runs from the sources and from the package alike.
import { workerData } from 'node:worker_threads';

const { module, memory, queue, workspace, stackTop } = workerData;
const completedWord = 1;
const faultWord = 4;

try {
  const { exports } = new WebAssembly.Instance(module, { env: { memory } });
  exports.__stack_pointer.value = stackTop;
  exports.work(queue, workspace);
} catch (error) {
  // Whoever blocks on the queue cannot see the 'error' event: tell it through memory.
  const words = new Int32Array(memory.buffer, queue, faultWord + 1);
  Atomics.store(words, faultWord, 1);
  Atomics.notify(words, completedWord);
  throw error;
}
