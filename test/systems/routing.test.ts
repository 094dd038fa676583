/** Routing attention, against its definition cluster by cluster. */
import {
  attention,
  cast,
  concat,
  type DeviceName,
  matmul,
  memory,
  noGrad,
  parameter,
  scope,
  square,
  sum,
  type Tensor,
  tensor,
  zeros,
} from 'flashattn';
import { RoutingAttention, routingAttention, sharedRoutingAttention, updateRoutingMeans } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { movedMeans, type RoutingCase, routing, taken } from '../../verify/oracle/routing.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = Tensor<'float32', readonly [number, number, number, number]>;
const tokens = (t: Tensor | undefined) => t as Tensor<'float32'> as Shape4;

const base: RoutingCase = {
  ...{ batch: 2, seq: 15, heads: 2, dim: 4, valueDim: 3, clusters: 3, window: 5, memories: 0 },
  ...{ causal: false, shared: false },
};

const cases: readonly RoutingCase[] = [
  base,
  { ...base, causal: true, memories: 2 },
  { ...base, shared: true, causal: true },
  { ...base, shared: true, memories: 1, real: 9 },
  { ...base, memories: 1, real: 9, causal: true },
  // Nothing to see for some queries: 0. More real tokens are wanted than there are.
  { ...base, causal: true, real: 3, window: 7 },
  { ...base, batch: 1, seq: 1, window: 1, clusters: 1 },
  // All tokens in each cluster.
  { ...base, batch: 1, seq: 6, window: 6, clusters: 2 },
];

const inputsOf = (c: RoutingCase): Inputs => ({
  ...(c.shared
    ? { qk: input([c.batch, c.seq, c.heads, c.dim], 1) }
    : { q: input([c.batch, c.seq, c.heads, c.dim], 1), k: input([c.batch, c.seq, c.heads, c.dim], 2) }),
  v: input([c.batch, c.seq, c.heads, c.valueDim], 3),
  ...(c.memories > 0 && {
    memoryKeys: input([c.heads, c.clusters, c.memories, c.dim], 4),
    memoryValues: input([c.heads, c.clusters, c.memories, c.valueDim], 5),
  }),
});

const meansOf = (c: RoutingCase): Float64Array => {
  const { data } = input([c.heads, c.clusters, c.dim], 6);
  return data.map((x, at) => {
    const row = data.subarray(at - (at % c.dim), at - (at % c.dim) + c.dim);
    return Math.fround(x / Math.hypot(...row));
  });
};

const maskOf = (c: RoutingCase, device: DeviceName) =>
  scope(() => {
    const real = Float32Array.from({ length: c.batch * c.seq }, (_, at) =>
      Math.floor(at / c.seq) < c.batch - 1 || at % c.seq < (c.real ?? c.seq) ? 1 : 0,
    );
    return cast(tensor(real, [c.batch, c.seq], { device }), 'bool');
  });

function runOn(t: Named<Tensor>, c: RoutingCase, device: DeviceName, means = meansOf(c)) {
  const options = {
    means: tensor(Float32Array.from(means), [c.heads, c.clusters, c.dim], { device }) as Tensor,
    window: c.window,
    causal: c.causal,
    ...(c.memories > 0 && { memory: { keys: t.memoryKeys as Tensor, values: t.memoryValues as Tensor } }),
    ...(c.real !== undefined && { mask: maskOf(c, device) }),
  };
  return c.shared
    ? sharedRoutingAttention(tokens(t.qk), tokens(t.v), options)
    : routingAttention(tokens(t.q), tokens(t.k), tokens(t.v), options);
}

type Values = Named<Float64Array>;

/** As defined, with the clusters of `at`. */
function definitionOf(c: RoutingCase, at: Values, means = meansOf(c)): (values: Values) => Float64Array {
  const queries = taken(c, (c.shared ? at.qk : at.q) as Float64Array, means);
  const keys = c.shared ? queries : taken(c, at.k as Float64Array, means);
  return (values) => routing(c, values, queries, keys);
}

const dataOf = (inputs: Inputs): Values =>
  Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, data]));

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('routing attention'), () => {
    it.each(cases)('%j', (c) => {
      const inputs = inputsOf(c);
      checkSystem(device, inputs, (t) => runOn(t, c, device).out as Tensor as Tensor, definitionOf(c, dataOf(inputs)));
    });

    it('says which tokens each cluster has taken, the earlier of equal ones', () => {
      const c = { ...base, window: 4 };
      const inputs = inputsOf(c);
      // Pairs of equal queries; keys that all point the same way.
      const { data } = inputs.q as { data: Float64Array };
      const row = c.heads * c.dim;
      for (let i = 1; i < c.seq; i += 2) data.copyWithin(i * row, (i - 1) * row, i * row);
      inputs.k?.data.fill(1);
      const queries = taken(c, data, meansOf(c));
      run(
        device,
        inputs,
        (t) => {
          const { out, queryIndices, keyIndices } = runOn(t, c, device);
          expect(queryIndices.shape).toEqual([2, 2, 3, 4]);
          for (const [name, found] of [
            ['q', queryIndices.dataSync()],
            ['k', keyIndices.dataSync()],
          ] as const)
            for (let list = 0; list < 12; list++) {
              const own = [...found.subarray(list * 4, list * 4 + 4)];
              const [b, h, n] = [Math.floor(list / 6), Math.floor(list / 3) % 2, list % 3];
              if (name === 'k') expect(own).toEqual([0, 1, 2, 3]);
              else if (b === 0) expect(own).toEqual(queries(b, h, n));
            }
          return { out: out as Tensor as Tensor };
        },
        undefined,
      );
    });

    it('gives 0 to tokens in no cluster, and the mean to those in several', () => {
      const c: RoutingCase = { ...base, batch: 1, seq: 8, heads: 1, clusters: 2, window: 3 };
      // Two equal centroids take the same tokens.
      const one = meansOf({ ...c, clusters: 1 });
      const means = Float64Array.from([...one, ...one]);
      const inputs = inputsOf(c);
      run(
        device,
        inputs,
        (t) => {
          const { out, queryIndices } = runOn(t, c, device, means);
          const values = out.toFloat32Sync();
          const inCluster = new Set(queryIndices.dataSync());
          expect(inCluster.size).toBe(3);
          for (let i = 0; i < 8; i++)
            expect(values.subarray(i * 3, i * 3 + 3).every((x) => x === 0)).toBe(!inCluster.has(i));
          expect(maxError(values, definitionOf(c, dataOf(inputs), means)(dataOf(inputs)))).toBeLessThan(2e-5);
          return { out: out as Tensor as Tensor };
        },
        undefined,
      );
    });

    it('what is not real changes nothing for others', () => {
      const c = { ...base, real: 9, window: 6 };
      const [inputs, others] = [inputsOf(c), inputsOf(c)];
      const row = c.heads * c.dim;
      for (const name of ['q', 'k']) others[name]?.data.fill(7, (c.seq + 9) * row, 2 * c.seq * row);
      const [a, b] = [inputs, others].map(
        (own) => run(device, own, (t) => ({ out: runOn(t, c, device).out as Tensor as Tensor }), undefined).outputs.out,
      );
      expect(a?.subarray(0, (c.seq + 9) * c.heads * 3)).toEqual(b?.subarray(0, (c.seq + 9) * c.heads * 3));
      expect(a?.subarray((c.seq + 9) * c.heads * 3).every((x) => x === 0)).toBe(true);
    });

    it('moves centroids to their tokens, and leaves those without any', () => {
      const c: RoutingCase = { ...base, clusters: 4, real: 10 };
      const x = input([c.batch, c.seq, c.heads, c.dim], 8);
      const means = meansOf(c);
      // Nothing points to the last centroid of the first head.
      for (let d = 0; d < c.dim; d++) means[3 * c.dim + d] = 0;
      for (let at = 0; at < x.data.length; at++) x.data[at] = Math.abs(x.data[at] as number) + 0.01;
      for (const [head, n] of [
        [0, 0],
        [0, 1],
        [0, 2],
      ] as const)
        for (let d = 0; d < c.dim; d++) {
          const at = (head * c.clusters + n) * c.dim + d;
          means[at] = Math.abs(means[at] as number);
        }
      const expected = movedMeans(c, x.data, means, 0.9);
      expect([...expected.subarray(3 * c.dim, 4 * c.dim)]).toEqual([0, 0, 0, 0]);
      noGrad(() => {
        const before = memory(device).tensors;
        const t = tensor(Float32Array.from(x.data), x.shape, { device }) as Tensor;
        const m = tensor(Float32Array.from(means), [c.heads, c.clusters, c.dim], { device }) as Tensor;
        const mask = maskOf(c, device);
        const moved = updateRoutingMeans(t, m, { decay: 0.9, mask });
        expect(maxError(moved.dataSync(), expected)).toBeLessThan(1e-5);
        for (const each of [t, m, mask, moved]) each.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c = { ...base, causal: true, memories: 1 };
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries(inputsOf(c)).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const out = scope(() => runOn(t, c, device).out as Tensor as Tensor);
        expect(out.dtype).toBe(dtype);
        const exact = definitionOf(c, values)(values);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -7 : 2 ** -4);
        for (const x of [out, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }])
        for (const c of [cases[0], cases[2]] as RoutingCase[]) {
          const own = { ...c, ...empty };
          const { outputs } = run(
            device,
            inputsOf(own),
            (t) => ({ out: runOn(t, own, device).out as Tensor as Tensor }),
            undefined,
          );
          expect(outputs.out).toHaveLength(0);
        }
    });
  });
});

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('the layer of routing attention'), () => {
    const options = { width: 12, heads: 3, localHeads: 1, clusters: 2, window: 4, localWindow: 2, seed: 3, device };
    const x = input([2, 9, 12], 1);

    it.each([false, true])('has local and routed heads, causal %s', (causal) => {
      const before = memory(device).tensors;
      const layer = new RoutingAttention({ ...options, causal });
      expect([...layer.namedParameters().keys()].includes('memoryKeys')).toBe(causal);
      const { outputs } = run(
        device,
        { x },
        (t) => {
          const own = t.x as Tensor;
          const heads = ({ weight }: { weight: Tensor }) =>
            matmul(own, weight.transpose(0, 1)).reshape([2, 9, 3, 4]) as Tensor;
          const [q, k, v] = [layer.qProj, layer.kProj, layer.vProj].map(heads) as [Tensor, Tensor, Tensor];
          const part = (t: Tensor, from: number, to: number) => tokens(t.slice(2, from, to));
          const local = attention(part(q, 0, 1), part(k, 0, 1), part(v, 0, 1), { window: [2, causal ? 0 : 2] }).out;
          const { out: routed } = routingAttention(part(q, 1, 3), part(k, 1, 3), part(v, 1, 3), {
            means: layer.means,
            window: 4,
            causal,
            ...(layer.memoryKeys && { memory: { keys: layer.memoryKeys, values: layer.memoryValues as Tensor } }),
          });
          const joined = concat([local as Tensor as Tensor, routed as Tensor as Tensor], 2).reshape([2, 9, 12]);
          return { own: matmul(joined, layer.outProj.weight.transpose(0, 1)), layer: layer.forward(own) };
        },
        undefined,
      );
      expect(maxError(outputs.layer ?? [], outputs.own ?? new Float64Array())).toBeLessThan(1e-6);
      scope(() => {
        const leaf = parameter(tensor(Float32Array.from(x.data), x.shape, { device }) as Tensor);
        sum(square(layer.forward(leaf))).backward();
        expect(leaf.grad?.toFloat32Sync().every(Number.isFinite)).toBe(true);
        leaf.dispose();
      });
      for (const [name, t] of layer.namedParameters()) expect(t.grad !== undefined, name).toBe(name !== 'means');
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it('does not see what is not real, and moves its centroids in place', () => {
      const before = memory(device).tensors;
      const layer = new RoutingAttention({ ...options, localHeads: 2 });
      const real = { ...base, batch: 2, seq: 9, real: 5 };
      const data = x.data.slice().fill(3, 14 * 12);
      const [a, b] = [x.data, data].map((values) =>
        run(
          device,
          { x: { shape: x.shape, data: values } },
          (t) => ({ out: layer.forward(t.x as Tensor, { mask: maskOf(real, device) }) }),
          undefined,
        ).outputs.out?.subarray(0, 14 * 12),
      );
      expect(a).toEqual(b);
      noGrad(() => {
        const means = layer.means.toFloat32Sync();
        scope(() => {
          const t = tensor(Float32Array.from(x.data), x.shape, { device }) as Tensor;
          const other = tensor(Float32Array.from(data), x.shape, { device }) as Tensor;
          const part = (projection: { forward(x: Tensor): Tensor }) =>
            projection.forward(t).reshape([2, 9, 3, 4]).slice(2, 2, 3);
          const both = concat([part(layer.qProj), part(layer.kProj)], 1);
          const mask = maskOf(real, device);
          const twice = cast(concat([cast(mask, 'float32'), cast(mask, 'float32')], 1), 'bool');
          const expected = updateRoutingMeans(both, layer.means, { decay: 0.5, mask: twice }).dataSync();
          layer.updateMeans(other, { decay: 0.5, mask });
          expect(maxError(layer.means.toFloat32Sync(), Float64Array.from(expected))).toBeLessThan(1e-6);
        });
        expect(layer.means.toFloat32Sync()).not.toEqual(means);
      });
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of routing attention', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;

  it.each<[string, object, RegExp]>([
    ['no means', { means: undefined }, /^ERR_OPTION: means is undefined/],
    ['means of another dim', { means: of(2, 3, 5) }, /^ERR_SHAPE: means has shape/],
    ['a window beyond the sequence', { window: 9 }, /^ERR_OPTION: window is 9; it must be at most/],
    ['no window', { window: undefined }, /^ERR_OPTION: window is undefined/],
    ['memory without values', { memory: { keys: of(2, 3, 1, 4) } }, /^ERR_OPTION: memory.values is undefined/],
    [
      'fewer values',
      { memory: { keys: of(2, 3, 2, 4), values: of(2, 3, 1, 4) } },
      /^ERR_SHAPE: memory.values has shape/,
    ],
    ['causal', { causal: 1 }, /^ERR_OPTION: causal is 1/],
    ['an unknown option', { windows: 2 }, /^ERR_OPTION: .*did you mean "window"/],
  ])('%s', (_, options, message) => {
    const t = of(2, 8, 2, 4);
    const all = { means: of(2, 3, 4), window: 2, ...options };
    const before = memory(device).tensors;
    expect(errorOf(() => routingAttention(t, t, t, all as never))).toMatch(message);
    expect(errorOf(() => sharedRoutingAttention(t, t, all as never))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it.each<[string, object, RegExp]>([
    ['only local heads', { localHeads: 3 }, /^ERR_OPTION: localHeads is 3; it must be an integer from 0 to 2/],
    ['a width without whole heads', { width: 13 }, /^ERR_OPTION: width 13 is no multiple of heads 3/],
    ['no clusters', { clusters: undefined }, /^ERR_OPTION: clusters is undefined/],
  ])('of the layer: %s', (_, options, message) => {
    const before = memory(device).tensors;
    const all = { width: 12, heads: 3, clusters: 2, window: 4, device, ...options };
    expect(errorOf(() => new RoutingAttention(all as never))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('names a decay beyond 1', () => {
    expect(errorOf(() => updateRoutingMeans(of(2, 8, 2, 4), of(2, 3, 4), { decay: 2 }))).toMatch(
      /^ERR_OPTION: decay is 2/,
    );
  });
});
