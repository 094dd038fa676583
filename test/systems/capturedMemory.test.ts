/** Steps through attention of low rank and with memories, recorded once and run again. */
import { cast, type DeviceName, normal, ones, parameter, type Tensor, tanh } from 'flashattn';
import {
  distanceSinusoids,
  linformerAttention,
  lowRankSvdAttention,
  MultiHeadLatentAttention,
  nystromAttentionPadded,
  nystromformerAttention,
  recurrentMemory,
  retroCrossAttention,
  TransformerXLAttention,
  transformerXLAttention,
  unlimiformerAttention,
  xposAttention,
  xposTables,
} from 'flashattn/systems';
import { describe, it } from 'vitest';
import { testDevices } from '../support/devices.js';
import { compareCaptured } from './compareCaptured.js';

function systems(device: DeviceName) {
  const x = parameter(normal([1, 12, 8], { seed: 1, device }) as Tensor);
  const random = (shape: readonly number[], seed: number) => normal(shape, { seed, device }) as Tensor;
  const attend = (f: (q: Tensor, k: Tensor, v: Tensor) => Tensor) => () => {
    const h = x.reshape([1, 12, 2, 4]) as Tensor;
    return f(h, h, h);
  };
  const keyProjection = random([12, 3], 2);
  const mask = cast(ones([1, 12], { device }) as Tensor, 'bool');
  const tables = xposTables({ length: 12, dim: 4, device });
  const r = distanceSinusoids({ length: 12, width: 8, device }).reshape([12, 2, 4]) as Tensor;
  const biases = { contentBias: random([2, 4], 3), distanceBias: random([2, 4], 4) };
  const retrieved = random([1, 3, 2, 5, 2, 4], 5);
  const nulls = { nullKey: random([2, 4], 6), nullValue: random([2, 4], 7) };
  const memory = random([2, 8], 8);
  const mla = new MultiHeadLatentAttention({ width: 8, heads: 2, nopeDim: 4, ropeDim: 2, valueDim: 3, kvRank: 5, device }); // biome-ignore format: one line
  const xl = new TransformerXLAttention({ width: 8, heads: 2, memory: 4, segment: 5, device });
  const all: Readonly<Record<string, () => Tensor>> = {
    linformer: attend((q, k, v) => linformerAttention(q, k, v, { keyProjection })),
    nystromformer: attend((q, k, v) => nystromformerAttention(q, k, v, { landmarks: 4, mask })),
    padded: attend((q, k, v) => nystromAttentionPadded(q, k, v, { landmarks: 5 })),
    svd: attend((q, k, v) => lowRankSvdAttention(q, k, v, { rank: 3, causal: true }).out),
    xpos: attend((q, k, v) => xposAttention(q, k, v, { tables }).out),
    transformerXL: attend((q, k, v) => transformerXLAttention(q, k, v, r, biases)),
    retro: attend((q) => retroCrossAttention(q, retrieved, retrieved, { chunk: 4, ...nulls })),
    unlimiformer: attend((q, k, v) => unlimiformerAttention(q, k, v, { neighbours: 3, mask }).out),
    rmt: () => recurrentMemory(x, memory, (z) => tanh(z), { segment: 5 }).out,
    mla: () => mla.forward(x),
    'the layer of Transformer-XL': () => xl.forward(x),
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
