/** Steps through linear and gated attention and systems of pairs, recorded once and run again. */
import { type DeviceName, mul, normal, parameter, type Tensor, uniform } from 'flashattn';
import {
  aftFull,
  cosformerAttention,
  efficientAttention,
  flashQuadAttention,
  forgettingAttention,
  type GatedAttentionWeights,
  gatedAttentionUnit,
  kernelAttention,
  linearAttention,
  performerAttention,
  randomFeatureAttention,
  randomFrequencies,
} from 'flashattn/systems';
import { describe, it } from 'vitest';
import { testDevices } from '../support/devices.js';
import { compareCaptured } from './compareCaptured.js';

function systems(device: DeviceName) {
  const x = parameter(normal([1, 12, 8], { seed: 1, device }) as Tensor);
  const heads = () => x.reshape([1, 12, 2, 4]) as Tensor;
  const g = parameter(mul(uniform([1, 12, 2], { seed: 2, device }), -1) as Tensor<'float32'>);
  const random = (shape: readonly number[], seed: number) => normal(shape, { seed, device }) as Tensor;
  const weights = (rows: number): GatedAttentionWeights => ({
    normWeight: random([8], 3),
    normBias: random([8], 4),
    hiddenWeight: random([12, 8], 5),
    hiddenBias: random([12], 6),
    qkWeight: random([4, 8], 7),
    qkBias: random([4], 8),
    gamma: random([rows, 4], 9),
    beta: random([rows, 4], 10),
    relativeBias: random([8, 1], 11),
    outWeight: random([8, 6], 12),
    outBias: random([8], 13),
  });
  const [two, four] = [weights(2), weights(4)];
  const w = random([12, 12], 14);
  const omega = randomFrequencies({ dim: 4, count: 6, kernel: 'gaussian', seed: 15, device });
  const projection = random([6, 4], 16) as Tensor<'float32'>;
  const attend = (f: (q: Tensor, k: Tensor, v: Tensor) => Tensor) => () => {
    const h = heads();
    return f(h, h, h);
  };
  const all: Readonly<Record<string, () => Tensor>> = {
    linear: attend((q, k, v) => linearAttention(q, k, v, { kLens: [7] })),
    cosformer: attend((q, k, v) => cosformerAttention(q, k, v)),
    efficient: attend((q, k, v) => efficientAttention(q, k, v)),
    performer: attend((q, k, v) => performerAttention(q, k, v, { projection })),
    randomFeatures: attend((q, k, v) => randomFeatureAttention(q, k, v, { omega, epsilon: 10 })),
    gaussian: attend((q, k, v) => kernelAttention(q, k, v, { normalize: false })),
    laplacian: attend((q, k, v) => kernelAttention(q, k, v, { kernel: 'laplacian' })),
    forgetting: attend((q, k, v) => forgettingAttention(q, k, v, g)),
    aft: () => aftFull(x, x, x, w, { causal: true }),
    gated: () => gatedAttentionUnit(x, two, { causal: true }),
    flash: () => flashQuadAttention(x, four, { causal: true, groupSize: 5 }),
  };
  return { x, all };
}

const names = Object.keys(systems('wasm').all);

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('captured steps'), () => {
    it.each(names)('%s', (name) => {
      const { x, all } = systems(device);
      compareCaptured(x as Tensor, all[name] as () => Tensor);
    });
  });
});
