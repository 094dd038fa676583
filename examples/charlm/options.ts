import { parseArgs } from 'node:util';
import type { DeviceName } from 'flashattn';

export interface Options {
  /** undefined: the default number, or fewer where the machine is slow */
  readonly steps: number | undefined;
  readonly device: DeviceName;
  readonly seed: number;
  /** undefined: the text files of this repository */
  readonly text: string | undefined;
  readonly help: boolean;
}

export class UsageError extends Error {}

export const USAGE = `Trains a small character-level transformer whose attention runs on flashattn.

  npm start -- [options]

  --text <file>    learn from this UTF-8 text (default: the text files of this repository)
  --steps <n>      training steps (default: about 100 seconds' worth; given explicitly, there is no time limit)
  --device <name>  auto, wasm, cuda or cuda:<index> (default: auto)
  --seed <n>       seed of the initial weights, the batches and the generated text (default: 1)
  --help           show this text

Ctrl-C ends training after the current step and prints the summary; a second one quits at once.
`;

export function parseOptions(args: readonly string[]): Options {
  const values = parse(args);
  return {
    steps: values.steps === undefined ? undefined : integer('--steps', values.steps, 1),
    device: deviceName(values.device),
    seed: integer('--seed', values.seed, 0),
    text: values.text,
    help: values.help,
  };
}

function parse(args: readonly string[]) {
  try {
    return parseArgs({
      args: [...args],
      options: {
        steps: { type: 'string' },
        device: { type: 'string', default: 'auto' },
        seed: { type: 'string', default: '1' },
        text: { type: 'string' },
        help: { type: 'boolean', short: 'h', default: false },
      },
    }).values;
  } catch (error) {
    throw new UsageError(error instanceof Error ? error.message : String(error));
  }
}

function integer(flag: string, value: string, least: number): number {
  const number = Number(value);
  if (value.trim() === '' || !Number.isSafeInteger(number) || number < least) {
    throw new UsageError(`${flag} needs a whole number of at least ${least}, not '${value}'`);
  }
  return number;
}

function deviceName(value: string): DeviceName {
  if (value === 'auto' || value === 'wasm' || value === 'cuda') return value;
  const index = /^cuda:(\d+)$/.exec(value);
  if (index) return `cuda:${Number(index[1])}`;
  throw new UsageError(`--device needs auto, wasm, cuda or cuda:<index>, not '${value}'`);
}
