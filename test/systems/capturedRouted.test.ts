/** Systems that sort and select, captured once and replayed over other numbers: what they choose is chosen anew. */
import { capture, type DeviceName, memory, noGrad, normal, scope, sigmoid, type Tensor } from 'flashattn';
import {
  adaptiveSpanAttention,
  binaryPartition,
  binaryPartitionAttention,
  differentiableAttentionMask,
  lshAttention,
  lshBuckets,
  nativeSparseAttention,
  sharedRoutingAttention,
  sparseBertAttention,
  topKAttention,
  updateRoutingMeans,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { testDevices } from '../support/devices.js';

type Shape4 = Tensor<'float32', readonly [number, number, number, number]>;
type System = (x: Shape4, other: (shape: readonly number[]) => Tensor) => Tensor;

const of = (device: DeviceName, shape: readonly number[], seed: number) => normal(shape, { seed, device }) as Tensor;
const plain = (t: unknown) => t as Tensor;

/** Of x [1, 32, 2, 4] and of others, which stay the same. */
const systems: Readonly<Record<string, System>> = {
  'spans that are learned': (x, other) => {
    const options = {
      span: sigmoid(other([2])) as Tensor<'float32'>,
      ramp: 4,
      keyPe: other([4, 16]) as Tensor<'float32'>,
    };
    return plain(adaptiveSpanAttention(x.slice(1, 16, 32) as Shape4, x, x, options).out);
  },
  'the largest logits': (x) => plain(topKAttention(x, x, x, { keep: 5, causal: true }).out),
  'native sparse attention': (x, other) => {
    const gate = other([1, 32, 2]);
    const gates = { compressed: gate, selected: gate, sliding: gate };
    return plain(nativeSparseAttention(x, x, x, { gates, blockSize: 4, blockCount: 3, window: 5 }).out);
  },
  'attention by hashing': (x, other) => {
    const buckets = lshBuckets(plain(x), { numBuckets: 4, rotations: other([2, 4, 2, 2]) as Tensor<'float32'> });
    return plain(lshAttention(x, x, { buckets, chunkLength: 4, causal: true, duplicates: 'share' }));
  },
  'routing attention': (x, other) => plain(sharedRoutingAttention(x, x, { means: other([2, 3, 4]), window: 5 }).out),
  'online k-means': (x, other) => plain(updateRoutingMeans(plain(x), other([2, 3, 4]), { decay: 0.5 })),
  'a mask that is learned': (x, other) =>
    plain(sparseBertAttention(x, x, x, { keep: differentiableAttentionMask(other([2, 32, 2])) })),
  'a binary partition': (x, other) => {
    // 16 leaves have 15 spans above them.
    const nodes = x.slice(1, 0, 31) as Shape4;
    const graph = binaryPartition(16);
    return plain(binaryPartitionAttention(nodes, nodes, nodes, { graph, relative: other([graph.types, 4]) }));
  },
};

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('captured'), () => {
    it.each(Object.keys(systems))('%s', (name) => {
      const system = systems[name] as System;
      const before = memory(device).tensors;
      noGrad(() => {
        const x = of(device, [1, 32, 2, 4], 1);
        const others = new Map<string, Tensor>();
        const other = (shape: readonly number[]) => {
          const key = shape.join();
          const known = others.get(key) ?? of(device, shape, 3);
          others.set(key, known);
          return known;
        };
        const read = () => {
          const out = scope(() => system(x as unknown as Shape4, other));
          const values = out.toFloat32Sync();
          out.dispose();
          return values;
        };
        // What stays the same is made before anything is captured, and outlives the scope that it is made in.
        scope(() => [system(x as unknown as Shape4, other), ...others.values()])[0]?.dispose();
        const step = capture(() => system(x as unknown as Shape4, other), { device });
        for (const seed of [5, 6]) {
          const next = of(device, [1, 32, 2, 4], seed);
          next.copyInto(x as never);
          next.dispose();
          const replayed = step.replay().toFloat32Sync();
          expect(replayed).toEqual(read());
        }
        step.dispose();
        for (const t of [x, ...others.values()]) t.dispose();
      });
      expect(memory(device).tensors).toBe(before);
    });
  });
});
