// What attention.ts leaves out, on a GPU: decoding, grouped heads, packed sequences, other head dims, float32, the terms of
// scores, the host's time for a launch, and copies.
//
//   node build/bench/others.js [--device cuda] [--rounds 11] [--json others.json] [--tiny]
import { writeFileSync } from 'node:fs';
import { parseArgs } from 'node:util';
import {
  type AttentionOptions,
  alibiSlopes,
  attention,
  type DeviceName,
  type FloatDType,
  plan,
  status,
  synchronize,
  type Tensor,
  tensor,
  zeros,
} from 'flashattn';
import { median } from '../../lib/cli/statistics.js';
import { type Column, fixed, headsOf, lineOf, number, text } from '../../lib/cli/table.js';
import { drawn, normalTable } from './inputs.js';
import { type Settings, timeOf } from './measure.js';
import { fullSizes, tinySizes } from './shapes.js';

interface Problem {
  readonly name: string;
  readonly dtype: FloatDType;
  /** [batch, Nq, Nk, heads, kv heads, dim] */
  readonly sizes: readonly [number, number, number, number, number, number];
  readonly options?: AttentionOptions;
  /** The lengths of packed sequences. */
  readonly lengths?: readonly number[];
  readonly forwardOnly?: boolean;
  /** What a mask leaves of the pairs; 1 unless it says otherwise. */
  readonly density?: number;
}

interface Row {
  readonly name: string;
  readonly dtype: FloatDType;
  readonly sizes: readonly number[];
  readonly forwardMs: number;
  readonly backwardMs: number | null;
  readonly forwardTflops: number;
  readonly backwardTflops: number | null;
  /** Bytes of q, k, v and out over the time. */
  readonly gigabytesPerSecond: number;
}

const elementBytes = (dtype: FloatDType) => (dtype === 'float32' ? 4 : 2);

/** Like lengths of texts: many short ones, few long ones; always the same. */
const lengths = Array.from({ length: 32 }, (_, i) => 64 + ((i * 389) % 961));
const packed = lengths.reduce((a, b) => a + b);

function problems(tiny: boolean): Problem[] {
  const long = tiny ? 64 : 4096;
  const batch = tiny ? 1 : 4;
  const heads = tiny ? 2 : 16;
  const bf16 = 'bfloat16';
  const dense = (name: string, dim: number, options: AttentionOptions = {}, more: Partial<Problem> = {}): Problem => ({
    name,
    dtype: bf16,
    sizes: [batch, long, long, heads, heads, dim],
    options,
    ...more,
  });
  const decode = (b: number, keys: number): Problem => ({
    name: `decode, batch ${b}, ${keys} keys`,
    dtype: bf16,
    sizes: [b, 1, keys, tiny ? 4 : 32, tiny ? 2 : 8, 128],
    forwardOnly: true,
  });
  return [
    ...[decode(1, tiny ? 64 : 4096), decode(tiny ? 2 : 64, tiny ? 64 : 4096), decode(1, tiny ? 128 : 131072)],
    { name: 'grouped heads 32/8', dtype: bf16, sizes: [batch, long, long, tiny ? 4 : 32, tiny ? 2 : 8, 128] },
    {
      name: 'packed sequences',
      dtype: bf16,
      sizes: [1, packed, packed, heads, heads, 128],
      lengths: tiny ? lengths.slice(0, 2) : lengths,
    },
    ...[32, 96, 192].map((dim) => dense(`head dim ${dim}`, dim)),
    dense('head dim 80', 80),
    dense('causal window 512', 128, { causal: true, window: [512, 0] }, { density: 512 / long }),
    ...[64, 128].map((dim) => dense(`softcap, head dim ${dim}`, dim, { softcap: 30 })),
    ...[64, 128].map((dim) =>
      dense(`alibi, head dim ${dim}`, dim, { alibi: alibiSlopes(heads), causal: true }, { density: 0.5 }),
    ),
    dense('dropout', 64, { dropout: { p: 0.1, seed: 1 } }),
    ...[64, 128].map((dim) => dense(`float32, head dim ${dim}`, dim, {}, { dtype: 'float32' })),
    dense('float32, causal', 128, { causal: true }, { dtype: 'float32', density: 0.5 }),
  ];
}

async function measureProblem(problem: Problem, settings: Settings): Promise<Row> {
  const { name, dtype, options = {}, lengths: parts, forwardOnly = false, density = 1 } = problem;
  const [b, nq, nk, h, hkv, d] = problem.sizes;
  const total = parts?.reduce((x, y) => x + y) ?? 0;
  const shapes = parts
    ? [
        [total, h, d],
        [total, hkv, d],
        [total, hkv, d],
        [total, h, d],
      ]
    : [
        [b, nq, h, d],
        [b, nk, hkv, d],
        [b, nk, hkv, d],
        [b, nq, h, d],
      ];
  const cumulative = parts && [0];
  for (const length of parts ?? []) cumulative?.push((cumulative.at(-1) ?? 0) + length);
  const all = (
    cumulative ? { ...options, cuSeqlensQ: cumulative, cuSeqlensK: cumulative } : options
  ) as AttentionOptions;
  const table = normalTable(dtype);
  const tensors: Tensor[] = [];
  try {
    const [q, k, v, dOut] = shapes.map((shape, n) => {
      const flat = drawn(
        table,
        shape.reduce((x, y) => x * y),
        n,
        dtype,
        settings.device,
      );
      tensors.push(flat);
      const t = flat.reshape(shape);
      tensors.push(t);
      return t;
    }) as [Tensor, Tensor, Tensor, Tensor];
    using prepared = plan({
      ...all,
      ...{ q: q.shape, k: k.shape, v: v.shape, dtype, device: settings.device, backward: !forwardOnly },
    });
    const forwardMs = await timeOf(() => prepared.run(q, k, v), 1, settings);
    const backwardMs = forwardOnly ? null : await timeOf(() => prepared.runBackward(dOut), 1, settings);
    const pairs = parts ? parts.reduce((sum, n) => sum + n * n, 0) : b * nq * nk;
    const flops = 4 * pairs * h * d * density;
    const bytes = tensors.filter((_, n) => n % 2 === 1).reduce((sum, t) => sum + t.size * elementBytes(dtype), 0);
    return {
      name,
      dtype,
      sizes: problem.sizes,
      forwardMs,
      backwardMs,
      forwardTflops: flops / forwardMs / 1e9,
      backwardTflops: backwardMs && (2.5 * flops) / backwardMs / 1e9,
      gigabytesPerSecond: bytes / forwardMs / 1e6,
    };
  } finally {
    for (const t of tensors) t.dispose();
  }
}

/** Microseconds that the host takes to launch, the device kept far behind or ahead. */
async function measureHost(settings: Settings): Promise<Record<string, number>> {
  const { device, rounds } = settings;
  const shape = [1, 64, 2, 64] as const;
  const make = () => zeros(shape, { dtype: 'bfloat16', device });
  using q = make();
  using k = make();
  using v = make();
  using dOut = make();
  using prepared = plan({ q: shape, dtype: 'bfloat16', device, backward: true });
  const time = async (run: () => void) => {
    const samples: number[] = [];
    for (let round = 0; round < rounds + 2; round++) {
      const start = performance.now();
      for (let i = 0; i < 200; i++) run();
      samples.push(((performance.now() - start) * 1000) / 200);
      await synchronize(device);
    }
    return median(samples.slice(2));
  };
  using captured = prepared.capture(q, k, v, dOut);
  return {
    'a captured plan, forward and backward': await time(() => captured.replay()),
    'a plan, forward': await time(() => prepared.run(q, k, v)),
    'a plan, backward': await time(() => prepared.runBackward(dOut)),
    'attention()': await time(() => {
      const { out, lse } = attention(q, k, v);
      out.dispose();
      lse.dispose();
    }),
  };
}

/** Gigabytes a second. */
async function measureCopies(settings: Settings, bytes: number): Promise<Record<string, number>> {
  const { device } = settings;
  const host = new Float32Array(bytes / 4).fill(1);
  const rate = (milliseconds: number) => bytes / milliseconds / 1e6;
  const clock = async (run: () => unknown) => {
    const samples: number[] = [];
    for (let round = 0; round < 5; round++) {
      const start = performance.now();
      await run();
      await synchronize(device);
      samples.push(performance.now() - start);
    }
    return rate(median(samples));
  };
  using t = tensor(host, [bytes / 4], { device });
  using square = t.reshape([1024, bytes / 4096]);
  using turned = square.transpose(0, 1);
  const on = async (x: Tensor) => {
    const time = await timeOf(() => x.contiguous().dispose(), 1, settings);
    return 2 * rate(time);
  };
  return {
    'to the device': await clock(() => tensor(host, [bytes / 4], { device }).dispose()),
    'from the device': await clock(() => t.data()),
    'from the device, dataSync': await clock(() => t.dataSync()),
    'on the device, transposed (read and written)': await on(turned),
  };
}

const columns: readonly Column<Row>[] = [
  text('problem', 28, (r) => r.name),
  text('dtype', 8, (r) => r.dtype),
  text('B,Nq,Nk,H,Hkv,D', 28, (r) => r.sizes.join(',')),
  number('fwd ms', 9, (r) => r.forwardMs, fixed(4)),
  number('TFLOP/s', 8, (r) => r.forwardTflops, fixed(1)),
  number('GB/s', 7, (r) => r.gigabytesPerSecond, fixed(0)),
  text('bwd ms', 9, (r) => r.backwardMs?.toFixed(3) ?? '-'),
  text('TFLOP/s', 8, (r) => r.backwardTflops?.toFixed(1) ?? '-'),
];

const { values: flags } = parseArgs({
  options: {
    device: { type: 'string', default: 'cuda' },
    rounds: { type: 'string', default: '11' },
    json: { type: 'string' },
    tiny: { type: 'boolean', default: false },
  },
});
const device = flags.device as DeviceName;
const settings: Settings = {
  device,
  rounds: flags.tiny ? 1 : Number(flags.rounds),
  sizes: flags.tiny ? tinySizes : fullSizes,
};
const found = status(device);
const results = {
  date: new Date().toISOString(),
  device: 'name' in found ? found.name : found.device,
  rows: [] as Row[],
  failures: [] as string[],
  hostMicroseconds: {},
  gigabytesPerSecond: {},
};
const save = () => {
  if (flags.json) writeFileSync(flags.json, `${JSON.stringify(results, null, 2)}\n`);
};
console.log(headsOf(columns));
for (const problem of problems(flags.tiny)) {
  try {
    const row = await measureProblem(problem, settings);
    results.rows.push(row);
    console.log(lineOf(columns, row));
  } catch (error) {
    results.failures.push(`${problem.name}: ${(error as Error).message}`);
    console.log(results.failures.at(-1));
    process.exitCode = 1;
  }
  save();
}
results.hostMicroseconds = await measureHost(settings);
save();
console.log('microseconds of the host:', results.hostMicroseconds);
results.gigabytesPerSecond = await measureCopies(settings, flags.tiny ? 1 << 16 : 1 << 28);
save();
console.log('GB/s of copies:', results.gigabytesPerSecond);
