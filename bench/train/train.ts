// Steps of training, side by side: this library, jax-js and TensorFlow.js train the same small GPTs from the same weights.
//
//   npm run bench:peers && npm run bench:train -- [--rounds 7] [--threads 1,2] [--models A,B] [--gpt2] [--plot folder]
//     [--json results.json] [--svg chart.svg]
//
// Losses before the first step, after one and after five must agree, or the run fails. --gpt2 trains GPT-2 124M on cpu in
// the place of the small models; --plot draws step times along the width and along the context, and nothing else is measured.
import { writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import type { FloatDType } from 'flashattn';
import { drawChart } from '../../lib/cli/chart.js';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../../lib/cli/table.js';
import { peerVersions } from '../contenders.js';
import { describeProcessor, type Processor } from '../processor.js';
import { drawLines } from './chart.js';
import { type Entrant, type MeasureOptions, measure, type Peer, type Result, writeWeights } from './measure.js';
import { serveOwn } from './own.js';
import { type Case, cases, flopsOf, gpt2, parametersOf, sweeps, tokensOf } from './work.js';

const root = new URL('../../', import.meta.url);
const program = fileURLToPath(import.meta.url);

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string' },
    threads: { type: 'string' },
    models: { type: 'string' },
    gpt2: { type: 'boolean' },
    plot: { type: 'string' },
    json: { type: 'string' },
    svg: { type: 'string' },
  },
});

const threadCounts = (flags.threads ?? (availableParallelism() > 1 ? '1,2' : '1')).split(',').map(Number);
const own = (device: Processor, threads: number, compute: FloatDType = 'float32'): Entrant => ({
  own: device,
  threads,
  compute,
});
const peers: readonly Entrant[] = [
  { peer: 'jax-js', threads: 1 },
  { peer: 'tfjs', threads: 1 },
];

const columns: readonly Column<Result>[] = [
  text('contender', 14, (r) => r.name),
  number('threads', 7, (r) => r.threads),
  number('ms', 9, (r) => r.milliseconds, fixed(1)),
  number('least', 9, (r) => r.least, fixed(1)),
  number('processor ms', 12, (r) => r.processorMs, fixed(1)),
  number('tokens/s', 9, (r) => r.tokensPerSecond, fixed(0)),
  number('a core', 9, (r) => r.tokensPerSecond / r.threads, fixed(0)),
  number('peak', 6, (r) => r.shareOfPeak, percent(0)),
  ...(['jax-js', 'tfjs'] as const).map((peer) => number<Result>(`x ${peer}`, 9, (r) => r.ratios[peer], fixed(2))),
];

/** What two threads are to reach. */
interface Aim {
  readonly device: Processor;
  readonly ratios: Partial<Record<Peer, number>>;
  readonly share: (width: number) => number;
}
const aims: readonly Aim[] = [
  { device: 'wasm', ratios: { 'jax-js': 4, tfjs: 20 }, share: () => 0.45 },
  { device: 'cpu', ratios: { 'jax-js': 12 }, share: (width) => (width >= 256 ? 0.4 : 0.3) },
];

function printAims(training: Case, results: readonly Result[]): void {
  const most = Math.max(...threadCounts);
  for (const { device, ratios, share } of aims) {
    const found = results.find(({ name, threads }) => name === device && threads === most);
    if (!found) continue;
    const parts = Object.entries(ratios).map(
      ([peer, aim]) => `${found.ratios[peer as Peer]?.toFixed(1) ?? '-'} x ${peer} (aim ${aim})`,
    );
    const wanted = (100 * share(training.model.width)).toFixed(0);
    parts.push(`${(100 * (found.shareOfPeak ?? 0)).toFixed(0)} % of the peak (aim ${wanted})`);
    console.log(`  ${device}, ${most} threads: ${parts.join(', ')}`);
  }
}

interface Row {
  readonly training: Case;
  readonly results: readonly Result[];
}

const millions = (n: number) => `${(n / 1e6).toPrecision(3)} M`;

function describe({ name, model, size }: Case): string {
  const { layers, heads, width, context, vocabulary } = model;
  const shape = `${layers} layers, ${heads} heads, width ${width}, context ${context}, batch ${size}, vocabulary ${vocabulary}`;
  return `${name}: ${shape}; ${millions(parametersOf(model))} parameters`;
}

async function runCase(training: Case, entrants: readonly Entrant[], rounds: number): Promise<Row> {
  console.log(`\n${describe(training)}, ${(flopsOf(training) / 1e9).toFixed(2)} GFLOP a step`);
  const { path, dispose } = await writeWeights(training.model);
  try {
    const options: MeasureOptions = { program, root, rounds, weights: path };
    const results = await measure(training, entrants, options, { log: console.log });
    console.log(headsOf(columns));
    for (const result of results) console.log(lineOf(columns, result));
    const [first] = results;
    console.log(
      `  losses ${[0, 1, 5].map((at) => first?.losses[at]?.toFixed(4)).join(', ')} before, after 1 and 5 steps`,
    );
    return { training, results };
  } finally {
    dispose();
  }
}

async function runSmall(rounds: number): Promise<Row[]> {
  const chosen = flags.models?.split(',') ?? cases.map(({ name }) => name);
  const entrants = [
    ...(['cpu', 'wasm'] as const).flatMap((device) => threadCounts.map((threads) => own(device, threads))),
    ...peers,
  ];
  const rows: Row[] = [];
  for (const training of cases.filter(({ name }) => chosen.includes(name))) {
    const row = await runCase(training, entrants, rounds);
    printAims(training, row.results);
    rows.push(row);
  }
  return rows;
}

/** One after the other: each needs gigabytes. All begin with the weights of the same seed. */
async function runGpt2(rounds: number): Promise<Row[]> {
  console.log(`\n${describe(gpt2)}, ${(flopsOf(gpt2) / 1e9).toFixed(0)} GFLOP a step\n${headsOf(columns)}`);
  const results: Result[] = [];
  for (const compute of ['float32', 'bfloat16'] as const)
    for (const threads of threadCounts) {
      const options = { program, root, rounds, weights: null };
      const [result] = await measure(gpt2, [own('cpu', threads, compute)], options, { log: console.log });
      if (!result) continue;
      results.push(result);
      console.log(
        `${lineOf(columns, result)}  losses ${[0, 1, 5].map((at) => result.losses[at]?.toFixed(3)).join(', ')}`,
      );
    }
  checkSameLosses(results);
  return [{ training: gpt2, results }];
}

/** Threads must not matter; dtypes only as much as bfloat16 is coarse, which steps without a warm-up make more of. */
function checkSameLosses(results: readonly Result[]): void {
  const [first] = results;
  for (const { name, threads, losses } of results) {
    const ofDtype = results.find((other) => other.name === name);
    for (const [i, loss] of losses.entries()) {
      const [own, expected] = [ofDtype?.losses[i] as number, first?.losses[i] as number];
      if (loss === own && Math.abs(loss - expected) <= (i === 0 ? 1e-3 : 5e-2) * expected) continue;
      throw new Error(`${name} on ${threads} threads has loss ${loss} after ${i} steps; expected ${expected}`);
    }
  }
}

async function runSweeps(folder: string, machine: string, rounds: number): Promise<Row[]> {
  const most = Math.max(...threadCounts);
  const entrants = [own('cpu', most), own('wasm', most), ...peers];
  const rows: Row[] = [];
  for (const [along, list] of Object.entries(sweeps)) {
    const swept: Row[] = [];
    for (const training of list) swept.push(await runCase(training, entrants, rounds));
    rows.push(...swept);
    const at = ({ model }: Case) => (along === 'width' ? parametersOf(model) : model.context);
    const names = [...new Set(swept.flatMap(({ results }) => results.map(({ name }) => name)))];
    const lines = names.map((name) => ({
      name: name === 'cpu' || name === 'wasm' ? `${name}, ${most} threads` : name,
      points: swept.flatMap(({ training, results }) =>
        results.filter((r) => r.name === name).map((r) => [at(training), r.milliseconds] as const),
      ),
    }));
    const svg = drawLines({
      title: `A step of training along the ${along === 'width' ? 'parameters' : 'context'}: lower is faster`,
      subtitle: `${machine}; ${new Date().toISOString().slice(0, 10)}`,
      label:
        along === 'width'
          ? 'parameters: 2 layers of width 64 to 512, context 256, batch 2'
          : 'context: 2 layers of width 128, batch 2',
      unit: 'milliseconds',
      lines,
    });
    writeFileSync(join(folder, `train-${along}.svg`), svg);
  }
  return rows;
}

function draw(machine: string, rows: readonly Row[]): string {
  const names = rows[0]?.results.map(({ name, threads }) => ({ name, threads })) ?? [];
  return drawChart({
    title: `Training, tokens per second: ${machine}; ${new Date().toISOString().slice(0, 10)}`,
    unit: 'tokens/s',
    series: rows.map(({ training }) => `model ${training.name}`),
    groups: names.map(({ name, threads }) => ({
      label: `${name}, ${threads}`,
      values: rows.map(
        ({ results }) => results.find((r) => r.name === name && r.threads === threads)?.tokensPerSecond ?? 0,
      ),
    })),
  });
}

async function main(): Promise<void> {
  const rounds = Number(flags.rounds ?? (flags.plot || flags.gpt2 ? 3 : 7));
  const machine = describeProcessor('cpu');
  const versions = await peerVersions(root);
  console.log(`${machine}; medians of ${rounds} interleaved rounds`);
  console.log(`jax-js ${versions['jax-js']}, tfjs ${versions.tfjs}; "x": how many times as long a peer takes`);
  const rows = flags.gpt2
    ? await runGpt2(rounds)
    : flags.plot
      ? await runSweeps(flags.plot, machine, rounds)
      : await runSmall(rounds);
  const { 'jax-js': jax, tfjs } = versions;
  const date = new Date().toISOString();
  const command = ['npm run bench:train --', ...process.argv.slice(2)].join(' ');
  const written = rows.map(({ training, results }) => ({
    ...training,
    parameters: parametersOf(training.model),
    tokens: tokensOf(training),
    flops: flopsOf(training),
    results,
  }));
  const report = { date, machine, command, peers: { 'jax-js': jax, tfjs }, rounds, cases: written };
  if (flags.json) writeFileSync(flags.json, `${JSON.stringify(report, null, 2)}\n`);
  if (flags.svg) writeFileSync(flags.svg, draw(machine, rows));
}

const { FLASHATTN_BENCH_CHILD: child } = process.env;
if (child) {
  const [device, compute] = child.split(':') as [Processor, FloatDType];
  serveOwn({ device, compute });
} else await main();
