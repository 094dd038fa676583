// Linear and recurrent attention on the processor: shares of the arithmetic peak of the same run, time against length, where
// it overtakes our own causal attention, and the step of decoding against a copy of the same bytes.
//
//   npm run bench:linear -- [--device cpu|wasm] [--rounds 7] [--only shares,lengths,steps] [--json results.json]
//   npm run bench:linear -- --only bytes     what the kernels for GPUs ask of memory; needs `npm run build:emulator`
import { writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import {
  attention,
  capture,
  type DecayOptions,
  measurePeak,
  memory,
  noGrad,
  parameter,
  type RecurrenceOptions,
  recurrence,
  recurrenceStep,
  type Tensor,
  tensor,
} from 'flashattn';
import { median } from '../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, percent, text } from '../lib/cli/table.js';
import { describeProcessor, readProcessor } from './processor.js';

const { values: flags } = parseArgs({
  options: {
    rounds: { type: 'string' },
    json: { type: 'string' },
    device: { type: 'string' },
    only: { type: 'string' },
  },
});
// Blocks take wide tiles where there is one for every multiprocessor: with as many heads as fill a device, or on one that has
// few. FLASHATTN_MULTIPROCESSORS=132 counts what a few heads cost.
if (flags.only === 'bytes') process.env.FLASHATTN_MULTIPROCESSORS ??= '1';
const device = flags.only === 'bytes' ? ('emulator' as 'cpu') : readProcessor(flags.device ?? 'cpu');
const rounds = Number(flags.rounds ?? 7);
const wanted = (part: string) => flags.only === undefined || flags.only.split(',').includes(part);

/** Of the engine: the products within a chunk are counted for half of its square, which is what causality leaves. */
const chunk = 64;

type Kind = 'none' | 'head' | 'position' | 'channel' | 'delta' | 'gated delta';

function random(shape: readonly number[], scale = 1): Tensor<'float32'> {
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
  for (let i = 0; i < values.length; i++) values[i] = scale * (2 * Math.random() - 1);
  return tensor(values, shape, { device });
}

const gates = (shape: readonly number[]) => {
  const values = new Float32Array(shape.reduce((a, b) => a * b, 1));
  for (let i = 0; i < values.length; i++) values[i] = -0.1 * Math.random();
  return parameter(tensor(values, shape, { device }));
};

function problem(kind: Kind, batch: number, length: number, heads: number, dim: number) {
  const rows = [batch, length, heads];
  const [q, v] = [random([...rows, dim]), random([...rows, dim])];
  const k = random([...rows, dim], 1 / Math.sqrt(dim)); // about of length 1, which the delta rule needs
  const decay = (): DecayOptions | undefined => {
    if (kind === 'head') return { per: 'head', log: gates([heads]) };
    if (kind === 'channel') return { per: 'channel', log: gates([...rows, dim]) };
    return kind === 'position' || kind === 'gated delta' ? { per: 'position', log: gates(rows) } : undefined;
  };
  const beta = kind.includes('delta')
    ? parameter(tensor(new Float32Array(batch * length * heads).fill(0.5), rows, { device }))
    : undefined;
  const options: RecurrenceOptions = { decay: decay(), update: beta && { kind: 'delta', beta } };
  return { q: parameter(q), k: parameter(k), v: parameter(v), options, dOut: random([...rows, dim]) };
}

type Problem = ReturnType<typeof problem>;

const freed = ({ q, k, v, options, dOut }: Problem) => {
  for (const t of [q, k, v, dOut, options.decay?.log]) t?.dispose();
  if (options.update?.kind === 'delta') options.update.beta.dispose();
};

async function timeForward({ q, k, v, options }: Problem): Promise<number> {
  const start = performance.now();
  const { out, state } = noGrad(() => recurrence(q, k, v, options));
  await out.ready();
  const time = performance.now() - start;
  out.dispose();
  state.dispose();
  return time;
}

async function timeBackward({ q, k, v, options, dOut }: Problem): Promise<number> {
  const { out, state } = recurrence(q, k, v, options);
  await out.ready();
  const start = performance.now();
  out.backward(dOut);
  await (k.grad as Tensor).ready();
  const time = performance.now() - start;
  for (const t of [q, k, v, options.decay?.log, options.update?.kind === 'delta' ? options.update.beta : undefined])
    t?.grad?.dispose();
  out.dispose();
  state.dispose();
  return time;
}

/** Multiplications and additions of the products: within chunks, and with states. */
const flops = (length: number, heads: number, dim: number, scores: number, states: number) =>
  2 * length * heads * (scores * (chunk / 2) * dim + states * dim * dim);
const forwardFlops = (length: number, heads: number, dim: number) => flops(length, heads, dim, 2, 2);
/** With the states, which are made once more. */
const backwardFlops = (length: number, heads: number, dim: number) => flops(length, heads, dim, 5, 5);

interface ShareRow {
  readonly kind: Kind;
  readonly dim: number;
  readonly forwardMs: number;
  readonly forwardShare: number;
  readonly backwardMs: number;
  readonly backwardShare: number;
}

const [shareLength, shareHeads] = [2048, 8];

async function shares(): Promise<ShareRow[]> {
  const kinds: readonly Kind[] = ['none', 'head', 'position', 'channel', 'delta', 'gated delta'];
  const rows: ShareRow[] = [];
  for (const dim of [64, 128]) {
    const samples = kinds.map(() => ({ forward: [] as number[], backward: [] as number[] }));
    const peaks: number[] = []; // the largest of each round: what disturbs it only makes it smaller
    for (let round = -2; round < rounds; round++) {
      let largest = 0;
      for (const [i, kind] of kinds.entries()) {
        const p = problem(kind, 1, shareLength, shareHeads, dim);
        for (let warm = 0; warm < 2; warm++) await timeForward(p);
        const forward = await timeForward(p);
        const backward = await timeBackward(p);
        largest = Math.max(largest, await measurePeak(device));
        freed(p);
        if (round < 0) continue;
        samples[i].forward.push(forward);
        samples[i].backward.push(backward);
      }
      if (round >= 0) peaks.push(largest);
    }
    for (const [i, kind] of kinds.entries()) {
      const { forward, backward } = samples[i];
      const share = (times: readonly number[], count: number) =>
        median(times.map((ms, round) => (1000 * count) / ms / peaks[round]));
      rows.push({
        kind,
        dim,
        forwardMs: median(forward),
        forwardShare: share(forward, forwardFlops(shareLength, shareHeads, dim)),
        backwardMs: median(backward),
        backwardShare: share(backward, backwardFlops(shareLength, shareHeads, dim)),
      });
    }
  }
  return rows;
}

interface LengthRow {
  readonly length: number;
  readonly milliseconds: number;
  readonly backwardMs: number;
  readonly attentionMs: number | undefined;
  readonly ratio: number | undefined;
  /** Bytes in use at most, forward and backward, over those of q, k, v, out and their gradients; where more than before. */
  readonly memory: number | undefined;
}

const lengthHeads = 2;

/** Retention: a decay by head. */
async function lengths(): Promise<LengthRow[]> {
  const dim = 64;
  const rows: LengthRow[] = [];
  for (const length of [256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]) {
    const peakBefore = memory(device).bytesPeak;
    const p = problem('head', 1, length, lengthHeads, dim);
    const ours: number[] = [];
    const back: number[] = [];
    const theirs: number[] = [];
    const [q, k, v] = [p.q.detach(), p.k.detach(), p.v.detach()];
    for (let round = -1; round < rounds; round++) {
      const time = await timeForward(p);
      const backward = await timeBackward(p);
      let other: number | undefined;
      if (length <= 8192) {
        const start = performance.now();
        const { out, lse } = attention(q, k, v, { causal: true });
        await out.ready();
        other = performance.now() - start;
        out.dispose();
        lse.dispose();
      }
      if (round < 0) continue;
      ours.push(time);
      back.push(backward);
      if (other !== undefined) theirs.push(other);
    }
    for (const t of [q, k, v]) t.dispose();
    const { out, state } = recurrence(p.q, p.k, p.v, p.options);
    out.backward(p.dOut);
    const { bytesPeak } = memory(device);
    for (const t of [out, state, p.q.grad, p.k.grad, p.v.grad, p.options.decay?.log.grad]) t?.dispose();
    freed(p);
    rows.push({
      length,
      milliseconds: median(ours),
      backwardMs: median(back),
      attentionMs: theirs.length > 0 ? median(theirs) : undefined,
      ratio: theirs.length > 0 ? median(theirs.map((ms, i) => ms / ours[i])) : undefined,
      memory: bytesPeak > peakBefore ? bytesPeak / (8 * 4 * length * lengthHeads * dim) : undefined,
    });
  }
  return rows;
}

/** The slope of log time over log length, by least squares. */
function exponent(rows: readonly LengthRow[], time: (row: LengthRow) => number): number {
  const points = rows.filter((r) => r.length >= 1024).map((r) => [Math.log(r.length), Math.log(time(r))] as const);
  const mean = (values: readonly number[]) => values.reduce((a, b) => a + b, 0) / values.length;
  const [x, y] = [mean(points.map(([a]) => a)), mean(points.map(([, b]) => b))];
  return (
    points.reduce((sum, [a, b]) => sum + (a - x) * (b - y), 0) / points.reduce((sum, [a]) => sum + (a - x) ** 2, 0)
  );
}

interface StepRow {
  readonly kind: Kind;
  readonly dim: number;
  readonly batch: number;
  readonly microseconds: number;
  /** Bytes a second that are read and written of states, over those of a copy of as many. */
  readonly share: number;
  /** The same of a step that is replayed: without the host's work. */
  readonly capturedMicroseconds: number;
  readonly capturedShare: number;
}

/** Rounds before those that count: until the host's part is compiled, a step takes three times as long. */
const warmups = 20;

async function steps(): Promise<StepRow[]> {
  const rows: StepRow[] = [];
  for (const dim of [64, 128])
    for (const kind of ['head', 'channel', 'gated delta'] as const)
      for (const batch of [1, 16]) {
        const heads = 16;
        const p = problem(kind, batch, 1, heads, dim);
        const flat = (t: Tensor) => t.detach().reshape([t.shape[0], ...t.shape.slice(2)]);
        const { decay, update } = p.options;
        const log = decay && (decay.per === 'head' ? decay.log.detach() : flat(decay.log));
        const options = {
          ...(decay && log ? { decay: { per: decay.per, log } } : {}),
          ...(update?.kind === 'delta' ? { update: { kind: 'delta', beta: flat(update.beta) } as const } : {}),
        };
        const state = random([batch, heads, dim, dim]);
        const [q, k, v] = [flat(p.q), flat(p.k), flat(p.v)];
        const other = random([batch, heads, dim, dim]);
        const calls = 50;
        const ours = async () => {
          const start = performance.now();
          for (let i = 0; i < calls; i++) recurrenceStep(q, k, v, { ...options, state }).out.dispose();
          await state.ready();
          return (performance.now() - start) / calls;
        };
        const captured = capture(() => recurrenceStep(q, k, v, { ...options, state }));
        const replayed = async () => {
          const start = performance.now();
          for (let i = 0; i < calls; i++) captured.replay();
          await state.ready();
          return (performance.now() - start) / calls;
        };
        const copy = async () => {
          const start = performance.now();
          for (let i = 0; i < calls; i++) state.copyInto(other);
          await other.ready();
          return (performance.now() - start) / calls;
        };
        const samples: (readonly [number, number, number])[] = [];
        for (let round = -warmups; round < rounds; round++) {
          const one = [await ours(), await replayed(), await copy()] as const;
          if (round >= 0) samples.push(one);
        }
        captured.dispose();
        rows.push({
          kind,
          dim,
          batch,
          microseconds: 1000 * median(samples.map(([step]) => step)),
          share: median(samples.map(([step, , copied]) => copied / step)),
          capturedMicroseconds: 1000 * median(samples.map(([, replay]) => replay)),
          capturedShare: median(samples.map(([, replay, copied]) => copied / replay)),
        });
        for (const t of [state, q, k, v, other]) t.dispose();
        freed(p);
      }
  return rows;
}

interface BytesRow {
  readonly kind: Kind;
  readonly dim: number;
  /** Bytes that kernels ask of global memory, over those of inputs and outputs. */
  readonly forward: number;
  readonly backward: number;
}

const emulator = fileURLToPath(new URL('../emulator/Release/flashattn_emulator.node', import.meta.url));

/** What bounds a GPU, counted by the emulator. Both passes together are held against the inputs and outputs of both. */
async function bytes(): Promise<BytesRow[]> {
  const { emulator: controls } = createRequire(import.meta.url)(emulator) as {
    emulator: { statistics(): { globalRead: number; globalWritten: number }; configure(config: object): void };
  };
  controls.configure({ races: false, globalRaces: false, bankConflicts: false });
  const counted = () => {
    const { globalRead, globalWritten } = controls.statistics();
    return globalRead + globalWritten;
  };
  const rows: BytesRow[] = [];
  const [length, heads] = [512, 1];
  for (const dim of [64, 128])
    for (const kind of ['none', 'head', 'position', 'channel', 'gated delta'] as const) {
      const p = problem(kind, 1, length, heads, dim);
      const row = 4 * length * heads;
      const gateBytes = { none: 0, head: 0, position: 1, channel: dim, delta: 1, 'gated delta': 2 }[kind];
      const before = counted();
      const { out, state } = recurrence(p.q, p.k, p.v, p.options);
      await out.ready();
      const forward = counted();
      out.backward(p.dOut);
      await (p.k.grad as Tensor).ready();
      const both = counted() - before;
      rows.push({
        kind,
        dim,
        forward: (forward - before) / (row * (4 * dim + gateBytes)),
        // q, k, v, gates and out; then d_out and the gradients of q, k, v and gates.
        backward: both / (row * (8 * dim + 2 * gateBytes)),
      });
      out.dispose();
      state.dispose();
      freed(p);
    }
  return rows;
}

const machine = describeProcessor(flags.only === 'bytes' ? 'cpu' : device);
console.log(`${machine}; medians of ${rounds} interleaved rounds`);
const results: Record<string, unknown> = { date: new Date().toISOString(), machine, rounds };

if (wanted('shares')) {
  console.log(
    `\nshares of the FMA peak, (B,N,H) = (1,${shareLength},${shareHeads}); products of half a chunk's square counted`,
  );
  const columns: readonly Column<ShareRow>[] = [
    text('decay', 12, (r) => r.kind),
    number('D', 4, (r) => r.dim),
    number('fwd ms', 8, (r) => r.forwardMs, fixed(2)),
    number('share', 6, (r) => r.forwardShare, percent(0)),
    number('bwd ms', 8, (r) => r.backwardMs, fixed(2)),
    number('share', 6, (r) => r.backwardShare, percent(0)),
  ];
  console.log(headsOf(columns));
  const rows = await shares();
  for (const row of rows) console.log(lineOf(columns, row));
  results.shares = rows;
}
if (wanted('lengths')) {
  console.log(`\na decay by head, (B,H,D) = (1,${lengthHeads},64), beside causal attention`);
  const columns: readonly Column<LengthRow>[] = [
    number('N', 6, (r) => r.length),
    number('fwd ms', 9, (r) => r.milliseconds, fixed(2)),
    number('bwd ms', 9, (r) => r.backwardMs, fixed(2)),
    number('causal ms', 10, (r) => r.attentionMs, fixed(2)),
    number('causal / ours', 14, (r) => r.ratio, fixed(2)),
    number('memory', 7, (r) => r.memory, fixed(2)),
  ];
  console.log(headsOf(columns));
  const rows = await lengths();
  for (const row of rows) console.log(lineOf(columns, row));
  const exponents = { forward: exponent(rows, (r) => r.milliseconds), backward: exponent(rows, (r) => r.backwardMs) };
  console.log(
    `time grows as N^${exponents.forward.toFixed(3)} forward and N^${exponents.backward.toFixed(3)} backward, from 1,024 on`,
  );
  results.lengths = rows;
  results.exponents = exponents;
}
if (wanted('steps')) {
  console.log('\na step of decoding, 16 heads, states where they lie, beside a copy of as many bytes');
  const columns: readonly Column<StepRow>[] = [
    text('decay', 12, (r) => r.kind),
    number('D', 4, (r) => r.dim),
    number('batch', 6, (r) => r.batch),
    number('us', 8, (r) => r.microseconds, fixed(1)),
    number('of a copy', 10, (r) => r.share, percent(0)),
    number('captured us', 12, (r) => r.capturedMicroseconds, fixed(1)),
    number('of a copy', 10, (r) => r.capturedShare, percent(0)),
  ];
  console.log(headsOf(columns));
  const rows = await steps();
  for (const row of rows) console.log(lineOf(columns, row));
  results.steps = rows;
}
if (flags.only === 'bytes') {
  console.log('\nbytes of global memory that emulated kernels ask for, over those of inputs and outputs; float32');
  const columns: readonly Column<BytesRow>[] = [
    text('decay', 12, (r) => r.kind),
    number('D', 4, (r) => r.dim),
    number('forward', 8, (r) => r.forward, fixed(2)),
    number('both', 8, (r) => r.backward, fixed(2)),
  ];
  console.log(headsOf(columns));
  const rows = await bytes();
  for (const row of rows) console.log(lineOf(columns, row));
  results.bytes = rows;
}
if (flags.json) writeFileSync(flags.json, `${JSON.stringify(results, null, 2)}\n`);
process.exit(0);
