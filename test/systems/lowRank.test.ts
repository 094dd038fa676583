/** Linformer, Nystromformer and the truncated singular value decomposition, against their definitions with whole matrices. */
import { cast, type DeviceName, memory, noGrad, scope, sum, type Tensor, tensor, uniform, zeros } from 'flashattn';
import {
  iterativePseudoInverse,
  LinformerAttention,
  linformerAttention,
  lowRankSvdAttention,
  nystromAttentionPadded,
  nystromformerAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import * as oracle from '../../verify/oracle/lowRank.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Shape = oracle.LowRankShape;

const inputsOf = ({ batch, seq, heads, dim, valueDim }: Shape): Inputs => ({
  q: input([batch, seq, heads, dim], 1),
  k: input([batch, seq, heads, dim], 2),
  v: input([batch, seq, heads, valueDim], 3),
});

const of = (t: Named<Tensor>): [Tensor, Tensor, Tensor] => [t.q as Tensor, t.k as Tensor, t.v as Tensor];
const qkv = (values: Named<Float64Array>) => values as unknown as oracle.Qkv;

type LinformerCase = Shape & { keys: number; kvHeads: number; maxLength: number; k: number; perHead: boolean };
const linformerCases: readonly LinformerCase[] = [
  { batch: 2, seq: 7, heads: 4, dim: 3, valueDim: 5, keys: 9, kvHeads: 2, maxLength: 12, k: 4, perHead: false },
  { batch: 1, seq: 5, heads: 2, dim: 4, valueDim: 4, keys: 5, kvHeads: 2, maxLength: 5, k: 3, perHead: true },
  { batch: 2, seq: 3, heads: 3, dim: 2, valueDim: 1, keys: 6, kvHeads: 1, maxLength: 8, k: 1, perHead: true },
];

const linformerInputs = (c: LinformerCase): Inputs => {
  const projection = [...(c.perHead ? [c.kvHeads] : []), c.maxLength, c.k];
  return {
    q: input([c.batch, c.seq, c.heads, c.dim], 1),
    k: input([c.batch, c.keys, c.kvHeads, c.dim], 2),
    v: input([c.batch, c.keys, c.kvHeads, c.valueDim], 3),
    E: input(projection, 4, 0.5),
    F: input(projection, 5, 0.5),
  };
};

type NystromCase = Shape & { landmarks: number; iterations: number; perMatrix: boolean; masked: boolean; conv: number };
const nystromCases: readonly NystromCase[] = [
  {
    batch: 2,
    seq: 12,
    heads: 2,
    dim: 4,
    valueDim: 3,
    landmarks: 4,
    iterations: 6,
    perMatrix: false,
    masked: false,
    conv: 0,
  },
  {
    batch: 2,
    seq: 12,
    heads: 2,
    dim: 4,
    valueDim: 3,
    landmarks: 3,
    iterations: 4,
    perMatrix: true,
    masked: true,
    conv: 5,
  },
  {
    batch: 1,
    seq: 6,
    heads: 1,
    dim: 3,
    valueDim: 3,
    landmarks: 1,
    iterations: 6,
    perMatrix: false,
    masked: true,
    conv: 1,
  },
  // Softmax attention itself.
  {
    batch: 1,
    seq: 6,
    heads: 2,
    dim: 3,
    valueDim: 2,
    landmarks: 6,
    iterations: 6,
    perMatrix: false,
    masked: true,
    conv: 3,
  },
];

const realOf = ({ batch, seq }: Shape): boolean[] =>
  Array.from({ length: batch * seq }, (_, i) => i % seq < seq - 2 - Math.floor(i / seq));
const maskOf = (c: Shape, device: DeviceName) =>
  cast(tensor(realOf(c).map(Number), [c.batch, c.seq], { device }) as Tensor, 'bool');
const withConv = (c: NystromCase): Inputs => ({
  ...inputsOf(c),
  ...(c.conv > 0 && { conv: input([c.heads, 1, c.conv, 1], 6) }),
});

const svdCases: readonly (Shape & { rank: number; causal: boolean })[] = [
  { batch: 2, seq: 9, heads: 2, dim: 4, valueDim: 3, rank: 3, causal: false },
  { batch: 1, seq: 11, heads: 1, dim: 4, valueDim: 2, rank: 4, causal: true },
  // All of A.
  { batch: 1, seq: 6, heads: 1, dim: 4, valueDim: 2, rank: 6, causal: false },
];

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('attention of low rank'), () => {
    it.each(linformerCases)('Linformer: %j', (c) => {
      checkSystem(
        device,
        linformerInputs(c),
        (t) => linformerAttention(...of(t), { keyProjection: t.E as Tensor, valueProjection: t.F as Tensor }) as Tensor,
        (values) => oracle.linformer(c, qkv(values), values.E as Float64Array, values.F as Float64Array),
      );
    });

    it('Linformer has one projection for both where there is no other', () => {
      const c = linformerCases[0] as LinformerCase;
      const { F: _, ...inputs } = linformerInputs(c);
      checkSystem(
        device,
        inputs,
        (t) => linformerAttention(...of(t), { keyProjection: t.E as Tensor }) as Tensor,
        (values) => oracle.linformer(c, qkv(values), values.E as Float64Array, values.E as Float64Array),
      );
    });

    it.each(nystromCases)('Nystromformer: %j', (c) => {
      checkSystem(
        device,
        withConv(c),
        (t) => {
          const mask = c.masked ? { mask: maskOf(c, device) } : {};
          const convWeight = c.conv > 0 ? { convWeight: t.conv as Tensor } : {};
          const { landmarks, iterations, perMatrix } = c;
          return nystromformerAttention(...of(t), {
            landmarks,
            iterations,
            perMatrix,
            ...mask,
            ...convWeight,
          }) as Tensor;
        },
        (values) =>
          oracle.nystrom(c, qkv(values), {
            ...c,
            before: 0,
            ...(c.masked && { real: realOf(c) }),
            ...(values.conv && { conv: values.conv }),
          } as oracle.NystromParameters),
      );
    });

    it.each([
      [11, 4, 3],
      [8, 4, 0],
      [2, 5, 0],
    ])('Nystrom attention of %i tokens with %i landmarks', (seq, landmarks, conv) => {
      const c: NystromCase = { batch: 2, seq, heads: 2, dim: 3, valueDim: 2, landmarks, iterations: 6, perMatrix: false, masked: false, conv }; // biome-ignore format: one line
      checkSystem(
        device,
        withConv(c),
        (t) =>
          nystromAttentionPadded(...of(t), { landmarks, ...(conv > 0 && { convWeight: t.conv as Tensor }) }) as Tensor,
        (values) =>
          oracle.nystrom(c, qkv(values), {
            ...c,
            before: (landmarks - (seq % landmarks)) % landmarks,
            ...(values.conv && { conv: values.conv }),
          } as oracle.NystromParameters),
      );
    });

    it('what is hidden makes no difference to what is real, also where it is NaN', () => {
      const c = nystromCases[1] as NystromCase;
      const spoilt = (value: number) =>
        Object.fromEntries(
          Object.entries(inputsOf(c)).map(([name, { shape, data }]) => {
            const row = data.length / (c.batch * c.seq);
            return [name, { shape, data: data.map((x, i) => (realOf(c)[Math.floor(i / row)] ? x : value)) }];
          }),
        );
      const outs = [0, Number.NaN].map((value) =>
        run(
          device,
          spoilt(value),
          (t) => ({ out: nystromformerAttention(...of(t), { landmarks: 4, mask: maskOf(c, device) }) as Tensor }),
          { out: new Float64Array(c.batch * c.seq * c.heads * c.valueDim).fill(1) },
        ),
      );
      expect(outs[1]).toEqual(outs[0]);
      expect(outs[0]?.outputs.out?.every(Number.isFinite)).toBe(true);
    });

    it('the pseudo-inverse of what softmax has made converges', () => {
      const A = [
        [0.7, 0.2, 0.1],
        [0.1, 0.8, 0.1],
        [0.25, 0.25, 0.5],
      ];
      noGrad(() => {
        using a = tensor(A.flat(), [3, 3], { device });
        using z = iterativePseudoInverse(a as Tensor<'float32'>, { iterations: 12 });
        const Z = z.toFloat32Sync();
        for (let i = 0; i < 3; i++)
          for (let j = 0; j < 3; j++)
            expect([0, 1, 2].reduce((sum, k) => sum + (A[i]?.[k] ?? 0) * (Z[3 * k + j] ?? 0), 0)).toBeCloseTo(
              i === j ? 1 : 0,
              5,
            );
      });
    });

    it.each(svdCases)('truncated singular value decomposition: %j', (c) => {
      checkSystem(
        device,
        inputsOf(c),
        (t) => lowRankSvdAttention(...of(t), { rank: c.rank, causal: c.causal }).out as Tensor,
        (values) => oracle.lowRankSvd(c, qkv(values), c.rank, c.causal),
        { out: 1e-4, gradient: 2e-3 },
      );
    });

    it('says all singular values, the first of which is that of rows that sum to 1', () => {
      const c = svdCases[0] as (typeof svdCases)[0];
      const { outputs } = run(
        device,
        inputsOf(c),
        (t) => ({ s: lowRankSvdAttention(...of(t), { rank: 1 }).singularValues as Tensor }),
        undefined,
      );
      const s = outputs.s as Float64Array;
      expect(s).toHaveLength(c.batch * c.heads * c.seq);
      for (let i = 0; i < s.length; i++) {
        if (i % c.seq === 0) expect(s[i]).toBeGreaterThanOrEqual(1 - 1e-5);
        else expect(s[i]).toBeLessThanOrEqual(s[i - 1] as number);
      }
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      noGrad(() => {
        const before = memory(device).tensors;
        const c = nystromCases[0] as NystromCase;
        const l = { ...linformerCases[0], ...c, keys: c.seq, kvHeads: c.heads, maxLength: 12 } as LinformerCase;
        const t = Object.fromEntries(
          Object.entries({ ...inputsOf(c), E: input([12, 4], 4, 0.5) }).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const outs = [
          linformerAttention(...of(t), { keyProjection: t.E as Tensor }) as Tensor,
          nystromformerAttention(...of(t), { landmarks: 4 }) as Tensor,
        ];
        const exact = [
          oracle.linformer(l, qkv(values), values.E as Float64Array, values.E as Float64Array),
          oracle.nystrom(c, qkv(values), { landmarks: 4, iterations: 6, perMatrix: false, before: 0 }),
        ];
        for (const [i, out] of outs.entries()) {
          expect(out.dtype).toBe(dtype);
          expect(maxError(out.toFloat32Sync(), exact[i] as Float64Array)).toBeLessThan(
            dtype === 'float16' ? 2 ** -8 : 2 ** -5,
          );
        }
        for (const x of [...outs, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty batches and sequences', () => {
      for (const empty of [{ batch: 0 }, { seq: 0 }]) {
        const c = { ...(nystromCases[0] as NystromCase), ...empty };
        const out = (f: (t: Named<Tensor>) => unknown) =>
          run(device, inputsOf(c), (t) => ({ out: f(t) as Tensor }), undefined).outputs.out;
        expect(out((t) => nystromformerAttention(...of(t), { landmarks: 4 }))).toHaveLength(0);
        expect(out((t) => nystromAttentionPadded(...of(t), { landmarks: 4 }))).toHaveLength(0);
      }
    });

    it('the layer of Linformer is its projections around it', () => {
      for (const shareKv of [false, true]) {
        const layer = new LinformerAttention({ width: 8, heads: 4, kvHeads: 2, maxLength: 9, projectedLength: 3, shareKv, device, seed: 3 }); // biome-ignore format: one line
        layer.freeze();
        const values = Object.fromEntries(
          [...layer.namedParameters()].map(([name, t]) => [name, Float64Array.from(t.toFloat32Sync())]),
        );
        const d = { batch: 2, seq: 7, heads: 4, dim: 2, valueDim: 2, keys: 7, kvHeads: 2, maxLength: 9, k: 3 };
        const linear = (x: Float64Array, name: string, outputs: number, bias?: Float64Array) => {
          const weight = values[`${name}.weight`] as Float64Array;
          const inputs = weight.length / outputs;
          return Float64Array.from({ length: (x.length / inputs) * outputs }, (_, at) => {
            const [row, to] = [Math.floor(at / outputs), at % outputs];
            let total = bias?.[to] ?? 0;
            for (let i = 0; i < inputs; i++)
              total += (x[row * inputs + i] as number) * (weight[to * inputs + i] as number);
            return total;
          });
        };
        checkSystem(
          device,
          { x: input([2, 7, 8], 1) },
          (t) => layer.forward(t.x as Tensor),
          ({ x }) => {
            const own = x as Float64Array;
            const k = linear(own, 'kProj', 4);
            const v = shareKv ? k : linear(own, 'vProj', 4);
            const E = values.keyProjection as Float64Array;
            const F = shareKv ? E : (values.valueProjection as Float64Array);
            return linear(
              oracle.linformer(d, { q: linear(own, 'qProj', 8), k, v }, E, F),
              'out',
              8,
              values['out.bias'],
            );
          },
        );
        layer.unfreeze();
        scope(() => sum(layer.forward(uniform([1, 9, 8], { seed: 4, device }) as Tensor)).backward());
        for (const [name, t] of layer.namedParameters()) expect(t.grad?.shape, name).toEqual(t.shape);
        layer.dispose();
      }
    });
  });
});

describe('bad arguments', () => {
  const device: DeviceName = 'wasm';
  const made = (...shape: number[]) => zeros(shape, { device }) as Tensor;
  const q = made(2, 6, 2, 4);

  it.each<[string, () => unknown, RegExp]>([
    [
      'a short projection',
      () => linformerAttention(q, q, q, { keyProjection: made(5, 3) }),
      /^ERR_SHAPE: keyProjection has shape \[5, 3\]; it must be \[at least 6, k\]/,
    ],
    [
      'a projection of other heads',
      () => linformerAttention(q, q, q, { keyProjection: made(3, 6, 3) }),
      /^ERR_SHAPE: keyProjection has shape \[3, 6, 3\]/,
    ],
    [
      'projections that differ',
      () => linformerAttention(q, q, q, { keyProjection: made(6, 3), valueProjection: made(6, 2) }),
      /^ERR_SHAPE: .*the same k/,
    ],
    [
      'no projection',
      () => linformerAttention(q, q, q, {} as never),
      /^ERR_OPTION: keyProjection is undefined; it must be a tensor/,
    ],
    [
      'an unknown option',
      () => linformerAttention(q, q, q, { keyProjections: q } as never),
      /^ERR_OPTION: .*keyProjection/,
    ],
    [
      'landmarks',
      () => nystromformerAttention(q, q, q, { landmarks: 4 }),
      /^ERR_SHAPE: q has 6 positions; they must be a multiple of the 4 landmarks/,
    ],
    ['no landmarks', () => nystromAttentionPadded(q, q, q, { landmarks: 0 }), /^ERR_OPTION: landmarks is 0/],
    [
      'an even convolution',
      () => nystromformerAttention(q, q, q, { landmarks: 3, convWeight: made(2, 1, 4, 1) }),
      /^ERR_SHAPE: convWeight has shape \[2, 1, 4, 1\]/,
    ],
    [
      'a mask of numbers',
      () => nystromformerAttention(q, q, q, { landmarks: 3, mask: made(2, 6) as never }),
      /^ERR_DTYPE: mask is float32/,
    ],
    [
      'a mask of a padded sequence',
      () => nystromAttentionPadded(q, q, q, { landmarks: 3, mask: q } as never),
      /^ERR_OPTION/,
    ],
    [
      'keys of another length',
      () => nystromformerAttention(q, made(2, 5, 2, 4), made(2, 5, 2, 4), { landmarks: 3 }),
      /^ERR_SHAPE/,
    ],
    [
      'a rank of 0',
      () => lowRankSvdAttention(q, q, q, { rank: 0 }),
      /^ERR_OPTION: rank is 0; it must be an integer from 1 to 6/,
    ],
    ['a rank beyond the length', () => lowRankSvdAttention(q, q, q, { rank: 7 }), /^ERR_OPTION: rank is 7/],
    [
      'a long sequence',
      () => lowRankSvdAttention(made(1, 257, 1, 2), made(1, 300, 1, 2), made(1, 300, 1, 2), { rank: 2 }),
      /^ERR_SHAPE: q has 257 positions and k 300/,
    ],
    [
      'a matrix that is none',
      () => iterativePseudoInverse(made(2, 3) as Tensor<'float32'>),
      /^ERR_SHAPE: a has shape \[2, 3\]/,
    ],
    [
      'a layer whose heads do not fit',
      () => new LinformerAttention({ width: 7, heads: 2, maxLength: 4, projectedLength: 2, device }),
      /^ERR_OPTION: width 7 is no multiple of heads 2/,
    ],
  ])('%s', (_, call, message) => {
    const before = memory(device).tensors;
    expect(errorOf(call)).toMatch(message);
    // The tensors that the call was given.
    expect(memory(device).tensors - before).toBeLessThanOrEqual(3);
  });

  it('a sequence longer than the layer', () => {
    using layer = new LinformerAttention({ width: 8, heads: 2, maxLength: 4, projectedLength: 2, device });
    expect(errorOf(() => layer.forward(made(1, 5, 8)))).toMatch(/^ERR_SHAPE: there are 5 tokens .* at most 4/);
  });
});
