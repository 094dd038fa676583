/** Lightweight and dynamic convolutions, against their definitions tap by tap. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import { DynamicConv, dynamicConv, LightweightConv, lightweightConv } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { type DynamicWeights, dynamic, lightweight, type SequenceConv } from '../../verify/oracle/sequenceConv.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, run } from './taped.js';

const common: readonly SequenceConv[] = [
  { batch: 2, seq: 7, channels: 6, heads: 3, taps: 3, causal: true, weightSoftmax: true },
  { batch: 1, seq: 9, channels: 4, heads: 4, taps: 5, causal: false, weightSoftmax: true },
  // An even kernel, and one that is longer than the sequence.
  { batch: 2, seq: 5, channels: 4, heads: 1, taps: 4, causal: false, weightSoftmax: false },
  { batch: 1, seq: 3, channels: 2, heads: 2, taps: 8, causal: true, weightSoftmax: true },
  { batch: 1, seq: 1, channels: 2, heads: 1, taps: 1, causal: false, weightSoftmax: true },
];

const lightweightInputs = ({ batch, seq, channels, heads, taps }: SequenceConv, bias: boolean): Inputs => ({
  x: input([batch, seq, channels], 1),
  kernels: input([heads, taps], 2),
  ...(bias && { bias: input([channels], 3) }),
});

type DynamicCase = SequenceConv & { readonly renormPadding: boolean; readonly inputProjection: boolean };

function dynamicInputs(c: DynamicCase, biases: boolean): Inputs {
  const rows = c.heads * c.taps + (c.inputProjection ? c.channels : 0);
  return {
    x: input([c.batch, c.seq, c.channels], 1),
    kernels: input([rows, c.channels], 2, 0.5),
    ...(biases && { kernelsBias: input([rows], 3), bias: input([c.channels], 4) }),
  };
}

const optionsOf = ({ heads, taps, causal, weightSoftmax, renormPadding, inputProjection }: DynamicCase) => ({
  heads,
  kernelSize: taps,
  causal,
  weightSoftmax,
  renormPadding,
  inputProjection,
});

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('lightweight and dynamic convolutions'), () => {
    it.each(common.flatMap((c) => [true, false].map((interleaved) => ({ ...c, interleaved }))))(
      'lightweight: %j',
      (c) => {
        const { causal, weightSoftmax, interleaved } = c;
        checkSystem(
          device,
          lightweightInputs(c, interleaved),
          ({ x, kernels, bias }) =>
            lightweightConv(
              x,
              { kernels, bias },
              { causal, weightSoftmax, channels: interleaved ? 'interleaved' : 'consecutive' },
            ),
          (values) => lightweight(c, values as unknown as Parameters<typeof lightweight>[1]),
        );
      },
    );

    it.each(
      common.flatMap((c, i) =>
        [true, false].map((renormPadding) => ({ ...c, renormPadding, inputProjection: i % 2 === 0 })),
      ),
    )('dynamic: %j', (c) => {
      checkSystem(
        device,
        dynamicInputs(c, c.renormPadding),
        ({ x, ...weights }) => dynamicConv(x, weights as { kernels: Tensor }, optionsOf(c)),
        (values) => dynamic(c, values as unknown as DynamicWeights),
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s with weights of float32', (dtype) => {
      const c: DynamicCase = { ...common[0], renormPadding: true, inputProjection: false };
      noGrad(() => {
        const before = memory(device).tensors;
        const make = (inputs: Inputs) =>
          Object.fromEntries(
            Object.entries(inputs).map(([name, { shape, data }]) => [
              name,
              tensor(data, shape, { device, ...(name === 'x' && { dtype }) }) as Tensor,
            ]),
          );
        const [light, moving] = [make(lightweightInputs(c, true)), make(dynamicInputs(c, true))];
        const valuesOf = (t: Record<string, Tensor>) =>
          Object.fromEntries(Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]));
        const { x, kernels, bias } = light;
        const { x: own, ...weights } = moving;
        const outs = [
          lightweightConv(x, { kernels, bias }, { causal: c.causal }),
          dynamicConv(own, weights as never, optionsOf(c)),
        ];
        const exact = [
          lightweight({ ...c, interleaved: false }, valuesOf(light) as never),
          dynamic(c, valuesOf(moving) as never),
        ];
        for (const [i, out] of outs.entries()) {
          expect(out.dtype).toBe(dtype);
          expect(maxError(out.toFloat32Sync(), exact[i])).toBeLessThan(dtype === 'float16' ? 2 ** -7 : 2 ** -4);
        }
        for (const t of [...outs, ...Object.values(light), ...Object.values(moving)]) t.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('a causal position sees nothing behind it, not even NaN', () => {
      const c: DynamicCase = { ...common[0], renormPadding: false, inputProjection: false };
      const inputs: Inputs = { ...dynamicInputs(c, false), light: lightweightInputs(c, false).kernels };
      const half = inputs.x.data.slice();
      const outOf = () =>
        run(
          device,
          inputs,
          ({ x, kernels, light }) => ({
            moving: dynamicConv(x, { kernels }, optionsOf(c)),
            light: lightweightConv(x, { kernels: light }, { causal: true }),
          }),
          undefined,
        ).outputs;
      const before = outOf();
      const from = 4 * c.channels;
      inputs.x.data.fill(Number.NaN, from, c.seq * c.channels);
      const after = outOf();
      for (const name of ['moving', 'light'])
        expect(after[name].slice(0, from), name).toEqual(before[name].slice(0, from));
      inputs.x.data.set(half);
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const c: DynamicCase = { ...common[0], ...empty, renormPadding: true, inputProjection: false };
        const light = run(
          device,
          lightweightInputs(c, false),
          ({ x, kernels }) => ({ out: lightweightConv(x, { kernels }) }),
          undefined,
        );
        expect(light.outputs.out).toHaveLength(0);
        const moving = run(
          device,
          dynamicInputs(c, false),
          ({ x, kernels }) => ({ out: dynamicConv(x, { kernels }, optionsOf(c)) }),
          undefined,
        );
        expect(moving.outputs.out).toHaveLength(0);
      }
    });

    it('layers are the functions of their weights', () => {
      const before = memory(device).tensors;
      const light = new LightweightConv({ width: 6, heads: 3, kernelSize: 3, causal: true, bias: true, device });
      const moving = new DynamicConv({ width: 6, heads: 2, kernelSize: 3, renormPadding: true, bias: true, device });
      noGrad(() => {
        const x = tensor(input([2, 5, 6], 1).data, [2, 5, 6], { device }) as Tensor;
        const outs = [light.forward(x), moving.forward(x)];
        const { kernels, bias } = light;
        const own = [
          lightweightConv(x, { kernels, bias }, { causal: true }),
          dynamicConv(
            x,
            { kernels: moving.kernels.weight, bias: moving.bias },
            { heads: 2, kernelSize: 3, renormPadding: true },
          ),
        ];
        for (const [i, out] of outs.entries()) expect(out.toFloat32Sync()).toEqual(own[i].toFloat32Sync());
        for (const t of [x, ...outs, ...own]) t.dispose();
      });
      light.dispose();
      moving.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of convolutions along a sequence', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const x = of(1, 5, 6);
  const options = { heads: 2, kernelSize: 3 };

  it.each<[string, () => unknown, RegExp]>([
    ['rank', () => lightweightConv(of(5, 6), { kernels: of(2, 3) }), /^ERR_SHAPE: x has shape \[5, 6\]/],
    ['heads', () => lightweightConv(x, { kernels: of(4, 3) }), /^ERR_SHAPE: x has 6 channels and there are 4 heads/],
    ['no heads', () => lightweightConv(x, { kernels: of(0, 3) }), /^ERR_SHAPE: x has 6 channels/],
    ['no taps', () => lightweightConv(x, { kernels: of(2, 0) }), /^ERR_SHAPE: weights.kernels has shape/],
    ['bias', () => lightweightConv(x, { kernels: of(2, 3), bias: of(5) }), /^ERR_SHAPE: weights.bias has shape/],
    [
      'order of channels',
      () => lightweightConv(x, { kernels: of(2, 3) }, { channels: 'first' as never }),
      /^ERR_OPTION: channels is "first"/,
    ],
    ['rows of kernels', () => dynamicConv(x, { kernels: of(5, 6) }, options), /^ERR_SHAPE: weights.kernels has shape/],
    [
      'kernelSize',
      () => dynamicConv(x, { kernels: of(6, 6) }, { ...options, kernelSize: 0 }),
      /^ERR_OPTION: kernelSize/,
    ],
    [
      'causal',
      () => dynamicConv(x, { kernels: of(6, 6) }, { ...options, causal: 1 as never }),
      /^ERR_OPTION: causal is 1/,
    ],
    ['a misspelt option', () => dynamicConv(x, { kernels: of(6, 6) }, { ...options, head: 2 } as never), /"heads"/],
    ['a width', () => new LightweightConv({ width: 6, heads: 4, kernelSize: 3, device }), /^ERR_OPTION: width 6 is no/],
    ['another width', () => new DynamicConv({ width: 6, heads: 4, kernelSize: 3, device }), /^ERR_OPTION: width 6/],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
