import { parseArgs } from 'node:util';
import type { DeviceName } from 'flashattn';
import { attentionNames } from './layers.js';

export type Size = 'tiny' | 'small' | 'gpt2';

export interface Options {
  readonly model: Size;
  /** What mixes tokens: one of `attentionNames`. */
  readonly attention: string;
  readonly device: DeviceName;
  readonly seed: number;
  readonly characters: number;
  /** undefined: as many as the preset has, or as its time allows. */
  readonly steps: number | undefined;
  readonly data: string | undefined;
  readonly out: string | undefined;
  readonly resume: boolean;
  readonly json: string | undefined;
  /** Seconds. */
  readonly save: number;
}

/** The shapes that can be trained, with what they are trained by. */
export const presets = {
  tiny: {
    layers: 2,
    heads: 3,
    width: 96,
    context: 128,
    batch: 8,
    learningRate: 4e-3,
    steps: 600,
    seconds: 60,
  },
  small: {
    layers: 4,
    heads: 4,
    width: 128,
    context: 128,
    batch: 8,
    learningRate: 4e-3,
    steps: 1500,
    seconds: 90,
  },
  gpt2: {
    layers: 12,
    heads: 12,
    width: 768,
    context: 1024,
    batch: 4,
    learningRate: 6e-4,
    steps: 100_000,
    seconds: 86_400,
  },
} as const;

export const USAGE = `Trains a GPT on a text, on flashattn alone, and lets it write.

  npm start -- [options]

  --model <size>      tiny, small (the default) or gpt2, which needs npm install gpt-tokenizer
  --attention <name>  what mixes tokens: softmax (the default), linear, retnet, gla, mamba2, gated-deltanet, ttt, ttt-mlp,
                      infini, mla, transformer-xl, routing, reformer, nsa, lightweight-conv or dynamic-conv
  --data <file>       learn from this UTF-8 text (default: examples/text/repository.txt)
  --steps <n>         training steps (default: 90 seconds' worth at most; given, there is no limit of time)
  --device <name>     auto, cpu, wasm, cuda or cuda:<index> (default: auto)
  --seed <n>          of the weights, the batches and the text that it writes (default: 1)
  --characters <n>    how many tokens it writes in the end (default: 400)
  --out <folder>      keep metrics.jsonl, loss.svg, checkpoint.safetensors and model/, which flashattn serve takes, there
  --save <seconds>    how often the checkpoint is saved besides at the end (default: 300)
  --resume            go on from the checkpoint in that folder
  --json <file>       write what was measured there
  --help              show this text

Ctrl-C ends training after the step under way, and what comes after it follows.
`;

export class UsageError extends Error {}

function integer(flag: string, value: string | undefined, otherwise: number, least = 0): number {
  if (value === undefined) return otherwise;
  const number = Number(value);
  if (value.trim() === '' || !Number.isSafeInteger(number) || number < least)
    throw new UsageError(`${flag} needs a whole number${least > 0 ? ` from ${least} on` : ''}, not '${value}'`);
  return number;
}

/** undefined: help was asked for. @throws UsageError, or what parseArgs throws */
export function parse(args: readonly string[]): Options | undefined {
  const text = { type: 'string' } as const;
  const flag = { type: 'boolean', default: false } as const;
  const { values } = parseArgs({
    args: [...args],
    options: {
      model: { ...text, default: 'small' },
      attention: { ...text, default: 'softmax' },
      device: { ...text, default: 'auto' },
      seed: text,
      steps: text,
      characters: text,
      data: text,
      out: text,
      json: text,
      save: text,
      resume: flag,
      help: { ...flag, short: 'h' },
    },
  });
  if (values.help) return undefined;
  if (!Object.hasOwn(presets, values.model))
    throw new UsageError(`--model is tiny, small or gpt2, not '${values.model}'`);
  if (!attentionNames.includes(values.attention))
    throw new UsageError(
      `--attention is ${attentionNames.join(', ').replace(/, ([^,]*)$/, ' or $1')}, not '${values.attention}'`,
    );
  if (!/^(auto|cpu|wasm|cuda(:\d+)?)$/.test(values.device))
    throw new UsageError(`--device is auto, cpu, wasm, cuda or cuda:<index>, not '${values.device}'`);
  if (values.resume && values.out === undefined) throw new UsageError('--resume needs --out <folder>');
  return {
    model: values.model as Size,
    attention: values.attention,
    device: values.device as DeviceName,
    seed: integer('--seed', values.seed, 1),
    characters: integer('--characters', values.characters, 400),
    steps: values.steps === undefined ? undefined : integer('--steps', values.steps, 1, 1),
    data: values.data,
    out: values.out,
    json: values.json,
    save: integer('--save', values.save, 300),
    resume: values.resume,
  };
}

/** undefined: help was asked for. Ends the program when the arguments make no sense. */
export function readOptions(args: readonly string[]): Options | undefined {
  try {
    return parse(args);
  } catch (error) {
    process.stderr.write(`${(error as Error).message}\n\n${USAGE}`);
    process.exit(2);
  }
}
