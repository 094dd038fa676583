/** Gated cross-attention to media and to the nodes of a graph, against their definitions token by token. */
import { cast, type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import { GatedCrossAttention, gatedCrossAttention, transnarCrossAttention } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import {
  type FlamingoCase,
  type FlamingoInputs,
  flamingo,
  type TransnarCase,
  transnar,
} from '../../verify/oracle/crossAttention.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

const at = (count: number, ...places: readonly number[]): boolean[] =>
  Array.from({ length: count }, (_, i) => places.includes(i));

const media: readonly (FlamingoCase & { readonly hidden: number })[] = [
  { batch: 2, seq: 5, dim: 6, heads: 2, media: 2, entries: 3, mediaDim: 4, onlyImmediate: true, hidden: 5 },
  // The first tokens of the first sequence see nothing, those of the second begin with a medium.
  {
    ...{ batch: 2, seq: 7, dim: 4, heads: 1, media: 3, entries: 2, mediaDim: 3, onlyImmediate: true, hidden: 4 },
    locations: at(14, 2, 4, 5, 7, 12),
  },
  {
    ...{ batch: 1, seq: 6, dim: 4, heads: 2, media: 3, entries: 7, mediaDim: 4, onlyImmediate: false, hidden: 3 },
    locations: at(6, 1, 3),
  },
];

function mediaInputs(c: (typeof media)[number]): Inputs {
  const inner = c.dim;
  return {
    x: input([c.batch, c.seq, c.dim], 1),
    media: input([c.batch, c.media, c.entries, c.mediaDim], 2),
    attentionGate: input([1], 3, 0.5, 0.5),
    feedForwardGate: input([1], 4, 0.5, 0.5),
    normWeight: input([c.dim], 5, 0.2, 1),
    normBias: input([c.dim], 6, 0.2),
    query: input([inner, c.dim], 7, 0.6),
    keyValue: input([2 * inner, c.mediaDim], 8, 0.6),
    out: input([c.dim, inner], 9, 0.6),
    feedForwardNormWeight: input([c.dim], 10, 0.2, 1),
    feedForwardNormBias: input([c.dim], 11, 0.2),
    up: input([c.hidden, c.dim], 12, 0.6),
    down: input([c.dim, c.hidden], 13, 0.6),
  };
}

const booleans = (values: readonly boolean[], shape: readonly number[], device: DeviceName) => {
  const numbers = tensor(values.map(Number), shape, { device }) as Tensor;
  const made = cast(numbers, 'bool');
  numbers.dispose();
  return made;
};

const runMedia = (t: Named<Tensor>, c: FlamingoCase, mediaLocations: ReturnType<typeof booleans> | undefined) => {
  const { x, media: given, ...weights } = t;
  return gatedCrossAttention(x, given, weights as never, {
    heads: c.heads,
    onlyImmediate: c.onlyImmediate,
    ...(mediaLocations && { mediaLocations }),
  });
};

const graphs: readonly TransnarCase[] = [
  { batch: 2, seq: 4, dim: 6, heads: 3, nodes: 5, nodeDim: 4, gating: 'sigmoid' },
  // A graph without a node.
  {
    ...{ batch: 2, seq: 3, dim: 4, heads: 2, nodes: 3, nodeDim: 2, gating: 'tanh' },
    mask: [true, false, true, false, false, false],
  },
];

const graphInputs = (c: TransnarCase, biases: boolean): Inputs => ({
  text: input([c.batch, c.seq, c.dim], 1),
  nodes: input([c.batch, c.nodes, c.nodeDim], 2),
  gate: input([1], 3),
  query: input([c.dim, c.dim], 4, 0.6),
  key: input([c.dim, c.nodeDim], 5, 0.6),
  value: input([c.dim, c.nodeDim], 6, 0.6),
  out: input([c.dim, c.dim], 7, 0.6),
  ...(biases && {
    queryBias: input([c.dim], 8),
    keyBias: input([c.dim], 9),
    valueBias: input([c.dim], 10),
    outBias: input([c.dim], 11),
  }),
});

const runGraph = (t: Named<Tensor>, c: TransnarCase, mask: ReturnType<typeof booleans> | undefined) => {
  const { text, nodes, ...weights } = t;
  return transnarCrossAttention(text, nodes, weights as never, {
    heads: c.heads,
    gating: c.gating,
    ...(mask && { mask }),
  });
};

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('gated cross-attention'), () => {
    it.each(media)('to media: %j', (c) => {
      const locations = c.locations && booleans(c.locations, [c.batch, c.seq], device);
      checkSystem(
        device,
        mediaInputs(c),
        (t) => runMedia(t, c, locations),
        (values) => flamingo(c, values as unknown as FlamingoInputs),
        { gradient: 2e-3 },
      );
      locations?.dispose();
    });

    it.each(graphs.flatMap((c) => [true, false].map((biases) => ({ ...c, biases }))))('to a graph: %j', (c) => {
      const mask = c.mask && booleans(c.mask, [c.batch, c.nodes], device);
      checkSystem(
        device,
        graphInputs(c, c.biases),
        (t) => runGraph(t, c, mask),
        (values) => transnar(c, values),
      );
      mask?.dispose();
    });

    it('a medium that a token does not see is nothing to it, NaN included', () => {
      const c = media[1];
      const inputs = mediaInputs(c);
      const locations = booleans(c.locations ?? [], [c.batch, c.seq], device);
      const outOf = () => run(device, inputs, (t) => ({ out: runMedia(t, c, locations) }), undefined).outputs.out;
      const before = outOf();
      // The third medium of the first sequence, which its tokens see from the sixth on.
      const from = 2 * c.entries * c.mediaDim;
      inputs.media.data.fill(Number.NaN, from, from + c.entries * c.mediaDim);
      const after = outOf();
      // Rows that NaN has come near may be computed in another order.
      const sameRows = (...rows: readonly number[]) =>
        expect(maxError(after.slice(...rows), before.slice(...rows))).toBeLessThan(1e-5);
      sameRows(0, 5 * c.dim);
      sameRows(c.seq * c.dim);
      locations.dispose();
    });

    it.each(['float16', 'bfloat16'] as const)('%s with weights of float32', (dtype) => {
      noGrad(() => {
        const before = memory(device).tensors;
        const make = (inputs: Inputs, low: readonly string[]) =>
          Object.fromEntries(
            Object.entries(inputs).map(([name, { shape, data }]) => [
              name,
              tensor(data, shape, { device, ...(low.includes(name) && { dtype }) }) as Tensor,
            ]),
          );
        const [c, g] = [media[0], graphs[0]];
        const [a, b] = [make(mediaInputs(c), ['x', 'media']), make(graphInputs(g, true), ['text', 'nodes'])];
        const valuesOf = (t: Named<Tensor>) =>
          Object.fromEntries(Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]));
        const outs = [runMedia(a, c, undefined), runGraph(b, g, undefined)];
        const exact = [flamingo(c, valuesOf(a) as never), transnar(g, valuesOf(b))];
        for (const [i, out] of outs.entries()) {
          expect(out.dtype).toBe(dtype);
          expect(maxError(out.toFloat32Sync(), exact[i])).toBeLessThan(dtype === 'float16' ? 2 ** -6 : 2 ** -3);
        }
        for (const t of [...outs, ...Object.values(a), ...Object.values(b)]) t.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches, and no media', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const [c, g] = [
          { ...media[1], ...empty },
          { ...graphs[0], ...empty },
        ];
        const locations = booleans(at(c.batch * c.seq), [c.batch, c.seq], device);
        const first = run(device, mediaInputs(c), (t) => ({ out: runMedia(t, c, locations) }), undefined);
        expect(first.outputs.out).toHaveLength(0);
        const second = run(device, graphInputs(g, true), (t) => ({ out: runGraph(t, g, undefined) }), undefined);
        expect(second.outputs.out).toHaveLength(0);
        locations.dispose();
      }
      const none = { ...media[0], media: 0 };
      const inputs = mediaInputs(none);
      const { outputs } = run(device, inputs, (t) => ({ out: runMedia(t, none, undefined) }), undefined);
      const values = Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, data]));
      const exact = flamingo({ ...none, media: 1, locations: at(10) }, {
        ...values,
        media: new Float64Array(none.batch * none.entries * none.mediaDim),
      } as unknown as FlamingoInputs);
      expect(maxError(outputs.out, exact)).toBeLessThan(1e-5);
    });

    it('a layer changes nothing at first, and learns', () => {
      const before = memory(device).tensors;
      const layer = new GatedCrossAttention({ width: 6, mediaWidth: 4, heads: 2, hidden: 8, device });
      const x = tensor(input([1, 5, 6], 1).data, [1, 5, 6], { device }) as Tensor;
      const images = tensor(input([1, 2, 3, 4], 2).data, [1, 2, 3, 4], { device }) as Tensor;
      const locations = booleans(at(5, 0, 3), [1, 5], device);
      const out = layer.forward(x, images, locations);
      expect(out.toFloat32Sync()).toEqual(x.toFloat32Sync());
      out.backward(x);
      for (const gate of [layer.attentionGate, layer.feedForwardGate])
        expect(gate.grad?.toFloat32Sync()[0]).not.toBe(0);
      for (const t of [x, images, locations, out]) t.dispose();
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of gated cross-attention', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const [x, images] = [of(2, 5, 6), of(2, 1, 3, 4)];
  const c = media[0];
  const weights = Object.fromEntries(
    Object.entries(mediaInputs(c)).flatMap(([name, { shape }]) =>
      name === 'x' || name === 'media' ? [] : [[name, of(...shape)]],
    ),
  );
  const { text, nodes, ...graphWeights } = Object.fromEntries(
    Object.entries(graphInputs(graphs[0], true)).map(([name, { shape }]) => [name, of(...shape)]),
  );
  const call =
    (more: object, options: object = {}, a: Tensor = x, b: Tensor = images) =>
    () =>
      gatedCrossAttention(a, b, { ...weights, ...more } as never, { heads: 2, ...options });
  const graph =
    (more: object, options: object = {}, a: Tensor = text, b: Tensor = nodes) =>
    () =>
      transnarCrossAttention(a, b, { ...graphWeights, ...more } as never, { heads: 3, ...options } as never);
  const half = zeros([2, 1, 3, 4], { device, dtype: 'float16' }) as Tensor;

  it.each<[string, () => unknown, RegExp]>([
    ['rank', call({}, {}, of(5, 6)), /^ERR_SHAPE: x has shape \[5, 6\]/],
    ['media', call({}, {}, x, of(2, 3, 4)), /^ERR_SHAPE: media has shape \[2, 3, 4\]/],
    ['batches', call({}, {}, x, of(1, 1, 3, 4)), /^ERR_SHAPE: .* they must have the same batch/],
    ['dtypes', call({}, {}, x, half), /^ERR_DTYPE: media is float16; it must be float32/],
    ['heads', call({}, { heads: 4 }), /^ERR_SHAPE: weights.query has shape .* the 4 heads/],
    ['locations', call({}, { mediaLocations: of(2, 5) }), /^ERR_DTYPE: mediaLocations is float32; it must be bool/],
    ['onlyImmediate', call({}, { onlyImmediate: 0 }), /^ERR_OPTION: onlyImmediate is 0/],
    ['keyValue', call({ keyValue: of(6, 4) }), /^ERR_SHAPE: weights.keyValue has shape/],
    ['a gate', call({ attentionGate: of(2) }), /^ERR_SHAPE: weights.attentionGate has shape/],
    ['down', call({ down: of(6, 4) }), /^ERR_SHAPE: weights.down has shape/],
    ['text', graph({}, {}, of(4, 6)), /^ERR_SHAPE: text has shape \[4, 6\]/],
    ['batches of graphs', graph({}, {}, text, of(1, 5, 4)), /^ERR_SHAPE: .* they must have the same batch/],
    ['heads of dim', graph({}, { heads: 4 }), /^ERR_SHAPE: text has shape .* a multiple of 4 heads/],
    ['mask', graph({}, { mask: of(2, 5) }), /^ERR_DTYPE: mask is float32; it must be bool/],
    ['gating', graph({}, { gating: 'relu' }), /^ERR_OPTION: gating is "relu"/],
    ['key', graph({ key: of(6, 5) }), /^ERR_SHAPE: weights.key has shape/],
    ['a width', () => new GatedCrossAttention({ width: 6, heads: 4, device }), /^ERR_OPTION: width 6 is no multiple/],
  ])('%s', (_, run, message) => {
    expect(errorOf(run)).toMatch(message);
  });
});
