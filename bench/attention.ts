// Speed of forward and backward on the processor against the arithmetic peak measured in the same run.
//
//   npm run bench -- [--device wasm|cpu] [--rounds 5] [--shapes "1,1024,8,64;1,4096,8,64"] [--json results.json]
//
// One process for each number of threads; their samples alternate, so that both see the same noise of the machine.
import { type ChildProcess, fork } from 'node:child_process';
import { once } from 'node:events';
import { writeFileSync } from 'node:fs';
import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { attention, attentionBackward, measurePeak, memory, type Tensor, tensor } from 'flashattn';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, text } from '../lib/cli/table.js';
import { describeProcessor, type Processor, readProcessor } from './processor.js';

interface Shape {
  readonly batch: number;
  readonly heads: number;
  readonly length: number;
  readonly dim: number;
  readonly causal: boolean;
}

/** Milliseconds, and the peak around them in GFLOP/s. */
interface Sample {
  readonly forward: number;
  readonly backward: number;
  readonly peak: number;
  readonly peakBytes: number;
}

/** 4 B H N M D forward, 2.5 times that backward, half of it when causal. */
const forwardFlops = (s: Shape) => 4 * s.batch * s.heads * s.length ** 2 * s.dim * (s.causal ? 0.5 : 1);

async function measure(shape: Shape, device: Processor): Promise<() => Promise<Sample>> {
  const dims = [shape.batch, shape.length, shape.heads, shape.dim] as const;
  const size = dims.reduce((a, b) => a * b);
  const random = () =>
    tensor(
      Float32Array.from({ length: size }, () => 2 * Math.random() - 1),
      dims,
      { device },
    );
  const [q, k, v, dOut] = [random(), random(), random(), random()];
  const options = { causal: shape.causal };

  const timed = async (run: () => Record<string, Tensor>) => {
    const start = performance.now();
    const results = Object.values(run());
    await Promise.all(results.map((t) => t.ready()));
    const milliseconds = performance.now() - start;
    for (const t of results) t.dispose();
    return milliseconds;
  };
  const forward = attention(q, k, v, options);
  const run = () => {
    const { out, lse } = attention(q, k, v, options);
    return { out, lse };
  };
  const backward = () => timed(() => ({ ...attentionBackward(dOut, { q, k, v, ...forward }, options) }));
  const peak = async () =>
    median([await measurePeak(device), await measurePeak(device), await measurePeak(device)]) / 1e9;

  return async () => {
    const before = await peak();
    const sample = { forward: await timed(run), backward: await backward() };
    return { ...sample, peak: (before + (await peak())) / 2, peakBytes: memory(device).bytesPeak };
  };
}

/** A child process: measures one shape, a sample for each message. */
async function serve(): Promise<void> {
  const [[shape, device]] = (await once(process, 'message')) as [[Shape, Processor]];
  const sample = await measure(shape, device);
  for (let i = 0; i < 2; i++) await sample(); // the engine optimises the kernels during the first calls
  process.send?.('ready');
  process.on('message', async () => process.send?.(await sample()));
}

function startChild(threads: number): ChildProcess {
  const env = { ...process.env, FLASHATTN_THREADS: String(threads), FLASHATTN_BENCH_CHILD: '1' };
  return fork(fileURLToPath(import.meta.url), { env });
}

async function ask(child: ChildProcess, message: readonly [Shape, Processor] | 'sample'): Promise<unknown> {
  const answer = once(child, 'message');
  child.send(message);
  return (await answer)[0];
}

interface Row {
  readonly shape: Shape;
  readonly threads: number;
  readonly forwardMs: number;
  readonly forwardGflops: number;
  readonly forwardPercent: number;
  readonly backwardMs: number;
  readonly backwardGflops: number;
  readonly backwardPercent: number;
  readonly bothMs: number;
  readonly bothGflops: number;
  readonly peakGflops: number;
  readonly peakMiB: number;
}

function summarize(shape: Shape, threads: number, samples: Sample[]): Row {
  const flops = forwardFlops(shape);
  const middle = (f: (s: Sample) => number) => median(samples.map(f));
  return {
    shape,
    threads,
    forwardMs: middle((s) => s.forward),
    forwardGflops: middle((s) => flops / s.forward / 1e6),
    forwardPercent: middle((s) => (100 * flops) / s.forward / 1e6 / s.peak),
    backwardMs: middle((s) => s.backward),
    backwardGflops: middle((s) => (2.5 * flops) / s.backward / 1e6),
    backwardPercent: middle((s) => (250 * flops) / s.backward / 1e6 / s.peak),
    bothMs: middle((s) => s.forward + s.backward),
    bothGflops: middle((s) => (3.5 * flops) / (s.forward + s.backward) / 1e6),
    peakGflops: middle((s) => s.peak),
    peakMiB: Math.max(...samples.map((s) => s.peakBytes)) / 2 ** 20,
  };
}

async function benchmark(shape: Shape, device: Processor, threadCounts: number[], rounds: number): Promise<Row[]> {
  const children = threadCounts.map(startChild);
  const samples = children.map((): Sample[] => []);
  for (const child of children) await ask(child, [shape, device]);
  for (let round = 0; round < rounds; round++)
    for (const [i, child] of children.entries()) samples[i].push((await ask(child, 'sample')) as Sample);
  for (const child of children) child.kill();
  return threadCounts.map((threads, i) => summarize(shape, threads, samples[i]));
}

const columns: readonly Column<Row>[] = [
  text('(B,N,H,D)', 14, ({ shape: { batch, length, heads, dim } }) => `(${batch},${length},${heads},${dim})`),
  text('mask', 6, (r) => (r.shape.causal ? 'causal' : 'full')),
  number('threads', 7, (r) => r.threads),
  number('fwd ms', 8, (r) => r.forwardMs, fixed(1)),
  number('GF/s', 6, (r) => r.forwardGflops, fixed(0)),
  number('peak', 6, (r) => r.forwardPercent, fixed(0, ' %')),
  number('bwd ms', 8, (r) => r.backwardMs, fixed(1)),
  number('GF/s', 6, (r) => r.backwardGflops, fixed(0)),
  number('peak', 6, (r) => r.backwardPercent, fixed(0, ' %')),
  number('both ms', 8, (r) => r.bothMs, fixed(1)),
  number('GF/s', 6, (r) => r.bothGflops, fixed(0)),
  number('peak GF/s', 9, (r) => r.peakGflops, fixed(0)),
  number('MiB', 6, (r) => r.peakMiB, fixed(0)),
];

function print(rows: Row[]): void {
  const [one] = rows;
  for (const r of rows) {
    const speedup = (of: 'forwardMs' | 'backwardMs') => `${(one[of] / r[of]).toFixed(2)}x`;
    const against = r === one ? '' : `  ${speedup('forwardMs')} ${speedup('backwardMs')}`;
    console.log(`${lineOf(columns, r)}${against}`);
  }
}

async function main(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      rounds: { type: 'string' },
      shapes: { type: 'string' },
      json: { type: 'string' },
      threads: { type: 'string' },
      device: { type: 'string' },
    },
  });
  const rounds = Number(flags.rounds ?? 5);
  const shapes = (flags.shapes ?? '1,1024,8,64;1,4096,8,64;1,2048,8,128')
    .split(';')
    .map((text) => text.split(',').map(Number));
  const threadCounts = (flags.threads ?? (availableParallelism() > 1 ? '1,2' : '1')).split(',').map(Number);
  const device = readProcessor(flags.device);
  const machine = describeProcessor(device);
  console.log(`${machine}; medians of ${rounds} interleaved rounds\n`);
  console.log(`${headsOf(columns)}  threads: fwd bwd`);
  const all: Row[] = [];
  for (const [batch, length, heads, dim] of shapes)
    for (const causal of [false, true]) {
      const rows = await benchmark({ batch, heads, length, dim, causal }, device, threadCounts, rounds);
      print(rows);
      all.push(...rows);
    }
  if (flags.json)
    writeFileSync(
      flags.json,
      `${JSON.stringify({ date: new Date().toISOString(), machine, rounds, rows: all }, null, 2)}\n`,
    );
}

await (process.env.FLASHATTN_BENCH_CHILD ? serve() : main());
