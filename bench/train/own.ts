// Steps of training in this library, as bench/peers/train/serve.mjs asks for them.
import { type CapturedStep, capture, type FloatDType, measurePeak, status, type Tensor, tensor } from 'flashattn';
import { AdamW, GPT, openSafetensors, type StateDict } from 'flashattn/nn';
import { adamW, normEpsilon, type Prepared, serveTraining, type Training } from '../peers/train/serve.mjs';
import type { Processor } from '../processor.js';

export interface OwnOptions {
  readonly device: Processor;
  readonly compute: FloatDType;
}

async function load(model: GPT, path: string, device: Processor): Promise<void> {
  const file = await openSafetensors(path);
  const state: Record<string, StateDict[string]> = {};
  try {
    for (const [name, { shape }] of file.tensors)
      state[name] = tensor(await file.read(name, 'F32'), shape, { device, dtype: 'float32' });
    model.loadStateDict(state);
  } finally {
    for (const t of Object.values(state)) t.dispose();
    await file.close();
  }
}

async function prepare({ model, weights, batch }: Training, { device, compute }: OwnOptions): Promise<Prepared> {
  const gpt = new GPT({ ...model, activation: 'geluTanh', epsilon: normEpsilon, compute, device });
  if (weights !== null) await load(gpt, weights, device);
  const { learningRate, beta1, beta2, epsilon, weightDecay } = adamW;
  const optimizer = new AdamW(gpt.parameters(), { learningRate, betas: [beta1, beta2], epsilon, weightDecay });
  const tokens = (list: readonly number[]) =>
    tensor(Int32Array.from(list), [batch.size, model.context], { device, dtype: 'int32' });
  const [ids, targets] = [tokens(batch.ids), tokens(batch.targets)];

  const run = () => {
    const loss = gpt.loss(ids, targets);
    loss.backward();
    optimizer.step();
    optimizer.zeroGrad();
    return loss;
  };
  let captured: CapturedStep<Tensor<'float32'>> | undefined;
  return {
    step: () => {
      if (captured) captured.replay();
      else captured = capture(run);
      const read = captured.result.data();
      return async () => (await read)[0] as number;
    },
    settle: () => gpt.norm.weight.ready().then(() => {}),
    dispose: () => {
      captured?.dispose();
      optimizer.dispose();
      gpt.dispose();
      for (const t of [ids, targets]) t.dispose();
    },
  };
}

/** A child process that trains on a device. */
export function serveOwn(options: OwnOptions): void {
  serveTraining(
    () => (options.device === 'wasm' ? status('wasm') : status('cpu')).threads, // FLASHATTN_THREADS
    (training) => prepare(training, options),
    () => measurePeak(options.device),
  );
}
