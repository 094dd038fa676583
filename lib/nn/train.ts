// The loop of training, and what is done with a model beside it.

import { noGrad } from '../autograd/autograd.js';
import { type CapturedStep, capture } from '../autograd/capture.js';
import { checkBoolean, checkFunction, checkInteger, checkNumber, checkOptions } from '../base/check.js';
import { FlashAttnError, show } from '../base/errors.js';
import { tensor, zeros } from '../devices/create.js';
import { add, mul } from '../ops/elementwise.js';
import { scope } from '../tape/scope.js';
import type { Shape, Tensor } from '../tensor/tensor.js';
import { TokenBatches } from './batches.js';
import type { GPT } from './gpt.js';
import type { Layer } from './module.js';
import type { Optimizer } from './optimizers.js';
import { clipGradients } from './schedule.js';
import type { Tokens } from './tokens.js';

export interface TrainOptions {
  readonly model: GPT<Layer>;
  readonly optimizer: Pick<Optimizer<{ readonly learningRate: number }>, 'rate' | 'step' | 'zeroGrad'>;
  readonly batches: TokenBatches;
  /** How many steps there are in all; with `firstStep` some of them have been taken. */
  readonly steps: number;
  readonly firstStep?: number;
  /** What the learning rate is multiplied by at each step: see `schedule`. Default 1. */
  readonly rate?: (step: number) => number;
  /** The global norm that gradients are clipped to; 0: they are not. Default 1. */
  readonly clip?: number;
  /** How many batches make a step: their gradients are averaged. Default 1. */
  readonly accumulate?: number;
  /**
   * Whether the first step is recorded and the others are replays of it, without what the host does for each launch: see
   * `capture`. They have the same bits. What a step computes in between keeps its memory then. Default true.
   */
  readonly capture?: boolean;
  /** Told of every step when its loss is known, one after the other; the next step is under way meanwhile. */
  readonly onStep?: (report: StepReport) => void | Promise<void>;
  /** Ends training after the step under way. */
  readonly signal?: AbortSignal;
}

export interface StepReport {
  /** From 0 on. */
  readonly step: number;
  /** Of the batches of the step before it was taken, in nats per token. */
  readonly loss: number;
  /** Before they were clipped. */
  readonly gradientNorm: number;
  readonly rate: number;
  /** Milliseconds since the step before. */
  readonly milliseconds: number;
}

/** A step that has been queued: what is known of it is still on its way from the device. */
interface Queued {
  readonly step: number;
  readonly rate: number;
  readonly known: Promise<{ readonly loss: number; readonly norm: number }>;
}

interface Batch {
  readonly ids: Tensor<'int32'>;
  readonly targets: Tensor<'int32'>;
}

/** What a step leaves on the device. */
interface StepResult {
  readonly loss: Tensor<'float32', Shape>;
  /** Of the gradients, before they were clipped. */
  readonly norm: Tensor;
}

/** The first tensor of a model that holds what is no finite number, for a message. */
function firstBroken(model: GPT<Layer>): string {
  for (const [name, t] of model.namedParameters())
    if (t.toFloat32Sync().some((x) => !Number.isFinite(x))) return `; ${name} is the first tensor that holds such`;
  return '; all tensors of the model are finite';
}

/**
 * Trains a model on batches of tokens. The device works on a step while the loss of the one before is read. The model is in
 * the mode of training meanwhile, and afterwards in the one that it was in.
 *
 * A step whose gradients are not finite changes nothing, so that the model is left as it was before it.
 *
 * @returns how many steps have been taken
 * @throws ERR_AUTOGRAD when a loss or the norm of its gradients is NaN or infinite: the step, and the first tensor that is
 *   broken; ERR_OPTION, and what `onStep` throws
 */
export async function train(options: TrainOptions): Promise<number> {
  checkOptions(options, [
    'model',
    'optimizer',
    'batches',
    'steps',
    'firstStep',
    'rate',
    'clip',
    'accumulate',
    'capture',
    'onStep',
    'signal',
  ]);
  const { model, optimizer, firstStep = 0, rate = () => 1, onStep, signal } = options;
  checkInteger(options.steps, 'steps', 0);
  checkInteger(firstStep, 'firstStep', 0);
  checkInteger(options.accumulate ?? 1, 'accumulate', 1);
  checkNumber(options.clip ?? 1, 'clip', 0);
  checkBoolean(options.capture ?? true, 'capture');
  let last = performance.now();
  const finish = async ({ step, rate, known }: Queued): Promise<void> => {
    const { loss, norm } = await known;
    for (const [name, value] of [
      ['the loss', loss],
      ['the norm of the gradients', norm],
    ] as const)
      if (!Number.isFinite(value))
        throw new FlashAttnError('ERR_AUTOGRAD', `${name} of step ${step} is ${show(value)}${firstBroken(model)}`);
    const now = performance.now();
    const milliseconds = now - last;
    last = now;
    await onStep?.({ step, loss, gradientNorm: norm, rate, milliseconds });
  };
  const { training } = model;
  model.train();
  using steps = new Steps(options);
  let queued: Queued | undefined;
  let step = firstStep;
  try {
    for (; step < options.steps && !signal?.aborted; step++) {
      optimizer.rate = checkNumber(rate(step), 'rate', 0);
      const before = queued;
      queued = { step, rate: optimizer.rate, known: steps.take() };
      queued.known.catch(() => {}); // Told by `finish`, unless something else ends the run before.
      if (before) await finish(before);
    }
    if (queued) await finish(queued);
  } finally {
    // Nothing of a step under way is left.
    await queued?.known.catch(() => {});
    model.train(training);
  }
  return Math.max(0, step - firstStep);
}

/** Steps of one shape, one after the other. */
class Steps implements Disposable {
  readonly #options: TrainOptions;
  readonly #batches: readonly Batch[];
  readonly #captures: boolean;
  #captured: CapturedStep<StepResult> | undefined;

  constructor(options: TrainOptions) {
    this.#options = options;
    const { model, batches, accumulate = 1, steps, firstStep = 0, capture = true } = options;
    this.#captures = capture && steps - firstStep > 1;
    const { device } = model.tokens.weight;
    const shape = [batches.batch, batches.context];
    const make = () => zeros(shape, { device: device as 'cpu', dtype: 'int32' });
    this.#batches = Array.from({ length: accumulate }, () => ({ ids: make(), targets: make() }));
  }

  /** Queues a step. */
  take(): Promise<{ loss: number; norm: number }> {
    const { batches } = this.#options;
    for (const { ids, targets } of this.#batches) {
      const next = batches.next();
      ids.write(next.inputs);
      targets.write(next.targets);
    }
    if (this.#captures) {
      if (this.#captured) this.#captured.replay();
      else this.#captured = capture(() => this.#run());
      return read(this.#captured.result);
    }
    const result = scope(() => this.#run());
    try {
      return read(result);
    } finally {
      for (const t of Object.values(result)) t.dispose();
    }
  }

  #run(): StepResult {
    const { model, optimizer, clip = 1 } = this.#options;
    const loss = this.#gradients();
    const { scale, norm } = clipGradients(model.parameters(), clip === 0 ? Number.POSITIVE_INFINITY : clip);
    optimizer.step({ gradientScale: scale });
    optimizer.zeroGrad();
    return { loss, norm };
  }

  /** Leaves the gradients of a step in the model; the mean of the losses. */
  #gradients(): Tensor<'float32', Shape> {
    const { model } = this.#options;
    const share = 1 / this.#batches.length;
    const losses = this.#batches.map(({ ids, targets }) =>
      scope(() => {
        const loss = model.loss(ids, targets);
        const part = share === 1 ? loss : mul(loss, share);
        part.backward();
        return part.detach();
      }),
    );
    return noGrad(() => losses.reduce((sum, loss) => add(sum, loss) as typeof sum));
  }

  [Symbol.dispose](): void {
    this.#captured?.dispose();
    for (const t of this.#batches.flatMap(({ ids, targets }) => [ids, targets])) t.dispose();
  }
}

/** Begins to read what a step leaves; its tensors may be overwritten or disposed then. */
async function read({ loss, norm }: StepResult): Promise<{ loss: number; norm: number }> {
  const [[lossValue], [normValue]] = await Promise.all([loss.data(), norm.toFloat32()]);
  return { loss: lossValue as number, norm: normValue as number };
}

function onDevice(
  model: GPT<Layer>,
  { inputs, targets }: { inputs: Int32Array; targets: Int32Array },
  context: number,
) {
  const { device } = model.tokens.weight;
  const shape = [inputs.length / context, context];
  const options = { device: device as 'cpu', dtype: 'int32' } as const;
  return { ids: tensor(inputs, shape, options), targets: tensor(targets, shape, options) };
}

/** What `f` computes in the mode of evaluation; the model is then in the one that it was in. */
function evaluating<T>(model: GPT<Layer>, f: () => T): T {
  const { training } = model;
  model.eval();
  try {
    return noGrad(() => scope(f));
  } finally {
    model.train(training);
  }
}

export interface EvaluateOptions {
  readonly batch: number;
  readonly context: number;
  /** How many batches, from the start of the tokens; default as many as there are. */
  readonly batches?: number;
}

/**
 * The mean loss of a model on tokens, in nats per token, without training.
 *
 * @throws ERR_OPTION, also when there are fewer tokens than a window has
 */
export async function evaluate(model: GPT<Layer>, tokens: Tokens, options: EvaluateOptions): Promise<number> {
  checkOptions(options, ['batch', 'context', 'batches']);
  const context = checkInteger(options.context, 'context', 1, model.context);
  const windows = Math.floor((tokens.length - 1) / context);
  const batch = Math.min(checkInteger(options.batch, 'batch', 1), Math.max(1, windows));
  if (options.batches !== undefined) checkInteger(options.batches, 'batches', 1);
  const walk = new TokenBatches({ tokens, batch, context, shuffle: false });
  const count = Math.min(options.batches ?? Number.POSITIVE_INFINITY, Math.floor(windows / batch));
  let sum = 0;
  for (let i = 0; i < count; i++) {
    const loss = evaluating(model, () => {
      const { ids, targets } = onDevice(model, walk.next(), context);
      return model.loss(ids, targets);
    });
    try {
      sum += (await loss.data())[0] as number;
    } finally {
      loss.dispose();
    }
  }
  return sum / count;
}

export interface GenerateOptions {
  /** How many tokens. */
  readonly length: number;
  /** Logits are divided by it; 0: always the likeliest token. Default 1. */
  readonly temperature?: number;
  /** Only the likeliest ones are drawn from. Default all. */
  readonly topK?: number;
  /** Between 0 and 1, a number for each draw. Default Math.random. */
  readonly random?: () => number;
  /** How many tokens before it each one is made of; default, and at most, as many as the model takes. */
  readonly context?: number;
}

/** @throws ERR_AUTOGRAD where a logit is NaN or infinite */
function sample(logits: Float32Array, temperature: number, topK: number, random: () => number): number {
  const broken = logits.findIndex((x) => !Number.isFinite(x));
  if (broken >= 0) throw new FlashAttnError('ERR_AUTOGRAD', `the logit of token ${broken} is ${show(logits[broken])}`);
  const order = Array.from(logits.keys()).sort((a, b) => (logits[b] as number) - (logits[a] as number));
  if (temperature === 0) return order[0] as number;
  const likeliest = order.slice(0, topK);
  const most = logits[likeliest[0] as number] as number;
  const weights = likeliest.map((token) => Math.exp(((logits[token] as number) - most) / temperature));
  let left = random() * weights.reduce((sum, weight) => sum + weight, 0);
  for (const [i, weight] of weights.entries()) {
    left -= weight;
    if (left < 0) return likeliest[i] as number;
  }
  return likeliest[0] as number;
}

/**
 * Tokens that a model goes on with, one after the other. Every token is a pass over all those before it, in the mode of
 * evaluation.
 *
 * @throws ERR_OPTION for an empty prompt, a token that the model has not, or an option; ERR_AUTOGRAD when logits are NaN
 */
export async function* generate(
  model: GPT<Layer>,
  prompt: ArrayLike<number>,
  options: GenerateOptions,
): AsyncGenerator<number, void> {
  checkOptions(options, ['length', 'temperature', 'topK', 'random', 'context']);
  const length = checkInteger(options.length, 'length', 0);
  const temperature = checkNumber(options.temperature ?? 1, 'temperature', 0);
  const topK = checkInteger(options.topK ?? model.vocabulary, 'topK', 1);
  const context = checkInteger(options.context ?? model.context, 'context', 1, model.context);
  const random = checkFunction(options.random ?? Math.random, 'random');
  const tokens = Array.from(prompt, (id, i) => checkInteger(id, `prompt[${i}]`, 0, model.vocabulary - 1));
  if (tokens.length === 0) throw new FlashAttnError('ERR_OPTION', 'prompt is empty; it must have a token');
  for (let i = 0; i < length; i++) {
    const next = sample(await lastLogits(model, tokens.slice(-context)), temperature, topK, random);
    tokens.push(next);
    yield next;
  }
}

async function lastLogits(model: GPT<Layer>, tokens: readonly number[]): Promise<Float32Array> {
  const seen = Int32Array.from(tokens);
  const logits = evaluating(model, () => {
    const ids = tensor(seen, [1, seen.length], { device: model.tokens.weight.device as 'cpu' });
    return model
      .forward(ids)
      .select(1, seen.length - 1)
      .contiguous();
  });
  try {
    return await logits.toFloat32();
  } finally {
    logits.dispose();
  }
}
