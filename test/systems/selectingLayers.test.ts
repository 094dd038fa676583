/** Layers of systems that choose what they attend to, against the functions that they are made of. */
import {
  cast,
  type DeviceName,
  matmul,
  memory,
  parameter,
  rope,
  scope,
  sigmoid,
  square,
  sum,
  type Tensor,
  tensor,
} from 'flashattn';
import type { Module } from 'flashattn/nn';
import { NativeSparseAttention, nativeSparseAttention, ReformerAttention, reformerAttention } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { compareCaptured } from './compareCaptured.js';
import { type Input, input, run } from './taped.js';

type Four = Tensor<'float32', readonly [number, number, number, number]>;
type Layer = Module & { forward(x: Tensor): Tensor };
interface Projection {
  readonly weight: Tensor;
}

const four = (t: Tensor) => t as unknown as Four;
const plain = (t: unknown) => t as Tensor;
/** x [2, seq, 12] W^T in heads of 4. */
const heads = (x: Tensor, { weight }: Projection) =>
  matmul(x, weight.transpose(0, 1)).reshape([2, x.shape[1] as number, -1, 4]) as Tensor;
const joined = (out: unknown, { weight }: Projection) => {
  const t = plain(out);
  return matmul(t.reshape([2, t.shape[1] as number, -1]) as Tensor, weight.transpose(0, 1)) as Tensor;
};

/** Tables of positions stay with a layer. */
const warmUp = (device: DeviceName, layer: Layer, { data, shape }: Input) =>
  scope(() => layer.forward(tensor(data, shape, { device }) as Tensor)).dispose();

/** That a layer is what `own` computes, and that all of its parameters get gradients. */
function compare(device: DeviceName, x: Input, make: () => Layer, own: (x: Tensor, layer: never) => Tensor): void {
  const before = memory(device).tensors;
  const layer = make();
  warmUp(device, layer, x);
  const { outputs } = run(
    device,
    { x },
    (t) => ({ own: own(t.x as Tensor, layer as never), layer: layer.forward(t.x as Tensor) }),
    undefined,
  );
  expect(outputs.layer).toHaveLength(x.data.length);
  expect(maxError(outputs.layer ?? [], outputs.own ?? new Float64Array())).toBeLessThan(1e-6);
  scope(() => {
    const leaf = parameter(tensor(Float32Array.from(x.data), x.shape, { device }) as Tensor);
    sum(square(layer.forward(leaf))).backward();
    expect(leaf.grad?.toFloat32Sync().every(Number.isFinite)).toBe(true);
    leaf.dispose();
  });
  const learned = [...layer.namedParameters()].filter(([name]) => name !== 'rotations');
  for (const [name, t] of learned)
    expect(
      t.grad?.toFloat32Sync().some((g) => g !== 0),
      name,
    ).toBe(true);
  const empty = scope(() => layer.forward(tensor(new Float32Array(0), [2, 0, 12], { device }) as Tensor));
  expect(empty.shape).toEqual([2, 0, 12]);
  empty.dispose();
  layer.dispose();
  expect(memory(device).tensors).toBe(before);
}

/** Rows of x below `until`, when all others of the second batch entry are changed. */
function firstRows(device: DeviceName, layer: Layer, x: Input, until: number, change: number) {
  const seq = x.shape[1] as number;
  const data = x.data.map((value, at) => (at >= (seq + until) * 12 ? value + change : value));
  const { out } = run(
    device,
    { x: { shape: x.shape, data } },
    (t) => ({ out: layer.forward(t.x as Tensor) }),
    undefined,
  ).outputs;
  return out?.subarray(0, (seq + until) * 12);
}

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('the layer of native sparse attention'), () => {
    const x = input([2, 19, 12], 1);
    const options = { width: 12, heads: 3, kvHeads: 1, blockSize: 4, blockCount: 3, seed: 3, device };

    it.each([5, 0])('is its function between projections, with a window of %i', (window) => {
      compare(
        device,
        x,
        () => new NativeSparseAttention({ ...options, window }),
        (x, layer: NativeSparseAttention) => {
          const gates = sigmoid(matmul(x, layer.gateProj.weight.transpose(0, 1))).reshape([2, 19, 3, -1]) as Tensor;
          const gate = (branch: number) => gates.select(3, branch) as Tensor;
          const [compressed, selected] = [gate(0), gate(1)];
          const { out } = nativeSparseAttention(
            four(heads(x, layer.qProj)),
            four(heads(x, layer.kProj)),
            four(heads(x, layer.vProj)),
            {
              ...{ blockSize: 4, blockCount: 3, window },
              gates: { compressed, selected, ...(window > 0 && { sliding: gate(2) }) },
            },
          );
          return joined(out, layer.outProj);
        },
      );
    });

    it('turns queries and keys by their positions', () => {
      const angle = (f: (x: number) => number, t: Tensor) =>
        tensor(
          Float32Array.from({ length: 19 * 2 }, (_, at) => f((at >> 1) * 10 ** (-(at % 2) / 2))),
          [19, 2],
          { device: t.device as DeviceName },
        );
      compare(
        device,
        x,
        () => new NativeSparseAttention({ ...options, window: 5, rope: { base: 10 } }),
        (x, layer: NativeSparseAttention) => {
          const gates = sigmoid(matmul(x, layer.gateProj.weight.transpose(0, 1))).reshape([2, 19, 3, 3]) as Tensor;
          const [compressed, selected, sliding] = [0, 1, 2].map((i) => gates.select(3, i)) as [Tensor, Tensor, Tensor];
          const angles = { cos: angle(Math.cos, x), sin: angle(Math.sin, x) };
          const [q, k] = [layer.qProj, layer.kProj].map((p) => four(rope(heads(x, p), angles))) as [Four, Four];
          const { out } = nativeSparseAttention(q, k, four(heads(x, layer.vProj)), {
            ...{ blockSize: 4, blockCount: 3, window: 5 },
            gates: { compressed, selected, sliding },
          });
          return joined(out, layer.outProj);
        },
      );
    });

    it('sees nothing that comes later, and can be captured', () => {
      const layer = new NativeSparseAttention({ ...options, window: 5, rope: {} });
      warmUp(device, layer, x);
      expect(firstRows(device, layer, x, 10, 1)).toEqual(firstRows(device, layer, x, 10, 0));
      const leaf = parameter(tensor(x.data, x.shape, { device }) as Tensor);
      compareCaptured(leaf, () => layer.forward(leaf));
      leaf.dispose();
      layer.dispose();
    });
  });

  describe.skipIf(!present)(title('the layer of attention by hashing'), () => {
    const options = { width: 12, heads: 3, numBuckets: 4, rounds: 2, chunkLength: 4, seed: 3, device };
    const own =
      (used: object, real?: number) =>
      (x: Tensor, { qkProj, vProj, outProj, rotations }: ReformerAttention) => {
        const mask = real !== undefined && {
          mask: cast(
            tensor(
              Float32Array.from({ length: 2 * (x.shape[1] as number) }, (_, at) =>
                at % (x.shape[1] as number) < real ? 1 : 0,
              ),
              [2, x.shape[1] as number],
              { device },
            ),
            'bool',
          ),
        };
        const { out } = reformerAttention(four(heads(x, qkProj)), four(heads(x, vProj)), {
          ...{ numBuckets: 4, rotations: rotations as Tensor<'float32', readonly number[]>, chunkLength: 4 },
          ...used,
          ...mask,
        });
        return joined(out, outProj);
      };

    it.each([{}, { causal: true }, { chunksAfter: 1, duplicates: 'share' as const }])(
      'is its function between projections: %j',
      (used) => {
        compare(device, input([2, 16, 12], 1), () => new ReformerAttention({ ...options, ...used }), own(used));
      },
    );

    it('fills up what is no multiple of a chunk, and takes a short sequence whole', () => {
      const layer = new ReformerAttention({ ...options, causal: true });
      const [long, short] = [input([2, 14, 12], 1), input([2, 3, 12], 1)];
      const padded = { shape: [2, 16, 12], data: new Float64Array(2 * 16 * 12) };
      for (let b = 0; b < 2; b++) padded.data.set(long.data.subarray(b * 14 * 12, (b + 1) * 14 * 12), b * 16 * 12);
      // Numbers where nothing is real do not matter.
      const { outputs } = run(
        device,
        { long, padded, short },
        (t) => {
          const filled = t.padded as Tensor;
          const all = own({ causal: true }, 14)(filled, layer).slice(1, 0, 14).contiguous();
          const whole = own({ causal: true, chunkLength: 3, chunksBefore: 0 })(t.short as Tensor, layer);
          return { all, long: layer.forward(t.long as Tensor), whole, short: layer.forward(t.short as Tensor) };
        },
        undefined,
      );
      expect(maxError(outputs.long ?? [], outputs.all ?? new Float64Array())).toBeLessThan(1e-6);
      expect(maxError(outputs.short ?? [], outputs.whole ?? new Float64Array())).toBeLessThan(1e-6);
      layer.dispose();
    });

    it('does not see what is not real', () => {
      const layer = new ReformerAttention(options);
      const x = input([2, 14, 12], 1);
      const rows = (change: number) => {
        const data = x.data.map((value, at) => (at >= (14 + 9) * 12 ? value + change : value));
        const flags = Float32Array.from({ length: 28 }, (_, at) => (at < 14 + 9 ? 1 : 0));
        const { out } = run(
          device,
          { x: { shape: x.shape, data } },
          (t) => {
            const mask = cast(tensor(flags, [2, 14], { device }), 'bool') as Tensor<'bool'>;
            return { out: layer.forward(t.x as Tensor, { mask: mask as never }) };
          },
          undefined,
        ).outputs;
        return out?.subarray(0, (14 + 9) * 12);
      };
      expect(rows(3)).toEqual(rows(0));
      layer.dispose();
    });

    it('draws other rotations in place when it is asked to, and can be captured', () => {
      const layer = new ReformerAttention({ ...options, causal: true });
      const again = new ReformerAttention({ ...options, causal: true });
      const rotations = () => layer.rotations.toFloat32Sync();
      const first = rotations();
      expect(again.rotations.toFloat32Sync()).toEqual(first);
      const leaf = parameter(tensor(input([2, 14, 12], 1).data, [2, 14, 12], { device }) as Tensor);
      compareCaptured(leaf, () => layer.forward(leaf));
      leaf.dispose();
      layer.drawRotations();
      expect(rotations()).not.toEqual(first);
      again.drawRotations();
      expect(again.rotations.toFloat32Sync()).toEqual(rotations());
      again.dispose();
      layer.dispose();
    });
  });
});

describe('bad arguments of layers that choose', () => {
  const device: DeviceName = 'wasm';
  const nsa = { width: 12, heads: 3, device };
  const lsh = { width: 12, heads: 3, numBuckets: 4, chunkLength: 4, device };

  it.each<[string, object, RegExp]>([
    ['heads that do not divide', { heads: 5 }, /^ERR_OPTION: width 12 is no multiple of heads 5/],
    ['kv heads that do not divide', { kvHeads: 2 }, /^ERR_OPTION: kvHeads is 2; it must be a divisor of heads, 3/],
    ['fewer blocks than are always taken', { blockCount: 1, initialBlocks: 1 }, /^ERR_OPTION: blockCount is 1/],
    ['no block', { blockSize: 0 }, /^ERR_OPTION: blockSize is 0/],
    ['an unknown option', { clusters: 3 }, /^ERR_OPTION: there is no option "clusters"/],
  ])('native sparse attention, %s', (_, changed, message) => {
    expect(errorOf(() => new NativeSparseAttention({ ...nsa, ...changed }))).toMatch(message);
  });

  it.each<[string, object, RegExp]>([
    ['heads that do not divide', { heads: 5 }, /^ERR_OPTION: width 12 is no multiple of heads 5/],
    ['odd buckets', { numBuckets: 3 }, /^ERR_OPTION: numBuckets is 3; it must be even/],
    ['no rounds', { rounds: 0 }, /^ERR_OPTION: rounds is 0/],
    ['another way to count', { duplicates: 'twice' }, /^ERR_OPTION: duplicates is "twice"/],
    ['an unknown option', { buckets: 3 }, /^ERR_OPTION: there is no option "buckets"/],
  ])('attention by hashing, %s', (_, changed, message) => {
    expect(errorOf(() => new ReformerAttention({ ...lsh, ...changed } as never))).toMatch(message);
  });

  it('of another width', () => {
    const x = tensor(new Float32Array(8), [1, 1, 8], { device }) as Tensor;
    for (const layer of [new NativeSparseAttention(nsa), new ReformerAttention(lsh)]) {
      expect(errorOf(() => layer.forward(x))).toMatch(
        /^ERR_SHAPE: x has shape \[1, 1, 8\]; it must be \[batch, seq, 12\]/,
      );
      layer.dispose();
    }
    x.dispose();
  });
});
