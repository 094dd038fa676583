// Block-sparse attention against dense attention in the same run: time / (density x dense time), ideally 1.
//
//   npm run bench:sparse -- [--rounds 5] [--json results.json]
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import { attention, attentionBackward, type BlockMask, blockMask, masks, type Tensor, tensor } from 'flashattn';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../lib/cli/table.js';
import { describeProcessor, readProcessor } from './processor.js';

const blockSize = 64;
const dim = 64;

interface Pattern {
  readonly name: string;
  readonly mask: BlockMask | undefined;
  readonly density: number;
}

/** Uniformly random blocks and a sliding window of about the same density. */
function patternsOf(length: number, density: number): Pattern[] {
  const columns = length / blockSize;
  const count = Math.round(density * columns);
  // A window of w keys on each side shows (2 w + 1) n - w (w + 1) pairs of n^2.
  const side = Math.round(length * (1 - Math.sqrt(1 - density)));
  const random = masks.randomBlocks({ queries: length, keys: length, blockSize, count, seed: 1 });
  return Object.entries({ 'random blocks': random, 'sliding window': masks.slidingWindow(side, side) }).map(
    ([name, mask]) => {
      const compiled = blockMask(mask, { nq: length, blockSize });
      return { name, mask: compiled, density: compiled.statistics().density };
    },
  );
}

async function timed(run: () => Tensor[]): Promise<number> {
  const start = performance.now();
  const results = run();
  await Promise.all(results.map((t) => t.ready()));
  const milliseconds = performance.now() - start;
  for (const t of results) t.dispose();
  return milliseconds;
}

interface Row {
  readonly length: number;
  readonly heads: number;
  readonly pattern: string;
  readonly density: number;
  readonly forwardMs: number;
  readonly forwardRatio: number;
  readonly backwardMs: number;
  readonly backwardRatio: number;
}

async function benchmark(length: number, heads: number, densities: number[], rounds: number): Promise<Row[]> {
  const shape = [1, length, heads, dim] as const;
  const random = () =>
    tensor(
      Float32Array.from({ length: length * heads * dim }, () => 2 * Math.random() - 1),
      shape,
      { device },
    );
  const [q, k, v, dOut] = [random(), random(), random(), random()];
  const dense: Pattern = { name: 'dense', mask: undefined, density: 1 };
  const patterns = [dense, ...densities.flatMap((density) => patternsOf(length, density))];
  const runs = patterns.map(({ mask }) => {
    const options = mask ? { mask } : {};
    const saved = { q, k, v, ...attention(q, k, v, options) };
    const forward = () =>
      timed(() => {
        const { out, lse } = attention(q, k, v, options);
        return [out, lse];
      });
    const backward = () => timed(() => Object.values(attentionBackward(dOut, saved)) as Tensor[]);
    return { forward, backward };
  });
  for (const run of runs.slice(0, 2)) await run.backward(); // the engine optimises the kernels during the first calls
  const samples = patterns.map(() => ({ forward: [] as number[], backward: [] as number[] }));
  for (let round = 0; round < rounds; round++)
    for (const [i, run] of runs.entries()) {
      samples[i].forward.push(await run.forward());
      samples[i].backward.push(await run.backward());
    }
  return patterns.map(({ name, density }, i) => {
    // Against the dense run of the same round: what disturbed one disturbed the other.
    const ratio = (pass: 'forward' | 'backward') =>
      median(samples[i][pass].map((time, round) => time / (density * samples[0][pass][round])));
    return {
      length,
      heads,
      pattern: name,
      density,
      forwardMs: median(samples[i].forward),
      forwardRatio: ratio('forward'),
      backwardMs: median(samples[i].backward),
      backwardRatio: ratio('backward'),
    };
  });
}

const { values: flags } = parseArgs({
  options: { rounds: { type: 'string' }, json: { type: 'string' }, device: { type: 'string' } },
});
const device = readProcessor(flags.device);
const rounds = Number(flags.rounds ?? 5);
const machine = describeProcessor(device);
console.log(`${machine}; D = ${dim}, blocks of ${blockSize}; medians of ${rounds} interleaved rounds`);
console.log('ratio = time / (density x dense time)\n');
const columns: readonly Column<Row>[] = [
  text('(N,H)', 10, (r) => `(${r.length},${r.heads})`),
  text('pattern', 15, (r) => r.pattern),
  number('density', 7, (r) => r.density, percent(1)),
  number('fwd ms', 8, (r) => r.forwardMs, fixed(1)),
  number('ratio', 6, (r) => r.forwardRatio, fixed(2)),
  number('bwd ms', 8, (r) => r.backwardMs, fixed(1)),
  number('ratio', 6, (r) => r.backwardRatio, fixed(2)),
];
console.log(headsOf(columns));
const rows: Row[] = [];
for (const [length, heads] of [
  [4096, 4],
  [16384, 1],
] as const) {
  for (const r of await benchmark(length, heads, [0.5, 0.25, 0.1], rounds)) {
    console.log(lineOf(columns, r));
    rows.push(r);
  }
}
if (flags.json)
  writeFileSync(flags.json, `${JSON.stringify({ date: new Date().toISOString(), machine, rounds, rows }, null, 2)}\n`);
