// Attention on the processor beside other libraries: float32, one process for each library and number of threads, whose
// runs alternate. A library that is not there, or cannot do a problem, is left out of it.
//
//   npm run bench:peers && npm run bench:beside -- [--rounds 7] [--threads 1,2] [--problems 1,128,128,8,64,0;...]
//     [--json results.json] [--svg chart.svg]
//
// A problem: batch, queries, keys, heads, dim, and 1 for causal.
import { writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { attention, tensor } from 'flashattn';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, text } from '../lib/cli/table.js';
import {
  type Answer,
  agree,
  type Contender,
  isRefusal,
  type PeerName,
  peerNames,
  peerVersions,
  startOwn,
  startPeer,
  tooLarge,
} from './contenders.js';
import { type Problem, serve, waves } from './peers/serve.mjs';
import { drawPeers } from './peersChart.js';
import { describeProcessor, type Processor } from './processor.js';

const defaultProblems: readonly Problem[] = [
  [1, 32, 32, 8, 64, 0],
  [1, 128, 128, 8, 64, 0],
  [1, 1024, 1024, 8, 64, 0],
  [1, 1024, 1024, 8, 64, 1],
  [1, 4096, 4096, 8, 64, 0],
  [1, 4096, 4096, 8, 64, 1],
  [1, 2048, 2048, 8, 128, 0],
  [1, 2048, 2048, 8, 128, 1],
  [1, 1, 4096, 32, 128, 0],
];

/** Milliseconds until the threads of the library before look for work no more. */
const pause = 50;

const root = new URL('../../', import.meta.url);

type Name = Processor | PeerName;

/** In the order of the table, each of ours before the peers that it is held against. */
const names: readonly Name[] = ['cpu', 'ort-node', 'wasm', 'ort-web', 'tfjs', 'jax-js'];
const isOwn = (name: Name): name is Processor => name === 'cpu' || name === 'wasm';
const rivals: Readonly<Record<PeerName, Processor>> = {
  'ort-node': 'cpu',
  'ort-web': 'wasm',
  tfjs: 'wasm',
  'jax-js': 'wasm',
};

/** A child process that measures this library on a device. */
function serveOwn(device: Processor): void {
  serve(
    (threads) => threads, // FLASHATTN_THREADS
    ([batch, queries, keys, heads, dim, causal]) => {
      const input = (rows: number) => tensor(waves(batch * rows * heads * dim), [batch, rows, heads, dim], { device });
      const [q, k, v] = [input(queries), input(keys), input(keys)];
      return async () => {
        const { out, lse } = attention(q, k, v, { causal: causal === 1 });
        const data = await out.data(); // as the others give it
        out.dispose();
        lse.dispose();
        return data as Float32Array;
      };
    },
  );
}

interface Row {
  readonly problem: Problem;
  readonly threads: number;
  readonly milliseconds: Partial<Record<Name, number>>;
  /** How many times as long each peer takes as this library does on the same kind of code. */
  readonly ratios: Partial<Record<PeerName, number>>;
  /** Who is left out, and why. */
  readonly leftOut: Partial<Record<Name, string>>;
}

/** Those that can be asked the problem; the others say into `leftOut` why not. */
async function startAll(problem: Problem, threads: number, leftOut: Row['leftOut']): Promise<Map<Name, Contender>> {
  const contenders = new Map<Name, Contender>();
  for (const name of names) {
    const program = fileURLToPath(import.meta.url);
    const started = isOwn(name)
      ? await startOwn(program, name, threads)
      : (tooLarge(name, problem) ?? (await startPeer(name, threads, root)));
    if (isRefusal(started)) leftOut[name] = started.reason;
    else contenders.set(name, started);
  }
  return contenders;
}

async function measure(problem: Problem, threads: number, rounds: number): Promise<Row> {
  const [, queries, keys, heads, dim] = problem;
  const runs = Math.max(1, Math.min(50, Math.round(2e8 / (queries * keys * heads * dim))));
  const leftOut: Row['leftOut'] = {};
  const contenders = await startAll(problem, threads, leftOut);
  const samples = new Map<Name, number[]>();
  let expected: readonly number[] | undefined;
  for (let round = -1; round < rounds; round++)
    for (const [name, contender] of contenders) {
      await setTimeout(pause);
      const answer = await contender.ask<Answer>({ problem, runs });
      if (isRefusal(answer)) {
        leftOut[name] = answer.reason;
        samples.delete(name);
        contender.stop();
        contenders.delete(name);
        continue;
      }
      expected ??= answer.out;
      if (!agree(answer.out, expected)) throw new Error(`${name} differs: ${answer.out}; expected ${expected}`);
      if (round >= 0) samples.set(name, [...(samples.get(name) ?? []), answer.milliseconds]);
    }
  for (const contender of contenders.values()) contender.stop();
  return { problem, threads, leftOut, ...summarize(samples) };
}

function summarize(samples: ReadonlyMap<Name, readonly number[]>): Pick<Row, 'milliseconds' | 'ratios'> {
  const milliseconds: Row['milliseconds'] = {};
  const ratios: Row['ratios'] = {};
  for (const [name, times] of samples) {
    milliseconds[name] = median(times);
    const ours = isOwn(name) ? undefined : samples.get(rivals[name]);
    if (!isOwn(name) && ours) ratios[name] = median(times.map((time, round) => time / (ours[round] as number)));
  }
  return { milliseconds, ratios };
}

const maskOf = ({ problem }: Row) => (problem[5] === 1 ? 'causal' : 'full');
const shapeOf = ({ problem: [, queries, keys, heads, dim] }: Row) => `(${queries},${keys},${heads},${dim})`;

const time = (name: Name) => number<Row>(name, 9, (r) => r.milliseconds[name], fixed(3));
const ratio = (name: PeerName) => number<Row>('ratio', 6, (r) => r.ratios[name], fixed(2));

const columns: readonly Column<Row>[] = [
  text('(queries,keys,H,D)', 20, shapeOf),
  text('mask', 6, maskOf),
  number('threads', 7, (r) => r.threads),
  ...names.flatMap((name) => (isOwn(name) ? [time(name)] : [time(name), ratio(name)])),
];

/** Who was left out of what, a line for each reason. */
function listLeftOut(rows: readonly Row[]): string[] {
  const cases = new Map<string, string[]>();
  for (const row of rows)
    for (const [name, reason] of Object.entries(row.leftOut)) {
      const line = `${name} ${reason}`;
      cases.set(line, [...(cases.get(line) ?? []), `${shapeOf(row)} ${maskOf(row)} ${row.threads}`]);
    }
  return [...cases].map(([line, of]) => (of.length === rows.length ? line : `${line}: ${of.join('; ')}`));
}

function readProblems(list: string): Problem[] {
  return list.split(';').map((item) => {
    const numbers = item.split(',').map(Number);
    const sizes = numbers.slice(0, 5);
    if (numbers.length !== 6 || !sizes.every((n) => Number.isInteger(n) && n > 0) || ![0, 1].includes(numbers[5] ?? -1))
      throw new Error(`--problems has ${item}; a problem is batch,queries,keys,heads,dim,causal`);
    return numbers as unknown as Problem;
  });
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      rounds: { type: 'string' },
      threads: { type: 'string' },
      problems: { type: 'string' },
      json: { type: 'string' },
      svg: { type: 'string' },
    },
  });
  const rounds = Number(flags.rounds ?? 7);
  const threadCounts = (flags.threads ?? (availableParallelism() > 1 ? '1,2' : '1')).split(',').map(Number);
  const problems = flags.problems ? readProblems(flags.problems) : defaultProblems;
  const machine = describeProcessor('cpu');
  const peers = await peerVersions(root);
  console.log(`${machine}; medians of ${rounds} rounds, milliseconds`);
  console.log(peerNames.map((name) => `${name} ${peers[name]}`).join(', '));
  console.log('ratio: how many times as long it takes as cpu (ort-node) or wasm (the others)\n');
  console.log(headsOf(columns));
  const rows: Row[] = [];
  for (const problem of problems)
    for (const threads of threadCounts) {
      const row = await measure(problem, threads, rounds);
      rows.push(row);
      console.log(lineOf(columns, row));
    }
  console.log(['', ...listLeftOut(rows)].join('\n'));
  if (flags.json)
    writeFileSync(
      flags.json,
      `${JSON.stringify({ date: new Date().toISOString(), machine, peers, rounds, rows }, null, 2)}\n`,
    );
  if (flags.svg) writeFileSync(flags.svg, drawPeers({ machine, names, rows }));
}

const { FLASHATTN_BENCH_CHILD: child } = process.env;
await (child ? serveOwn(child as Processor) : main());
