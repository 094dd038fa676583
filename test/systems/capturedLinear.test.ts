/** Steps through linear and gated attention and systems of pairs, recorded once and run again. */
import { capture, type DeviceName, mul, normal, parameter, scope, sum, type Tensor, uniform } from 'flashattn';
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
import { describe, expect, it } from 'vitest';
import { testDevices } from '../support/devices.js';

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
      const run = all[name] as () => Tensor;
      const step = () => {
        const out = run();
        const loss = sum(mul(out, out));
        loss.backward();
        return loss;
      };
      const one = scope(step).toFloat32Sync()[0] as number;
      const first = x.grad?.toFloat32Sync();
      x.grad = undefined;
      using captured = capture(() => {
        x.grad = undefined;
        return { loss: step(), gradient: x.grad };
      });
      const replayed = captured.replay();
      expect(replayed.loss.toFloat32Sync()[0]).toBe(one);
      expect((replayed.gradient as unknown as Tensor).toFloat32Sync()).toEqual(first);
      mul(x.detach(), 2).copyInto(x.detach());
      const two = captured.replay().loss.toFloat32Sync()[0] as number;
      expect(two).toBe(scope(step).toFloat32Sync()[0]);
      expect(two).not.toBe(one);
    });
  });
});
