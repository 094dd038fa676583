/** Attention along binary partitions, against the graph by its definition and attention edge by edge. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import {
  type BinaryPartition,
  binaryPartition,
  binaryPartitionAttention,
  binaryPartitionGraphAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import {
  type Edge,
  edgeAttention,
  type GraphSizes,
  type PartitionCase,
  partitionEdges,
  project,
} from '../../verify/oracle/binaryPartition.js';
import { maxError } from '../../verify/oracle/compare.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = Tensor<'float32', readonly [number, number, number, number]>;
const tokens = (t: Tensor | undefined) => t as Tensor<'float32'> as Shape4;

const graphOf = ({ length, step, causal, clip }: PartitionCase) =>
  binaryPartition(length, { step, causal, clipDistance: clip });

const edgesOf = (graph: BinaryPartition): Edge[] =>
  graph.edges.map(([source, destination, type]) => ({ source, destination, type }));

const texts = (edges: readonly Edge[]) =>
  edges.map(({ source, destination, type }) => `${source} ${destination} ${type}`).sort();

const cases: readonly (PartitionCase & Omit<GraphSizes, 'nodes'>)[] = [
  { length: 8, step: 1, causal: false, clip: 4, batch: 2, heads: 2, dim: 4, valueDim: 3 },
  { length: 11, step: 2, causal: true, clip: 1, batch: 2, heads: 1, dim: 3, valueDim: 3 },
  { length: 7, step: 1, causal: false, clip: 0, batch: 1, heads: 2, dim: 2, valueDim: 5 },
  { length: 1, step: 3, causal: false, clip: 2, batch: 1, heads: 1, dim: 2, valueDim: 2 },
];

type Case = (typeof cases)[number];

const inputsOf = (c: Case, { nodes, types }: BinaryPartition): Inputs => ({
  q: input([c.batch, nodes, c.heads, c.dim], 1),
  k: input([c.batch, nodes, c.heads, c.dim], 2),
  v: input([c.batch, nodes, c.heads, c.valueDim], 3),
  // A row that no edge has.
  relative: input([types + 1, c.dim], 4),
});

const attend = (t: Named<Tensor>, graph: BinaryPartition) =>
  binaryPartitionAttention(tokens(t.q), tokens(t.k), tokens(t.v), {
    graph,
    relative: t.relative as Tensor,
  }) as Tensor as Tensor;

const attendProjected = ({ h, ...weights }: Named<Tensor>, graph: BinaryPartition, heads: number) =>
  binaryPartitionGraphAttention(h as Tensor, weights as never, { graph, heads });

const graphInputs = (c: Case, { nodes, types }: BinaryPartition): Inputs => {
  const width = c.heads * c.dim;
  return {
    h: input([c.batch, nodes, width], 1),
    Wq: input([width, width], 2, 0.5),
    Wk: input([width, width], 3, 0.5),
    Wv: input([width, width], 4, 0.5),
    Wo: input([width, width], 5, 0.5),
    relative: input([types, c.dim], 6),
  };
};

describe('the graph of a binary partition', () => {
  it.each([1, 2, 4, 8, 16, 32])('is that of the paper for %i leaves', (length) => {
    for (const causal of [false, true])
      for (const clip of [0, 2, 10]) {
        const c = { length, step: 1, causal, clip };
        const expected = texts(partitionEdges(c));
        expect(texts(edgesOf(graphOf(c)))).toEqual(expected);
      }
  });

  it('has spans of 2, 4, 8, ... leaves', () => {
    const { nodes, types, offsets, edges } = binaryPartition(5, { causal: true });
    // 5 leaves, then 3, 2 and 1 spans.
    expect(nodes).toBe(11);
    expect(offsets[11]).toBe(edges.length);
    const seenBy = (node: number) => edges.filter(([, to]) => to === node).map(([from]) => from);
    expect(seenBy(6)).toEqual([2, 3]);
    expect(seenBy(7)).toEqual([4]);
    expect(seenBy(10)).toEqual([0, 1, 2, 3, 4]);
    expect(Math.max(...edges.map(([, , type]) => type))).toBe(types - 1);
  });

  it('of no leaves is empty', () => {
    expect(binaryPartition(0)).toMatchObject({ nodes: 0, types: 0, edges: [] });
  });

  it.each<[string, () => unknown, RegExp]>([
    ['a length', () => binaryPartition(-1), /^ERR_OPTION: length is -1/],
    ['a step', () => binaryPartition(4, { step: 0 }), /^ERR_OPTION: step is 0/],
    ['causal', () => binaryPartition(4, { causal: 1 as never }), /^ERR_OPTION: causal is 1/],
    ['an option', () => binaryPartition(4, { clip: 1 } as never), /^ERR_OPTION: there is no option "clip"/],
  ])('refuses %s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('attention along binary partitions'), () => {
    it.each(cases)('%j', (c) => {
      const graph = graphOf(c);
      const sizes = { ...c, nodes: graph.nodes };
      checkSystem(
        device,
        inputsOf(c, graph),
        (t) => attend(t, graph),
        (values) => edgeAttention(sizes, values as never, edgesOf(graph)),
      );
    });

    it.each(cases.slice(0, 2))('between projections: %j', (c) => {
      const graph = graphOf(c);
      const width = c.heads * c.dim;
      const sizes = { ...c, nodes: graph.nodes, valueDim: c.dim };
      checkSystem(
        device,
        graphInputs(c, graph),
        (t) => attendProjected(t, graph, c.heads),
        ({ h, Wq, Wk, Wv, Wo, relative }) => {
          const of = (W: ArrayLike<number> | undefined) => project(h as Float64Array, W as Float64Array, width);
          const parts = { q: of(Wq), k: of(Wk), v: of(Wv), relative: relative as Float64Array };
          return project(edgeAttention(sizes, parts, edgesOf(graph)), Wo as Float64Array, width);
        },
      );
    });

    it('counts an edge that is there twice twice', () => {
      // In ragged graphs of the original builder.
      const c = { ...(cases[0] as Case), length: 13 };
      const graph = graphOf(c);
      const pairs = graph.edges.map(([from, to]) => `${from} ${to}`);
      expect(new Set(pairs).size).toBeLessThan(pairs.length);
      const inputs = inputsOf(c, graph);
      const values = Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, data]));
      const { outputs } = run(device, inputs, (t) => ({ out: attend(t, graph) }), undefined);
      const exact = edgeAttention({ ...c, nodes: graph.nodes }, values as never, edgesOf(graph));
      expect(maxError(outputs.out ?? [], exact)).toBeLessThan(2e-5);
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c = cases[0] as Case;
      const graph = graphOf(c);
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries(inputsOf(c, graph)).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const out = attend(t, graph);
        expect(out.dtype).toBe(dtype);
        const exact = edgeAttention({ ...c, nodes: graph.nodes }, values as never, edgesOf(graph));
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -7 : 2 ** -4);
        for (const x of [out, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ length: 0 }, { batch: 0 }]) {
        const c = { ...(cases[0] as Case), ...empty };
        const graph = graphOf(c);
        expect(run(device, inputsOf(c, graph), (t) => ({ out: attend(t, graph) }), undefined).outputs.out).toHaveLength(
          0,
        );
        const both = run(
          device,
          graphInputs(c, graph),
          (t) => ({ out: attendProjected(t, graph, c.heads) }),
          undefined,
        );
        expect(both.outputs.out).toHaveLength(0);
      }
    });
  });
});

describe('bad arguments of attention along binary partitions', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;
  const graph = binaryPartition(4);

  it.each<[string, object, RegExp]>([
    ['no graph', { graph: undefined }, /^ERR_OPTION: graph is undefined/],
    ['a graph of other leaves', { graph: binaryPartition(5) }, /^ERR_SHAPE: graph has 11 nodes, and there are 7/],
    ['too few types', { relative: of(2, 4) }, /^ERR_SHAPE: relative has shape \[2, 4\]; it must have a row for each/],
    ['types of another dim', { relative: of(20, 3) }, /^ERR_SHAPE: relative has shape/],
    ['an unknown option', { relatives: of(20, 4) }, /^ERR_OPTION: .*did you mean "relative"/],
  ])('%s', (_, options, message) => {
    const t = of(1, 7, 2, 4);
    const all = { graph, relative: of(20, 4), ...options };
    const before = memory(device).tensors;
    expect(errorOf(() => binaryPartitionAttention(t, t, t, all as never))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('names heads that do not divide the width', () => {
    const W = of(8, 8);
    const weights = { Wq: W, Wk: W, Wv: W, Wo: W, relative: of(20, 4) };
    expect(errorOf(() => binaryPartitionGraphAttention(of(1, 7, 8), weights, { graph, heads: 3 }))).toMatch(
      /^ERR_SHAPE: h has width 8; it must be a multiple of the 3 heads/,
    );
    expect(
      errorOf(() => binaryPartitionGraphAttention(of(1, 7, 8), { ...weights, Wq: of(8, 4) }, { graph, heads: 2 })),
    ).toMatch(/^ERR_SHAPE: weights.Wq has shape/);
  });
});
