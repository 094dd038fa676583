/** Mixtures of softmax and linear attention, against their definitions pair by pair. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import { hybridGatedWindowLinear, hybridLocalLinear } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import {
  type Heads,
  hybridGated,
  type InfiniInputs,
  type LocalLinearParameters,
  hybridLocalLinear as localLinearOracle,
} from '../../verify/oracle/segments.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;
const tokens = (t: Tensor | undefined) => t as Tensor<'float32'> as Tokens;

const inputsOf = ({ batch, seq, heads, dim, valueDim }: Heads): Inputs => ({
  q: input([batch, seq, heads, dim], 1),
  k: input([batch, seq, heads, dim], 2),
  v: input([batch, seq, heads, valueDim], 3),
});

const gatedInputs = (d: Heads): Inputs => ({ ...inputsOf(d), gate: input([d.heads], 4) });

type LocalCase = Heads & LocalLinearParameters;

const localCases: readonly LocalCase[] = [
  // A last block that is not whole.
  { batch: 2, seq: 13, heads: 3, dim: 4, valueDim: 3, localHeads: 2, window: 4, causal: false, blindspot: 1 },
  { batch: 2, seq: 13, heads: 3, dim: 4, valueDim: 3, localHeads: 1, window: 4, causal: true, blindspot: 3 },
  // Buckets of one token, in several chunks.
  { batch: 1, seq: 140, heads: 2, dim: 3, valueDim: 2, localHeads: 1, window: 16, causal: true, blindspot: 1 },
  // Buckets that fill their chunk, and several to a chunk that they do not fill.
  { batch: 1, seq: 150, heads: 1, dim: 3, valueDim: 2, localHeads: 0, window: 1, causal: true, blindspot: 70 },
  { batch: 1, seq: 150, heads: 1, dim: 3, valueDim: 2, localHeads: 0, window: 1, causal: true, blindspot: 24 },
  { batch: 1, seq: 9, heads: 2, dim: 4, valueDim: 4, localHeads: 2, window: 20, causal: true, blindspot: 1 },
];

const gatedCases: readonly (Heads & { window: number })[] = [
  { batch: 2, seq: 11, heads: 2, dim: 4, valueDim: 3, window: 3 },
  { batch: 1, seq: 131, heads: 1, dim: 3, valueDim: 2, window: 40 },
  { batch: 1, seq: 64, heads: 2, dim: 2, valueDim: 2, window: 1 },
];

const locally = (t: Named<Tensor>, { localHeads, window, causal, blindspot }: LocalCase) =>
  hybridLocalLinear(tokens(t.q), tokens(t.k), tokens(t.v), {
    localHeads,
    window,
    causal,
    blindspot,
  }) as Tensor as Tensor;

const gated = (t: Named<Tensor>, window: number) =>
  hybridGatedWindowLinear(tokens(t.q), tokens(t.k), tokens(t.v), {
    gate: t.gate as Tensor,
    window,
  }) as Tensor as Tensor;

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('hybrids'), () => {
    it.each(localCases)('local and linear heads: %j', (c) => {
      checkSystem(
        device,
        inputsOf(c),
        (t) => locally(t, c),
        (values) => localLinearOracle(c, values as unknown as InfiniInputs, c),
      );
    });

    it.each(gatedCases)('gated window and linear attention: %j', (c) => {
      checkSystem(
        device,
        gatedInputs(c),
        (t) => gated(t, c.window),
        (values) => hybridGated(c, values as unknown as InfiniInputs, c.window),
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const [c, g] = [localCases[1] as LocalCase, gatedCases[0] as (typeof gatedCases)[0]];
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries(gatedInputs(c)).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        ) as unknown as InfiniInputs;
        const outs = [locally(t, c), gated(t, g.window)];
        expect(outs.map((out) => out.dtype)).toEqual([dtype, dtype]);
        for (const [i, exact] of [localLinearOracle(c, values, c), hybridGated(c, values, g.window)].entries())
          expect(maxError(outs[i]?.toFloat32Sync() ?? [], exact)).toBeLessThan(dtype === 'float16' ? 2 ** -8 : 2 ** -5);
        for (const x of [...outs, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        for (const c of localCases.slice(0, 2))
          expect(
            run(device, inputsOf({ ...c, ...empty }), (t) => ({ out: locally(t, c) }), undefined).outputs.out,
          ).toHaveLength(0);
        const c = { ...(gatedCases[0] as (typeof gatedCases)[0]), ...empty };
        expect(run(device, gatedInputs(c), (t) => ({ out: gated(t, c.window) }), undefined).outputs.out).toHaveLength(
          0,
        );
      }
    });

    it('large keys leave the gradients of others finite', () => {
      const c: Heads = { batch: 1, seq: 3, heads: 1, dim: 2, valueDim: 1 };
      const inputs = gatedInputs(c);
      inputs.k?.data.set([200, 1], 2);
      const { gradients } = run(device, inputs, (t) => ({ out: gated(t, 2) }), { out: new Float64Array(3).fill(1) });
      for (const [name, values] of Object.entries(gradients)) expect(values.every(Number.isFinite), name).toBe(true);
    });
  });
});

describe('bad arguments of hybrids', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;

  it.each<[string, object, RegExp]>([
    [
      'more local heads than heads',
      { localHeads: 3 },
      /^ERR_OPTION: localHeads is 3; it must be an integer from 0 to 2/,
    ],
    ['no window', { window: undefined }, /^ERR_OPTION: window is undefined/],
    ['an empty window', { window: 0 }, /^ERR_OPTION: window is 0/],
    ['causal', { causal: 'yes' }, /^ERR_OPTION: causal is "yes"/],
    ['blindspot', { blindspot: 0 }, /^ERR_OPTION: blindspot is 0/],
    ['an unknown option', { windows: 4 }, /^ERR_OPTION: .*did you mean "window"/],
  ])('local and linear: %s', (_, options, message) => {
    const q = of(2, 5, 2, 4);
    const before = memory(device).tensors;
    expect(errorOf(() => hybridLocalLinear(q, q, q, { localHeads: 1, window: 2, ...options } as never))).toMatch(
      message,
    );
    expect(memory(device).tensors).toBe(before);
  });

  it.each<[string, object, RegExp]>([
    ['gate', { gate: of(1) }, /^ERR_SHAPE: gate has shape \[1\]/],
    ['gate that is none', { gate: 0.5 }, /^ERR_OPTION: gate is 0.5; it must be a tensor/],
    ['window', { window: 1.5 }, /^ERR_OPTION: window is 1.5/],
  ])('gated: %s', (_, options, message) => {
    const q = of(2, 5, 2, 4);
    expect(errorOf(() => hybridGatedWindowLinear(q, q, q, { gate: of(2), window: 2, ...options } as never))).toMatch(
      message,
    );
  });

  it('names shapes and dtypes that do not fit', () => {
    const options = { localHeads: 1, window: 2 };
    const q = of(2, 5, 2, 4);
    expect(errorOf(() => hybridLocalLinear(q, of(2, 6, 2, 4), q, options))).toMatch(/^ERR_SHAPE: /);
    expect(errorOf(() => hybridLocalLinear(q, of(2, 5, 1, 4), of(2, 5, 1, 4), options))).toMatch(/^ERR_SHAPE: .*heads/);
    const half = zeros([2, 5, 2, 4], { device, dtype: 'float16' }) as Tensor as never;
    expect(errorOf(() => hybridLocalLinear(q, q, half, options))).toMatch(/^ERR_DTYPE: v is float16/);
  });
});
