/** Milliseconds of forward and backward on the device, medians. */
import { type BlockMask, type DeviceName, measureTime, type Plan, plan } from 'flashattn';
import { median } from '../../lib/cli/statistics.js';
import { disposeInputs, type InputSets } from './inputs.js';
import type { Shape, Sizes } from './shapes.js';

export interface Settings {
  readonly device: DeviceName;
  readonly sizes: Sizes;
  readonly rounds: number;
}

export interface Times {
  readonly forwardMs: number;
  readonly backwardMs: number;
}

const mostRuns = 64;

/**
 * The time of one run. A sample holds so many that the device works on one while the next is being launched; inputs
 * take turns from run to run.
 */
export async function timeOf(run: (turn: number) => void, turns: number, { device, sizes, rounds }: Settings) {
  let turn = 0;
  const sample = async (runs: number) => {
    const milliseconds = await measureTime(() => {
      for (let i = 0; i < runs; i++) run(turn++ % turns);
    }, device);
    return milliseconds / runs;
  };
  await sample(turns); // loads the kernels and brings the clocks up
  const once = await sample(turns);
  const runs = Math.min(mostRuns, Math.max(1, Math.ceil(sizes.sampleMilliseconds / once)));
  const samples: number[] = [];
  for (let round = 0; round < rounds; round++) samples.push(await sample(runs));
  return median(samples);
}

export interface Variation {
  readonly mask?: BlockMask;
  readonly deterministic?: boolean;
}

/** One problem for every set of inputs; each has a plan of its own, as backward needs its forward. */
interface Runs {
  readonly turns: number;
  forward(turn: number): void;
  backward(turn: number): void;
}

async function withRuns<T>(
  shape: Shape,
  inputs: InputSets,
  { device }: Settings,
  variation: Variation,
  use: (runs: Runs) => Promise<T>,
): Promise<T> {
  const { dtype, causal } = shape;
  const sets = inputs.as(shape);
  const plans: Plan[] = [];
  try {
    for (const { q } of sets) plans.push(plan({ q: q.shape, dtype, device, causal, backward: true, ...variation }));
    return await use({
      turns: sets.length,
      forward: (i) => plans[i].run(sets[i].q, sets[i].k, sets[i].v),
      backward: (i) => plans[i].runBackward(sets[i].dOut),
    });
  } finally {
    for (const p of plans) p.dispose();
    disposeInputs(sets);
  }
}

function timeBackward({ turns, forward, backward }: Runs, settings: Settings): Promise<number> {
  for (let i = 0; i < turns; i++) forward(i);
  return timeOf(backward, turns, settings);
}

export const measure = (shape: Shape, inputs: InputSets, settings: Settings, variation: Variation = {}) =>
  withRuns(shape, inputs, settings, variation, async (runs): Promise<Times> => {
    const forwardMs = await timeOf(runs.forward, runs.turns, settings);
    return { forwardMs, backwardMs: await timeBackward(runs, settings) };
  });

export const measureBackward = (shape: Shape, inputs: InputSets, settings: Settings, variation: Variation) =>
  withRuns(shape, inputs, settings, variation, (runs) => timeBackward(runs, settings));

/** Each pass once, on the first set of inputs. */
export const runPasses = (shape: Shape, inputs: InputSets, settings: Settings) =>
  withRuns(shape, inputs, settings, {}, async ({ forward, backward }) => {
    forward(0);
    backward(0);
    await measureTime(() => {}, settings.device);
  });
