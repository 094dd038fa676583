/** Infini-attention: against a token-by-token definition, and its memory carried from call to call. */
import { concat, type DeviceName, memory, noGrad, rope, type Tensor, tensor, zeros } from 'flashattn';
import {
  InfiniAttention,
  type InfiniOptions,
  type InfiniState,
  infiniAttention,
  infiniAttentionPaper,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';
import { type Heads, type InfiniInputs, infini } from '../../verify/oracle/segments.js';
import { codeOf, errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, expectSame, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = readonly [number, number, number, number];
type Tokens = Tensor<'float32', Shape4>;

interface Case extends Heads {
  readonly segment: number;
  readonly scale?: number;
}

const cases: readonly Case[] = [
  { batch: 2, seq: 13, heads: 2, dim: 4, valueDim: 3, segment: 4 },
  { batch: 1, seq: 8, heads: 3, dim: 3, valueDim: 5, segment: 4, scale: 0.9 },
  { batch: 1, seq: 5, heads: 1, dim: 4, valueDim: 4, segment: 9 },
  { batch: 2, seq: 6, heads: 1, dim: 4, valueDim: 2, segment: 1 },
];

const functions = { code: infiniAttention, paper: infiniAttentionPaper } as const;
type Gating = keyof typeof functions;

const inputsOf = ({ batch, seq, heads, dim, valueDim }: Case): Inputs => ({
  q: input([batch, seq, heads, dim], 1),
  k: input([batch, seq, heads, dim], 2),
  v: input([batch, seq, heads, valueDim], 3),
  gate: input([heads], 4),
});

function step(
  t: Named<Tensor>,
  { segment, scale }: Case,
  { gating, delta }: { gating: Gating; delta: boolean },
  more: { range?: readonly [number, number]; state?: InfiniState; rope?: InfiniOptions['rope'] } = {},
) {
  const { range, state, rope: angles } = more;
  const part = (x: Tensor | undefined) => (range ? x?.slice(1, ...range) : x) as Tensor<'float32'> as Tokens;
  return functions[gating](part(t.q), part(t.k), part(t.v), {
    gate: t.gate as Tensor,
    segment,
    delta,
    ...(scale !== undefined && { scale }),
    ...(state && { state }),
    ...(angles && { rope: angles }),
  });
}

const kinds = (['code', 'paper'] as const).flatMap((gating) =>
  [false, true].map((delta) => ({ gating, delta, name: `${gating}, ${delta ? 'delta rule' : 'sums'}` })),
);

/** Angles of positions, for a dim. */
function anglesOf(length: number, dim: number, device: DeviceName) {
  const table = (f: (x: number) => number) =>
    tensor(
      Float32Array.from({ length: (length * dim) / 2 }, (_, at) => {
        const half = dim / 2;
        return f(Math.floor(at / half) * 10 ** (-(at % half) / half));
      }),
      [length, dim / 2],
      { device },
    );
  return { cos: table(Math.cos), sin: table(Math.sin) };
}

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('Infini-attention'), () => {
    describe.each(kinds)('$name', (kind) => {
      it.each(cases)('$batch x $seq tokens, $heads heads, segments of $segment', (c) => {
        checkSystem(
          device,
          inputsOf(c),
          (t) => step(t, c, kind).out as Tensor as Tensor,
          (values) => infini(c, values as unknown as InfiniInputs, { ...kind, ...c }),
        );
      });

      it.each([
        [cases[0] as Case, [4, 8]],
        [cases[0] as Case, [1, 2, 7]],
        [cases[0] as Case, [0, 13]],
        [cases[1] as Case, [3, 4]],
        [cases[2] as Case, [2]],
      ])('%j left at %j goes on as if in one call', (c, cuts) => {
        const outs = { out: normal(c.batch * c.seq * c.heads * c.valueDim, 20) };
        const cotangents = { ...outs, M: normal(c.batch * c.heads * c.dim * c.valueDim, 21) };
        const whole = run(
          device,
          inputsOf(c),
          (t) => {
            const { out, memory: last } = step(t, c, kind);
            return { out: out as Tensor as Tensor, M: last.M, z: last.z };
          },
          cotangents,
        );
        const inParts = run(
          device,
          inputsOf(c),
          (t) => {
            const results: ReturnType<typeof infiniAttention>[] = [];
            for (const [i, from] of [0, ...cuts].entries()) {
              const state = results.at(-1)?.state;
              results.push(step(t, c, kind, { range: [from, cuts[i] ?? c.seq], ...(state && { state }) }));
            }
            const { M, z } = (results.at(-1) as (typeof results)[0]).memory;
            const out = concat(
              results.map((each) => each.out as Tensor),
              1,
            );
            return { out, M, z };
          },
          cotangents,
        );
        expectSame(whole, inParts);
      });
    });

    it('turns q and k within segments, and not those that the memory knows', () => {
      const c: Case = { batch: 2, seq: 11, heads: 2, dim: 4, valueDim: 4, segment: 5 };
      const inputs = inputsOf(c);
      const kind = { gating: 'paper', delta: false } as const;
      noGrad(() => {
        const before = memory(device).tensors;
        const angles = anglesOf(c.seq, c.dim, device);
        const t = Object.fromEntries(
          Object.entries(inputs).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device }) as Tensor,
          ]),
        );
        const read = (x: Tensor) => Float64Array.from(x.toFloat32Sync());
        const turned = (name: 'q' | 'k') => rope(t[name] as Tensor, angles);
        const [q, k] = [turned('q'), turned('k')];
        const with0 = step(t, c, kind, { rope: angles });
        const values = (name: string) => read(t[name] as Tensor);
        const plain = { q: values('q'), k: values('k'), v: values('v'), gate: values('gate') };
        const ofGate = (gate: number, own: Partial<InfiniInputs>) =>
          infini(c, { ...plain, ...own, gate: new Float64Array(c.heads).fill(gate) }, { ...c, ...kind });
        // Memory alone of what is not turned, attention alone of what is.
        const remembered = ofGate(100, {});
        const local = ofGate(-100, { q: read(q), k: read(k) });
        const expected = local.map((x, i) => {
          const head = Math.floor(i / c.valueDim) % c.heads;
          const g = 1 / (1 + Math.exp(-(plain.gate[head] ?? Number.NaN)));
          return g * (remembered[i] ?? Number.NaN) + (1 - g) * x;
        });
        expect(maxError(with0.out.toFloat32Sync(), expected)).toBeLessThan(5e-5);
        const { state, memory: last } = with0;
        const made = [with0.out, last.M, last.z, state.memory?.M, state.memory?.z, state.k, state.v];
        for (const x of [...made, q, k, angles.cos, angles.sin, ...Object.values(t)])
          (x as Tensor | undefined)?.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it.each(kinds)('what is not finite stays with later tokens: $name', (kind) => {
      const c = cases[0] as Case;
      const clean = inputsOf(c);
      const spoilt = inputsOf(c);
      // Token 9 of the first batch entry, head 1.
      for (const name of ['k', 'v'] as const) {
        const { data, shape } = spoilt[name] as (typeof spoilt)[string];
        data[(9 * c.heads + 1) * (shape[3] ?? 0)] = name === 'k' ? Number.POSITIVE_INFINITY : Number.NaN;
      }
      const [a, b] = [clean, spoilt].map(
        (inputs) =>
          run(device, inputs, (t) => ({ out: step(t, c, kind).out as Tensor as Tensor }), undefined).outputs.out,
      ) as [Float64Array, Float64Array];
      for (let at = 0; at < a.length; at++) {
        const head = Math.floor(at / c.valueDim) % c.heads;
        const token = Math.floor(at / (c.valueDim * c.heads));
        if (token < c.seq && token >= 9 && head === 1) continue;
        // Rows that share a tile with what is not finite may be computed in another order.
        expect(b[at]).toBeCloseTo(a[at] as number, 5);
      }
      expect(b.some(Number.isNaN)).toBe(true);
    });

    it('keeps a float32 memory of 16-bit tokens', () => {
      const c = cases[0] as Case;
      noGrad(() => {
        const t = Object.fromEntries(
          Object.entries(inputsOf(c)).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype: 'bfloat16' }) as Tensor,
          ]),
        );
        const { out, memory: last, state } = step(t, c, { gating: 'paper', delta: true });
        expect([out.dtype, last.M.dtype, last.z.dtype, state.k?.dtype]).toEqual([
          ...['bfloat16', 'float32', 'float32', 'bfloat16'],
        ]);
        const rounded = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const exact = infini(c, rounded as unknown as InfiniInputs, { ...c, gating: 'paper', delta: true });
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(2 ** -6);
        const made = [out, last.M, last.z, state.memory?.M, state.memory?.z, state.k, state.v, ...Object.values(t)];
        for (const x of made) (x as Tensor | undefined)?.dispose();
      });
    });

    it('takes empty sequences and batches', () => {
      for (const c of [
        { ...(cases[0] as Case), seq: 0 },
        { ...(cases[0] as Case), batch: 0 },
      ])
        for (const kind of kinds) {
          const { outputs } = run(
            device,
            inputsOf(c),
            (t) => {
              const { out, memory: last } = step(t, c, kind);
              return { out: out as Tensor as Tensor, M: last.M };
            },
            undefined,
          );
          expect(outputs.out).toHaveLength(0);
          expect(outputs.M).toEqual(new Float64Array(c.batch * c.heads * c.dim * c.valueDim));
        }
    });

    it.each(['paper', 'code'] as const)('a layer, %s: a sequence in one call and in several', (gating) => {
      const layer = new InfiniAttention({ width: 8, heads: 2, segment: 4, gating, rope: {}, device, seed: 5 });
      const x = tensor(Float32Array.from(normal(2 * 11 * 8, 50)), [2, 11, 8], { device }) as Tensor;
      noGrad(() => {
        const whole = layer.forward(x);
        const parts: Tensor[] = [];
        let state: InfiniState | undefined;
        for (const [from, to] of [
          [0, 3],
          [3, 4],
          [4, 11],
        ] as const) {
          const next = layer.next(x.slice(1, from, to), state);
          state = next.state;
          parts.push(next.out);
        }
        const joined = concat(parts, 1);
        expect(maxError(joined.toFloat32Sync(), whole.toFloat32Sync())).toBeLessThan(2e-5);
      });
      const out = layer.forward(x);
      out.backward(tensor(Float32Array.from(normal(2 * 11 * 8, 51)), [2, 11, 8], { device }) as Tensor);
      for (const [name, weight] of layer.namedParameters()) expect(weight.grad, name).toBeDefined();
      layer.dispose();
    });
  });
});

describe('bad arguments of Infini-attention', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;
  const half = (...shape: number[]) => zeros(shape, { device, dtype: 'float16' }) as Tensor as never;
  const state = (more: object) => ({ state: { memory: { M: of(2, 2, 4, 3), z: of(2, 2, 4) }, ...more } });

  it.each<[string, { q?: unknown; k?: unknown; v?: unknown; options?: object }, RegExp]>([
    ['rank of q', { q: of(2, 5, 8) }, /^ERR_SHAPE: q has shape \[2, 5, 8\]/],
    ['heads of k', { k: of(2, 5, 1, 4) }, /^ERR_SHAPE: .*same heads/],
    ['dtype of v', { v: half(2, 5, 2, 3) }, /^ERR_DTYPE: v is float16/],
    ['gate', { options: { gate: of(3) } }, /^ERR_SHAPE: gate has shape \[3\]; it must be \[2\]/],
    ['no segment', { options: { segment: undefined } }, /^ERR_OPTION: segment is undefined/],
    ['an empty segment', { options: { segment: 0 } }, /^ERR_OPTION: segment is 0/],
    ['delta', { options: { delta: 1 } }, /^ERR_OPTION: delta is 1/],
    ['scale', { options: { scale: Number.NaN } }, /^ERR_OPTION: scale is NaN/],
    ['an unknown option', { options: { segments: 4 } }, /^ERR_OPTION: .*did you mean "segment"/],
    [
      'memory of other heads',
      { options: { state: { memory: { M: of(2, 1, 4, 3), z: of(2, 1, 4) } } } },
      /^ERR_SHAPE: state\.memory\.M/,
    ],
    [
      'a memory of 16 bits',
      { options: { state: { memory: { M: half(2, 2, 4, 3), z: of(2, 2, 4) } } } },
      /^ERR_DTYPE: state\.memory\.M/,
    ],
    ['keys without values', { options: state({ k: of(2, 1, 2, 4) }) }, /^ERR_OPTION: state has k and no v/],
    [
      'a whole segment',
      { options: state({ k: of(2, 4, 2, 4), v: of(2, 4, 2, 3) }) },
      /^ERR_SHAPE: state\.k has shape .*1 to 3 tokens/,
    ],
    [
      'values of another dim',
      { options: state({ k: of(2, 1, 2, 4), v: of(2, 1, 2, 4) }) },
      /^ERR_SHAPE: state\.v has shape/,
    ],
    [
      'keys of another dtype',
      { options: state({ k: half(2, 1, 2, 4), v: of(2, 1, 2, 3) }) },
      /^ERR_DTYPE: state\.k is float16/,
    ],
  ])('%s', (_, { q, k, v, options }, message) => {
    const all = { gate: of(2), segment: 4, ...options };
    const [a, b, c] = [q ?? of(2, 5, 2, 4), k ?? of(2, 5, 2, 4), v ?? of(2, 5, 2, 3)];
    const before = memory(device).tensors;
    expect(errorOf(() => infiniAttention(a as never, b as never, c as never, all as InfiniOptions))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('refuses layers that nothing fits', () => {
    expect(codeOf(() => new InfiniAttention({ width: 9, heads: 2, segment: 4 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new InfiniAttention({ width: 8, heads: 2, segment: 0 }))).toBe('ERR_OPTION');
    expect(codeOf(() => new InfiniAttention({ width: 8, heads: 2, segment: 4, gating: 'both' } as never))).toBe(
      'ERR_OPTION',
    );
    const layer = new InfiniAttention({ width: 8, heads: 2, segment: 4, device });
    expect(codeOf(() => layer.forward(of(2, 4, 6)))).toBe('ERR_SHAPE');
    layer.dispose();
  });
});
