import { readFileSync, writeFileSync } from 'node:fs';
import type { FloatDType } from '../base/dtype.js';
import { version } from '../base/version.js';
import { type DeviceName, measurePeak, usableStatus } from '../devices/registry.js';
import { drawChart } from './chart.js';
import { exitCode } from './exit.js';
import { type BenchRow, type BenchShape, defaultDType, defaultSizes, measureShape } from './measurements.js';
import { isEmulated } from './selfTest.js';
import { type Column, headsOf, lineOf, number, text } from './table.js';
import { readFlagsAndWords, readInteger, readIntegers, UsageError } from './usage.js';

/** What `--json` writes and `--baseline` reads. */
interface Results {
  readonly date: string;
  readonly flashattn: string;
  readonly node: string;
  readonly device: string;
  /** The name of the GPU. */
  readonly name?: string;
  readonly computeCapability?: string;
  readonly driverCuda?: string;
  readonly threads?: number;
  readonly simd?: string;
  readonly rounds: number;
  /** Multiply-adds on registers alone, on the units for 16-bit numbers where there are such; 0 where it is emulated. */
  readonly peakGflops: number;
  readonly rows: readonly BenchRow[];
}

function describe(device: DeviceName) {
  const found = usableStatus(device);
  if (found.device === 'wasm') return { device: found.device, threads: found.threads, simd: found.simd };
  if (found.device === 'cpu') return { device: found.device, threads: found.threads, simd: found.instructionSet };
  const { name, computeCapability, driver } = found;
  return { device: found.device, name, computeCapability, driverCuda: driver };
}

function readShapes(texts: readonly string[], device: DeviceName) {
  if (texts.length === 0) return defaultSizes(device);
  return texts
    .flatMap((text) => text.split(';'))
    .map((text) => readIntegers(text, '--shapes', 4) as [number, number, number, number]);
}

const bestOf = (rows: readonly BenchRow[]) => Math.max(...rows.flatMap((r) => [r.forwardGflops, r.backwardGflops]));

/** TFLOP/s for GPUs, GFLOP/s otherwise. */
const unitOf = (most: number) => (most >= 2000 ? { name: 'TFLOP/s', gflops: 1000 } : { name: 'GFLOP/s', gflops: 1 });

const shapeName = ({ batch, length, heads, dim }: BenchShape) => `${batch},${length},${heads},${dim}`;

const header = ({ device, name, threads, simd, rounds }: Omit<Results, 'rows' | 'peakGflops'>): string =>
  `${device}: ${name ?? `${threads} threads, ${simd} SIMD`}; medians of ${rounds} rounds`;

/** The best of several: engines and clocks take a while to reach it. */
async function findPeak(device: DeviceName): Promise<number> {
  let best = 0;
  for (let i = 0; i < 5; i++) best = Math.max(best, await measurePeak(device));
  return best / 1e9;
}

/** Four digits that count. */
const rounded = (x: number) => (x >= 1000 ? x.toFixed(0) : String(Number(x.toPrecision(4))));

const columns: readonly Column<BenchRow>[] = [
  number('B', 4, (row) => row.batch),
  number('N', 7, (row) => row.length),
  number('H', 4, (row) => row.heads),
  number('D', 4, (row) => row.dim),
  text(' dtype', 10, (row) => ` ${row.dtype}`),
  text('mask', 6, (row) => (row.causal ? 'causal' : 'full')),
  number('forward ms', 11, (row) => row.forwardMs, rounded),
  number('GFLOP/s', 8, (row) => row.forwardGflops, rounded),
  number('backward ms', 12, (row) => row.backwardMs, rounded),
  number('GFLOP/s', 8, (row) => row.backwardGflops, rounded),
];

function draw(results: Results): string {
  const unit = unitOf(bestOf(results.rows));
  const { dtype, causal } = results.rows[0];
  return drawChart({
    title: `flashattn ${results.flashattn} on ${results.name ?? results.device}: ${dtype}${causal ? ', causal' : ''}`,
    unit: unit.name,
    series: ['forward', 'backward'],
    groups: results.rows.map((row) => ({
      label: shapeName(row),
      values: [row.forwardGflops / unit.gflops, row.backwardGflops / unit.gflops],
    })),
  });
}

function readBaseline(path: string): Results {
  try {
    const results = JSON.parse(readFileSync(path, 'utf8')) as Results;
    if (Array.isArray(results.rows)) return results;
  } catch (error) {
    throw new UsageError(`--baseline ${path} cannot be read: ${(error as Error).message}`);
  }
  throw new UsageError(`--baseline ${path} is not what --json writes`);
}

/** What was measured now and before. */
type Pair = readonly [now: BenchRow, before: BenchRow];

function pairWith(rows: readonly BenchRow[], baseline: readonly BenchRow[]): Pair[] {
  const sameShape = (a: BenchShape, b: BenchShape) =>
    shapeName(a) === shapeName(b) && a.dtype === b.dtype && a.causal === b.causal;
  return rows.flatMap((row) => {
    const before = baseline.find((other) => sameShape(row, other));
    return before ? [[row, before] as const] : [];
  });
}

/** What has become slower by more than `slack` percent. */
function findSlower(pairs: readonly Pair[], slack: number): string[] {
  return pairs.flatMap(([row, before]) =>
    (['forward', 'backward'] as const).flatMap((pass) => {
      const [now, then] = [row[`${pass}Gflops`], before[`${pass}Gflops`]];
      if (now >= then * (1 - slack / 100)) return [];
      const percent = (100 * (1 - now / then)).toFixed(1);
      return [
        `${shapeName(row)} ${pass}: ${now.toPrecision(3)} GFLOP/s, ${percent} % less than ${then.toPrecision(3)}`,
      ];
    }),
  );
}

/** `flashattn bench` */
export async function benchCommand(args: string[]): Promise<number> {
  const { flags, words } = readFlagsAndWords(args, {
    shapes: { type: 'string', multiple: true },
    dtype: { type: 'string' },
    device: { type: 'string', default: 'auto' },
    causal: { type: 'boolean', default: false },
    rounds: { type: 'string', default: '5' },
    json: { type: 'string' },
    svg: { type: 'string' },
    baseline: { type: 'string' },
    slack: { type: 'string', default: '10' },
  });
  const device = flags.device as DeviceName;
  const rounds = readInteger(flags.rounds, '--rounds', 1);
  const slack = readInteger(flags.slack, '--slack', 0);
  const baseline = flags.baseline === undefined ? undefined : readBaseline(flags.baseline);
  const about = describe(device);
  const sizes = readShapes([...(flags.shapes ?? []), ...words], device);
  const dtype = (flags.dtype as FloatDType | undefined) ?? defaultDType(device);

  const heading = {
    date: new Date().toISOString(),
    flashattn: version,
    node: process.versions.node,
    ...about,
    rounds,
  };
  console.log(`${header(heading)}\n\n${headsOf(columns)}`);
  const rows: BenchRow[] = [];
  for (const [batch, length, heads, dim] of sizes) {
    const row = await measureShape({ batch, length, heads, dim, dtype, causal: flags.causal }, device, rounds);
    rows.push(row);
    console.log(lineOf(columns, row));
  }
  const results: Results = { ...heading, peakGflops: isEmulated(device) ? 0 : await findPeak(device), rows };
  const { gflops, name: unit } = unitOf(results.peakGflops);
  if (results.peakGflops > 0)
    console.log(`\nmultiply-add peak ${(results.peakGflops / gflops).toPrecision(3)} ${unit}`);
  if (flags.json !== undefined) writeFileSync(flags.json, `${JSON.stringify(results, null, 2)}\n`);
  if (flags.svg !== undefined) writeFileSync(flags.svg, draw(results));
  if (!baseline) return exitCode.fine;
  const pairs = pairWith(rows, baseline.rows);
  const slower = findSlower(pairs, slack);
  console.log(`\n${pairs.length} of ${rows.length} shapes compared with ${flags.baseline}, ${slack} % of slack`);
  for (const fault of slower) console.log(`SLOWER  ${fault}`);
  return slower.length > 0 || pairs.length === 0 ? exitCode.failed : exitCode.fine;
}
