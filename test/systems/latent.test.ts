/** xPos and multi-head latent attention, against their definitions token by token. */
import { concat, type DeviceName, memory, noGrad, scope, sum, type Tensor, tensor, uniform, zeros } from 'flashattn';
import {
  type MlaCache,
  type MlaWeights,
  MultiHeadLatentAttention,
  multiHeadLatentAttention,
  ropeFrequencies,
  type XposTables,
  xpos,
  xposAttention,
  xposTables,
  yarnScale,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { attendWide } from '../../lib/systems/mla.js';
import { maxError } from '../../verify/oracle/compare.js';
import * as oracle from '../../verify/oracle/latent.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

const xposCases: readonly oracle.XposShape[] = [
  { batch: 2, queries: 9, keys: 9, heads: 4, kvHeads: 2, dim: 6, valueDim: 3, base: 10_000, scaleBase: 16, causal: true },
  { batch: 1, queries: 3, keys: 12, heads: 1, kvHeads: 1, dim: 4, valueDim: 4, base: 100, scaleBase: 512, causal: true },
  { batch: 1, queries: 5, keys: 5, heads: 2, kvHeads: 2, dim: 2, valueDim: 1, base: 10_000, scaleBase: 64, causal: false },
]; // biome-ignore format: one line a case

const xposInputs = (c: oracle.XposShape): Inputs => ({
  q: input([c.batch, c.queries, c.heads, c.dim], 1),
  k: input([c.batch, c.keys, c.kvHeads, c.dim], 2),
  v: input([c.batch, c.keys, c.kvHeads, c.valueDim], 3),
});

const tensorsOf = ({ queries, keys }: XposTables) => [queries.cos, queries.sin, keys.cos, keys.sin];

type MlaCase = oracle.MlaShape & { readonly qRank?: number; readonly form: 'naive' | 'absorbed' };
const mlaCases: readonly MlaCase[] = (['naive', 'absorbed'] as const).flatMap((form) => [
  { form, batch: 2, seq: 6, width: 5, heads: 2, nope: 3, rope: 4, value: 2, rank: 6 },
  { form, batch: 1, seq: 5, width: 4, heads: 3, nope: 1, rope: 2, value: 5, rank: 3, qRank: 7, scale: 0.3 },
  // More dims than one kernel takes where it is absorbed.
  { form, batch: 1, seq: 3, width: 3, heads: 2, nope: 2, rope: 2, value: 2, rank: 255 },
]);

const mlaInputs = (c: MlaCase): Inputs => ({
  x: input([c.batch, c.seq, c.width], 1),
  q: input([c.heads * (c.nope + c.rope), c.qRank ?? c.width], 2, 0.5),
  ...(c.qRank !== undefined && { qDown: input([c.qRank, c.width], 3), qNorm: input([c.qRank], 4, 0.2, 1) }),
  kvDown: input([c.rank + c.rope, c.width], 5),
  kvNorm: input([c.rank], 6, 0.2, 1),
  kvUp: input([c.heads * (c.nope + c.value), c.rank], 7, 1 / Math.sqrt(c.rank)),
});

const angles = (positions: number, dims: number, device: DeviceName) => {
  const frequencies = ropeFrequencies({ dims });
  const table = (f: (x: number) => number) =>
    tensor(
      Float32Array.from({ length: positions * frequencies.length }, (_, at) =>
        f(Math.floor(at / frequencies.length) * (frequencies[at % frequencies.length] as number)),
      ),
      [positions, frequencies.length],
      { device },
    );
  return { cos: table(Math.cos), sin: table(Math.sin) };
};

const weightsOf = ({ x: _, ...weights }: Named<Tensor>) => weights as unknown as MlaWeights;
const exactMla = (c: MlaCase) => (values: Named<Float64Array>) =>
  oracle.mla(
    c,
    values.x as Float64Array,
    values as unknown as oracle.MlaOracleWeights,
    ropeFrequencies({ dims: c.rope }),
  );

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('positions and latents'), () => {
    it.each(xposCases)('xPos: %j', (c) => {
      // Longer tables do as well: the distance alone counts.
      for (const length of [c.keys, c.keys + 3])
        checkSystem(
          device,
          xposInputs(c),
          (t) => {
            const tables = xposTables({ length, dim: c.dim, base: c.base, scaleBase: c.scaleBase, device });
            return xposAttention(t.q as Tensor, t.k as Tensor, t.v as Tensor, { tables, causal: c.causal })
              .out as Tensor;
          },
          (values) => oracle.xpos(c, values as unknown as Parameters<typeof oracle.xpos>[1]),
        );
    });

    it('xPos is RoPE times a factor, whose inverse keys have', () => {
      noGrad(() =>
        scope(() => {
          const tables = xposTables({ length: 4, dim: 2, scaleBase: 2, device });
          const x = tensor(new Float32Array(8).fill(1), [4, 1, 2], { device });
          const [q, k] = [xpos(x, tables.queries), xpos(x, tables.keys)].map((t) => t.toFloat32Sync());
          const zeta = 0.8 / 2.8;
          for (let p = 0; p < 4; p++) {
            const size = (t: Float32Array | undefined) => Math.hypot(t?.[2 * p] ?? 0, t?.[2 * p + 1] ?? 0) / Math.SQRT2;
            expect(size(q)).toBeCloseTo(zeta ** ((p - 2) / 2), 5);
            expect(size(k)).toBeCloseTo(zeta ** ((2 - p) / 2), 5);
          }
        }),
      );
    });

    it.each(['float16', 'bfloat16'] as const)('xPos in %s, also where factors are beyond its range', (dtype) => {
      const c = { ...(xposCases[0] as oracle.XposShape), scaleBase: 0.5 };
      noGrad(() =>
        scope(() => {
          const t = Object.fromEntries(
            Object.entries(xposInputs(c)).map(([name, { shape, data }]) => [
              name,
              tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
            ]),
          );
          const values = Object.fromEntries(
            Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
          );
          const tables = xposTables({ length: c.keys, dim: c.dim, scaleBase: c.scaleBase, device });
          expect(tables.queries.cos.toFloat32Sync().some((x) => Math.abs(x) > 65504)).toBe(true);
          const { out } = xposAttention(t.q as Tensor, t.k as Tensor, t.v as Tensor, { tables });
          expect(out.dtype).toBe(dtype);
          const exact = oracle.xpos(c, values as unknown as Parameters<typeof oracle.xpos>[1]);
          expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -9 : 2 ** -5);
        }),
      );
    });

    it.each(mlaCases)('multi-head latent attention: %j', (c) => {
      checkSystem(
        device,
        mlaInputs(c),
        (t) =>
          multiHeadLatentAttention(t.x as Tensor, weightsOf(t), {
            heads: c.heads,
            form: c.form,
            angles: angles(c.seq, c.rope, device),
            ...(c.scale !== undefined && { scale: c.scale }),
          }).out as Tensor,
        exactMla(c),
      );
    });

    it.each(mlaCases)('multi-head latent attention goes on from its cache: %j', (c) => {
      const { form } = c;
      checkSystem(
        device,
        mlaInputs(c),
        (t) => {
          const options = {
            heads: c.heads,
            angles: angles(c.seq, c.rope, device),
            ...(c.scale !== undefined && { scale: c.scale }),
          };
          const x = t.x as Tensor;
          const outs: Tensor[] = [];
          let cache: MlaCache | undefined;
          for (const [from, to] of [
            [0, 2],
            [2, c.seq],
          ] as const) {
            const step = multiHeadLatentAttention(x.slice(1, from, to), weightsOf(t), {
              ...options,
              form,
              ...(cache && { cache }),
            });
            outs.push(step.out as Tensor);
            cache = step.cache;
          }
          return concat(outs, 1);
        },
        exactMla(c),
      );
    });

    it('rows of wide latents, a few at a time, are those of all at once', () => {
      const shapes: Inputs = { q: input([2, 5, 3, 7], 1), k: input([2, 9, 7], 2) };
      const dOut = { out: input([2, 5, 3, 4], 3).data, lse: input([2, 3, 5], 4).data };
      const of = (scoresAtOnce: number) =>
        run(
          device,
          shapes,
          (t) => ({ ...attendWide(t.q as Tensor, t.k as Tensor, 4, 0.5, scoresAtOnce) }) as Named<Tensor>,
          dOut,
        );
      const [all, some] = [of(10_000), of(120)];
      for (const kind of ['outputs', 'gradients'] as const)
        for (const [name, values] of Object.entries(all[kind]))
          expect(maxError(some[kind][name] ?? [], values), name).toBeLessThan(1e-5);
    });

    it.each(['naive', 'absorbed'] as const)('lse, and bfloat16 near float32: %s', (form) => {
      const c = mlaCases[0] as MlaCase;
      noGrad(() => {
        const before = memory(device).tensors;
        const results = scope(() =>
          (['float32', 'bfloat16'] as const).map((dtype) => {
            const t = Object.fromEntries(
              Object.entries(mlaInputs(c)).map(([name, { shape, data }]) => [
                name,
                tensor(Float32Array.from(data), shape, { device, dtype: name === 'x' ? dtype : 'float32' }) as Tensor,
              ]),
            );
            const tables = angles(c.seq, c.rope, device);
            const { out, lse } = multiHeadLatentAttention(t.x as Tensor, weightsOf(t), { heads: c.heads, form, angles: tables }); // biome-ignore format: one line
            expect(out.dtype).toBe(dtype);
            expect(lse.shape).toEqual([c.batch, c.heads, c.seq]);
            return { out: out.toFloat32Sync(), lse: lse.toFloat32Sync() };
          }),
        );
        expect(maxError(results[1]?.out ?? [], results[0]?.out ?? [])).toBeLessThan(0.1);
        expect(maxError(results[1]?.lse ?? [], results[0]?.lse ?? [])).toBeLessThan(0.1);
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty batches and sequences', () => {
      for (const empty of [{ batch: 0 }, { seq: 0 }])
        for (const form of ['naive', 'absorbed'] as const) {
          const c = { ...(mlaCases[0] as MlaCase), ...empty };
          const { outputs } = run(
            device,
            mlaInputs(c),
            (t) => ({
              out: multiHeadLatentAttention(t.x as Tensor, weightsOf(t), {
                heads: c.heads,
                form,
                angles: angles(Math.max(1, c.seq), c.rope, device),
              }).out as Tensor,
            }),
            undefined,
          );
          expect(outputs.out).toHaveLength(0);
        }
    });

    it('the layer gives token by token what it gives at once, and every weight a gradient', () => {
      const layer = new MultiHeadLatentAttention({ width: 6, heads: 2, nopeDim: 4, ropeDim: 2, valueDim: 3, kvRank: 5, qRank: 4, initial: { kind: 'normal', std: 0.4 }, device, seed: 2 }); // biome-ignore format: one line
      const x = uniform([2, 7, 6], { seed: 1, low: -1, device }) as Tensor;
      noGrad(() => {
        const all = scope(() => layer.forward(x)).toFloat32Sync();
        const steps = scope(() => {
          const outs: Tensor[] = [];
          let state: MlaCache | undefined;
          for (const [from, to] of [
            [0, 3],
            [3, 4],
            [4, 7],
          ] as const) {
            // biome-ignore format: one line
            const step = layer.next(x.slice(1, from, to), state);
            outs.push(step.out);
            state = step.state;
          }
          return concat(outs, 1);
        }).toFloat32Sync();
        expect(maxError(steps, all)).toBeLessThan(1e-5);
      });
      scope(() => sum(layer.forward(x))).backward();
      for (const [name, t] of layer.namedParameters()) expect(t.grad?.shape, name).toEqual(t.shape);
      layer.dispose();
    });
  });
});

describe('frequencies', () => {
  it.each([
    { factor: 4, originalLength: 16, betaFast: 32, betaSlow: 1 },
    { factor: 40, originalLength: 4096, betaFast: 32, betaSlow: 1 },
    { factor: 2, originalLength: 300, betaFast: 8, betaSlow: 2 },
  ])('of YaRN: %j', (yarn) => {
    for (const dims of [2, 16, 64])
      expect(maxError(ropeFrequencies({ dims, yarn }), oracle.yarn(dims, 10_000, yarn))).toBeLessThan(1e-12);
  });

  it('are those of RoPE without it', () => {
    expect(ropeFrequencies({ dims: 4, base: 100 })).toEqual(Float64Array.of(1, 0.1));
    expect(ropeFrequencies({ dims: 4, base: 100, yarn: { factor: 1, originalLength: 8 } })).toEqual(
      Float64Array.of(1, 0.1),
    );
    expect(yarnScale({ factor: 1 })).toBe(1);
    expect(yarnScale({ factor: 4 })).toBeCloseTo((0.1 * Math.log(4) + 1) ** 2, 12);
  });
});

describe('bad arguments', () => {
  const device: DeviceName = 'wasm';
  const made = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const c = mlaCases[0] as MlaCase;
  const weights = weightsOf(
    Object.fromEntries(Object.entries(mlaInputs(c)).map(([name, { shape }]) => [name, made(...shape)])),
  );
  const x = made(c.batch, c.seq, c.width);
  const options = { heads: 2, angles: angles(c.seq, c.rope, device) };
  const tables = xposTables({ length: 6, dim: 4, device });
  const q = made(1, 6, 2, 4);

  it.each<[string, () => unknown, RegExp]>([
    ['an odd dim', () => xposTables({ length: 6, dim: 3 }), /^ERR_OPTION: dim is 3; it must be even/],
    [
      'positions that decay too far',
      () => xposTables({ length: 200_000, dim: 4 }),
      /^ERR_OPTION: length is 200000 and scaleBase 512; scaleBase must be at least/,
    ],
    [
      'short tables',
      () => xposAttention(made(1, 7, 2, 4), made(1, 7, 2, 4), made(1, 7, 2, 4), { tables }),
      /^ERR_SHAPE: tables.queries.cos has shape \[6, 2\]; it must be \[at least 7 positions, 4 \/ 2\]/,
    ],
    [
      'more queries than keys',
      () => xposAttention(q, made(1, 5, 2, 4), made(1, 5, 2, 4), { tables }),
      /^ERR_SHAPE: q has 6 positions and k 5/,
    ],
    ['no tables', () => xposAttention(q, q, q, {} as never), /^ERR_OPTION: tables is undefined/],
    [
      'x',
      () => multiHeadLatentAttention(q, weights, options),
      /^ERR_SHAPE: x has shape \[1, 6, 2, 4\]; it must be \[batch, seq, width\]/,
    ],
    [
      'heads that do not fit',
      () => multiHeadLatentAttention(x, weights, { ...options, heads: 3 }),
      /^ERR_SHAPE: weights.q has shape \[14, 5\]/,
    ],
    [
      'a weight that is missing',
      () => multiHeadLatentAttention(x, { ...weights, kvNorm: undefined as never }, options),
      /^ERR_OPTION: weights.kvNorm is undefined/,
    ],
    [
      'a norm without its rank',
      () => multiHeadLatentAttention(x, { ...weights, qNorm: made(4) }, options),
      /^ERR_OPTION: weights.qDown is undefined/,
    ],
    [
      'another width',
      () => multiHeadLatentAttention(made(1, 3, 4), weights, options),
      /^ERR_SHAPE: weights.kvDown has shape \[10, 5\]; it must be \[10, 4\]/,
    ],
    [
      'a form',
      () => multiHeadLatentAttention(x, weights, { ...options, form: 'both' as never }),
      /^ERR_OPTION: form is "both"/,
    ],
    [
      'few angles',
      () => multiHeadLatentAttention(made(1, 7, 5), weights, options),
      /^ERR_SHAPE: angles.cos has shape \[6, 2\]; it must be \[at least 7 positions/,
    ],
    [
      'a cache of other rank',
      () =>
        multiHeadLatentAttention(x, weights, { ...options, cache: { latent: made(2, 1, 5), ropeKeys: made(2, 1, 4) } }),
      /^ERR_SHAPE: cache.latent has shape \[2, 1, 5\]/,
    ],
    [
      'a layer with too many dims',
      () => new MultiHeadLatentAttention({ width: 8, heads: 1, nopeDim: 200, device }),
      /^ERR_OPTION: nopeDim is 200; it must be an integer from 1 to 192/,
    ],
    [
      'a layer with odd positions',
      () => new MultiHeadLatentAttention({ width: 8, heads: 1, ropeDim: 3, device }),
      /^ERR_OPTION: dims is 3; it must be even/,
    ],
    [
      'YaRN that shortens',
      () => ropeFrequencies({ dims: 4, yarn: { factor: 0.5, originalLength: 8 } }),
      /^ERR_OPTION: yarn.factor is 0.5/,
    ],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });

  it('tables take memory as tensors do', () => {
    const before = memory(device).tensors;
    const own = xposTables({ length: 3, dim: 2, device });
    expect(memory(device).tensors).toBe(before + 4);
    for (const t of tensorsOf(own)) t.dispose();
    expect(memory(device).tensors).toBe(before);
  });
});
