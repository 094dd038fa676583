import {
  add,
  capture,
  type DeviceName,
  dropout,
  matmul,
  mean,
  parameter,
  square,
  type Tensor,
  tensor,
} from 'flashattn';
import { AdamW, GPT, TokenBatches, textTokens, train } from 'flashattn/nn';
import type { World } from './operations.js';

const text = 'memory that nobody uses is given back; '.repeat(40);
const tokens = textTokens(text, { encode: (part: string) => Int32Array.from(part, (c) => c.charCodeAt(0) % 32) });

/** How many steps a call of `runTraining` takes. */
export const stepsOfTraining = 50;

/** Trains a small model, with steps captured or not; what it computed with is disposed, or left to the collector in part. */
export async function runTraining({ device, random, sizes }: World): Promise<void> {
  const [context, width] = [Math.min(16, sizes.tokens), 8];
  const model = new GPT({ vocabulary: 32, context, layers: 1, heads: 2, width, dropout: 0.1, device });
  const optimizer = new AdamW(model.parameters(), { learningRate: 0.01 });
  const batches = new TokenBatches({ tokens, batch: 2, context, seed: random.integer(0, 1000) });
  await train({ model, optimizer, batches, steps: stepsOfTraining - 10, capture: random.chance(0.7) });
  for (let step = 0; step < 5; step++) unrecorded(model, optimizer, device);
  captured(model, device);
  if (random.chance(0.7)) {
    optimizer.dispose();
    model.dispose();
  }
}

/** A step without `train`, whose tensors are left to the collector. */
function unrecorded(model: GPT, optimizer: AdamW, device: DeviceName): void {
  const ids = tensor(tokens.read(0, 9), [1, 9], { device, dtype: 'int32' });
  model.loss(ids, ids).backward();
  optimizer.step();
  optimizer.zeroGrad();
}

function captured({ norm }: GPT, device: DeviceName): void {
  const weight = parameter(norm.weight.detach());
  const x = tensor([1, 2, 3, 4, 5, 6, 7, 8], [1, 8], { device });
  let seed = 1;
  const step = capture(
    () => {
      weight.grad = undefined;
      const dropped = dropout(x, { p: 0.5, seed: () => seed++ }) as Tensor;
      mean(square(add(matmul(dropped, weight.reshape([8, 1])), 1))).backward();
    },
    { device },
  );
  for (let replay = 0; replay < 4; replay++) step.replay();
  if (seed % 2 === 0) step.dispose();
}
