/** Squeeze and excitation and CBAM, against their definitions place by place. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import {
  CBAM,
  type ChannelPool,
  cbam,
  cbamChannelGate,
  cbamSpatialGate,
  SqueezeExcitation,
  squeezeExcitation,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import {
  channelGate,
  type GateWeights,
  type Images,
  type PlaceWeights,
  spatialGate,
} from '../../verify/oracle/channelGates.js';
import { maxError } from '../../verify/oracle/compare.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

const images: readonly (Images & { readonly hidden: number })[] = [
  { batch: 2, channels: 6, height: 3, width: 5, hidden: 2 },
  { batch: 1, channels: 3, height: 7, width: 1, hidden: 3 },
  { batch: 3, channels: 1, height: 1, width: 1, hidden: 1 },
];

const gateInputs = ({ batch, channels, height, width, hidden }: (typeof images)[number], biases: boolean): Inputs => ({
  x: input([batch, channels, height, width], 1),
  reduce: input([hidden, channels], 2),
  expand: input([channels, hidden], 3),
  ...(biases && { reduceBias: input([hidden], 4), expandBias: input([channels], 5) }),
});

const placeInputs = (side: number): Inputs => ({
  conv: input([1, 2, side, side], 6, 0.5),
  gain: input([1], 7, 1, 1),
  bias: input([1], 8),
});

const gateOf = <T>(t: Named<T>) =>
  ({ reduce: t.reduce, reduceBias: t.reduceBias, expand: t.expand, expandBias: t.expandBias }) as never;

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('gates of channels and places'), () => {
    it.each(images.flatMap((c) => [true, false].map((biases) => ({ ...c, biases }))))('excitation: %j', (c) => {
      checkSystem(
        device,
        gateInputs(c, c.biases),
        (t) => squeezeExcitation(t.x, gateOf(t)),
        (values) => channelGate(c, values.x, gateOf(values) as GateWeights, ['avg']),
      );
    });

    it.each<ChannelPool[]>([['avg', 'max'], ['lp', 'lse'], ['max']] as never)('channel gate: %s %s', (...pools) => {
      const c = images[0];
      const used = pools.filter((pool) => pool);
      checkSystem(
        device,
        gateInputs(c, true),
        (t) => cbamChannelGate(t.x, gateOf(t), { pools: used }),
        (values) => channelGate(c, values.x, gateOf(values) as GateWeights, used),
      );
    });

    it.each(images.slice(0, 2).flatMap((c) => [true, false].map((running) => ({ ...c, running }))))('cbam: %j', (c) => {
      const statistics = { mean: Float64Array.of(0.25), variance: Float64Array.of(1.5) };
      const inputs = { ...gateInputs(c, true), ...placeInputs(3) };
      const { mean, variance } = Object.fromEntries(
        Object.entries(statistics).map(([name, data]) => [name, tensor(data, [1], { device }) as Tensor]),
      );
      checkSystem(
        device,
        inputs,
        (t) => {
          const { conv, gain, bias } = t;
          const spatial = { conv, gain, bias, ...(c.running && { mean, variance }) };
          return cbam(t.x, { channel: gateOf(t), spatial });
        },
        (values) => {
          const gated = channelGate(c, values.x, gateOf(values) as GateWeights, ['avg', 'max']);
          return spatialGate(c, gated, { ...values, ...(c.running && statistics) } as unknown as PlaceWeights);
        },
        { gradient: 5e-3 },
      );
      mean.dispose();
      variance.dispose();
    });

    it('channels of zeros have no NaN in the gradient of an lp pool', () => {
      const c = images[0];
      const inputs = gateInputs(c, false);
      inputs.x.data.fill(0);
      const out = new Float64Array(inputs.x.data.length).fill(1);
      const { gradients } = run(device, inputs, (t) => ({ out: cbamChannelGate(t.x, gateOf(t), { pools: ['lp'] }) }), {
        out,
      });
      for (const values of Object.values(gradients)) expect(values.every(Number.isFinite)).toBe(true);
    });

    it.each(['float16', 'bfloat16'] as const)('%s with weights of float32', (dtype) => {
      const c = images[0];
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries({ ...gateInputs(c, true), ...placeInputs(3) }).map(([name, { shape, data }]) => [
            name,
            tensor(data, shape, { device, ...(name === 'x' && { dtype }) }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const out = cbam(t.x, { channel: gateOf(t), spatial: { conv: t.conv, gain: t.gain, bias: t.bias } });
        const gated = channelGate(c, values.x, gateOf(values) as GateWeights, ['avg', 'max']);
        const exact = spatialGate(c, gated, values as unknown as PlaceWeights);
        expect(out.dtype).toBe(dtype);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -6 : 2 ** -4);
        for (const x of [out, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes batches of none', () => {
      const c = { ...images[0], batch: 0 };
      const empty = gateInputs(c, true);
      expect(
        run(device, empty, (t) => ({ out: squeezeExcitation(t.x, gateOf(t)) }), undefined).outputs.out,
      ).toHaveLength(0);
    });

    it('a layer is the function of its weights, and follows the statistics of batches', () => {
      const before = memory(device).tensors;
      const layer = new CBAM({ channels: 8, reduction: 2, kernelSize: 3, momentum: 0.5, device });
      const plain = new SqueezeExcitation({ channels: 8, reduction: 2, device });
      const x = tensor(input([2, 8, 4, 3], 1).data, [2, 8, 4, 3], { device }) as Tensor;
      noGrad(() => {
        const made: Tensor[] = [x];
        const spatial = layer.spatial;
        if (!spatial) throw new Error('no spatial gate');
        const { conv, gain, bias } = spatial;
        const gate = {
          reduce: layer.reduce.weight,
          reduceBias: layer.reduce.bias,
          expand: layer.expand.weight,
          expandBias: layer.expand.bias,
        };
        const training = layer.forward(x);
        const channels = cbamChannelGate(x, gate);
        const same = cbamSpatialGate(channels, { conv, gain, bias });
        expect(training.toFloat32Sync()).toEqual(same.toFloat32Sync());
        const [mean, variance] = [spatial.mean.toFloat32Sync()[0], spatial.variance.toFloat32Sync()[0]];
        expect(mean).not.toBe(0);
        expect(variance).not.toBe(1);
        const evaluated = layer.eval().forward(x);
        const running = cbamSpatialGate(channels, { conv, gain, bias, mean: spatial.mean, variance: spatial.variance });
        expect(evaluated.toFloat32Sync()).toEqual(running.toFloat32Sync());
        expect(spatial.mean.toFloat32Sync()[0]).toBe(mean);
        const excited = plain.forward(x);
        const own = squeezeExcitation(x, { reduce: plain.reduce.weight, expand: plain.expand.weight });
        expect(excited.toFloat32Sync()).toEqual(own.toFloat32Sync());
        made.push(training, channels, same, evaluated, running, excited, own);
        for (const t of made) t.dispose();
      });
      // Statistics are saved, and not trained.
      expect(Object.keys(layer.stateDict())).toContain('spatial.variance');
      expect(layer.parameters()).toHaveLength(7);
      layer.dispose();
      plain.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of gates', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const gate = { reduce: of(2, 4), expand: of(4, 2) };
  const x = of(1, 4, 3, 3);

  it.each<[string, () => unknown, RegExp]>([
    ['no places', () => squeezeExcitation(of(2, 4), gate), /^ERR_SHAPE: x has shape \[2, 4\]/],
    ['no tensor', () => squeezeExcitation(3 as never, gate), /^ERR_OPTION: x is 3/],
    ['other channels', () => squeezeExcitation(x, { ...gate, reduce: of(2, 5) }), /^ERR_SHAPE: weights.reduce has/],
    ['expand', () => squeezeExcitation(x, { ...gate, expand: of(2, 4) }), /^ERR_SHAPE: weights.expand has shape/],
    ['a misspelt weight', () => squeezeExcitation(x, { ...gate, bias: of(4) } as never), /^ERR_OPTION: .*"bias"/],
    ['no pools', () => cbamChannelGate(x, gate, { pools: [] }), /^ERR_OPTION: pools is \[\]/],
    ['a pool', () => cbamChannelGate(x, gate, { pools: ['mean' as never] }), /^ERR_OPTION: pools\[0\] is "mean"/],
    [
      'an even kernel',
      () => cbamSpatialGate(x, { conv: of(1, 2, 2, 3), gain: of(1), bias: of(1) }),
      /^ERR_SHAPE: .*odd sides/,
    ],
    [
      'half of the statistics',
      () => cbam(x, { channel: gate, spatial: { conv: of(1, 2, 3, 3), gain: of(1), bias: of(1), mean: of(1) } }),
      /^ERR_OPTION: weights.spatial must have both/,
    ],
    ['sequences', () => cbam(of(1, 4, 3), { channel: gate }), /^ERR_SHAPE: x has shape/],
    ['reduction', () => new SqueezeExcitation({ channels: 4, reduction: 5, device }), /^ERR_OPTION: reduction is 5/],
    [
      'kernelSize',
      () => new CBAM({ channels: 4, reduction: 2, kernelSize: 4, device }),
      /^ERR_OPTION: kernelSize is 4/,
    ],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
