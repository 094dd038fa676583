/** Native sparse attention, against its definition query by query. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import {
  type NsaOptions,
  type NsaResult,
  nativeSparseAttention,
  nativeSparseAttentionLucidrains,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import {
  type Heads,
  type LucidrainsCase,
  lucidrainsChoices,
  type NsaCase,
  nsa,
  nsaLucidrains,
  nsaSelection,
  type Selection,
} from '../../verify/oracle/nsa.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = Tensor<'float32', readonly [number, number, number, number]>;
const tokens = (t: Tensor | undefined) => t as Tensor<'float32'> as Shape4;

const base: NsaCase = {
  ...{ batch: 2, seq: 21, heads: 4, kvHeads: 2, dim: 4, valueDim: 3 },
  ...{ size: 4, count: 3, window: 5, initial: 0, local: 1 },
};

const cases: readonly NsaCase[] = [
  base,
  // As the paper: the first block and the one before are always there.
  { ...base, seq: 30, count: 4, initial: 1, local: 2 },
  // More blocks than there are; no sliding branch.
  { ...base, batch: 1, seq: 17, count: 9, window: 0 },
  // No complete block.
  { ...base, seq: 5, size: 8, count: 2 },
  // Nothing but the own block.
  { ...base, count: 1, heads: 2 },
  // Blocks of one token.
  { ...base, batch: 1, seq: 9, size: 1, count: 4, window: 1, heads: 3, kvHeads: 1 },
];

const inputsOf = (c: NsaCase): Inputs => ({
  q: input([c.batch, c.seq, c.heads, c.dim], 1),
  k: input([c.batch, c.seq, c.kvHeads, c.dim], 2),
  v: input([c.batch, c.seq, c.kvHeads, c.valueDim], 3),
  compressed: input([c.batch, c.seq, c.heads], 4),
  selected: input([c.batch, c.seq, c.heads], 5),
  ...(c.window > 0 && { sliding: input([c.batch, c.seq, c.heads], 6) }),
});

const optionsOf = (t: Named<Tensor>, c: NsaCase): NsaOptions => ({
  gates: {
    compressed: t.compressed as Tensor,
    selected: t.selected as Tensor,
    ...(c.window > 0 && { sliding: t.sliding as Tensor }),
  },
  blockSize: c.size,
  blockCount: c.count,
  window: c.window,
  initialBlocks: c.initial,
  localBlocks: c.local,
});

const runOn = (t: Named<Tensor>, c: NsaCase): NsaResult =>
  nativeSparseAttention(tokens(t.q), tokens(t.k), tokens(t.v), optionsOf(t, c));

type Values = Named<Float64Array>;
const defined = (c: NsaCase, values: Values, selection: Selection): Float64Array =>
  nsa(
    c,
    values as unknown as Heads,
    (branch, b, i, h) => values[branch]?.[(b * c.seq + i) * c.heads + h] ?? Number.NaN,
    selection,
  );

const dataOf = (inputs: Inputs): Values =>
  Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, data]));

const learned: LucidrainsCase = {
  ...{ batch: 2, seq: 21, heads: 4, kvHeads: 2, dim: 4, valueDim: 3 },
  ...{ windowSize: 4, stride: 2, size: 4, count: 2, window: 3, memories: 2, hidden: 5, differentiable: false },
};

const learnedCases: readonly LucidrainsCase[] = [
  learned,
  { ...learned, differentiable: true },
  // Windows that do not overlap, one a block; the own block alone at first.
  { ...learned, batch: 1, seq: 18, stride: 4, count: 9, memories: 1, window: 0, differentiable: true },
  // No whole block, no window.
  { ...learned, seq: 3, windowSize: 8, stride: 8, size: 8 },
  // Nothing is selected.
  { ...learned, heads: 2, count: 0, memories: 0 },
];

const learnedInputs = (c: LucidrainsCase): Inputs => {
  const of = (name: 'k' | 'v', dim: number, seed: number): Inputs => ({
    [`${name}Memory`]: input([c.kvHeads, c.memories, dim], seed),
    [`${name}Positions`]: input([c.kvHeads, c.windowSize, dim], seed + 1),
    [`${name}W1`]: input([c.hidden, c.windowSize * dim], seed + 2, 0.4),
    [`${name}b1`]: input([c.hidden], seed + 3),
    [`${name}W2`]: input([dim, c.hidden], seed + 4, 0.6),
    [`${name}b2`]: input([dim], seed + 5),
  });
  return {
    q: input([c.batch, c.seq, c.heads, c.dim], 11),
    k: input([c.batch, c.seq, c.kvHeads, c.dim], 12),
    v: input([c.batch, c.seq, c.kvHeads, c.valueDim], 13),
    gates: input([c.batch, c.seq, c.heads, 3], 14),
    ...of('k', c.dim, 20),
    ...of('v', c.valueDim, 30),
  };
};

const angle = (position: number, pair: number, dim: number) => position * 10_000 ** ((-2 * pair) / dim);

/** Interleaved pairs. */
const turn = (x: number[], position: number): number[] =>
  x.map((each, d) => {
    const a = angle(position, Math.floor(d / 2), x.length);
    const other = x[d ^ 1] as number;
    return each * Math.cos(a) + (d % 2 === 0 ? -other : other) * Math.sin(a);
  });

function runLearned(t: Named<Tensor>, c: LucidrainsCase, device: DeviceName) {
  const compression = (of: 'k' | 'v') => {
    const [memory, positions, W1, b1, W2, b2] = ['Memory', 'Positions', 'W1', 'b1', 'W2', 'b2'].map(
      (name) => t[of + name],
    ) as [Tensor, Tensor, Tensor, Tensor, Tensor, Tensor];
    return { memory, positions, W1, b1, W2, b2 };
  };
  const table = (f: (x: number) => number) =>
    tensor(
      Float32Array.from({ length: (c.seq * c.dim) / 2 }, (_, at) =>
        f(angle(Math.floor(at / (c.dim / 2)), at % (c.dim / 2), c.dim)),
      ),
      [c.seq, c.dim / 2],
      { device },
    );
  return nativeSparseAttentionLucidrains(tokens(t.q), tokens(t.k), tokens(t.v), {
    gates: t.gates as Tensor,
    keyCompression: compression('k'),
    valueCompression: compression('v'),
    stride: c.stride,
    blockSize: c.size,
    blockCount: c.count,
    window: c.window,
    differentiableTopK: c.differentiable,
    rope: { cos: table(Math.cos), sin: table(Math.sin), pairs: 'interleaved' },
  });
}

const sorted = (list: Iterable<number>) => [...list].filter((block) => block >= 0).sort((a, b) => a - b);

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('native sparse attention'), () => {
    it.each(cases)('with means: %j', (c) => {
      const inputs = inputsOf(c);
      const selection = nsaSelection(c, dataOf(inputs) as unknown as Heads);
      checkSystem(
        device,
        inputs,
        (t) => runOn(t, c).out as Tensor as Tensor,
        (values) => defined(c, values, selection),
      );
    });

    it('says what has been selected, the own block last', () => {
      const c = cases[1] as NsaCase;
      const inputs = inputsOf(c);
      const selection = nsaSelection(c, dataOf(inputs) as unknown as Heads);
      run(
        device,
        inputs,
        (t) => {
          const { out, blockIndices } = runOn(t, c);
          const [, , , slots = 0] = blockIndices.shape;
          const all = blockIndices.dataSync();
          for (let at = 0; at < all.length; at += slots) {
            const row = Math.floor(at / slots);
            const [b, i, kv] = [
              Math.floor(row / c.kvHeads / c.seq),
              Math.floor(row / c.kvHeads) % c.seq,
              row % c.kvHeads,
            ];
            const found = [...all.subarray(at, at + slots)].filter((block) => block >= 0);
            expect(sorted(found)).toEqual(sorted(selection(b, i, kv)));
            expect(found.at(-1)).toBe(Math.floor(i / c.size));
          }
          return { out: out as Tensor as Tensor };
        },
        undefined,
      );
    });

    it('takes the earlier of blocks that are equally important', () => {
      const c = { ...base, batch: 1, seq: 24, count: 3 };
      const inputs = { ...inputsOf(c), q: { shape: [1, 24, 4, 4], data: new Float64Array(24 * 16) } };
      run(
        device,
        inputs,
        (t) => {
          const { out, blockIndices } = runOn(t, c);
          expect([...blockIndices.slice(1, 20, 24).contiguous().dataSync()]).toEqual(
            Array.from({ length: 8 }, () => [0, 1, 5]).flat(),
          );
          return { out: out as Tensor as Tensor };
        },
        undefined,
      );
    });

    // 2^25 elements on the way: too slow for more than one device.
    it.skipIf(device !== 'cpu')('gives the same in several parts of queries', () => {
      // Of eight heads 1,997 queries choose at once, of one head all.
      const [seq, heads, dim] = [2100, 8, 8];
      const one: NsaCase = {
        ...{ batch: 1, seq, heads: 1, kvHeads: 1, dim, valueDim: dim },
        ...{ size: 1, count: 9, window: 0, initial: 0, local: 1 },
      };
      const all = { ...one, heads, kvHeads: heads };
      const inputs = inputsOf(all);
      const ofHead = (data: ArrayLike<number>, head: number): Float64Array => {
        const n = data.length / seq / heads;
        return Float64Array.from({ length: seq * n }, (_, at) => {
          const [i, d] = [Math.floor(at / n), at % n];
          return data[(i * heads + head) * n + d] as number;
        });
      };
      const weights = new Float64Array(seq * heads * dim).map((_, at) => Math.sin(at));
      const out = (c: NsaCase) => (t: Named<Tensor>) => ({ out: runOn(t, c).out as Tensor as Tensor });
      const whole = run(device, inputs, out(all), { out: weights });
      const head = 2;
      const own: Inputs = Object.fromEntries(
        Object.entries(inputs).map(([name, { shape, data }]) => [
          name,
          { shape: [1, seq, 1, ...shape.slice(3)], data: ofHead(data, head) },
        ]),
      );
      const part = run(device, own, out(one), { out: ofHead(weights, head) });
      expect(maxError(ofHead(whole.outputs.out ?? [], head), part.outputs.out ?? weights)).toBeLessThan(1e-5);
      for (const name of ['q', 'k', 'v', 'selected']) {
        const gradient = part.gradients[name] as Float64Array;
        expect(maxError(ofHead(whole.gradients[name] ?? [], head), gradient), name).toBeLessThan(2e-4);
      }
    });

    it.each(learnedCases)('with learned compression: %j', (c) => {
      const inputs = learnedInputs(c);
      const choices = lucidrainsChoices(c, dataOf(inputs));
      checkSystem(
        device,
        inputs,
        (t) => runLearned(t, c, device).out as Tensor as Tensor,
        (values) => nsaLucidrains(c, values, turn, choices),
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c = { ...base, count: 6, local: 1 };
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
        const result = runOn(t, c);
        expect(result.out.dtype).toBe(dtype);
        const exact = defined(c, values, nsaSelection(c, values as unknown as Heads));
        expect(maxError(result.out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -7 : 2 ** -4);
        for (const x of [...Object.values(result), ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const c = { ...base, ...empty };
        const { outputs } = run(device, inputsOf(c), (t) => ({ out: runOn(t, c).out as Tensor as Tensor }), undefined);
        expect(outputs.out).toHaveLength(0);
        const l = { ...learned, ...empty };
        const both = run(
          device,
          learnedInputs(l),
          (t) => ({ out: runLearned(t, l, device).out as Tensor as Tensor }),
          undefined,
        );
        expect(both.outputs.out).toHaveLength(0);
      }
    });
  });
});

describe('bad arguments of native sparse attention', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;
  const gate = of(2, 5, 4);
  const gates = { compressed: gate, selected: gate, sliding: gate };

  it.each<[string, object, RegExp]>([
    ['no gates', { gates: undefined }, /^ERR_OPTION: gates is undefined/],
    [
      'a gate that is missing',
      { gates: { compressed: gate, selected: gate } },
      /^ERR_OPTION: gates.sliding is undefined/,
    ],
    ['a gate of another shape', { gates: { ...gates, selected: of(2, 5, 2) } }, /^ERR_SHAPE: gates.selected has shape/],
    ['a gate without its branch', { window: 0 }, /^ERR_OPTION: gates.sliding is given, but window is 0/],
    ['blocks of nothing', { blockSize: 0 }, /^ERR_OPTION: blockSize is 0/],
    ['no block', { blockCount: 0 }, /^ERR_OPTION: blockCount is 0/],
    [
      'more than can be',
      { initialBlocks: 2, localBlocks: 2, blockCount: 3 },
      /^ERR_OPTION: blockCount is 3; it must be at least/,
    ],
    ['window', { window: -1 }, /^ERR_OPTION: window is -1/],
    ['an unknown option', { blocksize: 4 }, /^ERR_OPTION: .*did you mean "blockSize"/],
  ])('%s', (_, options, message) => {
    const [q, k] = [of(2, 5, 4, 8), of(2, 5, 2, 8)];
    const before = memory(device).tensors;
    expect(errorOf(() => nativeSparseAttention(q, k, k, { gates, ...options } as never))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('names heads and lengths that do not fit', () => {
    expect(errorOf(() => nativeSparseAttention(of(2, 5, 4, 8), of(2, 5, 3, 8), of(2, 5, 3, 8), { gates }))).toMatch(
      /^ERR_SHAPE: q has 4 heads and k 3/,
    );
    expect(errorOf(() => nativeSparseAttention(of(2, 5, 4, 8), of(2, 6, 2, 8), of(2, 6, 2, 8), { gates }))).toMatch(
      /^ERR_SHAPE: /,
    );
  });

  const compression = {
    ...{ memory: of(2, 1, 8), positions: of(2, 4, 8), W1: of(3, 32) },
    ...{ b1: of(3), W2: of(8, 3), b2: of(8) },
  };
  it.each<[string, object, RegExp]>([
    ['gates', { gates: of(2, 5, 4) }, /^ERR_SHAPE: gates has shape/],
    ['a stride beyond the window', { stride: 5 }, /^ERR_OPTION: stride is 5; it must be an integer from 1 to 4/],
    [
      'a block of part of a stride',
      { blockSize: 3 },
      /^ERR_OPTION: blockSize is 3; it must be a multiple of the stride/,
    ],
    ['W1', { keyCompression: { ...compression, W1: of(3, 16) } }, /^ERR_SHAPE: keyCompression.W1 has shape/],
    [
      'values with other memories',
      { valueCompression: { ...compression, memory: of(2, 2, 8) } },
      /^ERR_SHAPE: valueCompression.memory/,
    ],
    ['differentiableTopK', { differentiableTopK: 1 }, /^ERR_OPTION: differentiableTopK is 1/],
  ])('learned compression: %s', (_, options, message) => {
    const [q, k] = [of(2, 5, 4, 8), of(2, 5, 2, 8)];
    const all = {
      ...{ gates: of(2, 5, 4, 3), keyCompression: compression, valueCompression: compression },
      ...{ stride: 2, blockSize: 4, blockCount: 1, window: 2 },
    };
    expect(errorOf(() => nativeSparseAttentionLucidrains(q, k, k, { ...all, ...options } as never))).toMatch(message);
  });
});
