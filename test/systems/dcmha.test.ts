/** DCMHA, against its definition pair by pair. */
import { type DeviceName, memory, parameter, type Tensor, tensor, zeros } from 'flashattn';
import { type DcmhaWeights, dcmha } from 'flashattn/systems';
import { afterEach, describe, expect, it } from 'vitest';
import { blockLimit } from '../../lib/systems/queryBlocks.js';
import { type DcmhaCase, type DcmhaInputs, dcmha as definition } from '../../verify/oracle/headMixing.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { compareCaptured } from './compareCaptured.js';
import { compareNarrow } from './compareNarrow.js';
import { checkSystem, expectSame, type Input, type Inputs, input, type Named, run } from './taped.js';

const usual = { ...blockLimit };
/** Blocks of at most so many logits, or of one query, where there is no kernel. */
const limit = (logits: number | undefined) =>
  Object.assign(blockLimit, logits === undefined ? usual : { logits, queries: 1 });
afterEach(() => {
  limit(undefined);
});

interface Case extends DcmhaCase {
  readonly fixed: readonly ('swPre' | 'swPost')[];
  /** At most in a block. */
  readonly logits?: number;
}

const base = { batch: 2, seq: 7, heads: 3, dim: 4, valueDim: 5, model: 6, hidden: 5, rank: 2 };
const both = ['swPre', 'swPost'] as const;

const cases: readonly Case[] = [
  { ...base, fixed: both },
  { ...base, fixed: [], window: 2 },
  { ...base, fixed: ['swPre'], rank: 1, scale: 0.3 },
  { ...base, fixed: ['swPost'], rank: 3, window: 0 },
  // Several blocks, the last one smaller; a query a block.
  { ...base, fixed: both, logits: 50 },
  { ...base, fixed: both, window: 3, logits: 50 },
  { ...base, fixed: [], window: 40, logits: 1 },
  // Whole batch entries at a time.
  { ...base, fixed: both, batch: 5, logits: 2 * 3 * 49 },
  { ...base, fixed: both, heads: 1, dim: 1, valueDim: 1, seq: 1 },
];

function inputsOf({ batch, seq, heads, dim, valueDim, model, hidden, rank, fixed }: Case): Inputs {
  const all: Inputs = {
    q: input([batch, seq, heads, dim], 1),
    k: input([batch, seq, heads, dim], 2),
    v: input([batch, seq, heads, valueDim], 3),
    x: input([batch, seq, model], 4),
    dw1: input([model, 4, hidden], 5, 0.4),
    qkw: input([4, hidden, 2 * rank, heads], 6, 0.4),
    dd: input([model, 4 * heads], 7, 0.3),
    swPre: input([heads, heads], 8, 0.5),
    swPost: input([heads, heads], 9, 0.5),
  };
  const absent = both.filter((name) => !fixed.includes(name));
  return Object.fromEntries(Object.entries(all).filter(([name]) => !absent.includes(name as 'swPre')));
}

function attend({ q, k, v, x, ...weights }: Named<Tensor>, { window, scale }: DcmhaCase): Tensor {
  const options = { ...(window !== undefined && { window }), ...(scale !== undefined && { scale }) };
  const own = weights as Named<Tensor> as unknown as DcmhaWeights;
  return dcmha(q as Tensor, k as Tensor, v as Tensor, x as Tensor, own, options);
}

const exact = (c: Case, values: Named<Float64Array>) => definition(c, values as unknown as DcmhaInputs);

describe.each(testDevices)('$device', ({ device, present, title, isSlow }) => {
  describe.skipIf(!present)(title('DCMHA'), () => {
    it.each(cases)('%j', (c) => {
      limit(c.logits);
      checkSystem(
        device,
        inputsOf(c),
        (t) => attend(t, c),
        (values) => exact(c, values),
      );
    });

    it.skipIf(isSlow).each([
      { ...base, batch: 1, seq: 70, fixed: both },
      { ...base, batch: 1, seq: 100, heads: 6, dim: 18, fixed: [], window: 40 },
    ] as readonly Case[])('tiles of %j', (c) => {
      checkSystem(
        device,
        inputsOf(c),
        (t) => attend(t, c),
        (values) => exact(c, values),
      );
    });

    it.skipIf(isSlow)('keeps NaN of a token from those that do not see it', () => {
      const c: Case = { ...base, batch: 1, seq: 80, fixed: both };
      const [clean, seen] = [inputsOf(c), 45];
      const spoiled = { ...clean };
      for (const name of ['q', 'k', 'v', 'x']) {
        const { shape, data } = clean[name] as Input;
        spoiled[name] = { shape, data: data.map((x, i) => (i < (seen * data.length) / c.seq ? x : Number.NaN)) };
      }
      const [own, other] = [clean, spoiled].map((inputs) =>
        run(device, inputs, (t) => ({ out: attend(t, c).slice(1, 0, seen) }), undefined),
      );
      expect(own?.outputs.out.every(Number.isFinite)).toBe(true);
      expect(other?.outputs.out).toEqual(own?.outputs.out);
    });

    it('is the same in a step that is recorded once', () => {
      const x = parameter(tensor(Float32Array.from(input([1, 40, 8], 1).data), [1, 40, 8], { device }) as Tensor);
      const [dw1, qkw, dd] = [input([8, 4, 5], 2), input([4, 5, 4, 2], 3), input([8, 8], 4)].map(
        ({ shape, data }) => tensor(Float32Array.from(data), shape, { device }) as Tensor,
      ) as [Tensor, Tensor, Tensor];
      compareCaptured(x, () => {
        const h = x.reshape([1, 40, 2, 4]);
        return dcmha(h, h, h, x, { dw1, qkw, dd }) as Tensor;
      });
      for (const t of [x, dw1, qkw, dd]) t.dispose();
    });

    it.skipIf(isSlow)('gives the same in one block and in several', () => {
      for (const window of [undefined, 20]) {
        const c: Case = { ...base, seq: 130, fixed: both, ...(window && { window }) };
        const inputs = inputsOf(c);
        const cotangents = { out: input([c.batch * c.seq * c.heads * c.valueDim], 10).data };
        const inBlocksOf = (logits: number | undefined) => {
          limit(logits);
          return run(device, inputs, (t) => ({ out: attend(t, c) }), cotangents);
        };
        expectSame(inBlocksOf(undefined), inBlocksOf(5000));
      }
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c: Case = { ...base, fixed: both, logits: 50 };
      limit(50);
      const tolerance = dtype === 'float16' ? 2 ** -6 : 2 ** -3;
      compareNarrow(
        device,
        dtype,
        inputsOf(c),
        (t) => attend(t, c),
        (values) => exact(c, values),
        tolerance,
      );
    });

    it('takes empty sequences and batches', () => {
      for (const empty of [{ seq: 0 }, { batch: 0 }]) {
        const c: Case = { ...base, ...empty, fixed: both };
        const { outputs } = run(device, inputsOf(c), (t) => ({ out: attend(t, c) }), { out: new Float64Array(0) });
        expect(outputs.out).toHaveLength(0);
      }
    });
  });
});

describe('bad arguments of DCMHA', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]): never => zeros(shape, { device }) as Tensor as never;
  const weights = () => ({ dw1: of(6, 4, 5), qkw: of(4, 5, 4, 3), dd: of(6, 12) });

  it.each<[string, object, object, RegExp]>([
    ['dw1', { dw1: of(6, 3, 5) }, {}, /^ERR_SHAPE: dw1 has shape \[6, 3, 5\]; it must be \[6, 4, any\]/],
    ['no dw1', { dw1: undefined }, {}, /^ERR_OPTION: dw1 is undefined; it must be a tensor/],
    ['qkw', { qkw: of(4, 6, 4, 3) }, {}, /^ERR_SHAPE: qkw has shape \[4, 6, 4, 3\]; it must be \[4, 5, any, 3\]/],
    ['an odd number of rows', { qkw: of(4, 5, 3, 3) }, {}, /^ERR_SHAPE: qkw has shape .* twice a rank/],
    ['dd', { dd: of(6, 3) }, {}, /^ERR_SHAPE: dd has shape \[6, 3\]; it must be \[6, 12\]/],
    ['swPre', { swPre: of(3) }, {}, /^ERR_SHAPE: swPre has shape \[3\]; it must be \[3, 3\]/],
    ['swPost that is none', { swPost: 1 }, {}, /^ERR_OPTION: swPost is 1; it must be a tensor/],
    ['an unknown weight', { sw: of(3, 3) }, {}, /^ERR_OPTION: .*sw/],
    ['window', {}, { window: -1 }, /^ERR_OPTION: window is -1/],
    ['scale', {}, { scale: 'small' }, /^ERR_OPTION: scale is "small"/],
    ['an unknown option', {}, { causal: true }, /^ERR_OPTION: .*causal/],
  ])('%s', (_, other, options, message) => {
    const q = of(2, 5, 3, 4);
    const all = { ...weights(), ...other };
    const x = of(2, 5, 6);
    const before = memory(device).tensors;
    expect(errorOf(() => dcmha(q, q, q, x, all, options))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('names shapes that do not fit', () => {
    const q = of(2, 5, 3, 4);
    expect(errorOf(() => dcmha(q, of(2, 6, 3, 4), q, of(2, 5, 6), weights()))).toMatch(/^ERR_SHAPE: .*seq/);
    expect(errorOf(() => dcmha(q, q, q, of(2, 4, 6), weights()))).toMatch(/^ERR_SHAPE: x has shape \[2, 4, 6\]/);
    expect(errorOf(() => dcmha(q, q, q, of(10, 6), weights()))).toMatch(/^ERR_SHAPE: x has shape \[10, 6\]/);
  });
});
