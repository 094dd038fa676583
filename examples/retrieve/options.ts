import { parseArgs } from 'node:util';
import type { DeviceName } from 'flashattn';

export interface Options {
  /** A folder of texts. */
  readonly data: string;
  readonly prompt: string;
  /** Where the index is kept; undefined: it is made anew. */
  readonly index: string | undefined;
  /** Of each chunk of the prompt. */
  readonly neighbours: number;
  /** Tokens of a chunk. */
  readonly chunk: number;
  /** How many tokens are written in the end. */
  readonly tokens: number;
  readonly seed: number;
  readonly device: DeviceName;
}

export const USAGE = `Finds what is like a prompt in a folder of texts, and goes on as the texts do.

  npm run retrieve -- [options]

  --data <folder>     texts: its .txt and .md files, those of folders in it too (default: docs)
  --prompt <text>     what to go on from (default: a sentence of docs/linear.md)
  --index <folder>    keep the index there: the next run reads it, and adds what is new
  --neighbours <n>    how many neighbours each chunk of the prompt has (default: 2)
  --chunk <n>         tokens of a chunk, words and marks (default: 16)
  --tokens <n>        how many tokens it writes at most (default: 24)
  --seed <n>          of the vectors that stand for words (default: 1)
  --device <name>     auto, cpu, wasm, cuda or cuda:<index> (default: auto)
  --help              show this text
`;

export class UsageError extends Error {}

function integer(flag: string, value: string | undefined, otherwise: number, least: number): number {
  if (value === undefined) return otherwise;
  const number = Number(value);
  if (value.trim() === '' || !Number.isSafeInteger(number) || number < least)
    throw new UsageError(`${flag} needs a whole number from ${least} on, not '${value}'`);
  return number;
}

/** undefined: help was asked for. @throws UsageError, or what parseArgs throws */
export function parse(args: readonly string[], otherwise: Pick<Options, 'data' | 'prompt'>): Options | undefined {
  const text = { type: 'string' } as const;
  const { values } = parseArgs({
    args: [...args],
    options: {
      data: { ...text, default: otherwise.data },
      prompt: { ...text, default: otherwise.prompt },
      index: text,
      neighbours: text,
      chunk: text,
      tokens: text,
      seed: text,
      device: { ...text, default: 'auto' },
      help: { type: 'boolean', default: false, short: 'h' },
    },
  });
  if (values.help) return undefined;
  if (!/^(auto|cpu|wasm|cuda(:\d+)?)$/.test(values.device))
    throw new UsageError(`--device is auto, cpu, wasm, cuda or cuda:<index>, not '${values.device}'`);
  return {
    data: values.data,
    prompt: values.prompt,
    index: values.index,
    neighbours: integer('--neighbours', values.neighbours, 2, 1),
    chunk: integer('--chunk', values.chunk, 16, 2),
    tokens: integer('--tokens', values.tokens, 24, 0),
    seed: integer('--seed', values.seed, 1, 0),
    device: values.device as DeviceName,
  };
}
