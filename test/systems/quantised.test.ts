/** Quantised attention and layers, against their definitions; gradients against those of what quantised numbers stand for. */
import { type DeviceName, memory, noGrad, parameter, type Tensor, tensor, zeros } from 'flashattn';
import {
  BitLinear,
  biBertSelfAttention,
  bitLinear1,
  bitLinear158,
  bitLinear158Codes,
  int8SmoothKAttention,
  int8SymmetricAttention,
  packBitLinear,
  quantisedKvCacheAttention,
  quantiseKvCache,
  ternaryAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import {
  type BiBertDims,
  biBert,
  bitLinear,
  type HeadDims,
  type HeadInputs,
  int8Attention,
  kvCache,
  StraightThrough,
  smoothK,
  ternaryAttention as ternaryOracle,
} from '../../verify/oracle/quantised.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Heads = Tensor<'float32', readonly [number, number, number, number]>;
const four = (t: Tensor) => t as unknown as Heads;
const plain = (t: unknown) => t as Tensor;

const cases: readonly HeadDims[] = [
  { batch: 2, queries: 3, keys: 5, heads: 2, dim: 4, valueDim: 3 },
  { batch: 1, queries: 7, keys: 7, heads: 1, dim: 8, valueDim: 8 },
];

const headInputs = (d: HeadDims): Inputs => ({
  q: input([d.batch, d.queries, d.heads, d.dim], 1),
  k: input([d.batch, d.keys, d.heads, d.dim], 2),
  v: input([d.batch, d.keys, d.heads, d.valueDim], 3),
});

const bertInputs = ({ batch, seq, dim }: BiBertDims): Inputs => ({
  x: input([batch, seq, dim], 1),
  query: input([dim, dim], 2, 0.5),
  queryBias: input([dim], 3),
  key: input([dim, dim], 4, 0.5),
  keyBias: input([dim], 5),
  value: input([dim, dim], 6, 0.5),
  valueBias: input([dim], 7),
});

const linears = { 1: bitLinear1, 1.58: bitLinear158 } as const;

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('quantised systems'), () => {
    it.each(cases.flatMap((d) => [2.5, 1].map((clip) => ({ ...d, clip }))))('8 bits: %j', (c) => {
      const through = new StraightThrough();
      checkSystem(
        device,
        headInputs(c),
        ({ q, k, v }) => plain(int8SymmetricAttention(four(q), four(k), four(v), { clip: c.clip })),
        (values) => int8Attention(c, values as unknown as HeadInputs, c.clip, through),
      );
    });

    it.each(cases.flatMap((d) => [2.5, 1].map((clip) => ({ ...d, clip }))))('ternary: %j', (c) => {
      const through = new StraightThrough();
      checkSystem(
        device,
        headInputs(c),
        ({ q, k, v }) => plain(ternaryAttention(four(q), four(k), four(v), { clip: c.clip })),
        (values) => ternaryOracle(c, values as unknown as HeadInputs, c.clip, through),
      );
    });

    it.each(cases)('smoothed keys: %j', (d) => {
      const { v, ...others } = headInputs(d);
      const fixed = Object.fromEntries(
        Object.entries(others).map(([name, { shape, data }]) => [name, tensor(data, shape, { device }) as Tensor]),
      );
      checkSystem(
        device,
        { v },
        (t) => plain(int8SmoothKAttention(four(fixed.q), four(fixed.k), four(t.v)).out),
        (values) => smoothK(d, { q: others.q.data, k: others.k.data, v: values.v }),
      );
      for (const t of Object.values(fixed)) t.dispose();
    });

    it('codes of a token reach 127, and a token that is the mean has none', () => {
      const d = cases[0];
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.values(headInputs(d)).map(({ shape, data }) => tensor(data, shape, { device }) as Tensor);
        const constant = tensor(new Float64Array(d.batch * d.keys * d.heads * d.dim).fill(3), t[1].shape, { device });
        const { out, q, k } = int8SmoothKAttention(four(t[0]), four(constant as unknown as Tensor), four(t[2]));
        const codes = Array.from(q.codes.toFloat32Sync());
        for (let row = 0; row < codes.length; row += d.dim)
          expect(Math.max(...codes.slice(row, row + d.dim).map(Math.abs))).toBe(127);
        expect(k.codes.toFloat32Sync().every((code) => code === 0)).toBe(true);
        expect(out.toFloat32Sync().every(Number.isFinite)).toBe(true);
        for (const each of [...t, constant, out, q.codes, q.step, k.codes, k.step]) each.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it.each(cases.flatMap((d) => [2, 4, 8].map((bits) => ({ ...d, bits }))))('a cache of few bits: %j', (c) => {
      const { q, ...others } = headInputs(c);
      const [k, v] = [others.k, others.v].map(({ shape, data }) => four(tensor(data, shape, { device }) as Tensor));
      const cache = quantiseKvCache(k, v, { bits: c.bits });
      const most = 2 ** c.bits - 1;
      for (const { codes } of [cache.k, cache.v])
        for (const code of codes.toFloat32Sync())
          expect(Number.isInteger(code) && code >= 0 && code <= most, `code ${code}`).toBe(true);
      // Of 8 bits the original is near.
      checkSystem(
        device,
        { q },
        (t) => plain(quantisedKvCacheAttention(four(t.q), cache)),
        (values) => kvCache(c, { q: values.q, k: others.k.data, v: others.v.data }, c.bits),
      );
      for (const { codes, step, least } of [cache.k, cache.v]) for (const t of [codes, step, least]) t.dispose();
      k.dispose();
      v.dispose();
    });

    it.each([1, 1.58] as const)('a linear layer of %d bits', (bits) => {
      for (const [rows, inputs, outputs] of [
        [3, 8, 5],
        [1, 33, 2],
      ] as const) {
        const through = new StraightThrough();
        checkSystem(
          device,
          { x: input([rows, inputs], 1), weight: input([outputs, inputs], 2, 0.3) },
          (t) => linears[bits](t.x, t.weight),
          (values) => bitLinear(inputs, values as never, bits, through),
        );
      }
    });

    it('codes of b1.58 are those that the layer multiplies', () => {
      noGrad(() => {
        const [x, weight] = [input([2, 3, 8], 1), input([5, 8], 2, 0.3)].map(
          ({ shape, data }) => tensor(data, shape, { device }) as Tensor,
        );
        const codes = bitLinear158Codes(x, weight);
        const out = bitLinear158(x, weight);
        const [xs, ws, s] = [codes.x.codes, codes.weight.codes, codes.x.scale].map((t) => t.toFloat32Sync());
        const [g] = codes.weight.scale.toFloat32Sync();
        const exact = Float64Array.from({ length: 30 }, (_, at) => {
          const [r, o] = [Math.floor(at / 5), at % 5];
          let sum = 0;
          for (let i = 0; i < 8; i++) sum += xs[r * 8 + i] * ws[o * 8 + i];
          return sum / s[r] / g;
        });
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(1e-6);
        expect(new Set(ws)).toEqual(new Set([-1, 0, 1]));
        for (const t of [x, weight, out, codes.x.codes, codes.x.scale, codes.weight.codes, codes.weight.scale])
          t.dispose();
      });
    });

    it.each<BiBertDims & { readonly hidden: readonly number[] }>([
      { batch: 2, seq: 5, dim: 6, heads: 2, hidden: [4, 8, 9] },
      { batch: 1, seq: 4, dim: 9, heads: 3, hidden: [] },
    ])('BiBERT: %j', (c) => {
      const through = new StraightThrough();
      const isHidden = Array.from({ length: c.batch * c.seq }, (_, j) => c.hidden.includes(j));
      const attentionMask = tensor(
        isHidden.map((is) => (is ? -10_000 : 0)),
        [c.batch, 1, 1, c.seq],
        { device },
      ) as Tensor;
      checkSystem(
        device,
        bertInputs(c),
        ({ x, ...weights }) =>
          biBertSelfAttention(x, weights as never, {
            heads: c.heads,
            ...(c.hidden.length > 0 && { attentionMask }),
          }),
        (values) => biBert(c, values, isHidden, through),
      );
      attentionMask.dispose();
    });

    it('zeros stay zeros, with finite gradients', () => {
      const d = cases[0];
      const inputs = headInputs(d);
      for (const { data } of Object.values(inputs)) data.fill(0);
      const out = new Float64Array(d.batch * d.queries * d.heads * d.valueDim).fill(1);
      const linear = { x: input([2, 4], 1), weight: input([3, 4], 2) };
      for (const { data } of Object.values(linear)) data.fill(0);
      const results = [
        ...[int8SymmetricAttention, ternaryAttention].map((attend) =>
          run(device, inputs, (t) => ({ out: plain(attend(four(t.q), four(t.k), four(t.v))) }), { out }),
        ),
        ...[bitLinear1, bitLinear158].map((layer) =>
          run(device, linear, (t) => ({ out: layer(t.x, t.weight) }), { out: new Float64Array(6).fill(1) }),
        ),
      ];
      for (const { outputs, gradients } of results) {
        expect(outputs.out.every((x) => x === 0)).toBe(true);
        for (const values of Object.values(gradients)) expect(values.every(Number.isFinite)).toBe(true);
      }
    });

    it.each(['float16', 'bfloat16'] as const)('%s gives the float32 result, rounded', (dtype) => {
      const [d, b] = [cases[0], { batch: 1, seq: 4, dim: 6, heads: 2 }];
      noGrad(() => {
        const before = memory(device).tensors;
        const make = (inputs: Inputs) =>
          Object.fromEntries(
            Object.entries(inputs).map(([name, { shape, data }]) => [
              name,
              tensor(data, shape, { device, dtype }) as Tensor,
            ]),
          );
        const upper = (t: Named<Tensor>) =>
          Object.fromEntries(
            Object.entries(t).map(([name, x]) => [name, tensor(x.toFloat32Sync(), x.shape, { device }) as Tensor]),
          );
        const [heads, bert, linear] = [
          make(headInputs(d)),
          make(bertInputs(b)),
          make({ x: input([3, 8], 1), weight: input([5, 8], 2) }),
        ];
        const all = (h: Named<Tensor>, { x, ...weights }: Named<Tensor>, l: Named<Tensor>) => {
          const [q, k, v] = [h.q, h.k, h.v].map(four);
          const smooth = int8SmoothKAttention(q, k, v);
          const cache = quantiseKvCache(k, v, { bits: 4 });
          const outs = [
            int8SymmetricAttention(q, k, v),
            ternaryAttention(q, k, v),
            smooth.out,
            quantisedKvCacheAttention(q, cache),
            biBertSelfAttention(x, weights as never, { heads: b.heads }),
            bitLinear1(l.x, l.weight),
            bitLinear158(l.x, l.weight),
          ].map(plain);
          const rest = [smooth.q, smooth.k, cache.k, cache.v].flatMap((entry) => Object.values(entry) as Tensor[]);
          for (const t of rest) t.dispose();
          return outs;
        };
        const [wideHeads, wideBert, wideLinear] = [heads, bert, linear].map(upper);
        const outs = all(heads, bert, linear);
        const exact = all(wideHeads, wideBert, wideLinear);
        for (const [i, out] of outs.entries()) {
          expect(out.dtype).toBe(dtype);
          const most = Math.max(...exact[i].toFloat32Sync().map(Math.abs));
          const error = maxError(out.toFloat32Sync(), exact[i].toFloat32Sync());
          expect(error / most).toBeLessThan(dtype === 'float16' ? 2 ** -10 : 2 ** -7);
        }
        const made = [heads, bert, linear, wideHeads, wideBert, wideLinear].flatMap((t) => Object.values(t));
        for (const t of [...outs, ...exact, ...made]) t.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ queries: 0 }, { batch: 0 }]) {
        const inputs = headInputs({ ...cases[0], ...empty });
        for (const attend of [int8SymmetricAttention, ternaryAttention])
          expect(
            run(device, inputs, (t) => ({ out: plain(attend(four(t.q), four(t.k), four(t.v))) }), undefined).outputs
              .out,
          ).toHaveLength(0);
        const smooth = (t: Named<Tensor>) => plain(int8SmoothKAttention(four(t.q), four(t.k), four(t.v)).out);
        expect(run(device, inputs, (t) => ({ out: smooth(t) }), undefined).outputs.out).toHaveLength(0);
      }
      const b = { batch: 0, seq: 4, dim: 6, heads: 2 };
      const none = run(
        device,
        bertInputs(b),
        ({ x, ...weights }) => ({ out: biBertSelfAttention(x, weights as never, { heads: 2 }) }),
        undefined,
      );
      expect(none.outputs.out).toHaveLength(0);
      const rows = { x: input([0, 4], 1), weight: input([3, 4], 2) };
      for (const layer of [bitLinear1, bitLinear158])
        expect(run(device, rows, (t) => ({ out: layer(t.x, t.weight) }), undefined).outputs.out).toHaveLength(0);
    });

    it.each([1, 1.58] as const)('a module of %d bits is the function of its weight, and learns', (bits) => {
      const before = memory(device).tensors;
      const layer = new BitLinear(6, 4, { bits, bias: true, device });
      const x = tensor(input([2, 3, 6], 1).data, [2, 3, 6], { device }) as Tensor;
      const out = layer.forward(x);
      // The bias begins with zeros.
      const own = noGrad(() => linears[bits](x, layer.weight));
      expect(out.toFloat32Sync()).toEqual(own.toFloat32Sync());
      out.backward(own);
      for (const [name, t] of layer.namedParameters()) expect(t.grad?.shape, name).toEqual(t.shape);
      for (const t of [x, out, own]) t.dispose();
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it.each([1, 1.58] as const)('a packed weight of %d bits gives the same bits', (bits) => {
      const before = memory(device).tensors;
      for (const dtype of ['float32', 'bfloat16'] as const) {
        const [x, weight] = [input([2, 3, 37], 1), input([19, 37], 2, 0.3)].map(
          ({ shape, data }) => tensor(data, shape, { device, dtype }) as Tensor,
        );
        const packed = packBitLinear(weight, { bits });
        expect([packed.inputs, packed.outputs, packed.bits]).toEqual([37, 19, bits]);
        const [own, out] = [linears[bits](x, weight), linears[bits](x, packed)];
        expect(out.shape).toEqual([2, 3, 19]);
        expect(out.dtype).toBe(dtype);
        expect(out.toFloat32Sync()).toEqual(own.toFloat32Sync());
        const trained = parameter(x);
        expect(errorOf(() => linears[bits](trained, packed))).toMatch(/^ERR_AUTOGRAD: a packed weight/);
        for (const t of [x, trained, weight, own, out]) t.dispose();
        packed.dispose();
      }
      expect(memory(device).tensors).toBe(before);
    });

    it('a module packs its weight in eval, and again when it has changed', () => {
      const before = memory(device).tensors;
      const layer = new BitLinear(20, 6, { bias: true, device }).eval();
      const x = tensor(input([4, 20], 1).data, [4, 20], { device }) as Tensor;
      noGrad(() => {
        layer.bias?.write(Float32Array.from({ length: 6 }, (_, i) => i));
        const forward = () => {
          const out = layer.forward(x);
          const values = out.toFloat32Sync();
          out.dispose();
          return values;
        };
        const expected = () => {
          const out = bitLinear158(x, layer.weight);
          const values = out.toFloat32Sync().map((value, at) => value + (at % 6));
          out.dispose();
          return values;
        };
        expect(forward()).toEqual(expected());
        const packed = memory(device).tensors;
        expect(forward()).toEqual(expected());
        expect(memory(device).tensors).toBe(packed);
        layer.weight.write(Float32Array.from(input([6, 20], 9).data));
        expect(forward()).toEqual(expected());
        expect(memory(device).tensors).toBe(packed);
        layer.train();
        expect(forward()).toEqual(expected());
        expect(memory(device).tensors).toBeLessThan(packed);
      });
      x.dispose();
      layer.dispose();
      expect(memory(device).tensors).toBe(before);
    });
  });
});

describe('bad arguments of quantised systems', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as never;
  const q = of(2, 3, 2, 4);
  const weights = Object.fromEntries(
    Object.entries(bertInputs({ batch: 1, seq: 2, dim: 6, heads: 2 })).flatMap(([name, { shape }]) =>
      name === 'x' ? [] : [[name, of(...shape)]],
    ),
  ) as never;
  const bert = (x: never, options: object) => () => biBertSelfAttention(x, weights, options as never);

  it.each<[string, () => unknown, RegExp]>([
    ['shapes', () => int8SymmetricAttention(q, of(2, 3, 2, 5), q), /^ERR_SHAPE: /],
    ['heads', () => ternaryAttention(q, of(2, 3, 1, 4), of(2, 3, 1, 4)), /^ERR_SHAPE: q has 2 heads and k 1/],
    ['clip', () => ternaryAttention(q, q, q, { clip: 0 }), /^ERR_OPTION: clip is 0/],
    ['a misspelt option', () => int8SymmetricAttention(q, q, q, { clips: 1 } as never), /did you mean "clip"/],
    ['bits of a layer', () => packBitLinear(of(2, 3), { bits: 2 as never }), /^ERR_OPTION: bits is 2; it must be 1.58/],
    ['a weight of no inputs', () => packBitLinear(of(2, 0)), /^ERR_SHAPE: weight has shape \[2, 0\]/],
    [
      'a weight of another layer',
      () => bitLinear1(of(2, 4), packBitLinear(of(3, 4))),
      /^ERR_OPTION: weight has been packed with bits 1.58/,
    ],
    ['a weight of other inputs', () => bitLinear158(of(2, 5), packBitLinear(of(3, 4))), /must have 4 features/],
    ['bits', () => quantiseKvCache(q, q, { bits: 9 }), /^ERR_OPTION: bits is 9; it must be an integer from 1 to 8/],
    ['a cache', () => quantisedKvCacheAttention(q, 3 as never), /^ERR_OPTION: cache is 3/],
    [
      'no codes',
      () => quantisedKvCacheAttention(q, { k: {}, v: {} } as never),
      /^ERR_OPTION: cache.k.codes is undefined/,
    ],
    ['no weight', () => bitLinear158(of(2, 4), undefined as never), /^ERR_OPTION: weight is undefined/],
    ['inputs', () => bitLinear1(of(2, 4), of(3, 5)), /^ERR_SHAPE: weight has shape \[3, 5\]/],
    ['rank', () => bitLinear158(of(4), of(3, 4)), /^ERR_SHAPE: x has shape \[4\]/],
    ['bits of a module', () => new BitLinear(2, 2, { bits: 2 as never, device }), /^ERR_OPTION: bits is 2/],
    ['dim', bert(of(1, 2, 5), { heads: 5 }), /^ERR_SHAPE: weights.query has shape/],
    ['heads of dim', bert(of(1, 2, 6), { heads: 4 }), /^ERR_SHAPE: x has shape .* a multiple of 4 heads/],
    ['mask', bert(of(1, 2, 6), { heads: 2, attentionMask: of(2, 1, 1, 3) }), /^ERR_SHAPE: attentionMask has shape/],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
