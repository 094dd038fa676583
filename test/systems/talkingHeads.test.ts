/** Talking-heads attention, against its definition pair by pair. */
import { type DeviceName, memory, noGrad, parameter, scope, type Tensor, tensor, zeros } from 'flashattn';
import { type TalkingHeadsOptions, talkingHeadsAttention } from 'flashattn/systems';
import { afterEach, describe, expect, it } from 'vitest';
import { blockLimit } from '../../lib/systems/queryBlocks.js';
import { type TalkingHeadsCase, type TalkingHeadsInputs, talkingHeads } from '../../verify/oracle/headMixing.js';
import { distUrl, runScript } from '../support/child.js';
import { errorOf } from '../support/codeOf.js';
import { hasCpu, onCpu } from '../support/cpu.js';
import { testDevices } from '../support/devices.js';
import { compareCaptured } from './compareCaptured.js';
import { compareNarrow } from './compareNarrow.js';
import { checkSystem, expectSame, type Inputs, input, type Named, run } from './taped.js';

const systemsUrl = new URL('systems.js', distUrl).href;
const usual = { ...blockLimit };
/** Blocks of at most so many logits, or of one query, where there is no kernel. */
const limit = (logits: number | undefined) =>
  Object.assign(blockLimit, logits === undefined ? usual : { logits, queries: 1 });
afterEach(() => {
  limit(undefined);
});

type Mixing = 'logitsProjection' | 'logitsBias' | 'weightsProjection' | 'weightsBias';
const everything: readonly Mixing[] = ['logitsProjection', 'logitsBias', 'weightsProjection', 'weightsBias'];
const projections: readonly Mixing[] = ['logitsProjection', 'weightsProjection'];

interface Case extends TalkingHeadsCase {
  readonly mixing: readonly Mixing[];
  /** At most in a block. */
  readonly logits?: number;
}

const base = { batch: 2, queries: 7, keys: 7, dim: 3, valueDim: 4, heads: 3, softmaxHeads: 3, valueHeads: 3 };
const paper = { ...base, softmaxHeads: 5, valueHeads: 2 };

const cases: readonly Case[] = [
  { ...base, causal: false, mixing: everything },
  { ...base, causal: true, mixing: everything },
  { ...paper, causal: true, mixing: projections, scale: 0.7 },
  { ...paper, valueHeads: 5, causal: false, mixing: ['logitsProjection', 'logitsBias'] },
  { ...base, valueHeads: 1, causal: true, mixing: ['weightsProjection', 'weightsBias'] },
  { ...base, causal: true, mixing: [] },
  // Blocks of 2 queries, the last of 1; of 1 query, which has more logits than a block may have.
  { ...base, causal: false, mixing: everything, logits: 50 },
  { ...base, causal: true, mixing: everything, logits: 50 },
  { ...paper, causal: true, mixing: projections, logits: 1 },
  // Whole batch entries at a time, the last block with fewer.
  { ...base, batch: 5, causal: true, mixing: everything, logits: 2 * 3 * 49 },
  // More keys than queries, and more queries than keys.
  { ...paper, queries: 5, keys: 9, causal: true, mixing: everything, logits: 100 },
  { ...paper, queries: 9, keys: 5, causal: true, mixing: everything, logits: 60 },
  { ...paper, queries: 9, keys: 5, causal: false, mixing: everything, logits: 60 },
  { ...base, queries: 1, keys: 6, causal: true, mixing: everything },
  { ...base, heads: 1, softmaxHeads: 1, valueHeads: 1, dim: 1, valueDim: 1, causal: true, mixing: everything },
];

/** Several tiles of queries and of keys, whole ones and others. */
const tiles: readonly Case[] = [
  { ...base, batch: 1, queries: 64, keys: 64, causal: true, mixing: everything },
  { ...paper, batch: 1, queries: 65, keys: 130, causal: true, mixing: everything },
  { ...paper, batch: 1, queries: 97, keys: 33, causal: true, mixing: projections },
  { ...base, batch: 1, queries: 33, keys: 129, dim: 130, valueDim: 66, causal: false, mixing: everything },
  { ...base, batch: 1, queries: 5, keys: 70, dim: 257, valueDim: 300, causal: true, mixing: everything },
  {
    ...base,
    batch: 2,
    queries: 40,
    keys: 70,
    heads: 9,
    softmaxHeads: 17,
    valueHeads: 5,
    causal: true,
    mixing: projections,
  },
  { ...base, batch: 1, queries: 40, keys: 40, scale: 1.5, causal: false, mixing: everything },
];

function inputsOf(c: Case): Inputs {
  const all: Inputs = {
    q: input([c.batch, c.queries, c.heads, c.dim], 1),
    k: input([c.batch, c.keys, c.heads, c.dim], 2),
    v: input([c.batch, c.keys, c.valueHeads, c.valueDim], 3),
    logitsProjection: input([c.softmaxHeads, c.heads], 4),
    logitsBias: input([c.softmaxHeads], 5),
    weightsProjection: input([c.valueHeads, c.softmaxHeads], 6),
    weightsBias: input([c.valueHeads], 7),
  };
  const absent = everything.filter((name) => !c.mixing.includes(name));
  return Object.fromEntries(Object.entries(all).filter(([name]) => !absent.includes(name as Mixing)));
}

function attend({ q, k, v, ...mixing }: Named<Tensor>, { causal, scale }: TalkingHeadsCase): Tensor {
  const options = { ...mixing, causal, ...(scale !== undefined && { scale }) } as TalkingHeadsOptions;
  return talkingHeadsAttention(q as Tensor, k as Tensor, v as Tensor, options);
}

const exact = (c: Case, values: Named<Float64Array>) => talkingHeads(c, values as unknown as TalkingHeadsInputs);

describe.each(testDevices)('$device', ({ device, present, title, isSlow }) => {
  describe.skipIf(!present)(title('talking heads'), () => {
    it.each(cases)('%j', (c) => {
      limit(c.logits);
      checkSystem(
        device,
        inputsOf(c),
        (t) => attend(t, c),
        (values) => exact(c, values),
      );
    });

    it.skipIf(isSlow).each(tiles)('tiles of %j', (c) => {
      checkSystem(
        device,
        inputsOf(c),
        (t) => attend(t, c),
        (values) => exact(c, values),
      );
    });

    it.skipIf(isSlow)('keeps NaN of hidden keys and queries from those that do not see them', () => {
      const c: Case = { ...paper, batch: 1, queries: 70, keys: 100, causal: true, mixing: everything };
      const clean = inputsOf(c);
      const seen = 40;
      const spoiled = { ...clean };
      for (const [name, from, row] of [
        ['k', seen + c.keys - c.queries, c.heads * c.dim],
        ['v', seen + c.keys - c.queries, c.valueHeads * c.valueDim],
      ] as const)
        spoiled[name] = { ...clean[name], data: clean[name].data.map((x, i) => (i < from * row ? x : Number.NaN)) };
      const [own, other] = [clean, spoiled].map((inputs) =>
        run(device, inputs, (t) => ({ out: attend(t, c).slice(1, 0, seen) }), {
          out: input([seen, c.valueHeads * c.valueDim], 10).data,
        }),
      );
      expect(other?.outputs.out).toEqual(own?.outputs.out);
      expect(own?.outputs.out.every(Number.isFinite)).toBe(true);
      const part = (values: Float64Array | undefined, rows: number, row: number) => values?.subarray(0, rows * row);
      expect(part(other?.gradients.q, seen, c.heads * c.dim)).toEqual(part(own?.gradients.q, seen, c.heads * c.dim));
    });

    it.skipIf(isSlow)('gives the same in one block and in several', () => {
      const c: Case = { ...paper, queries: 130, keys: 150, causal: true, mixing: everything };
      const inputs = inputsOf(c);
      const cotangents = { out: input([c.batch * c.queries * c.valueHeads * c.valueDim], 10).data };
      const inBlocksOf = (logits: number | undefined) => {
        limit(logits);
        return run(device, inputs, (t) => ({ out: attend(t, c) }), cotangents);
      };
      expectSame(inBlocksOf(undefined), inBlocksOf(7000));
    });

    it('views as inputs, and a contiguous result', () => {
      const c = { ...base, causal: true, mixing: everything } as const;
      const headsFirst: Inputs = Object.fromEntries(
        Object.entries(inputsOf(c)).map(([name, t]) => [
          name,
          t.shape.length === 4 ? { ...t, shape: [0, 2, 1, 3].map((axis) => t.shape[axis] as number) } : t,
        ]),
      );
      const swapped = (t: Named<Tensor>) =>
        Object.fromEntries(
          Object.entries(t).map(([name, x]) => [name, x.shape.length === 4 ? x.transpose(1, 2) : x.transpose(0, -1)]),
        );
      noGrad(() => {
        const before = memory(device).tensors;
        scope(() => {
          const t = Object.fromEntries(
            Object.entries(headsFirst).map(([name, { shape, data }]) => [
              name,
              tensor(Float32Array.from(data), shape, { device }) as Tensor,
            ]),
          );
          const views = swapped(t);
          const copies = Object.fromEntries(Object.entries(views).map(([name, x]) => [name, x.contiguous()]));
          const out = attend(views, c);
          expect(out.isContiguous).toBe(true);
          expect(out.toFloat32Sync()).toEqual(attend(copies, c).toFloat32Sync());
        });
        expect(memory(device).tensors).toBe(before);
      });
    });

    it.each(['float16', 'bfloat16'] as const)('%s', (dtype) => {
      const c: Case = { ...paper, causal: true, mixing: everything, logits: 50 };
      limit(50);
      const tolerance = dtype === 'float16' ? 2 ** -7 : 2 ** -4;
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
      for (const causal of [true, false]) {
        for (const sizes of [{ queries: 0 }, { queries: 0, keys: 0 }, { batch: 0 }]) {
          const c = { ...base, ...sizes, causal, mixing: everything };
          const cotangents = { out: new Float64Array(0) };
          expect(run(device, inputsOf(c), (t) => ({ out: attend(t, c) }), cotangents).outputs.out).toHaveLength(0);
        }
        const c = { ...base, keys: 0, causal, mixing: everything };
        const size = c.batch * c.queries * c.valueHeads * c.valueDim;
        const { outputs, gradients } = run(device, inputsOf(c), (t) => ({ out: attend(t, c) }), {
          out: new Float64Array(size).fill(1),
        });
        expect(outputs.out).toEqual(new Float64Array(size));
        for (const values of Object.values(gradients)) expect(values.every((x) => x === 0)).toBe(true);
      }
    });

    it('is the same in a step that is recorded once', () => {
      const [x, w] = [input([1, 40, 8], 1), input([2, 2], 2)].map(({ shape, data }) =>
        parameter(tensor(Float32Array.from(data), shape, { device }) as Tensor),
      ) as [Tensor, Tensor];
      compareCaptured(x, () => {
        const h = x.reshape([1, 40, 2, 4]);
        const options = { logitsProjection: w, weightsProjection: w, causal: true };
        return talkingHeadsAttention(h, h, h, options) as Tensor;
      });
      for (const t of [x, w]) t.dispose();
    });

    it.skipIf(isSlow)('holds a block and not all logits', () => {
      limit(2 ** 14);
      const [seq, heads] = [512, 2];
      scope(() => {
        const t = Object.fromEntries(
          Object.entries(
            inputsOf({
              ...base,
              batch: 1,
              queries: seq,
              keys: seq,
              heads,
              softmaxHeads: heads,
              valueHeads: heads,
              causal: false,
              mixing: projections,
            }),
          ).map(([name, { shape, data }]) => [
            name,
            parameter(tensor(Float32Array.from(data), shape, { device }) as Tensor),
          ]),
        );
        attend(t, { ...base, causal: false }).dispose(); // the first launch of a device makes room for its threads
        const before = memory(device).bytesInUse;
        const out = attend(t, { ...base, causal: false });
        out.detach().dataSync(); // what launches hold until they have run counts too
        expect(memory(device).bytesInUse - before).toBeLessThan((4 * heads * seq * seq) / 4);
        for (const leaf of Object.values(t)) leaf.dispose();
      });
    });
  });
});

describe.each([
  { device: 'cpu', present: hasCpu, title: onCpu },
  { device: 'wasm', present: true, title: (name: string) => `${name} on wasm` },
])('$device', ({ device, present, title }) => {
  it.skipIf(!present)(title('gives the same bits on one thread and on two'), async () => {
    const program = (threads: string) =>
      runScript(
        `import { createHash } from 'node:crypto';
        import { dcmha, talkingHeadsAttention } from ${JSON.stringify(systemsUrl)};
        const device = ${JSON.stringify(device)};
        let seed = 1;
        const make = (...shape) => fa.parameter(fa.normal(shape, { seed: seed++, device }));
        for (const causal of [true, false]) {
          const all = [make(2, 150, 4, 20), make(2, 170, 4, 20), make(2, 170, 3, 10), make(5, 4), make(3, 5), make(3)];
          const [q, k, v, logitsProjection, weightsProjection, weightsBias] = all;
          const out = talkingHeadsAttention(q, k, v, { logitsProjection, weightsProjection, weightsBias, causal });
          fa.sum(fa.mul(out, out)).backward();
          for (const t of [out, ...all.map((x) => x.grad)]) show(t);
        }
        const [q, k, v, x] = [make(1, 150, 4, 20), make(1, 150, 4, 20), make(1, 150, 4, 10), make(1, 150, 8)];
        const weights = { dw1: make(8, 4, 6), qkw: make(4, 6, 4, 4), dd: make(8, 16), swPre: make(4, 4) };
        const composed = dcmha(q, k, v, x, weights);
        fa.sum(fa.mul(composed, composed)).backward();
        for (const t of [composed, ...[q, k, v, x, ...Object.values(weights)].map((x) => x.grad)]) show(t);
function show(t) {
          console.log(createHash('sha256').update(new Uint8Array(t.toFloat32Sync().buffer)).digest('hex'));
        }`,
        { FLASHATTN_THREADS: threads },
      );
    const [one, two] = [await program('1'), await program('2')];
    expect(one.stderr).toBe('');
    expect(one.stdout.trim().split('\n')).toHaveLength(2 * 7 + 9);
    expect(two.stdout).toBe(one.stdout);
  });
});

describe('bad arguments of talking heads', () => {
  const device: DeviceName = 'wasm';
  const of = (...shape: number[]): never => zeros(shape, { device }) as Tensor as never;
  const half = (...shape: number[]): never => zeros(shape, { device, dtype: 'float16' }) as Tensor as never;

  it.each<[string, object, RegExp]>([
    [
      'a projection of other heads',
      { logitsProjection: of(4, 2) },
      /^ERR_SHAPE: logitsProjection has shape \[4, 2\]; it must be \[any, 3\], \[softmax heads, heads of q\]/,
    ],
    ['a projection of one axis', { logitsProjection: of(3) }, /^ERR_SHAPE: logitsProjection has shape \[3\]/],
    ['a projection that is none', { weightsProjection: 2 }, /^ERR_OPTION: weightsProjection is 2; it must be a tensor/],
    [
      'a projection to other heads',
      { weightsProjection: of(4, 3) },
      /^ERR_SHAPE: weightsProjection has shape \[4, 3\]; it must be \[3, 3\]/,
    ],
    [
      'a bias of other heads',
      { logitsProjection: of(3, 3), logitsBias: of(2) },
      /^ERR_SHAPE: logitsBias has shape \[2\]; it must be \[3\]/,
    ],
    ['a bias alone', { weightsBias: of(3) }, /^ERR_OPTION: weightsBias is .* without a weightsProjection/],
    [
      'softmax heads that v has not',
      { logitsProjection: of(5, 3) },
      /^ERR_SHAPE: v has 3 heads and the softmax 5; give a weightsProjection \[3, 5\]/,
    ],
    ['causal', { causal: 1 }, /^ERR_OPTION: causal is 1/],
    ['scale', { scale: Number.NaN }, /^ERR_OPTION: scale is NaN/],
    ['an unknown option', { logitProjection: of(3, 3) }, /^ERR_OPTION: .*did you mean "logitsProjection"/],
  ])('%s', (_, options, message) => {
    const q = of(2, 5, 3, 4);
    const before = memory(device).tensors;
    expect(errorOf(() => talkingHeadsAttention(q, q, q, options))).toMatch(message);
    expect(memory(device).tensors).toBe(before);
  });

  it('names shapes and dtypes that do not fit', () => {
    const q = of(2, 5, 3, 4);
    expect(errorOf(() => talkingHeadsAttention(of(5, 3, 4), q, q))).toMatch(/^ERR_SHAPE: q has shape/);
    expect(errorOf(() => talkingHeadsAttention(q, of(2, 5, 3, 5), q))).toMatch(/^ERR_SHAPE: k has shape/);
    expect(errorOf(() => talkingHeadsAttention(q, q, of(2, 6, 3, 4)))).toMatch(/^ERR_SHAPE: v has shape/);
    expect(errorOf(() => talkingHeadsAttention(q, q, half(2, 5, 3, 4)))).toMatch(/^ERR_DTYPE: v is float16/);
    expect(errorOf(() => talkingHeadsAttention(3 as never, q, q))).toMatch(/^ERR_OPTION: q is 3/);
  });
});
