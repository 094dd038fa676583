/** The learned masks of SparseBERT, against their definition pair by pair. */
import { type DeviceName, memory, noGrad, type Tensor, tensor, zeros } from 'flashattn';
import {
  differentiableAttentionMask,
  sparseBertAttention,
  sparseBertMask,
  sparseBertUnstructuredAttention,
} from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { keepsOf, type SparseBertCase, sparseBert, unstructured } from '../../verify/oracle/sparseBert.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { checkSystem, type Inputs, input, type Named, run } from './taped.js';

type Shape4 = Tensor<'float32', readonly [number, number, number, number]>;
const tokens = (t: Tensor | undefined) => t as Tensor<'float32'> as Shape4;

const cases: readonly SparseBertCase[] = [
  { batch: 2, seq: 9, heads: 2, dim: 4, valueDim: 3, temperature: 1 },
  { batch: 1, seq: 70, heads: 1, dim: 3, valueDim: 2, temperature: 0.7 },
  { batch: 2, seq: 1, heads: 3, dim: 2, valueDim: 2, temperature: 1 },
];

const inputsOf = (c: SparseBertCase): Inputs => ({
  q: input([c.batch, c.seq, c.heads, c.dim], 1),
  k: input([c.batch, c.seq, c.heads, c.dim], 2),
  v: input([c.batch, c.seq, c.heads, c.valueDim], 3),
});

const logitsOf = (c: SparseBertCase): Inputs => ({ ...inputsOf(c), alphas: input([c.heads, c.seq, 2], 4) });

/** Of an exponential distribution, nearly. */
const noiseOf = (c: SparseBertCase): Float64Array =>
  input([c.heads, c.seq, 2], 5).data.map((x) => Math.fround(Math.abs(x) + 0.05));

/** Of pads at the end of the last batch entry. */
const maskOf = (c: SparseBertCase): Float64Array =>
  Float64Array.from({ length: c.batch * c.seq }, (_, at) => (at > c.batch * c.seq - 3 && c.seq > 4 ? -10_000 : 0));

const pairsOf = (c: SparseBertCase): Inputs => ({ ...inputsOf(c), alphas: input([c.heads, c.seq, c.seq], 6) });

describe.each(testDevices)('$device', ({ device, present, title }) => {
  const of = (data: Float64Array, shape: readonly number[]) =>
    tensor(Float32Array.from(data), shape, { device }) as Tensor;

  const runOn = (t: Named<Tensor>, c: SparseBertCase) => {
    const keep = differentiableAttentionMask(t.alphas as Tensor, {
      noise: of(noiseOf(c), [c.heads, c.seq, 2]),
      temperature: c.temperature,
    });
    const out = sparseBertAttention(tokens(t.q), tokens(t.k), tokens(t.v), {
      keep,
      attentionMask: of(maskOf(c), [c.batch, 1, 1, c.seq]),
    });
    return { out: out as Tensor as Tensor, keep };
  };

  describe.skipIf(!present)(title('masks that are learned'), () => {
    it.each(cases)('by distance: %j', (c) => {
      const inputs = logitsOf(c);
      const noise = noiseOf(c);
      const { data: alphas } = inputs.alphas as { data: Float64Array };
      // The first distance is kept, so that every query sees itself.
      for (let h = 0; h < c.heads; h++) alphas[2 * h * c.seq] = 30;
      const base = keepsOf(c, { alphas, noise });
      checkSystem(
        device,
        inputs,
        (t) => runOn(t, c).out,
        (values) => {
          const now = keepsOf(c, { alphas: values.alphas as Float64Array, noise });
          const keep = base.hard.map((x, i) => x + (now.p[i] as number) - (base.p[i] as number));
          return sparseBert(c, { ...values, mask: maskOf(c) }, keep);
        },
        { gradient: 2e-2 },
      );
    });

    it('keeps what is equally likely to be dropped, and shows which pairs', () => {
      const alphas = of(Float64Array.of(0, 0, 1, 2, 2, 1, -1, -1, 3, 0, 0, 3), [2, 3, 2]);
      const before = memory(device).tensors;
      const keep = differentiableAttentionMask(alphas);
      expect([...keep.dataSync()]).toEqual([1, 0, 1, 1, 1, 0]);
      const mask = sparseBertMask(keep);
      expect(mask.shape).toEqual([2, 3, 3]);
      expect([...mask.toFloat32Sync()]).toEqual([1, 0, 1, 0, 1, 0, 1, 0, 1, 1, 1, 0, 1, 1, 1, 0, 1, 1]);
      for (const t of [keep, mask]) t.dispose();
      expect(memory(device).tensors).toBe(before);
      alphas.dispose();
    });

    it('sees all where all is dropped', () => {
      const c = { ...(cases[0] as SparseBertCase), temperature: 1 };
      const inputs = inputsOf(c);
      const values = Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, data]));
      const { outputs } = run(
        device,
        inputs,
        (t) => {
          const keep = of(new Float64Array(c.heads * c.seq), [c.heads, c.seq]);
          return { out: sparseBertAttention(tokens(t.q), tokens(t.k), tokens(t.v), { keep }) as Tensor as Tensor };
        },
        undefined,
      );
      const exact = sparseBert(c, values, new Array<number>(c.heads * c.seq).fill(1));
      // Near 10,000 float32 has steps of a thousandth.
      expect(maxError(outputs.out ?? [], exact)).toBeLessThan(5e-3);
    });

    it.each(cases.slice(0, 1))('by pair: %j', (c) => {
      const inputs = pairsOf(c);
      const noise = input([c.heads, c.seq, c.seq], 7).data;
      const logit = (alphas: ArrayLike<number>, i: number) => (alphas[i] as number) + (noise[i] as number);
      const p = (x: number) => 1 / (1 + Math.exp(-x / c.temperature));
      const { data: first } = inputs.alphas as { data: Float64Array };
      checkSystem(
        device,
        inputs,
        (t) => {
          const { out } = sparseBertUnstructuredAttention(tokens(t.q), tokens(t.k), tokens(t.v), {
            alphas: t.alphas as Tensor,
            noise: of(noise, [c.heads, c.seq, c.seq]),
            temperature: c.temperature,
          });
          return out as Tensor as Tensor;
        },
        (values) => {
          const mask = [...first.keys()].map(
            (i) => (logit(first, i) > 0 ? 1 : 0) + p(logit(values.alphas as Float64Array, i)) - p(logit(first, i)),
          );
          return unstructured(c, values, mask);
        },
      );
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c = cases[0] as SparseBertCase;
      noGrad(() => {
        const before = memory(device).tensors;
        const t = Object.fromEntries(
          Object.entries({
            ...inputsOf(c),
            keep: { shape: [c.heads, c.seq], data: new Float64Array(c.heads * c.seq).fill(1, 0, 12) },
          }).map(([name, { shape, data }]) => [
            name,
            tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor,
          ]),
        );
        const values = Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
        );
        const out = sparseBertAttention(tokens(t.q), tokens(t.k), tokens(t.v), {
          keep: t.keep as Tensor,
        }) as Tensor as Tensor;
        expect(out.dtype).toBe(dtype);
        const exact = sparseBert(c, values, [...(values.keep as Float64Array)]);
        expect(maxError(out.toFloat32Sync(), exact)).toBeLessThan(dtype === 'float16' ? 2 ** -7 : 2 ** -4);
        for (const x of [out, ...Object.values(t)]) x.dispose();
        expect(memory(device).tensors).toBe(before);
      });
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const c = { ...(cases[0] as SparseBertCase), ...empty };
        const byDistance = run(device, logitsOf(c), (t) => ({ out: runOn(t, c).out }), undefined);
        expect(byDistance.outputs.out).toHaveLength(0);
        const byPair = run(
          device,
          pairsOf(c),
          (t) => {
            const options = { alphas: t.alphas as Tensor };
            const { out } = sparseBertUnstructuredAttention(tokens(t.q), tokens(t.k), tokens(t.v), options);
            return { out: out as Tensor as Tensor };
          },
          undefined,
        );
        expect(byPair.outputs.out).toHaveLength(0);
      }
    });
  });
});

describe('bad arguments of masks that are learned', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]) => zeros(shape, { device }) as Tensor as Tensor<'float32'> as never;
  const t = of(2, 5, 2, 4);

  it.each<[string, () => unknown, RegExp]>([
    [
      'alphas',
      () => differentiableAttentionMask(of(2, 5)),
      /^ERR_SHAPE: alphas has shape \[2, 5\]; it must be \[heads, seq, 2\]/,
    ],
    ['noise', () => differentiableAttentionMask(of(2, 5, 2), { noise: of(2, 5) }), /^ERR_SHAPE: noise has shape/],
    [
      'temperature',
      () => differentiableAttentionMask(of(2, 5, 2), { temperature: 0 }),
      /^ERR_OPTION: temperature is 0/,
    ],
    ['keep', () => sparseBertAttention(t, t, t, { keep: of(5, 2) }), /^ERR_SHAPE: keep has shape/],
    [
      'an unknown option',
      () => sparseBertAttention(t, t, t, { keeps: of(2, 5) } as never),
      /^ERR_OPTION: .*did you mean "keep"/,
    ],
    ['keep of a mask', () => sparseBertMask(of(5)), /^ERR_SHAPE: keep has shape \[5\]/],
    [
      'alphas of pairs',
      () => sparseBertUnstructuredAttention(t, t, t, { alphas: of(2, 5, 2) }),
      /^ERR_SHAPE: alphas has shape/,
    ],
  ])('%s', (_, call, message) => {
    expect(errorOf(call)).toMatch(message);
  });
});
