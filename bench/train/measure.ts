// Contenders that train the same model from the same weights, in turns.
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout } from 'node:timers/promises';
import type { FloatDType } from 'flashattn';
import { GPT, writeSafetensors } from 'flashattn/nn';
import { median } from '../../lib/cli/statistics.js';
import { type Contender, isRefusal, type Refusal, startOwn, startPeer } from '../contenders.js';
import type { Model } from '../peers/train/serve.mjs';
import type { Processor } from '../processor.js';
import { batchOf, type Case, flopsOf, tokensOf } from './work.js';

/** Milliseconds until the threads of the library before look for work no more. */
const pause = 60;
/** Milliseconds that steps of one contender take in a round. */
const turn = 700;
const mostSteps = 60;
const patience = 240_000;

export type Peer = 'jax-js' | 'tfjs';

export type Entrant =
  | { readonly own: Processor; readonly threads: number; readonly compute: FloatDType }
  | { readonly peer: Peer; readonly threads: 1 };

const nameOf = (entrant: Entrant): string =>
  'peer' in entrant ? entrant.peer : entrant.own + (entrant.compute === 'float32' ? '' : ` ${entrant.compute}`);

/** Losses before the first step, the second and the sixth. */
const compared = [0, 1, 5] as const;
/** Parts of the loss: float32 sums in other orders, and after steps what AdamW makes of gradients near zero. */
const tolerances = [1e-5, 1e-4, 5e-4] as const;

export interface Result {
  readonly name: string;
  readonly threads: number;
  /** Before each step. */
  readonly losses: readonly number[];
  readonly milliseconds: number;
  readonly least: number;
  /** All threads together, on the processor. */
  readonly processorMs: number;
  readonly tokensPerSecond: number;
  /** Of the peak of multiply-adds of as many threads, in the same rounds; for peers of one thread of WebAssembly. */
  readonly shareOfPeak: number | undefined;
  /** How many times as long the peers take, in the same rounds. */
  readonly ratios: Partial<Record<Peer, number>>;
  readonly samples: readonly Sample[];
}

interface Sample {
  readonly milliseconds: number;
  readonly processorMs: number;
  readonly flopsPerSecond?: number | undefined;
}

interface Running {
  readonly entrant: Entrant;
  readonly contender: Contender;
  readonly losses: readonly number[];
  readonly samples: Sample[];
  steps: number;
}

function orThrow<T>(answer: T | Refusal, entrant: Entrant): T {
  if (isRefusal(answer as object)) throw new Error(`${nameOf(entrant)} ${(answer as Refusal).reason}`);
  return answer as T;
}

/** Weights that all begin with, in a file; `dispose` removes it. */
export async function writeWeights(model: Model): Promise<{ path: string; dispose: () => void }> {
  const folder = mkdtempSync(join(tmpdir(), 'flashattn-train-'));
  const path = join(folder, 'weights.safetensors');
  const gpt = new GPT({ ...model, device: 'wasm', seed: 1 });
  const entries = [...gpt.namedParameters()].map(([name, t]) => ({
    name,
    dtype: 'F32' as const,
    shape: t.shape,
    data: () => t.toFloat32Sync(),
  }));
  await writeSafetensors(path, entries);
  gpt.dispose();
  return { path, dispose: () => rmSync(folder, { recursive: true, force: true }) };
}

export interface MeasureOptions {
  /** The program that serves this library: see `startOwn`. */
  readonly program: string;
  readonly root: URL;
  readonly rounds: number;
  /** Null: every library its own, which must be this one alone. */
  readonly weights: string | null;
}

async function start(entrant: Entrant, training: Case, options: MeasureOptions): Promise<Running | Refusal> {
  const { program, root, weights } = options;
  const contender = await ('peer' in entrant
    ? startPeer(entrant.peer, 1, root, { program: `train/${programs[entrant.peer]}`, patience })
    : startOwn(program, `${entrant.own}:${entrant.compute}`, entrant.threads));
  if (isRefusal(contender)) return contender;
  const question = { model: training.model, batch: batchOf(training), weights };
  const prepared = await contender.ask<{ losses: number[] }>(question);
  if (isRefusal(prepared)) {
    contender.stop();
    return prepared;
  }
  return { entrant, contender, losses: prepared.losses, samples: [], steps: 1 };
}

const programs: Readonly<Record<Peer, string>> = { 'jax-js': 'jax.mjs', tfjs: 'tfjs.mjs' };

/** @throws where losses differ by more than the tolerance */
function compareLosses(running: readonly Running[], loosened: number): void {
  const [first, ...others] = running;
  for (const { entrant, losses } of others)
    for (const [i, at] of compared.entries()) {
      const [found, expected] = [losses[at] as number, first?.losses[at] as number];
      if (Math.abs(found - expected) <= (tolerances[i] as number) * loosened * Math.abs(expected)) continue;
      throw new Error(
        `${nameOf(entrant)} has loss ${found} after ${at} steps, ${nameOf((first as Running).entrant)} ${expected}`,
      );
    }
}

async function takeTurn(running: Running): Promise<Sample> {
  const { contender, entrant, steps } = running;
  await setTimeout(pause);
  const peaks: number[] = [];
  const askPeak = async () => {
    for (let i = 0; i < 2; i++) {
      const { flopsPerSecond } = orThrow(await contender.ask<{ flopsPerSecond: number }>({ peak: true }), entrant);
      peaks.push(flopsPerSecond);
    }
  };
  if ('own' in entrant) await askPeak();
  const sample = orThrow(await contender.ask<Sample>({ steps }), entrant);
  if ('own' in entrant) await askPeak();
  return peaks.length === 0 ? sample : { ...sample, flopsPerSecond: median(peaks) };
}

/**
 * @param loosened what tolerances are multiplied by
 * @throws where a loss differs
 */
export async function measure(
  training: Case,
  entrants: readonly Entrant[],
  options: MeasureOptions,
  { loosened = 1, log = (_: string) => {} } = {},
): Promise<Result[]> {
  const running: Running[] = [];
  try {
    for (const entrant of entrants) {
      const started = await start(entrant, training, options);
      if (isRefusal(started)) log(`${nameOf(entrant)} ${started.reason}`);
      else running.push(started);
    }
    compareLosses(running, loosened);
    for (const each of running) {
      const { milliseconds } = await takeTurn(each);
      each.steps = Math.max(1, Math.min(mostSteps, Math.round(turn / milliseconds)));
    }
    for (let round = -1; round < options.rounds; round++)
      for (const each of running) {
        const sample = await takeTurn(each);
        if (round >= 0) each.samples.push(sample);
      }
  } finally {
    for (const { contender } of running) contender.stop();
  }
  return running.map((each) => summarize(each, running, training));
}

function summarize({ entrant, losses, samples }: Running, all: readonly Running[], training: Case): Result {
  const times = samples.map(({ milliseconds }) => milliseconds);
  const measuresPeak = ({ entrant: e }: Running) =>
    'own' in e && (e === entrant || ('peer' in entrant && e.own === 'wasm' && e.threads === 1));
  const peaks = all.find(measuresPeak)?.samples.map(({ flopsPerSecond }) => flopsPerSecond ?? Number.NaN);
  const shares = peaks && times.map((ms, round) => flopsOf(training) / (ms / 1e3) / (peaks[round] as number));
  const ratios: Partial<Record<Peer, number>> = {};
  for (const { entrant: other, samples: theirs } of all)
    if ('peer' in other && other !== entrant)
      ratios[other.peer] = median(times.map((ms, round) => (theirs[round] as Sample).milliseconds / ms));
  return {
    name: nameOf(entrant),
    threads: entrant.threads,
    losses,
    milliseconds: median(times),
    least: Math.min(...times),
    processorMs: median(samples.map(({ processorMs }) => processorMs)),
    tokensPerSecond: (1000 * tokensOf(training)) / median(times),
    shareOfPeak: shares && median(shares),
    ratios,
    samples,
  };
}
