/** Systems over the recurrence: golden files on every device, against a loop over positions, and in pieces. */
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import {
  capture,
  concat,
  type DeviceName,
  memory,
  mul,
  noGrad,
  parameter,
  type Recurrence,
  scope,
  sum,
  type Tensor,
  tensor,
  zeros,
} from 'flashattn';
import {
  deltaRule,
  gatedDeltaRule,
  gatedRetention,
  gla,
  lightningAttention,
  mamba2Ssd,
  retention,
  retentionTorchscaleChunkwise,
  retentionTorchscaleParallel,
  retentionTorchscaleRecurrent,
  rwkv6Wkv,
  simpleGla,
  type TorchscaleRetentionState,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { runFile } from '../../verify/golden/compute.js';
import { maxError } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';
import { recurrence as definition } from '../../verify/oracle/recurrence.js';
import { errorOf } from '../support/codeOf.js';
import { devicesWith } from '../support/devices.js';
import { checkSystem, expectSame, type Inputs, input, type Named, run } from './taped.js';

const folder = join(import.meta.dirname, '../../verify/golden/vectors');
const ofThese =
  /^(lightning_attention|retention_|retnet_|gated_retention|yoco|simple_gla|gla|delta_rule|gated_delta|mamba2|rwkv6)/;
const files = readdirSync(folder).filter((name) => ofThese.test(name));

const batch = 2;
const seq = 21;
const heads = 2;
const keyDim = 4;
const valueDim = 6;
const rows = [batch, seq, heads];

/** All inputs that a system may have: gates below 0, betas within 0 to 1. */
const all = {
  q: input([...rows, keyDim], 1),
  k: input([...rows, keyDim], 2),
  v: input([...rows, valueDim], 3),
  g: { ...input(rows, 4), data: input(rows, 4).data.map((x) => -(x * x)) },
  gk: { ...input([...rows, keyDim], 5), data: input([...rows, keyDim], 5).data.map((x) => -(x * x)) },
  u: input([heads, keyDim], 6),
  beta: { ...input(rows, 7), data: input(rows, 7).data.map((x) => 1 / (1 + Math.exp(-x))) },
  slopes: { ...input([heads], 8), data: Float64Array.of(0.03, 0.4) },
  initial: input([batch, heads, keyDim, valueDim], 9, 0.5),
};
type Input = keyof typeof all;

type Values = Named<Float64Array>;
const byChannel = (values: Float64Array, of: (row: number) => number) =>
  Float64Array.from({ length: batch * seq * heads * keyDim }, (_, n) => values[of(Math.floor(n / keyDim))] as number);

/** As the loop over positions has it. */
function looped(t: Values, own: Partial<Parameters<typeof definition>[0]>): Float64Array {
  const { q, k, v } = t as Record<string, Float64Array>;
  const shape = { batch, length: seq, heads, keyDim, valueDim };
  return definition({ ...shape, q, k, v, scale: 0.5, initial: t.initial, ...own } as never).out;
}

function unit(k: Float64Array): Float64Array {
  return k.map((x, n) => {
    const from = n - (n % keyDim);
    return x / Math.sqrt(k.subarray(from, from + keyDim).reduce((sum, y) => sum + y * y, 0));
  });
}

const gammas = (t: Values) =>
  byChannel(t.q as Float64Array, () => 0).map((_, n) => Math.log(1 - 2 ** -(5 + (Math.floor(n / keyDim) % heads))));

interface System {
  readonly inputs: readonly Input[];
  readonly run: (t: Named<Tensor>, initialState?: Tensor) => Recurrence;
  readonly loop: (t: Values) => Float64Array;
}

const states = (initialState: Tensor | undefined) =>
  initialState ? { initialState: initialState as Tensor<'float32'> } : {};
const systems: Record<string, System> = {
  retention: {
    inputs: ['q', 'k', 'v'],
    run: ({ q, k, v }, s) => retention(q as Tensor, k as Tensor, v as Tensor, states(s)),
    loop: (t) => looped(t, { decay: gammas(t) }),
  },
  lightningAttention: {
    inputs: ['q', 'k', 'v', 'slopes'],
    run: ({ q, k, v, slopes }, s) =>
      lightningAttention(q as Tensor, k as Tensor, v as Tensor, { slopes: slopes as Tensor, ...states(s) }),
    loop: (t) => looped(t, { scale: 1, decay: byChannel(t.slopes as Float64Array, (r) => r % heads).map((x) => -x) }),
  },
  gatedRetention: {
    inputs: ['q', 'k', 'v', 'g'],
    run: ({ q, k, v, g }, s) =>
      gatedRetention(q as Tensor, k as Tensor, v as Tensor, { logGates: g as Tensor, ...states(s) }),
    loop: (t) =>
      looped(
        { ...t, k: (t.k as Float64Array).map((x) => x / 2) },
        {
          scale: 1,
          decay: byChannel(t.g as Float64Array, (r) => r),
        },
      ),
  },
  simpleGla: {
    inputs: ['q', 'k', 'v', 'g'],
    run: ({ q, k, v, g }, s) => simpleGla(q as Tensor, k as Tensor, v as Tensor, { g: g as Tensor, ...states(s) }),
    loop: (t) => looped(t, { decay: byChannel(t.g as Float64Array, (r) => r) }),
  },
  gla: {
    inputs: ['q', 'k', 'v', 'gk'],
    run: ({ q, k, v, gk }, s) => gla(q as Tensor, k as Tensor, v as Tensor, { gk: gk as Tensor, ...states(s) }),
    loop: (t) => looped(t, { decay: t.gk }),
  },
  rwkv6Wkv: {
    inputs: ['q', 'k', 'v', 'gk', 'u'],
    run: ({ q, k, v, gk, u }, s) =>
      rwkv6Wkv(q as Tensor, k as Tensor, v as Tensor, {
        w: gk as Tensor,
        u: u as Tensor<'float32'>,
        ...states(s),
      }),
    loop: (t) => looped(t, { scale: 1, decay: t.gk, bonus: t.u }),
  },
  mamba2Ssd: {
    inputs: ['q', 'k', 'v', 'g'],
    run: ({ q, k, v, g }, s) => mamba2Ssd(v as Tensor, g as Tensor, k as Tensor, q as Tensor, states(s)),
    loop: (t) => looped(t, { scale: 1, decay: byChannel(t.g as Float64Array, (r) => r) }),
  },
  deltaRule: {
    inputs: ['q', 'k', 'v', 'beta'],
    run: ({ q, k, v, beta }, s) =>
      deltaRule(q as Tensor, k as Tensor, v as Tensor, { beta: beta as Tensor, ...states(s) }),
    loop: (t) => looped({ ...t, k: unit(t.k as Float64Array) }, { beta: t.beta }),
  },
  gatedDeltaRule: {
    inputs: ['q', 'k', 'v', 'beta', 'g'],
    run: ({ q, k, v, beta, g }, s) =>
      gatedDeltaRule(q as Tensor, k as Tensor, v as Tensor, { beta: beta as Tensor, g: g as Tensor, ...states(s) }),
    loop: (t) =>
      looped({ ...t, k: unit(t.k as Float64Array) }, { beta: t.beta, decay: byChannel(t.g as Float64Array, (r) => r) }),
  },
};

const inputsOf = ({ inputs }: System, more: readonly Input[] = []): Inputs =>
  Object.fromEntries([...inputs, ...more].map((name) => [name, all[name]]));

/** The inputs from a position on; those without positions as they are. */
const part = (t: Named<Tensor>, from: number, to: number): Named<Tensor> =>
  Object.fromEntries(
    Object.entries(t).map(([name, x]) => [name, x.shape[1] === seq && x.shape.length > 2 ? x.slice(1, from, to) : x]),
  );

const cuts = [[7], [1, 2, 16], [20]];

for (const { device, present, title } of devicesWith('recurrence', 'matmul', 'reduce'))
  describe.skipIf(!present)(title('recurrent systems'), () => {
    it.each(files)('%s', async (name) => {
      const report = await runFile(join(folder, name), { device });
      expect(report).toMatchObject({ file: name, status: 'pass' });
    });

    describe.each(Object.entries(systems))('%s', (_, system) => {
      it('is the loop over positions, from a state on', () => {
        const f = (t: Named<Tensor>) => system.run(t, t.initial as Tensor).out as Tensor;
        checkSystem(device, inputsOf(system, ['initial']), f, system.loop);
      });

      it.each(cuts)('left at %j goes on as if in one call', (...places) => {
        const inputs = inputsOf(system);
        const cotangents = { out: normal(batch * seq * heads * valueDim, 40) };
        const whole = run(device, inputs, (t) => ({ out: system.run(t).out as Tensor }), cotangents);
        const pieces = run(
          device,
          inputs,
          (t) => {
            const outs: Tensor[] = [];
            let state: Tensor | undefined;
            for (const [i, from] of [0, ...places].entries()) {
              const { out, state: after } = system.run(part(t, from, places[i] ?? seq), state);
              outs.push(out as Tensor);
              state = after as Tensor;
            }
            return { out: concat(outs, 1) as Tensor };
          },
          cotangents,
        );
        expectSame(whole, pieces);
      });

      it('takes empty sequences, and leaves the state as it was', () => {
        const empty = Object.fromEntries(
          Object.entries(inputsOf(system)).map(([name, x]) => [
            name,
            x.shape[1] === seq && x.shape.length > 2 ? { shape: x.shape.with(1, 0), data: new Float64Array(0) } : x,
          ]),
        );
        const { outputs } = run(
          device,
          { ...empty, initial: all.initial },
          (t) => {
            const { out, state } = system.run(t, t.initial as Tensor);
            return { out: out as Tensor, state: state as Tensor };
          },
          undefined,
        );
        expect(outputs.out).toHaveLength(0);
        expect(maxError(outputs.state as Float64Array, all.initial.data)).toBe(0);
      });
    });

    it('captured steps are the steps themselves', () => {
      const x = parameter(
        tensor(Float32Array.from(normal(12 * 2 * 4, 15)), [1, 12, 2, 4], { device }),
      ) as Tensor<'float32'> as Tensor<'float32', readonly [number, number, number, number]>;
      const outs: Record<string, () => unknown> = {
        retention: () => retention(x, x, x).out,
        deltaRule: () => deltaRule(x, x, x, { beta: sum(x, -1) }).out,
        parallel: () => retentionTorchscaleParallel(x, x, x),
        recurrent: () => retentionTorchscaleRecurrent(x, x, x).out,
        chunkwise: () => retentionTorchscaleChunkwise(x, x, x, { chunk: 4 }),
      };
      for (const [name, run] of Object.entries(outs)) {
        const step = () => {
          x.grad = undefined;
          const out = run() as Tensor;
          const loss = sum(mul(out, out) as Tensor);
          loss.backward();
          return { loss, gradient: x.grad as unknown as Tensor };
        };
        const { loss: one } = scope(step);
        const direct = [name, one.toFloat32Sync()[0], (x.grad as unknown as Tensor).toFloat32Sync()];
        using captured = capture(step);
        const { loss, gradient } = captured.replay();
        expect([name, loss.toFloat32Sync()[0], gradient.toFloat32Sync()]).toEqual(direct);
      }
    });

    it('packed sequences are as they are alone, bit for bit', () => {
      noGrad(() => {
        const on = (x: { shape: readonly number[]; data: Float64Array }) =>
          tensor(Float32Array.from(x.data), x.shape, { device }) as Tensor;
        const [q, k, v, g] = [all.q, all.k, all.v, all.g].map(on) as [Tensor, Tensor, Tensor, Tensor];
        const alone = simpleGla(q, k, v, { g });
        const flat = (t: Tensor) => t.reshape([batch * seq, ...t.shape.slice(2)]);
        const packed = simpleGla(flat(q), flat(k), flat(v), { g: flat(g), cuSeqlens: [0, seq, 2 * seq] });
        expect(packed.out.toFloat32Sync()).toEqual(alone.out.toFloat32Sync());
        expect(packed.state.toFloat32Sync()).toEqual(alone.state.toFloat32Sync());
      });
    });

    it('heads of values may share queries and keys', () => {
      const inputs: Inputs = {
        q: input([1, 9, 1, 4], 1),
        k: input([1, 9, 1, 4], 2),
        v: input([1, 9, 3, 5], 3),
        g: { shape: [1, 9, 3], data: normal(27, 4).map((x) => -Math.abs(x)) },
      };
      const repeated = run(
        device,
        inputs,
        ({ q, k, v, g }) => {
          const three = (t: Tensor | undefined) => (t as Tensor).expand([1, 9, 3, 4]).contiguous();
          return { out: mamba2Ssd(v as Tensor, g as Tensor, three(k), three(q)).out as Tensor };
        },
        { out: normal(135, 5) },
      );
      const shared = run(
        device,
        inputs,
        ({ q, k, v, g }) => ({ out: mamba2Ssd(v as Tensor, g as Tensor, k as Tensor, q as Tensor).out as Tensor }),
        { out: normal(135, 5) },
      );
      expectSame(repeated, shared);
    });

    it.each(['float16', 'bfloat16'] as const)('%s inputs, with a float32 state', (dtype) => {
      noGrad(() => {
        const before = memory(device).tensors;
        const of = (x: { shape: readonly number[]; data: Float64Array }) =>
          tensor(Float32Array.from(x.data), x.shape, { device, dtype }) as Tensor;
        const [q, k, v, g, beta] = [all.q, all.k, all.v, all.g, all.beta].map(of) as Tensor[];
        const given = { q, k, v, g, beta } as Record<string, Tensor>;
        const { out, state } = (systems.gatedDeltaRule as System).run(given);
        expect([out.dtype, state.dtype]).toEqual([dtype, 'float32']);
        const rounded = Object.fromEntries(
          Object.entries(given).map(([name, t]) => [name, Float64Array.from(t.toFloat32Sync())]),
        );
        const exact = (systems.gatedDeltaRule as System).loop(rounded);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -8 : 2 ** -5);
        for (const t of [out, state, ...Object.values(given)]) t.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    describe("torchscale's forms of retention", () => {
      const tokens = 24;
      const inputs: Inputs = {
        q: input([1, tokens, 3, 4], 11, 0.3),
        k: input([1, tokens, 3, 4], 12, 0.3),
        v: input([1, tokens, 3, 6], 13),
      };
      type Tokens = Tensor<'float32', readonly [number, number, number, number]>;
      const three = (t: Named<Tensor>) => [t.q, t.k, t.v] as unknown as [Tokens, Tokens, Tokens];
      const cotangents = { out: normal(tokens * 18, 14) };
      const forms = {
        recurrent: (t: Named<Tensor>) => retentionTorchscaleRecurrent(...three(t)).out,
        parallel: (t: Named<Tensor>) => retentionTorchscaleParallel(...three(t)),
        chunkwise: (t: Named<Tensor>) => retentionTorchscaleChunkwise(...three(t), { chunk: tokens }),
      };
      const of = (form: (t: Named<Tensor>) => Tokens) =>
        run(device, inputs, (t) => ({ out: form(t) as unknown as Tensor }), cotangents);

      it('agree where no divisor is above 1', () => {
        const recurrent = of(forms.recurrent);
        for (const form of ['parallel', 'chunkwise'] as const) expectSame(recurrent, of(forms[form]));
      });

      it('the recurrent one, left anywhere, goes on as if in one call', () => {
        const pieces = (t: Named<Tensor>) => {
          const outs: Tensor[] = [];
          let state: TorchscaleRetentionState | undefined;
          for (const [from, to] of [
            [0, 5],
            [5, 5],
            [5, 6],
            [6, tokens],
          ] as const) {
            const cut = (x: Tokens) => x.slice(1, from, to) as unknown as Tokens;
            const [q, k, v] = three(t).map(cut) as [Tokens, Tokens, Tokens];
            const step = retentionTorchscaleRecurrent(q, k, v, state);
            outs.push(step.out as unknown as Tensor);
            state = step.state;
          }
          return concat(outs, 1) as unknown as Tokens;
        };
        expectSame(of(forms.recurrent), of(pieces));
      });

      it('take empty sequences', () => {
        const empty = zeros([2, 0, 3, 4], { device }) as unknown as Tokens;
        const { out, state } = retentionTorchscaleRecurrent(empty, empty, empty);
        expect(out.shape).toEqual([2, 0, 3, 4]);
        expect(Math.max(...state.kv.toFloat32Sync())).toBe(0);
        expect(retentionTorchscaleParallel(empty, empty, empty).shape).toEqual([2, 0, 3, 4]);
        expect(retentionTorchscaleChunkwise(empty, empty, empty, { chunk: 4 }).shape).toEqual([2, 0, 3, 4]);
      });
    });

    it('nothing that is not finite reaches earlier tokens', () => {
      noGrad(() => {
        for (const bad of [Number.NaN, Number.POSITIVE_INFINITY])
          for (const [name, system] of Object.entries(systems))
            for (const spoilt of ['k', 'v'] as const) {
              const made = Object.fromEntries(
                system.inputs.map((each) => {
                  const data = Float32Array.from(all[each].data);
                  const { shape } = all[each];
                  // Position 11 of the first batch entry.
                  if (each === spoilt) data[11 * heads * (shape[3] as number)] = bad;
                  return [each, tensor(data, shape, { device }) as Tensor];
                }),
              );
              const out = system.run(made).out.toFloat32Sync();
              const before = out.subarray(0, 11 * heads * valueDim);
              const other = out.subarray(seq * heads * valueDim);
              expect([name, before.every(Number.isFinite), other.every(Number.isFinite)]).toEqual([name, true, true]);
              expect([name, out.subarray(0, seq * heads * valueDim).every(Number.isFinite)]).toEqual([name, false]);
            }
      });
    });
  });

describe('bad arguments of recurrent systems', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const x = of(2, 5, 2, 4);
  const bad = (t: unknown) => t as never;
  it.each<[string, () => unknown, RegExp]>([
    ['a rank', () => retention(of(2, 5, 8), x, x), /^ERR_SHAPE: q has shape \[2, 5, 8\]; it must have 4 axes/],
    ['tokens', () => retention(x, of(2, 6, 2, 4), x), /^ERR_SHAPE: k has shape \[2, 6, 2, 4\] and q/],
    ['key dims', () => retention(x, of(2, 5, 2, 3), x), /^ERR_SHAPE: k has head dim 3; it must be 4/],
    ['heads', () => gla(x, x, of(2, 5, 3, 4), { gk: x }), /^ERR_SHAPE: k has 2 heads; their number must divide 3/],
    [
      'a wide head',
      () => retention(of(1, 1, 1, 300), of(1, 1, 1, 300), of(1, 1, 1, 4)),
      /^ERR_SHAPE: k has head dim 300/,
    ],
    ['no tensor', () => retention(bad(3), x, x), /^ERR_OPTION: q is 3/],
    [
      'a dtype',
      () => retention(x, bad(zeros([2, 5, 2, 4], { device, dtype: 'float16' })), x),
      /^ERR_DTYPE: k is float16/,
    ],
    ['an option', () => retention(x, x, x, bad({ scales: 1 })), /^ERR_OPTION: .*did you mean "scale"/],
    ['a scale', () => retention(x, x, x, { scale: Number.NaN }), /^ERR_OPTION: scale is NaN/],
    [
      'slopes',
      () => lightningAttention(x, x, x, { slopes: of(3) }),
      /^ERR_SHAPE: slopes has shape \[3\]; it must be \[2\]/,
    ],
    [
      'gates by channel',
      () => simpleGla(x, x, x, { g: x }),
      /^ERR_SHAPE: g has shape \[2, 5, 2, 4\]; it must be \[2, 5, 2\]/,
    ],
    ['gates by position', () => gla(x, x, x, { gk: of(2, 5, 2) }), /^ERR_SHAPE: gk has shape \[2, 5, 2\]; it must be/],
    ['no gates', () => gatedRetention(x, x, x, bad({})), /^ERR_OPTION: logGates is missing/],
    [
      'a gate above 0',
      () =>
        simpleGla(x, x, x, { g: tensor(new Float32Array(20).fill(0.5, 13), [2, 5, 2], { device }), checkGates: true }),
      /^ERR_OPTION: decay\.log\[1, 1, 1\] is 0\.5; it must be 0 or less/,
    ],
    ['no beta', () => deltaRule(x, x, x, bad({})), /^ERR_OPTION: beta is missing/],
    ['no g', () => gatedDeltaRule(x, x, x, bad({ beta: of(2, 5, 2) })), /^ERR_OPTION: g is undefined/],
    ['g of a rule without', () => deltaRule(x, x, x, bad({ beta: of(2, 5, 2), g: of(2, 5, 2) })), /^ERR_OPTION: .*"g"/],
    ['an epsilon', () => deltaRule(x, x, x, { beta: of(2, 5, 2), epsilon: -1 }), /^ERR_OPTION: epsilon is -1/],
    ['u', () => rwkv6Wkv(x, x, x, { w: x, u: bad(of(4)) }), /^ERR_SHAPE: u has shape \[4\]; it must be \[2, 4\]/],
    [
      'names of an SSM',
      () => mamba2Ssd(x, of(2, 5, 3), x, x),
      /^ERR_SHAPE: a has shape \[2, 5, 3\]; it must be \[2, 5, 2\]/,
    ],
    ['a state', () => retention(x, x, x, { initialState: bad(of(2, 2, 4, 5)) }), /^ERR_SHAPE: initialState has shape/],
    [
      'packed ranks',
      () => retention(x, x, x, { cuSeqlens: [0, 5] }),
      /^ERR_SHAPE: q has shape .*; it must have 3 axes/,
    ],
    [
      'packed ends',
      () => retention(of(5, 2, 4), of(5, 2, 4), of(5, 2, 4), { cuSeqlens: [0, 4] }),
      /^ERR_OPTION: cuSeqlens ends at 4/,
    ],
    [
      'a chunk',
      () => retentionTorchscaleChunkwise(bad(x), bad(x), bad(x), { chunk: 3 }),
      /^ERR_SHAPE: .*multiple of chunk, 3/,
    ],
    [
      'no chunk',
      () => retentionTorchscaleChunkwise(bad(x), bad(x), bad(x), bad({})),
      /^ERR_OPTION: chunk is undefined/,
    ],
    [
      'kv',
      () => retentionTorchscaleRecurrent(bad(x), bad(x), bad(x), bad({ kv: of(2, 2, 4, 3), scale: of(2) })),
      /^ERR_SHAPE: state\.kv/,
    ],
    [
      'no scale',
      () => retentionTorchscaleRecurrent(bad(x), bad(x), bad(x), bad({ kv: of(2, 2, 4, 4) })),
      /^ERR_OPTION: state\.scale/,
    ],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });

  it('leave nothing behind', () => {
    const gates = of(2, 5, 3);
    const before = memory(device).tensors;
    expect(errorOf(() => gatedRetention(x, x, x, { logGates: gates }))).toMatch(/^ERR_SHAPE/);
    expect(errorOf(() => deltaRule(x, x, x, { beta: gates }))).toMatch(/^ERR_SHAPE/);
    expect(memory(device).tensors).toBe(before);
  });
});
