import { setImmediate as yieldToEvents } from 'node:timers/promises';
import { AdamW, clipScale, cosineSchedule } from './adam.js';
import type { Transformer } from './model.js';
import type { Random } from './random.js';

export interface TrainingOptions {
  readonly steps: number;
  readonly peakLearningRate: number;
  readonly warmupSteps: number;
  readonly random: Random;
  /** Looked at before every step; training ends once it is true. */
  readonly stop: () => boolean;
  /** Called after every step, when the model still holds that step's activations and gradients. */
  readonly onStep: (report: StepReport) => void | Promise<void>;
}

export interface StepReport {
  /** 1 for the first */
  readonly step: number;
  readonly loss: number;
  readonly stepMs: number;
  /** The part of `stepMs` spent in attention, forward and backward, in all layers. */
  readonly attentionMs: number;
}

/** Windows of text: what the model reads, and the same shifted by one, which is what it should have said. */
export interface Batch {
  readonly tokens: Int32Array;
  readonly targets: Int32Array;
}

/** Trains on windows picked at random and returns the number of steps done. */
export async function train(model: Transformer, text: Int32Array, options: TrainingOptions): Promise<number> {
  const { steps, random } = options;
  const parameters = model.weights.all;
  // Less momentum than the usual 0.9: in a few hundred steps the gradient of ten steps ago is already out of date.
  const optimizer = new AdamW(parameters, { beta1: 0.8 });
  const { batch, context } = model.batchShape;
  const last = text.length - context - 1;
  let done = 0;
  while (done < steps && !options.stop()) {
    const started = performance.now();
    const starts = Array.from({ length: batch }, () => random.below(last + 1));
    const { tokens, targets } = batchAt(text, starts, context);

    model.weights.zeroGradients();
    const loss = await model.loss(tokens, targets);
    await model.backward();
    const learningRate = cosineSchedule(done, steps, options.peakLearningRate, options.warmupSteps);
    optimizer.step(learningRate, clipScale(parameters, 1));

    done++;
    const attentionMs = model.takeAttentionMs();
    await options.onStep({ step: done, loss, stepMs: performance.now() - started, attentionMs });
    // Everything above may have run without once returning to the event loop, where Ctrl-C waits to be heard.
    await yieldToEvents();
  }
  return done;
}

/** Mean loss over windows spread evenly over the text: the same ones every time, so that two calls compare. */
export async function evaluate(model: Transformer, text: Int32Array, batches: number): Promise<number> {
  const { batch, context } = model.batchShape;
  const windows = batches * batch;
  const last = text.length - context - 1;
  let total = 0;
  for (let b = 0; b < batches; b++) {
    const starts = Array.from({ length: batch }, (_, i) =>
      Math.floor(((b * batch + i) * last) / Math.max(1, windows - 1)),
    );
    const { tokens, targets } = batchAt(text, starts, context);
    total += await model.loss(tokens, targets);
  }
  model.takeAttentionMs();
  return total / batches;
}

function batchAt(text: Int32Array, starts: readonly number[], context: number): Batch {
  const tokens = new Int32Array(starts.length * context);
  const targets = new Int32Array(starts.length * context);
  starts.forEach((start, i) => {
    tokens.set(text.subarray(start, start + context), i * context);
    targets.set(text.subarray(start + 1, start + 1 + context), i * context);
  });
  return { tokens, targets };
}
