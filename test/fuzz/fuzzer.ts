import { Coverage } from './coverage.js';
import { mutateBytes } from './mutate.js';
import { Random } from './random.js';
import type { FuzzTarget } from './target.js';

export interface FuzzOptions {
  readonly seed: number;
  /** Whether to stop, asked now and then. */
  done(executions: number): boolean;
  /** Told of each input before it runs. */
  running(input: Uint8Array): void;
  /** Inputs of earlier runs. */
  readonly corpus: readonly Uint8Array[];
  /** Which scripts guide the search. */
  watches(url: string): boolean;
}

export interface FuzzResult {
  readonly executions: number;
  /** Characters of code that ran. */
  readonly characters: number;
  /** The inputs that first ran some of them. */
  readonly corpus: readonly Uint8Array[];
}

/** What an input did wrong. */
export class Failure extends Error {
  constructor(
    readonly input: Uint8Array,
    cause: unknown,
  ) {
    super(cause instanceof Error ? (cause.stack ?? cause.message) : String(cause), { cause });
  }
}

// Asking for the coverage costs as much as several inputs.
const batchSize = 32;

/** Searches for an input that fails, guided by which code the inputs reach. @throws Failure */
export function fuzz(target: FuzzTarget, options: FuzzOptions): FuzzResult {
  const random = new Random(options.seed);
  const coverage = new Coverage(options.watches);
  const corpus: Uint8Array[] = [];
  let executions = 0;

  const run = (input: Uint8Array) => {
    executions++;
    options.running(input);
    try {
      target.run(input);
    } catch (error) {
      throw new Failure(input, error);
    }
  };
  /** Runs an input alone and keeps it if it reaches something new. */
  const consider = (input: Uint8Array) => {
    run(input);
    if (coverage.takeNew() || corpus.length === 0) corpus.push(input);
  };
  const mutated = (): Uint8Array => {
    let input = random.pick(corpus);
    for (let count = random.integer(1, 4); count > 0; count--)
      input = random.chance(0.4) ? target.mutate(random, input) : mutateBytes(random, input, random.pick(corpus));
    return input;
  };

  try {
    coverage.skip();
    for (const input of [...target.seeds(), ...options.corpus]) consider(input);
    while (!options.done(executions)) {
      const batch = Array.from({ length: batchSize }, mutated);
      coverage.skip(); // what mutating has run
      for (const input of batch) run(input);
      if (coverage.hasNew()) for (const input of batch) consider(input);
    }
    return { executions, characters: coverage.characters, corpus };
  } finally {
    coverage.close();
  }
}
