/**
 * The main job: trains a small character-level transformer from scratch, with its attention, forward and backward, on
 * flashattn; then shows what it learnt and what the fused attention saved. Everything else is plain TypeScript:
 *
 *   charlm/text.ts        characters to numbers, and the part held back for validation
 *   charlm/parameters.ts  the weights
 *   charlm/layers.ts      linear, layer norm, GELU, embedding, cross entropy, each with its backward pass
 *   charlm/model.ts       how they make a transformer
 *   charlm/attention.ts   the attention layer on flashattn; charlm/unfused.ts, the same without it
 *   charlm/train.ts       the training loop; charlm/adam.ts, the optimizer
 *   charlm/generate.ts    sampling text
 *   charlm/compare.ts     flashattn against unfused attention, measured during training
 */
import { dirname } from 'node:path';
import { fileURLToPath } from 'node:url';
import { type DeviceName, FlashAttnError, memory, status } from 'flashattn';
import { FlashAttention } from './charlm/attention.js';
import { type Comparison, median, Race, raceOnNoise } from './charlm/compare.js';
import { generate } from './charlm/generate.js';
import { type AttentionMemory, type BatchShape, Transformer } from './charlm/model.js';
import { type Options, parseOptions, USAGE, UsageError } from './charlm/options.js';
import { Weights } from './charlm/parameters.js';
import { duration, mebibytes, Progress } from './charlm/progress.js';
import { Random } from './charlm/random.js';
import { type Corpus, findPackageRoot, makeCorpus, readRepository, readTextFile, TextError } from './charlm/text.js';
import { evaluate, train } from './charlm/train.js';

const LAYERS = 2;
const HEADS = 3;
const HEAD_DIM = 32;
/** One head looks at the nearest characters, one at words, one at lines. */
const SLOPES = [2, 0.5, 0.125];
const BATCH = 2;
const MAX_CONTEXT = 256;
const PEAK_LEARNING_RATE = 3e-3;
const WARMUP_STEPS = 30;
const DEFAULT_STEPS = 450;
/** A slow machine stops here, unless a number of steps was asked for. */
const TIME_LIMIT_SECONDS = 150;
const VALIDATION_BATCHES = 16;
const GENERATED_CHARACTERS = 400;
const GENERATION_CONTEXT = 128;
const TEMPERATURE = 0.8;
/** Unfused attention runs beside flashattn at this many steps, spread over the run. */
const COMPARISONS = 4;
const LONG_CONTEXT = 1024;

async function main(): Promise<void> {
  const options = parseOptions(process.argv.slice(2));
  if (options.help) {
    process.stdout.write(USAGE);
    return;
  }
  const interrupted = listenForInterrupt();
  const device = describeDevice(options.device);
  const corpus = loadCorpus(options);
  print('device', device);

  const heads = { heads: HEADS, headDim: HEAD_DIM, slopes: SLOPES };
  const weights = new Weights(
    { ...heads, vocabulary: corpus.vocabulary.size, layers: LAYERS },
    new Random(options.seed),
  );
  const makeModel = (shape: BatchShape) =>
    new Transformer(weights, shape, (attention) => new FlashAttention(attention, options.device));
  const context = contextFor(corpus);
  const model = makeModel({ batch: BATCH, context });
  print(
    'model',
    `${thousands(weights.count)} parameters: ${LAYERS} layers, ${HEADS} heads of ${HEAD_DIM}, ` +
      `context ${context}, batch ${BATCH}`,
  );

  const before = await evaluate(model, corpus.validation, VALIDATION_BATCHES);
  print('validation', `${before.toFixed(3)} nats per character before training\n`);
  const { speed, comparison } = await runTraining(model, corpus, options, interrupted);
  const after = await evaluate(model, corpus.validation, VALIDATION_BATCHES);
  model.dispose();

  // Distances, unlike position embeddings, are not bound to the context of training: a shorter one writes faster.
  const writer = makeModel({ batch: 1, context: GENERATION_CONTEXT });
  await writeSample(writer, corpus, options.seed);
  writer.dispose();

  const long = new FlashAttention({ ...heads, batch: 1, context: LONG_CONTEXT }, options.device);
  const longComparison = await raceOnNoise(long, new Random(options.seed), 3);
  long.dispose();

  print('device', device);
  print('training', speed);
  print('validation', `${before.toFixed(3)} -> ${after.toFixed(3)} nats per character, on text it never trained on`);
  print('attention', 'flashattn against unfused attention in plain JavaScript on one thread, forward and backward;');
  print('', 'memory is what each holds besides inputs, outputs and their gradients');
  print(' each step', describeComparison(comparison, LAYERS));
  print(' longer', describeComparison(longComparison, 1));
}

function loadCorpus({ text: path }: Options): Corpus {
  const { text, source } = path === undefined ? readOwnRepository() : { text: readTextFile(path), source: path };
  const corpus = makeCorpus(text, source);
  const { train: trained, validation, vocabulary } = corpus;
  print(
    'text',
    `${source}: ${thousands(trained.length + validation.length)} characters, ${vocabulary.size} in the vocabulary; ` +
      'the last tenth is held out',
  );
  for (const line of firstLines(text, 3)) print('', `| ${line}`);
  return corpus;
}

function readOwnRepository(): { text: string; source: string } {
  const { text, files } = readRepository(findPackageRoot(dirname(fileURLToPath(import.meta.url))));
  return { text, source: `${files} files of this repository` };
}

interface TrainingResult {
  readonly speed: string;
  readonly comparison: Comparison;
}

async function runTraining(
  model: Transformer,
  corpus: Corpus,
  options: Options,
  interrupted: () => boolean,
): Promise<TrainingResult> {
  const steps = options.steps ?? DEFAULT_STEPS;
  const tokensPerStep = model.batchShape.batch * model.batchShape.context;
  const comparisonInterval = Math.ceil(steps / COMPARISONS);
  const progress = new Progress(steps);
  const started = performance.now();
  const late = () => options.steps === undefined && performance.now() - started > TIME_LIMIT_SECONDS * 1000;
  const [block] = model.blocks;
  const race = new Race(block.attention);
  const compare = () => progress.pause(() => race.measure(block.qkv.output, block.dAttended, 3));
  const stepMs: number[] = [];
  const attentionMs: number[] = [];

  const done = await train(model, corpus.train, {
    steps,
    peakLearningRate: PEAK_LEARNING_RATE,
    warmupSteps: WARMUP_STEPS,
    random: new Random(options.seed + 1),
    stop: () => interrupted() || late(),
    onStep: async (report) => {
      stepMs.push(report.stepMs);
      attentionMs.push(report.attentionMs);
      progress.update({
        loss: report.loss,
        tokens: tokensPerStep,
        deviceBytes: memory(options.device).bytesInUse,
      });
      if (report.step % comparisonInterval === comparisonInterval >> 1) await compare();
    },
  });
  progress.end();
  if (!race.measured) await compare();

  if (done === 0) return { speed: 'stopped before the first step', comparison: race.result };
  const comparison = race.result;
  const step = median(stepMs);
  const unfusedStep = step + model.blocks.length * (comparison.unfusedMs - comparison.fusedMs);
  return {
    speed:
      `${done < steps ? `stopped after ${done} of ${steps}` : done} steps, ${duration(progress.seconds)}, ` +
      `${thousands(Math.round(progress.tokensPerSecond))} tokens/s; a step takes ${step.toFixed(0)} ms, ` +
      `${((100 * median(attentionMs)) / step).toFixed(0)} % of it in attention; with unfused attention it would take ` +
      `${unfusedStep.toFixed(0)} ms`,
    comparison,
  };
}

async function writeSample(model: Transformer, corpus: Corpus, seed: number): Promise<void> {
  process.stdout.write(`\n--- generated, temperature ${TEMPERATURE} ---\n`);
  const prompt = corpus.vocabulary.encode('\n');
  const options = { prompt, length: GENERATED_CHARACTERS, temperature: TEMPERATURE, seed };
  for await (const token of generate(model, options)) process.stdout.write(corpus.vocabulary.decode([token]));
  process.stdout.write('\n---\n\n');
}

/** The first Ctrl-C asks training to stop, and the summary follows; the second one quits. */
function listenForInterrupt(): () => boolean {
  let interrupted = false;
  let since = 0;
  process.on('SIGINT', () => {
    // The terminal tells every program, and npm passes it on besides: what comes at once is one key press.
    if (interrupted && performance.now() - since > 300) process.exit(130);
    if (interrupted) return;
    interrupted = true;
    since = performance.now();
    process.stderr.write('\nstopping; Ctrl-C again quits at once\n');
  });
  return () => interrupted;
}

/** The held-out text must be longer than the context, which therefore shrinks with a small corpus. */
function contextFor(corpus: Corpus): number {
  const shorter = Math.min(corpus.train.length, corpus.validation.length) - 1;
  return Math.min(MAX_CONTEXT, 2 ** Math.floor(Math.log2(shorter)));
}

function describeDevice(requested: DeviceName): string {
  const found = status(requested);
  if (found.device === 'none') return found.reasons.map((reason) => `not ${reason.device}: ${reason.hint}`).join('; ');
  const details =
    'name' in found
      ? found.name
      : `${found.threads} threads, ${'simd' in found ? `${found.simd} SIMD` : found.instructionSet}`;
  return [
    `${found.device} (${details})`,
    ...found.reasons.map((reason) => `not ${reason.device}: ${reason.hint}`),
  ].join('; ');
}

function describeComparison(comparison: Comparison, layers: number): string {
  const { shape, fusedMs, unfusedMs, fusedMemory, unfusedMemory, difference } = comparison;
  const total = ({ perLayer, shared }: AttentionMemory) => layers * perLayer + shared;
  const compare = (ratio: number, better: string, worse: string) => {
    const factor = Math.max(ratio, 1 / ratio);
    return `${factor.toFixed(factor < 10 ? 1 : 0)}x ${ratio < 1 ? worse : better}`;
  };
  return [
    `${layers} x [batch ${shape.batch}, context ${shape.context}, ${shape.heads} heads of ${shape.headDim}]: ` +
      `${(layers * fusedMs).toFixed(1)} ms flashattn, ${(layers * unfusedMs).toFixed(1)} ms unfused: ` +
      compare(unfusedMs / fusedMs, 'faster', 'slower'),
    `${mebibytes(total(fusedMemory))} against ${mebibytes(total(unfusedMemory))}: ` +
      `${compare(total(unfusedMemory) / total(fusedMemory), 'leaner', 'larger')}; ` +
      `results agree within ${difference.toExponential(1)}`,
  ].join(`\n${' '.repeat(LABEL_WIDTH)}`);
}

const LABEL_WIDTH = 12;

function print(label: string, text: string): void {
  console.log(label.padEnd(LABEL_WIDTH) + text);
}

function thousands(value: number): string {
  return value.toLocaleString('en-US');
}

function firstLines(text: string, lines: number): string[] {
  return text
    .split('\n')
    .filter((line) => line.trim() !== '')
    .slice(0, lines)
    .map((line) => line.slice(0, 80));
}

try {
  await main();
} catch (error) {
  if (error instanceof UsageError) {
    process.stderr.write(`${error.message}\n\n${USAGE}`);
    process.exitCode = 2;
  } else if (error instanceof TextError || error instanceof FlashAttnError) {
    process.stderr.write(`${error.code}: ${error.message}\n`);
    process.exitCode = 1;
  } else {
    throw error;
  }
}
