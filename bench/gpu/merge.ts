// Sets the results of this library beside those of torch on the same machine and prints how many times as fast it is.
//
//   node build/bench/merge.js results/bench.json results/torch.json results/comparison.json
import { readFileSync, writeFileSync } from 'node:fs';
import { type Column, fixed, headsOf, lineOf, number, text } from '../../lib/cli/table.js';
import type { DenseRow, Results } from './attention.js';
import { backwardFlops, forwardFlops, type Shape, sameShape, shapeColumns, tflops } from './shapes.js';

const backends = ['flash', 'cudnn', 'flex'] as const;
type TorchBackend = (typeof backends)[number];

/** Written by torch_baseline.py; a time that is null could not be measured, for the reason in `error`. */
interface TorchRow extends Shape {
  readonly backend: TorchBackend;
  readonly forwardMs: number | null;
  readonly backwardMs: number | null;
  readonly error?: string;
}

interface TorchResults {
  readonly date: string;
  readonly device: string;
  readonly versions: Readonly<Record<string, string>>;
  readonly rows: readonly TorchRow[];
}

/** Of torch; the ratio is our speed over its speed. */
interface Compared {
  readonly forwardTflops: number | null;
  readonly forwardRatio: number | null;
  readonly backwardTflops: number | null;
  readonly backwardRatio: number | null;
  readonly error?: string;
}

type ComparedRow = DenseRow & { readonly torch: Partial<Record<TorchBackend, Compared>> };

function compare(row: DenseRow, { forwardMs, backwardMs, error }: TorchRow): Compared {
  return {
    forwardTflops: forwardMs && tflops(forwardFlops(row), forwardMs),
    forwardRatio: forwardMs && forwardMs / row.forwardMs,
    backwardTflops: backwardMs && tflops(backwardFlops(row), backwardMs),
    backwardRatio: backwardMs && backwardMs / row.backwardMs,
    ...(error === undefined ? {} : { error }),
  };
}

function compareRow(row: DenseRow, torchRows: readonly TorchRow[]): ComparedRow {
  const found = torchRows.filter((candidate) => sameShape(candidate, row));
  return { ...row, torch: Object.fromEntries(found.map((one) => [one.backend, compare(row, one)])) };
}

const passes = ['forward', 'backward'] as const;

function cell(row: ComparedRow, pass: (typeof passes)[number], backend: TorchBackend): string {
  const compared = row.torch[backend];
  const [speed, ratio] = [compared?.[`${pass}Tflops`], compared?.[`${pass}Ratio`]];
  return speed && ratio ? `${speed.toFixed(0)} ${ratio.toFixed(2)}x` : '-';
}

const columns: readonly Column<ComparedRow>[] = [
  ...shapeColumns,
  ...passes.flatMap((pass) => [
    number<ComparedRow>(pass, 9, (row) => row[`${pass}Tflops`], fixed(0)),
    ...backends.map((backend) =>
      text<ComparedRow>(backend.padStart(10), 10, (row) => cell(row, pass, backend).padStart(10)),
    ),
  ]),
];

function print(rows: readonly ComparedRow[]): void {
  console.log('TFLOP/s of this library; then of torch, with how many times as fast this library is\n');
  console.log(headsOf(columns));
  for (const row of rows) console.log(lineOf(columns, row));
}

function geometricMean(values: readonly number[]): number {
  return Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}

function printMeans(rows: readonly ComparedRow[]): void {
  for (const backend of backends)
    for (const pass of passes) {
      const ratios = rows.flatMap((row) => row.torch[backend]?.[`${pass}Ratio`] ?? []);
      if (ratios.length === 0) continue;
      const mean = `${geometricMean(ratios).toFixed(2)}x, ${Math.min(...ratios).toFixed(2)}x at least`;
      console.log(`${pass} against ${backend}: ${mean}, over ${ratios.length} shapes`);
    }
}

const readJson = (path: string) => JSON.parse(readFileSync(path, 'utf8')) as unknown;

const [ours, torchs, output] = process.argv.slice(2);
if (output === undefined) {
  console.error('usage: merge.js <results of attention.ts> <results of torch_baseline.py> <comparison to write>');
  process.exit(2);
}
const own = readJson(ours) as Results;
const torch = readJson(torchs) as TorchResults;
const rows = own.rows.map((row) => compareRow(row, torch.rows));
print(rows);
console.log();
printMeans(rows);
const versions = { ...own.versions, ...torch.versions };
writeFileSync(output, `${JSON.stringify({ ...own, versions, rows }, null, 2)}\n`);
