// Products of matrices on the processor, as shares of the arithmetic peak of the same run and beside OpenBLAS, and those of
// BitLinear, whole calls from float32 to float32, with weights that are quantised in each of them and with packed ones.
//
//   npm run bench:matmul -- [--device cpu|wasm] [--rounds 9] [--json results.json]
//
// OpenBLAS (libopenblas-dev, and a C compiler) runs as it chooses for this processor, and once more with the core type that
// fits the library's own instruction set: it does not know every processor. What is not there is left out.
import { type ChildProcess, spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, writeFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { type FloatDType, matmul, measurePeak, noGrad, status, type Tensor, tensor } from 'flashattn';
import { bitLinear158, packBitLinear } from 'flashattn/systems';
import { median } from '../../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../../lib/cli/table.js';
import { describeProcessor, readProcessor } from '../processor.js';

const { values: flags } = parseArgs({
  options: { rounds: { type: 'string' }, json: { type: 'string' }, device: { type: 'string' } },
});
const device = readProcessor(flags.device ?? 'cpu');
const threads = (device === 'wasm' ? status('wasm') : status('cpu')).threads;

/** Rows, columns, inner. */
type Sizes = readonly [number, number, number];

const cases: readonly Sizes[] = [
  [1024, 1024, 1024],
  [512, 3072, 768],
  [512, 768, 3072],
  [512, 4096, 4096],
  [256, 256, 256],
  [64, 64, 64],
  [97, 131, 257],
  [16, 4096, 4096],
  [1, 4096, 4096],
];

/** Milliseconds a product. */
interface Peer {
  readonly name: string;
  measure(sizes: Sizes, runs: number): Promise<number>;
  close(): void;
}

const coreTypes: Readonly<Record<string, string>> = {
  avx2: 'Haswell',
  avx512: 'SkylakeX',
  avx512bf16: 'SkylakeX',
  amx: 'SkylakeX',
  neon: 'ARMV8',
  neonbf16: 'ARMV8',
};

function compileOpenBlas(): string | undefined {
  const folder = fileURLToPath(new URL('../../build/bench/', import.meta.url));
  mkdirSync(folder, { recursive: true });
  const program = `${folder}openblas`;
  const source = fileURLToPath(new URL('../../bench/matmul/openblas.c', import.meta.url));
  const { status: code } = spawnSync('cc', ['-O2', source, '-o', program, '-lopenblas'], { stdio: 'ignore' });
  return code === 0 ? program : undefined;
}

async function startOpenBlas(program: string, coreType: string | undefined): Promise<Peer> {
  const { OPENBLAS_CORETYPE: _, OPENBLAS_L2_SIZE: __, ...inherited } = process.env;
  const env = { ...inherited, OPENBLAS_NUM_THREADS: `${threads}`, ...(coreType && { OPENBLAS_CORETYPE: coreType }) };
  const child: ChildProcess = spawn(program, { env, stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout as NodeJS.ReadableStream });
  const [core] = (await once(lines, 'line')) as [string];
  return {
    name: coreType ? `OpenBLAS as ${core}` : `OpenBLAS (takes itself for ${core})`,
    measure: async (sizes, runs) => {
      child.stdin?.write(`${[...sizes, runs].join(' ')}\n`);
      const [line] = (await once(lines, 'line')) as [string];
      await setTimeout(150); // its threads look for work for tens of milliseconds
      return Number(line);
    },
    close: () => child.stdin?.end(),
  };
}

function random(rows: number, columns: number, dtype: FloatDType) {
  const values = Float32Array.from({ length: rows * columns }, () => Math.random() - 0.5);
  return tensor(values, [rows, columns], { device, dtype });
}

async function measureOurs(product: () => Tensor, runs: number): Promise<number> {
  const start = performance.now();
  let last: Tensor | undefined;
  for (let run = 0; run < runs; run++) {
    last?.dispose();
    last = noGrad(product);
  }
  await last?.ready();
  const milliseconds = (performance.now() - start) / runs;
  last?.dispose();
  return milliseconds;
}

interface Ratio {
  readonly milliseconds: number;
  /** The time of the product in float32 over this one's, the median over rounds. */
  readonly ratio: number;
}

interface Row {
  readonly sizes: Sizes;
  readonly milliseconds: number;
  readonly flopsPerSecond: number;
  /** Of the peak, the median over rounds. */
  readonly share: number;
  readonly bfloat16Ms: number;
  /** Of `bitLinear158` of a weight, and of a packed one. */
  readonly bitLinear: Ratio;
  readonly packedBitLinear: Ratio;
  readonly peers: readonly { readonly name: string; readonly milliseconds: number; readonly ratio: number }[];
}

async function benchmark(sizes: Sizes, peers: readonly Peer[], rounds: number): Promise<Row> {
  const [rows, columns, inner] = sizes;
  const flops = 2 * rows * columns * inner;
  const runs = Math.max(1, Math.min(1000, Math.round(4e9 / flops)));
  const [a, b] = [random(rows, inner, 'float32'), random(inner, columns, 'float32')];
  const [halfA, halfB] = [random(rows, inner, 'bfloat16'), random(inner, columns, 'bfloat16')];
  const weight = random(columns, inner, 'float32');
  const packed = packBitLinear(weight);
  const product = () => matmul(a, b);
  for (let warm = 0; warm < 2; warm++) await measureOurs(product, runs);
  const ours: number[] = [];
  const halves: number[] = [];
  const shares: number[] = [];
  const [bits, packedBits]: number[][] = [[], []];
  const theirs = peers.map(() => [] as number[]);
  for (let round = 0; round < rounds; round++) {
    const peak = await measurePeak(device);
    const milliseconds = await measureOurs(product, runs);
    ours.push(milliseconds);
    shares.push(flops / (milliseconds / 1e3) / peak);
    halves.push(await measureOurs(() => matmul(halfA, halfB), runs));
    bits.push(await measureOurs(() => bitLinear158(a, weight), runs));
    packedBits.push(await measureOurs(() => bitLinear158(a, packed), runs));
    for (const [i, peer] of peers.entries()) theirs[i].push(await peer.measure(sizes, runs));
  }
  for (const t of [a, b, halfA, halfB, weight, packed]) t.dispose();
  const over = (times: readonly number[]): Ratio => ({
    milliseconds: median(times),
    ratio: median(times.map((time, round) => ours[round] / time)),
  });
  return {
    sizes,
    milliseconds: median(ours),
    flopsPerSecond: flops / (median(ours) / 1e3),
    share: median(shares),
    bfloat16Ms: median(halves),
    bitLinear: over(bits),
    packedBitLinear: over(packedBits),
    peers: peers.map(({ name }, i) => ({
      name,
      milliseconds: median(theirs[i]),
      ratio: median(theirs[i].map((time, round) => time / ours[round])),
    })),
  };
}

const rounds = Number(flags.rounds ?? 9);
const machine = describeProcessor(device);
const program = compileOpenBlas();
const found = device === 'cpu' ? status('cpu') : undefined;
const coreType = found?.device === 'cpu' ? coreTypes[found.instructionSet] : undefined;
const peers = program
  ? await Promise.all([undefined, ...(coreType ? [coreType] : [])].map((core) => startOpenBlas(program, core)))
  : [];
if (!program) console.log('OpenBLAS is not compared: libopenblas-dev and a C compiler are needed\n');
console.log(
  `${machine}; medians of ${rounds} interleaved rounds; "x" of a peer is its time over ours, of others ours over theirs`,
);
const columns: readonly Column<Row>[] = [
  text('rows x columns x inner', 22, (r) => r.sizes.join(' x ')),
  number('ms', 9, (r) => r.milliseconds, fixed(3)),
  number('GFLOP/s', 8, (r) => r.flopsPerSecond / 1e9, fixed(1)),
  number('peak', 5, (r) => r.share, percent(0)),
  number('bf16 x', 6, (r) => r.milliseconds / r.bfloat16Ms, fixed(2)),
  number('BitLinear x', 11, (r) => r.bitLinear.ratio, fixed(2)),
  number('packed x', 8, (r) => r.packedBitLinear.ratio, fixed(2)),
  ...peers.map(({ name }, i) => number<Row>(`${name} x`, name.length + 2, (r) => r.peers[i].ratio, fixed(2))),
];
console.log(headsOf(columns));
const results: Row[] = [];
for (const sizes of cases) {
  const row = await benchmark(sizes, peers, rounds);
  console.log(lineOf(columns, row));
  results.push(row);
}
for (const peer of peers) peer.close();
if (flags.json)
  writeFileSync(
    flags.json,
    `${JSON.stringify({ date: new Date().toISOString(), machine, rounds, rows: results }, null, 2)}\n`,
  );
