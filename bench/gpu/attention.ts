// Speed of attention on a GPU: forward and backward in TFLOP/s, what determinism costs, and block-sparse time against
// the dense time of the same run.
//
//   node build/bench/gpu.js [--device cuda] [--rounds 11] [--dtypes float16,bfloat16] [--json results.json] [--tiny]
//                           [--dense | --sparse | --once <head dim>] [--dims 64,128] [--lengths 4096,16384]
//
// --tiny runs every path once at sizes for the emulator; --once runs each pass once, for a profiler.
import { spawnSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { type DeviceName, FlashAttnError, type FloatDType, measurePeak, status } from 'flashattn';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../../lib/cli/table.js';
import { InputSets } from './inputs.js';
import { measure, measureBackward, runPasses, type Settings, type Times } from './measure.js';
import {
  backwardFlops,
  denseShapes,
  forwardFlops,
  fullSizes,
  type Shape,
  shapeColumns,
  shapeOf,
  tflops,
  tinySizes,
} from './shapes.js';
import { type Pattern, sparsePatterns } from './sparse.js';

export interface DenseRow extends Shape, Times {
  readonly forwardTflops: number;
  readonly backwardTflops: number;
  readonly deterministicMs: number;
  /** Deterministic backward against backward. */
  readonly deterministicRatio: number;
}

export interface SparseRow extends Shape, Times {
  readonly pattern: string;
  readonly blockSize: number;
  readonly density: number;
  /** Time / (density x dense time); 1 is ideal. */
  readonly forwardRatio: number;
  readonly backwardRatio: number;
}

export interface Results {
  readonly date: string;
  readonly device: string;
  readonly computeCapability: string;
  /** The version of the driver, and of CUDA that it is for. */
  readonly driver: string;
  readonly versions: { readonly node: string; readonly cudaRuntime: string };
  readonly rounds: number;
  /** Of mma.sync on registers alone, before and after. */
  readonly peakTflops: readonly number[];
  readonly rows: readonly DenseRow[];
  readonly sparse: readonly SparseRow[];
}

function driverVersion(): string | undefined {
  const query = ['--query-gpu=driver_version', '--format=csv,noheader'];
  const { status: code, stdout } = spawnSync('nvidia-smi', query, { encoding: 'utf8' });
  return code === 0 ? stdout.split('\n')[0].trim() : undefined;
}

function describe(device: DeviceName): Omit<Results, 'rounds' | 'peakTflops' | 'rows' | 'sparse'> {
  const found = status(device);
  if (!('computeCapability' in found)) throw new Error(`${device} is ${found.device}, not a CUDA device`);
  const installed = (device as string) === 'emulator' ? undefined : driverVersion();
  return {
    date: new Date().toISOString(),
    device: found.name,
    computeCapability: found.computeCapability,
    driver: [installed, `CUDA ${found.driver}`].filter(Boolean).join(', '),
    versions: { node: process.versions.node, cudaRuntime: found.runtime },
  };
}

async function denseRow(shape: Shape, inputs: InputSets, settings: Settings): Promise<DenseRow> {
  const times = await measure(shape, inputs, settings);
  const deterministicMs = await measureBackward(shape, inputs, settings, { deterministic: true });
  return {
    ...shape,
    ...times,
    forwardTflops: tflops(forwardFlops(shape), times.forwardMs),
    backwardTflops: tflops(backwardFlops(shape), times.backwardMs),
    deterministicMs,
    deterministicRatio: deterministicMs / times.backwardMs,
  };
}

async function sparseRow(shape: Shape, pattern: Pattern, dense: Times, inputs: InputSets, settings: Settings) {
  const { name, blockSize, density, mask } = pattern;
  const times = await measure(shape, inputs, settings, { mask });
  return {
    ...shape,
    pattern: name,
    blockSize,
    density,
    ...times,
    forwardRatio: times.forwardMs / (density * dense.forwardMs),
    backwardRatio: times.backwardMs / (density * dense.backwardMs),
  };
}

const denseColumns: readonly Column<DenseRow>[] = [
  ...shapeColumns,
  number('fwd ms', 9, (r) => r.forwardMs, fixed(3)),
  number('TFLOP/s', 7, (r) => r.forwardTflops, fixed(1)),
  number('bwd ms', 8, (r) => r.backwardMs, fixed(3)),
  number('TFLOP/s', 7, (r) => r.backwardTflops, fixed(1)),
  number('deterministic', 14, (r) => r.deterministicRatio, fixed(2, 'x')),
];

const sparseColumns: readonly Column<SparseRow>[] = [
  ...shapeColumns,
  number('block', 6, (r) => r.blockSize),
  text('pattern', 15, (r) => r.pattern),
  number('density', 7, (r) => r.density, percent(1)),
  number('fwd ms', 8, (r) => r.forwardMs, fixed(3)),
  number('ratio', 6, (r) => r.forwardRatio, fixed(2)),
  number('bwd ms', 8, (r) => r.backwardMs, fixed(3)),
  number('ratio', 6, (r) => r.backwardRatio, fixed(2)),
];

async function benchmarkDense(dtypes: readonly FloatDType[], settings: Settings, add: (row: DenseRow) => void) {
  console.log(`\n${headsOf(denseColumns)}`);
  for (const dtype of dtypes) {
    using inputs = new InputSets(settings.sizes, dtype, settings.device);
    for (const shape of denseShapes(settings.sizes, [dtype])) add(await denseRow(shape, inputs, settings));
  }
}

/** One sequence of all tokens. */
async function benchmarkSparse(dtype: FloatDType, settings: Settings, add: (row: SparseRow) => void) {
  console.log(`\nratio = time / (density x dense time)\n${headsOf(sparseColumns)}`);
  const { sizes } = settings;
  using inputs = new InputSets(sizes, dtype, settings.device);
  for (const dim of sizes.sparseDims) {
    const shape = shapeOf(sizes, dtype, dim, sizes.tokens, false);
    const dense = await measure(shape, inputs, settings);
    for (const blockSize of sizes.blockSizes)
      for (const density of sizes.densities)
        for (const pattern of sparsePatterns(shape.length, blockSize, density))
          add(await sparseRow(shape, pattern, dense, inputs, settings));
  }
}

/** One forward and one backward pass at a length of 4,096, for a profiler. */
async function runOnce(dim: number, dtype: FloatDType, settings: Settings): Promise<void> {
  using inputs = new InputSets({ ...settings.sizes, cacheBytes: 0 }, dtype, settings.device);
  await runPasses(shapeOf(settings.sizes, dtype, dim, Math.min(4096, settings.sizes.tokens), false), inputs, settings);
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      device: { type: 'string', default: 'cuda' },
      rounds: { type: 'string', default: '11' },
      dtypes: { type: 'string', default: 'bfloat16,float16' },
      json: { type: 'string' },
      tiny: { type: 'boolean', default: false },
      dense: { type: 'boolean', default: false },
      sparse: { type: 'boolean', default: false },
      once: { type: 'string' },
      dims: { type: 'string' },
      lengths: { type: 'string' },
    },
  });
  const device = flags.device as DeviceName;
  const dtypes = flags.dtypes.split(',') as FloatDType[];
  const numbers = (list: string | undefined) => list?.split(',').map(Number);
  const sizes = flags.tiny ? tinySizes : fullSizes;
  const settings: Settings = {
    device,
    sizes: {
      ...sizes,
      dims: numbers(flags.dims) ?? sizes.dims,
      lengths: numbers(flags.lengths) ?? sizes.lengths,
    },
    rounds: flags.tiny ? 1 : Number(flags.rounds),
  };
  if (flags.once !== undefined) return runOnce(Number(flags.once), dtypes[0], settings);
  const about = describe(device);
  console.log(`${about.device}, compute capability ${about.computeCapability}; driver ${about.driver}`);
  const peakTflops: number[] = [];
  const rows: DenseRow[] = [];
  const sparse: SparseRow[] = [];
  // After every row, so that a run that is cut short leaves what it has measured.
  const save = () => {
    const results: Results = { ...about, rounds: settings.rounds, peakTflops, rows, sparse };
    if (flags.json) writeFileSync(flags.json, `${JSON.stringify(results, null, 2)}\n`);
  };
  const notePeak = async () => {
    if (!flags.tiny) peakTflops.push((await measurePeak(device)) / 1e12);
  };
  await notePeak();
  await notePeak();
  console.log(
    `peak of mma.sync ${peakTflops.at(-1)?.toFixed(0) ?? 'not measured'} TFLOP/s; medians of ${settings.rounds}`,
  );
  const both = flags.dense === flags.sparse;
  if (both || flags.dense)
    await benchmarkDense(dtypes, settings, (row) => {
      console.log(lineOf(denseColumns, row));
      rows.push(row);
      save();
    });
  if (both || flags.sparse)
    await benchmarkSparse(dtypes[0], settings, (row) => {
      console.log(lineOf(sparseColumns, row));
      sparse.push(row);
      save();
    });
  await notePeak();
  save();
}

try {
  await main();
} catch (error) {
  if (!(error instanceof FlashAttnError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
