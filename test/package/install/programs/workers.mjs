// Fifty worker threads that load the package, work and stop, every other one in the middle of its work. Prints how many
// answered and by how much the memory of the process grew after the first of them.
import { once } from 'node:events';
import { isMainThread, parentPort, Worker } from 'node:worker_threads';

const workers = 50;
const atATime = 5;
const settled = 15; // after so many, engine and allocator hold what they need
const pending = Number(process.env.PENDING_CALLS); // when a worker stops

async function work() {
  const { attention, tensor } = await import('flashattn');
  const shape = [1, 128, 2, 32];
  const x = tensor(new Float32Array(128 * 2 * 32).fill(1), shape);
  const { out } = attention(x, x, x);
  const [first] = await out.data(); // of ones, 1
  parentPort.postMessage(first);
  for (let i = 0; i < pending; i++) attention(x, x, x).out.dispose();
}

async function run(index) {
  const worker = new Worker(new URL(import.meta.url));
  const failed = once(worker, 'error').then(([error]) => Promise.reject(error));
  failed.catch(() => {});
  const ended = once(worker, 'exit');
  const [first] = await Promise.race([once(worker, 'message'), failed]);
  if (index % 2 === 1) await worker.terminate();
  await ended;
  return Math.abs(first - 1) < 1e-6;
}

async function main() {
  let answered = 0;
  let base = 0;
  for (let start = 0; start < workers; start += atATime) {
    if (start === settled) base = process.memoryUsage().rss;
    const results = await Promise.all(Array.from({ length: atATime }, (_, i) => run(start + i)));
    answered += results.filter(Boolean).length;
  }
  const grownMiB = Math.round((process.memoryUsage().rss - base) / 2 ** 20);
  console.log(JSON.stringify({ answered, grownMiB }));
}

await (isMainThread ? main() : work());
