/**
 * Trains a GPT on a text, every multiplication on the device, and lets it write. `npm start -- --help` lists the options.
 */
import { mkdirSync, writeFileSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type DeviceName, FlashAttnError, memory, status } from 'flashattn';
import { saveModelFolder } from 'flashattn/inference';
import * as nn from 'flashattn/nn';
import { type Comparison, compareAttention } from './gpt/attention.js';
import { stopOnInterrupt } from './gpt/interrupt.js';
import { layers, needPositions } from './gpt/layers.js';
import { type Options, presets, readOptions, USAGE } from './gpt/options.js';
import { Progress, print } from './gpt/progress.js';
import { contextFor, holdOut, readText, TextError } from './gpt/text.js';

async function main(options: Options): Promise<void> {
  const { model: size, seed, device, data = snapshot } = options;
  const { batch, context: longest, learningRate, seconds, steps: usual, ...shape } = presets[size];
  const stop = stopOnInterrupt();
  const text = readText(data);
  const tokenizer = size === 'gpt2' ? await nn.gptTokenizer() : nn.characterTokenizer(text);
  const parts = holdOut(text, data);
  const training = nn.textTokens(parts.training, tokenizer);
  const validation = nn.textTokens(parts.held, tokenizer);
  const context = contextFor(longest, validation.length);
  // What cannot be written is said before training and not after it.
  if (options.out) mkdirSync(options.out, { recursive: true });
  if (options.json) mkdirSync(dirname(options.json), { recursive: true });

  const attention = layers[options.attention];
  const positions = needPositions.includes(options.attention) ? { positions: 'learned' as const } : {};
  const layer = attention ? { attention, ...positions } : {};
  const configuration = { ...shape, ...layer, context, vocabulary: tokenizer.vocabulary, seed, device };
  const model: nn.GPT<nn.Layer> =
    size === 'gpt2' ? new nn.GPT<nn.Layer>(configuration) : nn.GPT.llama<nn.Layer>(configuration);
  const optimizer = new nn.AdamW(model.parameters(), { learningRate, betas: [0.9, 0.99], weightDecay: 0.1 });
  const batches = new nn.TokenBatches({ tokens: training, batch, context, seed });
  const measure = () => nn.evaluate(model, validation, { batch, context, batches: Math.ceil(32 / batch) });
  const used = model.tokens.weight.device as DeviceName;
  print('device', describe(used));
  print('text', `${text.length.toLocaleString('en')} characters, ${tokenizer.vocabulary} tokens; a tenth is held out`);
  if (attention) print('attention', `${options.attention} in the place of softmax attention`);
  print('model', `${model.parameterCount.toLocaleString('en')} parameters, context ${context}, batch ${batch}`);

  // A run in a folder can be stopped at any time and goes on where its last checkpoint is.
  const checkpoint = options.out && join(options.out, 'checkpoint.safetensors');
  const save = async () => {
    if (!checkpoint) return;
    const { step, tensors } = optimizer.prepare();
    const extra = { batches: { ...batches.state() } };
    await nn.saveCheckpoint(checkpoint, { model: model.stateDict(), optimizer: tensors, step, extra });
  };
  if (checkpoint && options.resume) {
    const { tensors } = optimizer.prepare();
    const { step, extra } = await nn.loadCheckpoint(checkpoint, { model: model.stateDict(), optimizer: tensors });
    optimizer.restore({ step, tensors });
    batches.restore((extra as unknown as { batches: nn.TokenBatchesState }).batches);
    print('resumed', `after step ${step}`);
  }
  const firstStep = optimizer.stepCount;

  const before = await measure();
  print('before', `${before.toFixed(3)} nats per token on held-out text`);
  const steps = options.steps ?? usual;
  const rate = nn.schedule({ kind: 'cosine', steps, warmup: Math.ceil(steps / 20) });
  const metrics = options.out ? new nn.MetricsWriter(join(options.out, 'metrics.jsonl')) : undefined;
  const progress = new Progress({ first: firstStep, steps, tokensPerStep: batch * context });
  const started = performance.now();
  let saved = started;
  const done = await nn.train({
    model,
    optimizer,
    batches,
    steps,
    firstStep,
    rate,
    signal: stop.signal,
    onStep: async ({ step, loss, gradientNorm, milliseconds }) => {
      progress.update(loss, milliseconds, memory(used).bytesInUse);
      metrics?.write({ step, loss, gradientNorm, milliseconds });
      const now = performance.now();
      if (options.steps === undefined && now - started > 1000 * seconds) stop.abort();
      if (now - saved < 1000 * options.save) return;
      // The step after this one has been queued: the optimizer and the batches count it too.
      await save();
      saved = performance.now();
    },
  });
  progress.end();
  metrics?.close();
  await save();
  const after = await measure();
  // What `npx flashattn serve --model <out>/model` serves: softmax attention alone has a cache of keys and values.
  if (options.out && !attention && 'characters' in tokenizer)
    await saveModelFolder(join(options.out, 'model'), model as nn.GPT, {
      tokenizer: tokenizer as nn.CharacterTokenizer,
    });
  await write(model, tokenizer, options, parts.training);

  const race = attention
    ? undefined
    : {
        ...(await compareAttention(shape.heads, shape.width / shape.heads, batch, context, used)),
        width: shape.width,
      };
  const summary = await progress.summary(model, race, used);
  const taken = firstStep + done < steps ? `stopped after ${firstStep + done} of ${steps} steps` : `${done} steps`;
  print('training', `${taken}, ${Math.round(summary.tokensPerSecond).toLocaleString('en')} tokens/s`);
  print(
    '',
    `${(100 * summary.flopsShareOfPeak).toFixed(0)} % of the peak of the device, ` +
      (summary.attentionShare === undefined
        ? 'counting weights alone'
        : `attention ${(100 * summary.attentionShare).toFixed(0)} % of a step`),
  );
  print('validation', `${before.toFixed(3)} -> ${after.toFixed(3)} nats per token, on text it never trained on`);
  if (race) print('attention', describeRace(race));
  const result = {
    ...summary,
    parameters: model.parameterCount,
    device: used,
    attention: options.attention,
    steps: done,
    validationBefore: before,
    validationAfter: after,
  };
  if (options.json) writeFileSync(options.json, `${JSON.stringify(result, undefined, 2)}\n`);
  if (options.out)
    writeFileSync(
      join(options.out, 'loss.svg'),
      nn.lossCurve([
        { step: firstStep, validation: before },
        ...progress.points,
        { step: firstStep + done, validation: after },
      ]),
    );
  optimizer.dispose();
  model.dispose();
}

async function write(model: nn.GPT<nn.Layer>, tokenizer: nn.Tokenizer, { seed, characters }: Options, text: string) {
  process.stdout.write('\n--- the model writes ---\n');
  const prompt = tokenizer.encode(text.includes('\n') ? '\n' : ([...text][0] as string));
  const options = { length: characters, temperature: 0.8, context: Math.min(128, model.context) };
  for await (const token of nn.generate(model, prompt, { ...options, random: nn.generator(seed) }))
    process.stdout.write(tokenizer.decode([token]));
  process.stdout.write('\n---\n\n');
}

function describe(device: DeviceName): string {
  const found = status(device);
  if (found.device === 'none') return device;
  return `${device}, ${'name' in found ? found.name : `${found.threads} threads`}`;
}

const describeRace = ({ fused, unfused, difference }: Comparison) =>
  `flashattn ${fused.toFixed(1)} ms, unfused on the same device ${unfused.toFixed(1)} ms a layer, forward and backward; ` +
  `results agree within ${difference.toExponential(1)}`;

const root = dirname(dirname(dirname(fileURLToPath(import.meta.url))));
const snapshot = join(root, 'examples', 'text', 'repository.txt');

/** Errors that say what is wrong; a stack says more of others. */
const isPlain = (error: unknown): error is Error & { readonly code: string } =>
  error instanceof FlashAttnError ||
  error instanceof TextError ||
  (error instanceof Error && 'syscall' in error && 'code' in error);

try {
  const options = readOptions(process.argv.slice(2));
  if (options === undefined) process.stdout.write(USAGE);
  else await main(options);
} catch (error) {
  if (!isPlain(error)) throw error;
  process.stderr.write(`${error.code}: ${error.message}\n`);
  process.exit(1);
}
