// Small calls and decoding on the processor.
//
//   npm run bench:small -- [--device wasm|cpu] [--rounds 15] [--json results.json]
//
// Decoding is held against a plain read of the same bytes and, as far as it knows the operation, against onnxruntime-web
// where `npm run bench:peers` has installed it; one after the other in each round.
import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import { setTimeout } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { attention, attentionBackward, plan, status, type Tensor, tensor } from 'flashattn';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../lib/cli/table.js';
import { type Answer, agree, isRefusal, type Refusal, startPeer } from './contenders.js';
import { sample, waves } from './peers/serve.mjs';
import { describeProcessor, readProcessor } from './processor.js';
import { createReader } from './readBandwidth.js';

const { values: flags } = parseArgs({
  options: { rounds: { type: 'string' }, json: { type: 'string' }, device: { type: 'string' } },
});
const device = readProcessor(flags.device);
const threads = (device === 'wasm' ? status('wasm') : status('cpu')).threads;

function random(...shape: [number, number, number, number]) {
  const size = shape.reduce((a, b) => a * b);
  return tensor(
    Float32Array.from({ length: size }, () => 2 * Math.random() - 1),
    shape,
    { device },
  );
}

const tensorsOf = (results: object) =>
  Object.values(results).filter((x): x is Tensor => x && typeof x.ready === 'function');

async function wait(results: object): Promise<void> {
  await Promise.all(tensorsOf(results).map((t) => t.ready()));
}

async function finish(results: object): Promise<void> {
  await wait(results);
  for (const t of tensorsOf(results)) t.dispose();
}

/** Undefined of no values. */
const medianOf = (values: readonly number[]) => (values.length > 0 ? median(values) : undefined);

/** [batch, queries, keys, heads, dim] */
type PeerProblem = readonly [number, number, number, number, number];

/** Milliseconds of a run of the peer, the mean of a few. */
type Peer = (problem: PeerProblem, runs: number) => Promise<number>;

/** Milliseconds until the peer's threads look for work no more. */
const peerPause = 20;

const root = new URL('../../', import.meta.url);

/** onnxruntime-web on as many threads as the library has. */
async function startOnnx(threads: number): Promise<Peer | Refusal> {
  const onnx = await startPeer('ort-web', threads, root);
  if (isRefusal(onnx)) return onnx;
  const checked = new Set<string>();
  return async (problem, runs) => {
    const answer = await onnx.ask<Answer>({ problem: [...problem, 0], runs });
    if (isRefusal(answer)) throw new Error(`onnxruntime-web ${answer.reason}`);
    const { milliseconds, out } = answer;
    if (!checked.has(String(problem))) {
      const expected = await expectedOf(problem);
      if (!agree(out, expected)) throw new Error(`onnxruntime-web differs: ${out}; expected ${expected}`);
      checked.add(String(problem));
    }
    await setTimeout(peerPause);
    return milliseconds;
  };
}

/** What the library makes of the peer's inputs. */
async function expectedOf([batch, queries, keys, heads, dim]: PeerProblem): Promise<number[]> {
  const make = (rows: number) => tensor(waves(batch * rows * heads * dim), [batch, rows, heads, dim], { device });
  using q = make(queries);
  using kv = make(keys);
  const { out, lse } = attention(q, kv, kv);
  const data = await out.data();
  out.dispose();
  lse.dispose();
  return sample(data as Float32Array);
}

interface DecodeRow {
  readonly heads: number;
  readonly kvHeads: number;
  readonly keys: number;
  readonly dim: number;
  readonly milliseconds: number;
  /** Bytes a second of K and V. */
  readonly bandwidth: number;
  /** Bytes a second of a plain read of as many. */
  readonly readBandwidth: number;
  /** Median over rounds of the one over the other. */
  readonly share: number;
  /** Milliseconds of the peer. */
  readonly peer?: number | undefined;
}

/** One query over many keys, [1, keys, kvHeads, dim] in float32. */
async function decode(heads: number, kvHeads: number, rounds: number, peer?: Peer): Promise<DecodeRow> {
  const [keys, dim] = [4096, 128];
  const [q, k, v] = [random(1, 1, heads, dim), random(1, keys, kvHeads, dim), random(1, keys, kvHeads, dim)];
  const bytes = 2 * 4 * keys * kvHeads * dim;
  const read = await createReader(bytes, threads);
  const ours = async () => {
    const start = performance.now();
    await finish(attention(q, k, v));
    return performance.now() - start;
  };
  for (let i = 0; i < 10; i++) await ours();
  const theirs = async () => (heads === kvHeads ? peer?.([1, 1, keys, heads, dim], 1) : undefined);
  await theirs();
  const samples: { ms: number; read: number; theirs: number | undefined }[] = [];
  for (let i = 0; i < rounds; i++) samples.push({ ms: await ours(), read: await read(), theirs: await theirs() });
  for (const t of [q, k, v]) t.dispose();
  const bandwidth = (ms: number) => (bytes * 1000) / ms;
  return {
    heads,
    kvHeads,
    keys,
    dim,
    milliseconds: median(samples.map((s) => s.ms)),
    bandwidth: median(samples.map((s) => bandwidth(s.ms))),
    readBandwidth: median(samples.map((s) => s.read)),
    share: median(samples.map((s) => bandwidth(s.ms) / s.read)),
    peer: medianOf(samples.flatMap((s) => s.theirs ?? [])),
  };
}

/** Microseconds; heads x queries x keys. */
interface CallRow {
  readonly name: string;
  /** From the call to its results. */
  readonly whole: number;
  /** Until the call returns, with the arithmetic where the calling thread does it. */
  readonly host: number;
  /** The whole of the peer. */
  readonly peer?: number | undefined;
}

const callsPerRound = 20;

async function calls(
  name: string,
  run: () => object,
  rounds: number,
  theirs: (runs: number) => Promise<number> | undefined = () => undefined,
  end = finish,
): Promise<CallRow> {
  const [whole, host, peer]: number[][] = [[], [], []];
  for (let round = -10; round < rounds; round++) {
    for (let i = 0; i < callsPerRound; i++) {
      const start = performance.now();
      const results = run();
      const returned = performance.now();
      await end(results);
      if (round < 0) continue;
      host.push(1000 * (returned - start));
      whole.push(1000 * (performance.now() - start));
    }
    const milliseconds = await theirs(callsPerRound);
    if (milliseconds !== undefined && round >= 0) peer.push(1000 * milliseconds);
  }
  return { name, whole: median(whole), host: median(host), peer: medianOf(peer) };
}

/** Milliseconds to import the package and for the first result, in a process of its own. */
interface FirstCall {
  readonly load: number;
  readonly call: number;
}

const firstCallProgram = `
const start = performance.now();
const { attention, tensor } = await import('flashattn');
const loaded = performance.now();
const x = tensor(new Float32Array(8192), [1, 32, 8, 32], { device: process.env.FLASHATTN_BENCH_DEVICE });
await attention(x, x, x).out.data();
console.log(JSON.stringify({ load: loaded - start, call: performance.now() - loaded }));
process.exit();
`;

function firstCall(rounds: number): FirstCall {
  const env = { ...process.env, FLASHATTN_BENCH_DEVICE: device };
  const cwd = fileURLToPath(new URL('../..', import.meta.url)); // where 'flashattn' is this package
  const runs = Array.from({ length: rounds }, (): FirstCall => {
    const args = ['--input-type=module', '--eval', firstCallProgram];
    return JSON.parse(execFileSync(process.execPath, args, { cwd, encoding: 'utf8', env }));
  });
  return { load: median(runs.map((r) => r.load)), call: median(runs.map((r) => r.call)) };
}

const rounds = Number(flags.rounds ?? 15);
const machine = describeProcessor(device);
console.log(`${machine}; medians of ${rounds} rounds\n`);

const onnx = await startOnnx(threads);
if (isRefusal(onnx)) console.log(`onnxruntime-web ${onnx.reason}\n`);
const peer = isRefusal(onnx) ? undefined : onnx;

const decodeColumns: readonly Column<DecodeRow>[] = [
  text('one query, float32', 20, (r) => (r.kvHeads === r.heads ? 'MHA' : 'GQA')),
  number('heads', 5, (r) => r.heads),
  number('kv heads', 8, (r) => r.kvHeads),
  number('keys', 6, (r) => r.keys),
  number('dim', 4, (r) => r.dim),
  number('ms', 7, (r) => r.milliseconds, fixed(2)),
  number('GB/s', 7, (r) => r.bandwidth / 1e9, fixed(1)),
  number('read GB/s', 10, (r) => r.readBandwidth / 1e9, fixed(1)),
  number('share', 6, (r) => r.share, percent(0)),
  number('onnx ms', 9, (r) => r.peer, fixed(2)),
];
console.log(headsOf(decodeColumns));
const decoding: DecodeRow[] = [];
for (const kvHeads of [32, 8]) {
  const row = await decode(32, kvHeads, rounds, peer);
  decoding.push(row);
  console.log(lineOf(decodeColumns, row));
}

const callColumns: readonly Column<CallRow>[] = [
  text('call', 20, (r) => r.name),
  number('whole us', 8, (r) => r.whole, fixed(0)),
  number('host us', 8, (r) => r.host, fixed(0)),
  number('onnx us', 8, (r) => r.peer, fixed(0)),
];
console.log(`\n${headsOf(callColumns)}`);
const small = [random(1, 32, 8, 32), random(1, 32, 8, 32), random(1, 32, 8, 32), random(1, 32, 8, 32)] as const;
// One query and one key: hardly any arithmetic, so what is left is the host's own work.
const one = random(1, 1, 8, 32);
const savedOne = { q: one, k: one, v: one, ...attention(one, one, one) };
const [q, k, v, dOut] = small;
const saved = { q, k, v, ...attention(q, k, v) };
const planned = plan({ q: one.shape, backward: true, device });
const captured = planned.capture(one, one, one, one);
const callRows = [
  await calls(
    'forward 8 x 32 x 32',
    () => ({ ...attention(q, k, v) }),
    rounds,
    (runs) => peer?.([1, 32, 32, 8, 32], runs),
  ),
  await calls('backward 8 x 32 x 32', () => ({ ...attentionBackward(dOut, saved) }), rounds),
  await calls(
    'forward 8 x 1 x 1',
    () => ({ ...attention(one, one, one) }),
    rounds,
    (runs) => peer?.([1, 1, 1, 8, 32], runs),
  ),
  await calls('backward 8 x 1 x 1', () => ({ ...attentionBackward(one, savedOne) }), rounds),
  await calls(
    'a plan, both 8 x 1 x 1',
    () => ({ ...planned.run(one, one, one), ...planned.runBackward(one) }),
    rounds,
    undefined,
    wait,
  ),
  await calls('a captured plan, both', () => captured.replay(), rounds, undefined, wait),
];
for (const row of callRows) console.log(lineOf(callColumns, row));

const first = firstCall(5);
console.log(`\nfirst call of a process: ${first.call.toFixed(0)} ms, after ${first.load.toFixed(0)} ms to import`);
if (flags.json)
  writeFileSync(
    flags.json,
    `${JSON.stringify({ date: new Date().toISOString(), machine, rounds, decoding, calls: callRows, first }, null, 2)}\n`,
  );
process.exit(0);
