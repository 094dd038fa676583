// Time and memory of systems against length, each beside our own dense attention in the same run.
//
//   npm run bench:systems -- [--device cpu|wasm] [--rounds 3] [--lengths 512,1024,2048,4096,8192,16384] [--only nsa,reformer]
//                            [--json results.json] [--svg chart.svg] [--from results.json] [--list]
//
// --svg draws the results; with --from those of a file, and nothing is measured. --list prints the names of all systems. A
// system that needs more than a machine has, or that takes too long, ends at the length before.
import { spawnSync } from 'node:child_process';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  add,
  attention,
  type DenseOptions,
  FlashAttnError,
  memory,
  mul,
  noGrad,
  normal,
  parameter,
  scope,
  sum,
  type Tensor,
  uniform,
} from 'flashattn';
import { median } from '../../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, text } from '../../lib/cli/table.js';
import { describeProcessor, readProcessor } from '../processor.js';
import { drawSystems, type SystemsChart } from './chart.js';
import { type Make, type Rows, type System, systems } from './list.js';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string', default: '3' },
    json: { type: 'string' },
    device: { type: 'string', default: 'cpu' },
    only: { type: 'string' },
    apart: { type: 'boolean' },
    lengths: { type: 'string', default: '512,1024,2048,4096,8192,16384' },
    svg: { type: 'string' },
    from: { type: 'string' },
    list: { type: 'boolean' },
  },
});
const device = readProcessor(flags.device);
const rounds = Number(flags.rounds);
const lengths = flags.lengths.split(',').map(Number);
const names = flags.only?.split(',') ?? systems.map(({ name }) => name);
const unknown = names.filter((name) => !systems.some((system) => system.name === name));
if (unknown.length > 0) {
  console.error(`there is no system ${unknown.join(' nor ')}; --list prints those that there are`);
  process.exit(2);
}
const chosen = systems.filter(({ name }) => names.includes(name));
const dim = 64;
/** A system that takes longer than this for one pass is not tried at the next length. */
const patience = 20_000;

class Maker implements Make {
  readonly device = device;
  readonly dim = dim;
  readonly #made: Disposable[] = [];
  #seed = 100;

  constructor(
    readonly length: number,
    readonly heads: number,
  ) {}

  keep<T extends Disposable>(t: T): T {
    this.#made.push(t);
    return t;
  }

  normal(...shape: number[]): Tensor<'float32'> {
    return this.keep(normal(shape, { seed: this.#seed++, device }));
  }

  uniform(...shape: number[]): Tensor<'float32'> {
    return this.keep(uniform(shape, { seed: this.#seed++, device }));
  }

  logarithms(...shape: number[]): Tensor<'float32'> {
    return this.keep(scope(() => mul(add(uniform(shape, { seed: this.#seed++, device }), -1), 0.1)));
  }

  dispose(): void {
    for (const t of this.#made) t[Symbol.dispose]();
  }
}

interface Pass {
  readonly forwardMs: number;
  readonly bothMs: number;
}

/** A forward pass without gradients, then one with them and the way back. */
async function time(run: (q: Rows, k: Rows, v: Rows) => Tensor, qkv: readonly [Rows, Rows, Rows]): Promise<Pass> {
  let start = performance.now();
  const out = noGrad(() => scope(() => run(...qkv)));
  await out.ready();
  const forwardMs = performance.now() - start;
  out.dispose();
  start = performance.now();
  const total = scope(() => {
    const loss = sum(run(...qkv));
    loss.backward();
    return loss.detach();
  });
  const gradients = qkv.flatMap((t) => (t.grad ? [t.grad as Tensor] : []));
  await Promise.all([total, ...gradients].map((t) => t.ready()));
  const bothMs = performance.now() - start;
  total.dispose();
  for (const t of qkv) {
    (t.grad as Tensor | undefined)?.dispose();
    t.grad = undefined;
  }
  return { forwardMs, bothMs };
}

interface Row {
  readonly name: string;
  readonly length: number;
  readonly forwardMs: number;
  readonly bothMs: number;
  /** How many times as fast as dense attention of the same shapes, causal where the system is. */
  readonly forwardRatio: number;
  readonly bothRatio: number;
  /** Bytes in use at most, forward and backward, over those of q, k, v, out and their gradients; where more than before. */
  readonly memory: number | undefined;
}

async function measure({ name, causal, heads = 8, kvHeads = heads, prepare }: System, length: number): Promise<Row> {
  const before = memory(device).bytesPeak;
  const make = new Maker(length, heads);
  const own = (of: number) => make.keep(parameter(make.normal(1, length, of, dim))) as unknown as Rows;
  const qkv = [own(heads), own(kvHeads), own(kvHeads)] as const;
  const run = prepare(make);
  const options: DenseOptions = causal ? { causal } : {};
  const dense = (q: Rows, k: Rows, v: Rows) => attention(q, k, v, options).out as Tensor;
  const samples: (readonly [ours: Pass, dense: Pass])[] = [];
  let peak = 0;
  for (let round = -1; round < rounds; round++) {
    const ours = await time(run, qkv);
    if (round < 0) peak = memory(device).bytesPeak;
    const pair = [ours, await time(dense, qkv)] as const;
    if (round >= 0) samples.push(pair);
  }
  make.dispose();
  const of = (value: (pair: readonly [Pass, Pass]) => number) => median(samples.map(value));
  const ownBytes = 4 * length * dim * (4 * heads + 4 * kvHeads);
  return {
    name,
    length,
    forwardMs: of(([ours]) => ours.forwardMs),
    bothMs: of(([ours]) => ours.bothMs),
    forwardRatio: of(([ours, other]) => other.forwardMs / ours.forwardMs),
    bothRatio: of(([ours, other]) => other.bothMs / ours.bothMs),
    memory: peak > before ? peak / ownBytes : undefined,
  };
}

/** The slope of log time over log length, by least squares, of the longer half of the lengths. */
function exponent(rows: readonly Row[], value: (row: Row) => number): number | undefined {
  const points = rows.slice(rows.length >> 1).map((row) => [Math.log(row.length), Math.log(value(row))] as const);
  if (points.length < 2) return undefined;
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const [x, y] = [mean(points.map(([a]) => a)), mean(points.map(([, b]) => b))];
  const covariance = points.reduce((total, [a, b]) => total + (a - x) * (b - y), 0);
  return covariance / points.reduce((total, [a]) => total + (a - x) ** 2, 0);
}

const columns: readonly Column<Row>[] = [
  text('system', 26, (r) => r.name),
  number('N', 6, (r) => r.length),
  number('fwd ms', 9, (r) => r.forwardMs, fixed(1)),
  number('ratio', 6, (r) => r.forwardRatio, fixed(2)),
  number('both ms', 9, (r) => r.bothMs, fixed(1)),
  number('ratio', 6, (r) => r.bothRatio, fixed(2)),
  number('memory', 7, (r) => r.memory, fixed(1)),
];

interface Found {
  readonly rows: readonly Row[];
  /** Time grows as the length to this power. */
  readonly exponents: { readonly forward: number | undefined; readonly both: number | undefined };
}

async function measureAll(system: System): Promise<Found> {
  const rows: Row[] = [];
  for (const length of lengths) {
    if (rows.some(({ bothMs }) => bothMs > patience)) break;
    try {
      const row = await measure(system, length);
      rows.push(row);
      console.log(lineOf(columns, row));
    } catch (error) {
      if (!(error instanceof FlashAttnError)) throw error;
      console.log(`${system.name.padEnd(26)} ${length}: ${error.code}: ${error.message}`);
      break;
    }
  }
  const exponents = { forward: exponent(rows, (r) => r.forwardMs), both: exponent(rows, (r) => r.bothMs) };
  const { forward, both } = exponents;
  if (forward !== undefined && both !== undefined)
    console.log(`${' '.repeat(26)} grows as N^${forward.toFixed(2)}, with gradients as N^${both.toFixed(2)}`);
  return { rows, exponents };
}

/** In a process of its own, whose most memory is the system's. */
function measureApart(name: string, folder: string): Found {
  const json = join(folder, `${name}.json`);
  const args = ['--only', name, '--apart', '--device', device, '--rounds', `${rounds}`, '--lengths', lengths.join()];
  const { status } = spawnSync(process.execPath, [fileURLToPath(import.meta.url), ...args, '--json', json], {
    stdio: ['ignore', 'inherit', 'inherit'],
  });
  if (status !== 0) {
    console.log(`${name} ended with ${status}`);
    return { rows: [], exponents: { forward: undefined, both: undefined } };
  }
  return JSON.parse(readFileSync(json, 'utf8')) as Found;
}

interface Results extends SystemsChart {
  readonly date: string;
  readonly rounds: number;
}

function measureEach(): Results {
  const machine = describeProcessor(device);
  console.log(`${machine}; (B, D) = (1, ${dim}), float32; medians of ${rounds} interleaved rounds`);
  console.log('ratio: how many times as fast as dense attention of the same shapes');
  console.log(headsOf(columns));
  const folder = mkdtempSync(join(tmpdir(), 'flashattn-systems-'));
  const found = chosen.map(({ name }) => ({ name, ...measureApart(name, folder) }));
  rmSync(folder, { recursive: true });
  return { date: new Date().toISOString(), machine, rounds, systems: found };
}

const [system] = chosen;
if (flags.list) for (const { name } of systems) console.log(name);
else if (flags.apart && system) {
  const found = await measureAll(system);
  if (flags.json) writeFileSync(flags.json, JSON.stringify(found));
} else {
  const results = flags.from ? (JSON.parse(readFileSync(flags.from, 'utf8')) as Results) : measureEach();
  if (flags.json) writeFileSync(flags.json, `${JSON.stringify(results, null, 2)}\n`);
  if (flags.svg) writeFileSync(flags.svg, drawSystems(results));
}
