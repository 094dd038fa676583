// What a benchmark of training asks a library in a process of its own, and what the process answers:
//
//   { threads }                 -> { threads }, on how many it runs; before all others
//   { model, weights, batch }   -> { losses }, before each of `lossCount` steps: all libraries must have the same; what was
//                                  prepared before is freed
//   { steps }                   -> { milliseconds, processorMs }, the means of so many further steps, each with its loss read:
//                                  by the clock, and of all threads together on the processor
//
//   { peak: true }              -> { flopsPerSecond } of multiply-adds alone, where a library can tell
//
// and { reason } to what it cannot do.
//
//   model    { layers, heads, width, context, vocabulary }, a GPT-2 with the tanh form of GELU and a tied head
//   weights  the path of a safetensors file in float32, by the names of `GPT.stateDict()`; linear weights are [outputs, inputs].
//            null: a library is asked that has its own
//   batch    { size, ids, targets }: arrays of size * context tokens
import { readFileSync } from 'node:fs';
import { answerWith } from '../serve.mjs';

/** Losses before step 1, 2, ... */
export const lossCount = 6;

/** AdamW, the same in all. */
export const adamW = { learningRate: 1e-3, beta1: 0.9, beta2: 0.95, epsilon: 1e-8, weightDecay: 0.1 };

export const normEpsilon = 1e-5;

/** [name, shape, values] of all tensors of a safetensors file in float32. */
export function readWeights(path) {
  const bytes = readFileSync(path);
  const start = 8 + Number(bytes.readBigUInt64LE());
  const { __metadata__, ...tensors } = JSON.parse(bytes.toString('utf8', 8, start));
  return Object.entries(tensors).map(
    ([
      name,
      {
        shape,
        data_offsets: [from, to],
      },
    ]) => {
      const values = new Float32Array((to - from) / 4);
      new Uint8Array(values.buffer).set(bytes.subarray(start + from, start + to));
      return [name, shape, values];
    },
  );
}

/**
 * Answers until it is disconnected. `start(threads)` loads the library and says on how many threads it runs;
 * `prepare({ model, weights, batch })` gives { step, settle, dispose }: `step()` queues a step and gives a function that
 * resolves to the loss before it, `settle()` resolves when all steps are done. `peak()` gives operations per second.
 */
export function serveTraining(start, prepare, peak) {
  let prepared;

  /** Losses are read one step later, so that a library which works in threads of its own does not stand still. */
  async function run(count) {
    const losses = [];
    let last;
    for (let i = 0; i < count; i++) {
      const next = await prepared.step();
      if (last) losses.push(await last());
      last = next;
    }
    losses.push(await last());
    await prepared.settle();
    return losses;
  }

  answerWith(async ({ threads, model, weights, batch, steps, peak: asksPeak }) => {
    if (threads) return { threads: await start(threads) };
    if (asksPeak) return { flopsPerSecond: await peak() };
    if (model) {
      prepared?.dispose();
      prepared = await prepare({ model, weights, batch });
      return { losses: await run(lossCount) };
    }
    const [begin, before] = [performance.now(), process.cpuUsage()];
    await run(steps);
    const milliseconds = (performance.now() - begin) / steps;
    const { user, system } = process.cpuUsage(before);
    return { milliseconds, processorMs: (user + system) / 1000 / steps };
  });
}
