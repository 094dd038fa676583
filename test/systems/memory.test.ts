/** Transformer-XL, recurrent memory and RETRO's cross-attention, against their definitions pair by pair. */
import {
  add,
  attention,
  cast,
  concat,
  type DeviceName,
  memory,
  mul,
  noGrad,
  scope,
  sum,
  type Tensor,
  tanh,
  tensor,
  uniform,
  zeros,
} from 'flashattn';
import { type Layer, Linear, MultiHeadAttention, Sequential } from 'flashattn/nn';
import {
  distanceSinusoids,
  RecurrentMemoryTransformer,
  recurrentMemory,
  retroCrossAttention,
  TransformerXLAttention,
  transformerXLAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import * as oracle from '../../verify/oracle/memory.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, expectSame, type Inputs, input, type Named, type Ran, run } from './taped.js';

const xlCases: readonly oracle.XLShape[] = [
  { batch: 2, queries: 5, keys: 9, heads: 2, dim: 4, valueDim: 3 },
  { batch: 1, queries: 6, keys: 6, heads: 3, dim: 2, valueDim: 2 },
  { batch: 1, queries: 1, keys: 7, heads: 1, dim: 3, valueDim: 1 },
];

const xlInputs = (c: oracle.XLShape): Inputs => ({
  q: input([c.batch, c.queries, c.heads, c.dim], 1),
  k: input([c.batch, c.keys, c.heads, c.dim], 2),
  v: input([c.batch, c.keys, c.heads, c.valueDim], 3),
  r: input([c.keys, c.heads, c.dim], 4),
  u: input([c.heads, c.dim], 5),
  w: input([c.heads, c.dim], 6),
});

const xl = (t: Named<Tensor>) =>
  transformerXLAttention(t.q as Tensor, t.k as Tensor, t.v as Tensor, t.r as Tensor, {
    contentBias: t.u as Tensor,
    distanceBias: t.w as Tensor,
  }) as Tensor;

const rmtCases: readonly oracle.RmtShape[] = [
  { batch: 2, seq: 7, width: 4, tokens: 2, segment: 3, kind: 'decoder' },
  { batch: 1, seq: 6, width: 3, tokens: 1, segment: 3, kind: 'encoder' },
  { batch: 1, seq: 2, width: 3, tokens: 3, segment: 5, kind: 'decoder' },
];

/** A model whose rows see each other: z + tanh(2 z + the sum of all rows / 2). */
const mixed = (z: Tensor): Tensor =>
  add(z, tanh(add(mul(z, 2), mul(sum(z, 1, { keepDims: true }), 0.5)) as Tensor)) as Tensor;
const exactlyMixed = (z: readonly (readonly number[])[]) =>
  z.map((row) =>
    row.map((x, c) => x + Math.tanh(2 * x + 0.5 * z.reduce((total, other) => total + (other[c] ?? 0), 0))),
  );

type RetroCase = oracle.RetroShape & { readonly masked?: boolean; readonly turned?: boolean };
const retroCases: readonly RetroCase[] = [
  { batch: 2, seq: 8, heads: 2, dim: 4, valueDim: 3, chunk: 4, chunks: 2, neighbours: 2, tokens: 3 },
  // A tail that is no whole chunk, and hidden tokens.
  {
    batch: 2,
    seq: 11,
    heads: 1,
    dim: 4,
    valueDim: 2,
    chunk: 3,
    chunks: 3,
    neighbours: 1,
    tokens: 4,
    masked: true,
    turned: true,
  },
  // Fewer chunks than there could be.
  { batch: 1, seq: 9, heads: 2, dim: 2, valueDim: 2, chunk: 2, chunks: 2, neighbours: 3, tokens: 1 },
  { batch: 1, seq: 3, heads: 1, dim: 2, valueDim: 2, chunk: 1, chunks: 3, neighbours: 1, tokens: 2, turned: true },
  // Nothing retrieved.
  { batch: 1, seq: 4, heads: 1, dim: 2, valueDim: 3, chunk: 2, chunks: 2, neighbours: 0, tokens: 2 },
];

const retroInputs = (c: RetroCase): Inputs => ({
  q: input([c.batch, c.seq, c.heads, c.dim], 1),
  k: input([c.batch, c.chunks, c.neighbours, c.tokens, c.heads, c.dim], 2),
  v: input([c.batch, c.chunks, c.neighbours, c.tokens, c.heads, c.valueDim], 3),
  nullKey: input([c.heads, c.dim], 4),
  nullValue: input([c.heads, c.valueDim], 5),
});

const realOf = (c: RetroCase): boolean[] =>
  Array.from({ length: c.batch * c.chunks * c.neighbours * c.tokens }, (_, i) => i % 3 !== 1 && i % 8 < 6);

function retro(t: Named<Tensor>, c: RetroCase, device: DeviceName): Tensor {
  const half = c.dim / 2;
  const tables = (rows: number, position: (row: number) => number) => {
    const table = (f: (x: number) => number) =>
      tensor(
        Float32Array.from({ length: rows * half }, (_, i) =>
          f(position(Math.floor(i / half)) * 10_000 ** (-(i % half) / half)),
        ),
        [rows, half],
        { device },
      );
    return { cos: table(Math.cos), sin: table(Math.sin) };
  };
  const mask = () =>
    cast(tensor(realOf(c).map(Number), [c.batch, c.chunks, c.neighbours, c.tokens], { device }) as Tensor, 'bool');
  return retroCrossAttention(t.q as Tensor, t.k as Tensor, t.v as Tensor, {
    chunk: c.chunk,
    nullKey: t.nullKey as Tensor,
    nullValue: t.nullValue as Tensor,
    ...(c.masked && { mask: mask() }),
    ...(c.turned && {
      rope: { queries: tables(c.chunk, (row) => c.chunk - 1 + row), keys: tables(c.tokens, (row) => row) },
    }),
  });
}

const exactRetro = (c: RetroCase) => (values: Named<Float64Array>) =>
  oracle.retro(
    {
      ...c,
      ...(c.masked && { real: realOf(c) }),
      ...(c.turned && { position: (row: number) => c.chunk - 1 + row }),
    },
    values as unknown as oracle.RetroInputs,
  );

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('memories'), () => {
    it.each(xlCases)('Transformer-XL: %j', (c) => {
      checkSystem(device, xlInputs(c), xl, (values) => oracle.transformerXL(c, values as unknown as oracle.XLInputs));
    });

    it.each([
      { preNorm: false, seq: 8, segment: 3, memory: 4 },
      { preNorm: true, seq: 7, segment: 2, memory: 5 },
      { preNorm: true, seq: 5, segment: 5, memory: 0 },
    ])('the layer of Transformer-XL, with no gradient through its memory: %j', (c) => {
      const { width, heads, headDim } = { width: 6, heads: 2, headDim: 3 };
      const { preNorm, segment, memory: tokens } = c;
      const layer = new TransformerXLAttention({ preNorm, segment, memory: tokens, width, heads, initial: { kind: 'normal', std: 0.5 }, device, seed: 1 }); // biome-ignore format: one line
      layer.freeze();
      const weights = Object.fromEntries(
        [...layer.namedParameters()].map(([name, t]) => [name, Float64Array.from(t.toFloat32Sync())]),
      );
      const inputs = { x: input([2, c.seq, width], 1) };
      const frozen = inputs.x.data;
      // The table of sinusoids is made at the first call and stays.
      scope(() => layer.forward(zeros([1, c.seq, width], { device }) as Tensor));
      checkSystem(
        device,
        inputs,
        (t) => layer.forward(t.x as Tensor),
        ({ x }) =>
          oracle.transformerXLLayer({ ...c, batch: 2, width, heads, headDim }, x as Float64Array, frozen, weights),
      );
      layer.unfreeze();
      scope(() => sum(mul(layer.forward(uniform([1, c.seq, width], { seed: 4, device }) as Tensor), 2))).backward();
      for (const [name, t] of layer.namedParameters()) expect(t.grad?.shape, name).toEqual(t.shape);
      layer.dispose();
    });

    it('a segment of Transformer-XL goes on from the memory of the one before', () => {
      using layer = new TransformerXLAttention({ width: 6, heads: 2, memory: 4, segment: 3, device, seed: 5 });
      const x = uniform([2, 8, 6], { seed: 1, low: -1, device }) as Tensor;
      noGrad(() => {
        const all = scope(() => layer.forward(x)).toFloat32Sync();
        const { out, lengths } = scope(() => {
          const outs: Tensor[] = [];
          const lengths: (number | undefined)[] = [];
          let state: Tensor | undefined;
          for (const [from, to] of [
            [0, 3],
            [3, 6],
            [6, 8],
          ] as const) {
            // biome-ignore format: one line
            const step = layer.next(x.slice(1, from, to), state);
            outs.push(step.out);
            state = step.memory;
            lengths.push(state.shape[1]);
          }
          return { out: concat(outs, 1), lengths };
        });
        expect(lengths).toEqual([3, 4, 4]);
        expect(maxError(out.toFloat32Sync(), all)).toBeLessThan(1e-6);
      });
    });

    it.each(rmtCases)('recurrent memory: %j', (c) => {
      checkSystem(
        device,
        { x: input([c.batch, c.seq, c.width], 1, 0.3), memory: input([c.tokens, c.width], 2, 0.3) },
        (t) => {
          const { segment, kind } = c;
          const { out, memory: last } = recurrentMemory(t.x as Tensor, t.memory as Tensor, mixed, { segment, kind });
          return concat([out.reshape([-1]) as Tensor, last.reshape([-1]) as Tensor]);
        },
        ({ x, memory: first }) => oracle.recurrentMemory(c, x as Float64Array, first as Float64Array, exactlyMixed),
      );
    });

    it('the layer of recurrent memory goes on from what it has left, and its memory learns', () => {
      const model = new Sequential(
        new MultiHeadAttention({ width: 6, heads: 2, causal: true, device, seed: 1 }) as Layer,
        new Linear(6, 6, { device, seed: 2 }) as Layer,
      );
      const layer = new RecurrentMemoryTransformer({ width: 6, memoryTokens: 2, model, segment: 3, device, seed: 3 });
      expect([...layer.namedParameters().keys()]).toContain('memory');
      const x = uniform([2, 7, 6], { seed: 1, low: -1, device }) as Tensor;
      noGrad(() => {
        const all = scope(() => layer.forward(x)).toFloat32Sync();
        const parts = scope(() => {
          const first = layer.next(x.slice(1, 0, 6));
          return concat([first.out, layer.next(x.slice(1, 6, 7), first.memory).out], 1);
        });
        expect(maxError(parts.toFloat32Sync(), all)).toBeLessThan(1e-6);
      });
      scope(() => sum(layer.forward(x))).backward();
      for (const [name, t] of layer.namedParameters()) expect(t.grad?.shape, name).toEqual(t.shape);
      layer.dispose();
    });

    it.each(retroCases)('RETRO: %j', (c) => {
      checkSystem(device, retroInputs(c), (t) => retro(t, c, device), exactRetro(c));
    });

    it('what RETRO hides makes no difference, also where it is NaN', () => {
      const c = retroCases[1] as RetroCase;
      const spoilt = (value: number): Inputs =>
        Object.fromEntries(
          Object.entries(retroInputs(c)).map(([name, { shape, data }]) => {
            if (name !== 'k' && name !== 'v') return [name, { shape, data }];
            const row = data.length / realOf(c).length;
            return [name, { shape, data: data.map((x, i) => (realOf(c)[Math.floor(i / row)] ? x : value)) }];
          }),
        );
      const dOut = { out: new Float64Array(c.batch * c.seq * c.heads * c.valueDim).fill(1) };
      const outs = [0, Number.NaN].map((value) =>
        run(device, spoilt(value), (t) => ({ out: retro(t, c, device) }), dOut),
      );
      expectSame(outs[0] as Ran, outs[1] as Ran, 1e-5);
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const [c, d] = [xlCases[0] as oracle.XLShape, retroCases[0] as RetroCase];
      noGrad(() => {
        const before = memory(device).tensors;
        const load = (inputs: Inputs) => {
          const tensors = Object.fromEntries(
            Object.entries(inputs).map(([name, { shape, data }]) => [
              name,
              tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
            ]),
          );
          const values = Object.fromEntries(
            Object.entries(tensors).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
          );
          return { tensors, values };
        };
        const [first, second] = [load(xlInputs(c)), load(retroInputs(d))];
        const outs = [xl(first.tensors), retro(second.tensors, d, device)];
        const exact = [
          oracle.transformerXL(c, first.values as unknown as oracle.XLInputs),
          exactRetro(d)(second.values),
        ];
        for (const [i, out] of outs.entries()) {
          expect(out.dtype).toBe(dtype);
          expect(maxError(out.toFloat32Sync(), exact[i] as Float64Array)).toBeLessThan(
            dtype === 'float16' ? 2 ** -7 : 2 ** -4,
          );
        }
        for (const t of [...outs, ...Object.values(first.tensors), ...Object.values(second.tensors)]) t.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty batches, sequences and chunks', () => {
      const size = (inputs: Inputs, f: (t: Named<Tensor>) => Tensor) =>
        run(device, inputs, (t) => ({ out: f(t) }), undefined).outputs.out?.length;
      for (const empty of [{ batch: 0 }, { queries: 0, keys: 0 }])
        expect(size(xlInputs({ ...(xlCases[0] as oracle.XLShape), ...empty }), xl)).toBe(0);
      const c = retroCases[0] as RetroCase;
      for (const empty of [{ batch: 0 }, { seq: 0, chunks: 0 }])
        expect(size(retroInputs({ ...c, ...empty }), (t) => retro(t, { ...c, ...empty }, device))).toBe(0);
      // Shorter than a chunk: nothing has been retrieved, and out is 0.
      const short = { ...c, seq: 2, chunks: 0 };
      const { outputs } = run(device, retroInputs(short), (t) => ({ out: retro(t, short, device) }), undefined);
      expect(outputs.out).toEqual(new Float64Array(2 * 2 * 2 * 3));
      const none = { x: input([2, 0, 4], 1), memory: input([2, 4], 2) };
      expect(size(none, (t) => recurrentMemory(t.x as Tensor, t.memory as Tensor, mixed, { segment: 3 }).memory)).toBe(
        2 * 2 * 4,
      );
    });
  });
});

describe('sinusoids of distances', () => {
  it('are those of the last rows for shorter ones', () => {
    noGrad(() =>
      scope(() => {
        const device: DeviceName = 'wasm';
        const long = distanceSinusoids({ length: 5, width: 4, device }).toFloat32Sync();
        const short = distanceSinusoids({ length: 2, width: 4, device }).toFloat32Sync();
        expect(long.subarray(12)).toEqual(short);
        const expected = [1, 0.01].map((w) => Math.sin(4 * w)).concat([1, 0.01].map((w) => Math.cos(4 * w)));
        expect(maxError(long.subarray(0, 4), expected)).toBeLessThan(1e-6);
        expect([...short.subarray(4)]).toEqual([0, 0, 1, 1]);
      }),
    );
  });
});

describe('bad arguments', () => {
  const device: DeviceName = 'wasm';
  const made = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const q = made(1, 4, 2, 4);
  const k = made(1, 6, 2, 4);
  const biases = { contentBias: made(2, 4), distanceBias: made(2, 4) };
  const r = made(6, 2, 4);
  const kv = made(1, 2, 1, 3, 2, 4);
  const nulls = { chunk: 2, nullKey: made(2, 4), nullValue: made(2, 4) };

  it.each<[string, () => unknown, RegExp]>([
    [
      'distances of other keys',
      () => transformerXLAttention(q, k, k, made(5, 2, 4), biases),
      /^ERR_SHAPE: r has shape \[5, 2, 4\]; it must be \[6, 2, 4\]/,
    ],
    [
      'more queries than keys',
      () => transformerXLAttention(k, q, q, r, biases),
      /^ERR_SHAPE: q has 6 positions and k 4/,
    ],
    [
      'a bias',
      () => transformerXLAttention(q, k, k, r, { ...biases, contentBias: made(4) }),
      /^ERR_SHAPE: contentBias has shape \[4\]/,
    ],
    ['no bias', () => transformerXLAttention(q, k, k, r, {} as never), /^ERR_OPTION: contentBias is undefined/],
    ['an odd width', () => distanceSinusoids({ length: 2, width: 3 }), /^ERR_OPTION: width is 3; it must be even/],
    [
      'a layer of an odd width',
      () => new TransformerXLAttention({ width: 3, heads: 1, memory: 2, device }),
      /^ERR_OPTION: width is 3/,
    ],
    [
      'a layer without a memory',
      () => new TransformerXLAttention({ width: 4, heads: 1, device } as never),
      /^ERR_OPTION: memory is undefined/,
    ],
    [
      'a memory of another width',
      () => recurrentMemory(made(1, 4, 3), made(2, 4), mixed, { segment: 2 }),
      /^ERR_SHAPE: memory has shape \[2, 4\]; it must be \[memory tokens, 3\]/,
    ],
    [
      'a model that is none',
      () => recurrentMemory(made(1, 4, 3), made(2, 3), undefined as never, { segment: 2 }),
      /^ERR_OPTION: model is undefined/,
    ],
    [
      'a model that gives something else',
      () => recurrentMemory(made(1, 4, 3), made(2, 3), (z) => z.slice(1, 0, 2), { segment: 2 }),
      /^ERR_SHAPE: model\(\) gives float32 \[1, 2, 3\]; it must be float32 \[1, 6, 3\]/,
    ],
    [
      'a kind',
      () => recurrentMemory(made(1, 4, 3), made(2, 3), mixed, { segment: 2, kind: 'both' as never }),
      /^ERR_OPTION: kind is "both"/,
    ],
    [
      'no segment',
      () => recurrentMemory(made(1, 4, 3), made(2, 3), mixed, {} as never),
      /^ERR_OPTION: segment is undefined/,
    ],
    [
      'a layer around nothing',
      () => new RecurrentMemoryTransformer({ width: 4, memoryTokens: 1, segment: 2, model: {} as never, device }),
      /^ERR_OPTION: model is/,
    ],
    [
      'more chunks than tokens',
      () => retroCrossAttention(made(1, 3, 2, 4), kv, kv, nulls),
      /^ERR_SHAPE: k has 2 chunks; q has 1 whole ones of 2 in its 3 tokens/,
    ],
    [
      'retrieved tokens of other heads',
      () => retroCrossAttention(made(1, 4, 1, 4), kv, kv, nulls),
      /^ERR_SHAPE: k has shape \[1, 2, 1, 3, 2, 4\]/,
    ],
    [
      'a null',
      () => retroCrossAttention(q, kv, kv, { ...nulls, nullKey: made(4) }),
      /^ERR_SHAPE: nullKey has shape \[4\]; it must be \[2, 4\]/,
    ],
    [
      'a mask of numbers',
      () => retroCrossAttention(q, kv, kv, { ...nulls, mask: made(1, 2, 1, 3) as never }),
      /^ERR_DTYPE: mask is float32/,
    ],
    [
      'few angles',
      () =>
        retroCrossAttention(q, kv, kv, {
          ...nulls,
          rope: { queries: { cos: r, sin: r }, keys: { cos: r, sin: r } } as never,
        }),
      /^ERR_SHAPE: rope.queries.cos has shape \[6, 2, 4\]/,
    ],
    ['no chunk', () => retroCrossAttention(q, kv, kv, { ...nulls, chunk: 0 }), /^ERR_OPTION: chunk is 0/],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });

  it('attention is what the model may be made of', () => {
    const { memory: last } = recurrentMemory(
      made(1, 4, 3),
      made(2, 3),
      (z) =>
        attention(z.reshape([1, -1, 1, 3]), z.reshape([1, -1, 1, 3]), z.reshape([1, -1, 1, 3])).out.reshape([
          1, -1, 3,
        ]) as Tensor,
      { segment: 4 },
    );
    expect(last.shape).toEqual([1, 2, 3]);
  });
});
