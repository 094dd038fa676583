// Attention on the processor beside other libraries: float32, one process for each library and number of threads, whose
// runs alternate.
//
//   npm run bench:peers && npm run bench:beside -- [--rounds 7] [--threads 1,2] [--json results.json]
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { attention, type Tensor, tensor } from 'flashattn';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, text } from '../lib/cli/table.js';
import { describeProcessor, type Processor } from './processor.js';

/** [batch, queries, keys, heads, dim, causal] */
type Problem = readonly [number, number, number, number, number, 0 | 1];
type Answer = { readonly milliseconds: number; readonly out: number };

const problems: readonly Problem[] = [
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

const peers = new URL('../../bench/peers/', import.meta.url);
const missing = ['onnxruntime-node', 'onnxruntime-web'].filter(
  (name) => !existsSync(new URL(`node_modules/${name}`, peers)),
);

/** A child process that measures this library on a device: the protocol of bench/peers/onnx.mjs. */
async function serve(device: Processor): Promise<void> {
  const inputs = new Map<string, readonly Tensor<'float32'>[]>();
  process.on('message', async ({ problem, runs }: { problem?: Problem; runs: number }) => {
    if (!problem) return;
    const [batch, queries, keys, heads, dim, causal] = problem;
    const make = (rows: number) =>
      tensor(
        Float32Array.from({ length: batch * rows * heads * dim }, (_, i) => Math.sin(i)),
        [batch, rows, heads, dim],
        { device },
      );
    const known = inputs.get(String(problem));
    const [q, k, v] = (known ?? [make(queries), make(keys), make(keys)]) as [
      Tensor<'float32'>,
      Tensor<'float32'>,
      Tensor<'float32'>,
    ];
    const run = async () => {
      const { out, lse } = attention(q, k, v, { causal: causal === 1 });
      const data = await out.data(); // as a session gives it
      out.dispose();
      lse.dispose();
      return data[0] as number;
    };
    if (!known) {
      inputs.set(String(problem), [q, k, v]);
      for (let i = 0; i < 4; i++) await run();
    }
    const start = performance.now();
    for (let i = 1; i < runs; i++) await run();
    const out = await run();
    process.send?.({ milliseconds: (performance.now() - start) / runs, out });
  });
}

interface Contender {
  readonly name: string;
  readonly child: ChildProcess;
}

function contenders(threads: number): Contender[] {
  const env = { ...process.env, FLASHATTN_THREADS: String(threads) };
  const own = (device: Processor) =>
    fork(fileURLToPath(import.meta.url), { env: { ...env, FLASHATTN_BENCH_CHILD: device } });
  const onnx = (kind: 'node' | 'web') => {
    // What it cannot do it says at length: that it ended is enough.
    const child = fork(new URL('onnx.mjs', peers), [kind], { stdio: ['ignore', 'ignore', 'ignore', 'ipc'] });
    child.send({ threads });
    return child;
  };
  return [
    { name: 'cpu', child: own('cpu') },
    { name: 'ort-node', child: onnx('node') },
    { name: 'wasm', child: own('wasm') },
    { name: 'ort-web', child: onnx('web') },
  ];
}

/** Undefined where the child could not do it, and ended. */
async function ask(child: ChildProcess, problem: Problem, runs: number): Promise<Answer | undefined> {
  if (child.exitCode !== null) return undefined;
  const answer = once(child, 'message').then(([message]) => message as Answer);
  const ended = once(child, 'exit').then(() => undefined);
  child.send({ problem, runs });
  return Promise.race([answer, ended]);
}

interface Row {
  readonly problem: Problem;
  readonly threads: number;
  /** Milliseconds by contender. */
  readonly milliseconds: Readonly<Record<string, number | undefined>>;
  /** How many times as long onnxruntime takes: its native build against cpu, its web build against wasm. */
  readonly native: number | undefined;
  readonly web: number | undefined;
}

async function measure(problem: Problem, threads: number, rounds: number): Promise<Row> {
  const [, queries, keys, heads, dim] = problem;
  const runs = Math.max(1, Math.min(50, Math.round(2e8 / (queries * keys * heads * dim))));
  const all = contenders(threads);
  const samples = new Map<string, number[]>(all.map(({ name }) => [name, []]));
  for (let round = -1; round < rounds; round++) {
    const outs: number[] = [];
    for (const { name, child } of all) {
      await setTimeout(pause);
      const answer = await ask(child, problem, runs);
      if (!answer) continue;
      outs.push(answer.out);
      if (round >= 0) samples.get(name)?.push(answer.milliseconds);
    }
    const [first] = outs as [number];
    if (!outs.every((out) => Math.abs(out - first) < 1e-4)) throw new Error(`results differ: ${outs.join(', ')}`);
  }
  for (const { child } of all) child.kill();
  const of = (name: string) => samples.get(name) as number[];
  const medianOf = (values: readonly number[]) => (values.length > 0 ? median(values) : undefined);
  const ratio = (theirs: string, ours: string) =>
    medianOf(of(theirs).map((time, at) => time / (of(ours)[at] as number)));
  return {
    problem,
    threads,
    milliseconds: Object.fromEntries(all.map(({ name }) => [name, medianOf(of(name))])),
    native: ratio('ort-node', 'cpu'),
    web: ratio('ort-web', 'wasm'),
  };
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: { rounds: { type: 'string' }, threads: { type: 'string' }, json: { type: 'string' } },
  });
  if (missing.length > 0) {
    console.error(`${missing.join(' and ')} are not there: npm run bench:peers installs them`);
    process.exitCode = 1;
    return;
  }
  const rounds = Number(flags.rounds ?? 7);
  const threadCounts = (flags.threads ?? (availableParallelism() > 1 ? '1,2' : '1')).split(',').map(Number);
  const machine = describeProcessor('cpu');
  console.log(`${machine}; onnxruntime 1.30.0; medians of ${rounds} rounds`);
  console.log('ratio: how many times as long onnxruntime takes\n');
  const time = (name: string) => number<Row>(name, 9, (r) => r.milliseconds[name], fixed(3));
  const columns: readonly Column<Row>[] = [
    text('(queries,keys,H,D)', 20, ({ problem: [, nq, nk, h, d] }) => `(${nq},${nk},${h},${d})`),
    text('mask', 6, (r) => (r.problem[5] === 1 ? 'causal' : 'full')),
    number('threads', 7, (r) => r.threads),
    time('cpu'),
    time('ort-node'),
    number('ratio', 6, (r) => r.native, fixed(2)),
    time('wasm'),
    time('ort-web'),
    number('ratio', 6, (r) => r.web, fixed(2)),
  ];
  console.log(headsOf(columns));
  const rows: Row[] = [];
  for (const problem of problems)
    for (const threads of threadCounts) {
      const row = await measure(problem, threads, rounds);
      rows.push(row);
      console.log(lineOf(columns, row));
    }
  if (flags.json)
    writeFileSync(
      flags.json,
      `${JSON.stringify({ date: new Date().toISOString(), machine, peers: { onnxruntime: '1.30.0' }, rounds, rows }, null, 2)}\n`,
    );
}

const { FLASHATTN_BENCH_CHILD: child } = process.env;
await (child ? serve(child as Processor) : main());
