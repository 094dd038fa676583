/** Steps through systems with memories and inner models, recorded once and run again. */
import { type DeviceName, normal, parameter, type Tensor, zeros } from 'flashattn';
import {
  hybridGatedWindowLinear,
  hybridLocalLinear,
  InfiniAttention,
  infiniAttention,
  TTTLinear,
} from 'flashattn/systems';
import { describe, it } from 'vitest';
import { testDevices } from '../support/devices.js';
import { compareCaptured } from './compareCaptured.js';

type Tokens = Tensor<'float32', readonly [number, number, number, number]>;

function systems(device: DeviceName) {
  const x = parameter(normal([1, 20, 8], { seed: 1, device }) as Tensor);
  const tokens = (): Tokens => x.reshape([1, 20, 2, 4]) as Tensor as Tensor<'float32'> as Tokens;
  const gate = parameter(zeros([2], { device }) as Tensor);
  const ttt = new TTTLinear({ width: 8, heads: 2, miniBatch: 8, device });
  const infini = new InfiniAttention({ width: 8, heads: 2, segment: 8, device, rope: {} });
  const all: Record<string, () => Tensor> = {
    TTTLinear: () => ttt.forward(x),
    InfiniAttention: () => infini.forward(x),
    infiniAttention: () => {
      const h = tokens();
      return infiniAttention(h, h, h, { gate, segment: 8, delta: true }).out as Tensor as Tensor;
    },
    hybridGatedWindowLinear: () => {
      const h = tokens();
      return hybridGatedWindowLinear(h, h, h, { gate, window: 4 }) as Tensor as Tensor;
    },
    hybridLocalLinear: () => {
      const h = tokens();
      const options = { localHeads: 1, window: 4, causal: true, blindspot: 4 };
      return hybridLocalLinear(h, h, h, options) as Tensor as Tensor;
    },
  };
  return { x, all };
}

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('captured steps'), () => {
    it.each(['TTTLinear', 'InfiniAttention', 'infiniAttention', 'hybridGatedWindowLinear', 'hybridLocalLinear'])(
      '%s',
      (name) => {
        const { x, all } = systems(device);
        compareCaptured(x as Tensor, all[name] as () => Tensor);
      },
    );
  });
});
