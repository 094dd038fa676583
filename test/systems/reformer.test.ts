/** Attention by locality-sensitive hashing, against its definition entry by entry. */
import { arange, cast, type DeviceName, memory, noGrad, scope, type Tensor, tensor, zeros } from 'flashattn';
import { lshAttention, lshBuckets, lshRotations, reformerAttention } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { type LshCase, type LshInputs, lsh, lshBucket } from '../../verify/oracle/reformer.js';
import { Tokens } from '../../verify/oracle/rows.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = Tensor<'float32', readonly [number, number, number, number]>;
const tokens = (t: Tensor | undefined) => t as Tensor<'float32'> as Shape4;

const base: LshCase = {
  ...{ batch: 2, seq: 24, heads: 2, dim: 4, valueDim: 3, rounds: 2, chunk: 4 },
  ...{ before: 1, after: 0, causal: false, duplicates: 'count' },
};

const cases: readonly LshCase[] = [
  base,
  { ...base, causal: true, real: 17 },
  { ...base, rounds: 3, before: 1, after: 1, real: 20 },
  { ...base, batch: 1, rounds: 1, chunk: 6, before: 0, causal: true },
  // As much of a list as there is.
  { ...base, batch: 1, seq: 12, rounds: 1, chunk: 3, before: 2, after: 1 },
  { ...base, batch: 1, rounds: 3, duplicates: 'share' },
  { ...base, rounds: 2, after: 1, causal: true, duplicates: 'share', real: 20 },
  // Chunks of one token.
  { ...base, batch: 1, seq: 7, chunk: 1 },
];

const inputsOf = (c: LshCase): Inputs => ({
  qk: input([c.batch, c.seq, c.heads, c.dim], 1),
  v: input([c.batch, c.seq, c.heads, c.valueDim], 2),
});

type Bucket = (b: number, h: number, round: number, i: number) => number;

/** Scattered, with buckets of any size and some empty. */
const scattered: Bucket = (b, h, round, i) => 5 * round + ((7 * i + 3 * b + h + i * i * (round + 1)) % 5);

const bucketsOf = (c: LshCase, bucket: Bucket, device: DeviceName) => {
  const all: number[] = [];
  for (let b = 0; b < c.batch; b++)
    for (let h = 0; h < c.heads; h++)
      for (let round = 0; round < c.rounds; round++) for (let i = 0; i < c.seq; i++) all.push(bucket(b, h, round, i));
  return tensor(Int32Array.from(all), [c.batch, c.heads, c.rounds, c.seq], { device });
};

/** Whether positions are real, [batch, seq]. */
const maskOf = (c: LshCase, device: DeviceName) =>
  scope(() =>
    cast(
      tensor(
        Float32Array.from({ length: c.batch * c.seq }, (_, at) =>
          Math.floor(at / c.seq) < c.batch - 1 || at % c.seq < (c.real ?? c.seq) ? 1 : 0,
        ),
        [c.batch, c.seq],
        { device },
      ),
      'bool',
    ),
  );

const runOn = (t: Named<Tensor>, c: LshCase, bucket: Bucket, device: DeviceName) =>
  lshAttention(tokens(t.qk), tokens(t.v), {
    buckets: bucketsOf(c, bucket, device),
    chunkLength: c.chunk,
    chunksBefore: c.before,
    chunksAfter: c.after,
    causal: c.causal,
    duplicates: c.duplicates,
    ...(c.real !== undefined && { mask: maskOf(c, device) }),
  }) as Tensor as Tensor;

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('attention by hashing'), () => {
    it.each(cases)('%j', (c) => {
      checkSystem(
        device,
        inputsOf(c),
        (t) => runOn(t, c, scattered, device),
        (values) => lsh(c, values as unknown as LshInputs, scattered),
      );
    });

    it('keeps the order of what shares a bucket', () => {
      const c = { ...base, rounds: 2 };
      for (const bucket of [() => 0, (_b, _h, round) => round, (_b, _h, _round, i) => -i] as Bucket[]) {
        const shifted: Bucket = (...at) => bucket(...at) + 24;
        checkSystem(
          device,
          inputsOf(c),
          (t) => runOn(t, c, shifted, device),
          (values) => lsh(c, values as unknown as LshInputs, shifted),
        );
      }
    });

    it('shared duplicates make it softmax over all keys that a token meets', () => {
      // In every round all see all.
      const c: LshCase = { ...base, batch: 1, seq: 8, chunk: 4, before: 1, rounds: 1 };
      const many: LshCase = { ...c, rounds: 3, chunk: 8, before: 0, duplicates: 'share' };
      const inputs = inputsOf(c);
      const one = run(device, inputs, (t) => ({ out: runOn(t, c, scattered, device) }), undefined);
      const three = run(device, inputs, (t) => ({ out: runOn(t, many, scattered, device) }), undefined);
      expect(maxError(three.outputs.out ?? [], one.outputs.out ?? new Float64Array())).toBeLessThan(1e-5);
    });

    it('hashes by the largest of the rotated, its sign included', () => {
      for (const factors of [[8], [4, 6], [2, 2, 2]]) {
        const [batch, seq, heads, dim, rounds] = [2, 9, 2, 5, 3];
        const half = factors.reduce((total, n) => total + n / 2, 0);
        const x = input([batch, seq, heads, dim], 3);
        const rotations = input([heads, dim, rounds, half], 4);
        const rows = new Tokens(x.data, seq, heads, dim);
        noGrad(() => {
          const before = memory(device).tensors;
          const t = tensor(Float32Array.from(x.data), x.shape, { device }) as Tensor;
          const r = tensor(Float32Array.from(rotations.data), rotations.shape, { device });
          const numBuckets = factors.length === 1 ? (factors[0] as number) : factors;
          const mask = maskOf({ ...base, batch, seq, real: 6 }, device);
          const plain = lshBuckets(t, { numBuckets, rotations: r });
          const masked = lshBuckets(t, { numBuckets, rotations: r, mask });
          const count = factors.reduce((product, n) => product * n, 1);
          const [own, others] = [plain.dataSync(), masked.dataSync()];
          for (const [at, bucket] of own.entries()) {
            const [i, round] = [at % seq, Math.floor(at / seq) % rounds];
            const [h, b] = [Math.floor(at / seq / rounds) % heads, Math.floor(at / seq / rounds / heads)];
            const expected = lshBucket(
              rows.row(b, i, h),
              factors,
              (d, column) => rotations.data[((h * dim + d) * rounds + round) * half + column] as number,
            );
            expect(bucket).toBe(round * count + expected);
            expect(others[at]).toBe(round * (count + 1) + (b === 1 && i >= 6 ? count : expected));
          }
          for (const each of [t, r, mask, plain, masked]) each.dispose();
          expect(memory(device).tensors).toBe(before);
        });
      }
    });

    it('gives out and buckets in one call, of rotations that are drawn', () => {
      const c = { ...base, real: 20, causal: true };
      run(
        device,
        inputsOf(c),
        (t) => {
          const rotations = lshRotations({ heads: 2, dim: 4, rounds: 2, numBuckets: [2, 4], seed: 5, device });
          expect(rotations.shape).toEqual([2, 4, 2, 3]);
          const mask = maskOf(c, device);
          const { out, buckets } = reformerAttention(tokens(t.qk), tokens(t.v), {
            ...{ rotations, numBuckets: [2, 4], mask, chunkLength: c.chunk, causal: true },
          });
          const values = buckets.dataSync();
          const bucket: Bucket = (b, h, round, i) =>
            values[((b * c.heads + h) * c.rounds + round) * c.seq + i] as number;
          const exact = lsh(c, { qk: t.qk?.toFloat32Sync() ?? [], v: t.v?.toFloat32Sync() ?? [] }, bucket);
          expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(2e-5);
          return { out: out as Tensor as Tensor };
        },
        { out: new Float64Array(c.batch * c.seq * c.heads * c.valueDim).fill(1) },
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c = { ...base, duplicates: 'share' } as const;
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries(inputsOf(c)).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const buckets = bucketsOf(c, scattered, device);
        const out = lshAttention(tokens(t.qk), tokens(t.v), {
          buckets,
          chunkLength: c.chunk,
          duplicates: 'share',
        }) as Tensor as Tensor;
        expect(out.dtype).toBe(dtype);
        const exact = lsh(c, values as unknown as LshInputs, scattered);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -7 : 2 ** -4);
        for (const x of [out, buckets, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const c = { ...base, ...empty };
        const { outputs } = run(device, inputsOf(c), (t) => ({ out: runOn(t, c, scattered, device) }), undefined);
        expect(outputs.out).toHaveLength(0);
      }
    });
  });
});

describe('bad arguments of attention by hashing', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;
  const buckets = (...shape: number[]) =>
    arange(
      shape.reduce((x, n) => x * n, 1),
      { device },
    ).reshape(shape);

  it.each<[string, object, RegExp]>([
    ['no buckets', { buckets: undefined }, /^ERR_OPTION: buckets is undefined/],
    ['buckets of another shape', { buckets: buckets(2, 2, 1, 6) }, /^ERR_SHAPE: buckets has shape/],
    [
      'a chunk that does not divide',
      { chunkLength: 3 },
      /^ERR_SHAPE: qk has 8 tokens; they must be a multiple of chunkLength, 3/,
    ],
    ['more chunks than there are', { chunksBefore: 4 }, /^ERR_OPTION: chunksBefore \+ chunksAfter is 4/],
    ['duplicates', { duplicates: 'once' }, /^ERR_OPTION: duplicates is "once"/],
    ['a mask of another shape', { mask: cast(of(2, 7) as Tensor, 'bool') }, /^ERR_SHAPE: mask has shape/],
    ['an unknown option', { chunklength: 2 }, /^ERR_OPTION: .*did you mean "chunkLength"/],
  ])('%s', (_, options, message) => {
    const before = memory(device).tensors;
    scope(() => {
      const own = { buckets: buckets(2, 2, 1, 8), chunkLength: 2 };
      const t = of(2, 8, 2, 4);
      expect(errorOf(() => lshAttention(t, t, { ...own, ...options } as never))).toMatch(message);
    });
    expect(memory(device).tensors).toBe(before);
  });

  it('names what the hashing needs', () => {
    const qk = of(2, 8, 2, 4);
    expect(errorOf(() => lshBuckets(qk, { numBuckets: 3, rotations: of(2, 4, 1, 2) }))).toMatch(
      /^ERR_OPTION: numBuckets is 3; it must be even/,
    );
    expect(errorOf(() => lshBuckets(qk, { numBuckets: [2, 4], rotations: of(2, 4, 1, 2) }))).toMatch(
      /^ERR_SHAPE: rotations has shape/,
    );
    expect(errorOf(() => lshRotations({ heads: 2, dim: 4, rounds: 0, numBuckets: 4, seed: 1, device }))).toMatch(
      /^ERR_OPTION: rounds is 0/,
    );
  });
});
