/** Rotary positions as an option: the oracle is given q and k turned in float64, and its gradients are turned back. */
import { describe, expect, it } from 'vitest';
import {
  type AttentionOptions,
  attention,
  attentionBackward,
  attentionWeights,
  type DeviceName,
  explain,
  memory,
  parameter,
  plan,
  type Tensor,
  tensor,
} from '../../lib/index.js';
import { type Case, instantiate } from '../../verify/cases/case.js';
import { optionsOf, shapeOf, widen } from '../../verify/cases/library.js';
import { make } from '../../verify/cases/views.js';
import { magnitude, maxError } from '../../verify/oracle/compare.js';
import { diagonal, extent, keyRow, type Problem, queryRow } from '../../verify/oracle/problem.js';
import { solve } from '../../verify/oracle/sensitivity.js';
import { hasCpu } from '../support/cpu.js';
import { devicesWith } from '../support/devices.js';
import { hasEmulator, onEmulator } from '../support/emulator.js';
import { expectFailure } from '../support/failure.js';

type Pairs = 'half' | 'interleaved';

const base: Case = {
  seed: 3,
  layout: 'bshd',
  batch: 2,
  queryLength: 6,
  keyLength: 6,
  kvHeads: 2,
  group: 2,
  headDim: 8,
  valueDim: 5,
  causal: true,
};
const packed: Case = {
  seed: 4,
  layout: 'varlen',
  qLens: [3, 0, 4, 1],
  kLens: [5, 2, 4, 6],
  kvHeads: 1,
  group: 3,
  headDim: 8,
  causal: true,
};

/** What the angles of one side are, and what the turned pairs are multiplied by. */
interface Angles {
  readonly rate: number;
  readonly factor: number;
}
const plain: Angles = { rate: 1, factor: 1 };

type Row = readonly [name: string, c: Case, pairs: Pairs, half: number, keys: Angles | undefined];

const rows: readonly (readonly [name: string, c: Case, pairs: Pairs, half: number, keys?: Angles])[] = [
  ['square', base, 'half', 4],
  ['interleaved, some of the dims', { ...base, causal: false }, 'interleaved', 2],
  ['head-major', { ...base, layout: 'bhsd' }, 'half', 3],
  ['a query after other keys', { ...base, queryLength: 1, keyLength: 9 }, 'half', 4],
  ['fewer queries than keys, head-major', { ...base, layout: 'bhsd', queryLength: 3 }, 'interleaved', 4],
  ['from the top left', { ...base, queryLength: 4, align: 'topLeft' }, 'half', 4],
  ['an offset', { ...base, queryLength: 3, offset: 2, causal: false }, 'half', 4],
  ['real lengths', { ...base, qLens: [6, 2], kLens: [6, 5] }, 'half', 4],
  ['real lengths, head-major', { ...base, layout: 'bhsd', qLens: [1, 2], kLens: [4, 5] }, 'interleaved', 3],
  ['a sequence without keys', { ...base, qLens: [3, 6], kLens: [0, 6] }, 'half', 4],
  ['packed', packed, 'half', 4],
  ['packed, with used lengths', { ...packed, usedQ: [2, 0, 3, 1], usedK: [4, 2, 3, 5] }, 'interleaved', 4],
  ['tables of their own for keys', { ...base, queryLength: 3 }, 'half', 4, { rate: 0.5, factor: 1.5 }],
  ['packed, with tables of their own for keys', packed, 'interleaved', 3, { rate: 2, factor: 0.5 }],
  ['few queries of many keys', { ...base, queryLength: 2, keyLength: 600 }, 'interleaved', 4],
  ['pairs that fill vectors and more', { ...base, headDim: 50 }, 'half', 24],
  ['neighbours that fill vectors and more', { ...base, headDim: 80 }, 'interleaved', 35],
  ['several tiles', { ...base, batch: 1, queryLength: 150, keyLength: 270, headDim: 40 }, 'interleaved', 20],
  ['with bias, softcap and sink', { ...base, bias: [true, false, false, false], softcap: 3, sink: true }, 'half', 4],
];
const cases = rows.map(([name, c, pairs, half, keys]): Row => [name, c, pairs, half, keys]);

const angleOf = (position: number, pair: number, half: number) => position * 10_000 ** (-pair / half);

/** `rows` rows of [dim], those at `position(row)` turned by `sign` times their angles; negative positions stay. */
function turned(
  values: Float64Array,
  dim: number,
  position: ReadonlyMap<number, number>,
  {
    pairs,
    half,
    sign,
    angles,
  }: { readonly pairs: Pairs; readonly half: number; readonly sign: 1 | -1; readonly angles: Angles },
): Float64Array {
  const result = values.slice();
  for (const [row, p] of position)
    for (let i = 0; i < half; i++) {
      const [first, second] = (pairs === 'half' ? [i, i + half] : [2 * i, 2 * i + 1]).map((at) => row * dim + at) as [
        number,
        number,
      ];
      // Of the tables that the library is given, which are float32.
      const angle = angles.rate * angleOf(p, i, half);
      const [cos, sin] = [Math.fround(angles.factor * Math.cos(angle)), Math.fround(angles.factor * Math.sin(angle))];
      const [x, y] = [values[first] as number, values[second] as number];
      result[first] = x * cos - sign * y * sin;
      result[second] = sign * x * sin + y * cos;
    }
  return result;
}

/** The position of every real row of q and k, by row. */
function positions(p: Problem): {
  readonly query: ReadonlyMap<number, number>;
  readonly key: ReadonlyMap<number, number>;
} {
  const [query, key] = [new Map<number, number>(), new Map<number, number>()];
  for (let b = 0; b < p.batch; b++)
    for (let h = 0; h < p.queryHeads; h++) {
      const { queryLength, keyLength } = extent(p, b);
      for (let i = 0; i < queryLength; i++) query.set(queryRow(p, b, h, i), diagonal(p, b, i));
      for (let j = 0; j < keyLength; j++) key.set(keyRow(p, b, h, j), j);
    }
  return { query, key };
}

function tables(rows: number, half: number, device: DeviceName, { rate, factor }: Angles = plain) {
  const of = (f: (x: number) => number) =>
    tensor(
      Float32Array.from(
        { length: rows * half },
        (_, at) => factor * f(rate * angleOf(Math.floor(at / half), at % half, half)),
      ),
      [rows, half],
      { device },
    );
  return { cos: of(Math.cos), sin: of(Math.sin) };
}

function problemOf(c: Case, pairs: Pairs, half: number, device: DeviceName, ofKeys?: Angles) {
  const instance = instantiate(c);
  const { problem: p } = instance;
  const at = positions(p);
  const turn = { pairs, half, angles: plain } as const;
  const turnKeys = { ...turn, angles: ofKeys ?? plain };
  const reference = {
    ...p,
    query: turned(p.query, p.headDim, at.query, { ...turn, sign: 1 }),
    key: turned(p.key, p.headDim, at.key, { ...turnKeys, sign: 1 }),
  };
  const expected: Record<string, Float64Array> = { ...solve(reference, instance.dOut, undefined) };
  const back = (name: 'dQuery' | 'dKey', rows: ReadonlyMap<number, number>) => {
    const own = name === 'dKey' ? turnKeys : turn;
    expected[name] = turned(expected[name] as Float64Array, p.headDim, rows, { ...own, sign: -1 });
  };
  back('dQuery', at.query);
  back('dKey', at.key);
  const own: Tensor[] = [];
  const owned = <T extends Tensor>(t: T): T => {
    own.push(t);
    return t;
  };
  const input = (values: Float64Array, side: 'query' | 'key' | 'value' | 'out') =>
    owned(make(values, shapeOf(p, side), 'float32', device));
  const inputs = { q: input(p.query, 'query'), k: input(p.key, 'key'), v: input(p.value, 'value') };
  const rows = Math.max(12, c.keyLength ?? 0);
  const { cos, sin } = tables(rows, half, device);
  const keys = ofKeys && tables(rows, half, device, ofKeys);
  for (const t of [cos, sin, ...(keys ? [keys.cos, keys.sin] : [])]) owned(t as Tensor);
  const rope = { cos, sin, pairs, ...(keys && { keys }) };
  const options = { ...optionsOf(p, 'float32', owned, device), rope } as AttentionOptions;
  return {
    expected,
    ...inputs,
    dOut: input(instance.dOut, 'out'),
    options,
    dispose: () => own.map((t) => t.dispose()),
  };
}

function expectClose(
  actual: Readonly<Record<string, Float64Array | undefined>>,
  expected: Record<string, Float64Array>,
) {
  for (const [name, values] of Object.entries(expected)) {
    const found = actual[name];
    expect(found, name).toBeDefined();
    const error = maxError(found as Float64Array, values) / magnitude(values);
    expect(error, name).toBeLessThan(name === 'out' || name === 'lse' ? 2e-5 : 1e-4);
  }
}

for (const { device, present, title } of devicesWith('elementwise'))
  describe.skipIf(!present)(title('attention with rope'), () => {
    it.each(cases)('%s', (_, c, pairs, half, keys) => {
      const before = memory(device).tensors;
      const { expected, q, k, v, dOut, options, dispose } = problemOf(c, pairs, half, device, keys);
      const result = attention(q, k, v, options);
      const gradients = attentionBackward(dOut, { q, k, v, ...result });
      const { dq, dk, dv, dBias, dSink } = gradients;
      const actual = { out: result.out, lse: result.lse, dQuery: dq, dKey: dk, dValue: dv, dBias, dSink };
      expectClose(
        Object.fromEntries(Object.entries(actual).map(([name, t]) => [name, t && widen(t as Tensor)])),
        expected,
      );
      expect([dq.shape, dk.shape]).toEqual([q.shape, k.shape]);
      for (const t of [result.out, result.lse, ...Object.values(gradients)]) (t as Tensor).dispose();
      dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it.each(cases.filter(([name]) => /square|head-major|packed/.test(name)))(
      '%s: by the tape',
      (_, c, pairs, half, keys) => {
        const before = memory(device).tensors;
        const { expected, q, k, v, dOut, options, dispose } = problemOf(c, pairs, half, device, keys);
        const leaves = [parameter(q), parameter(k), parameter(v)] as const;
        const { out, lse } = attention(leaves[0], leaves[1], leaves[2], options);
        // The recorder has handles of its own.
        const { cos, sin, keys: others } = options.rope as NonNullable<AttentionOptions['rope']>;
        for (const t of [cos, sin, others?.cos, others?.sin]) t?.dispose();
        out.backward(dOut);
        const [dQuery, dKey, dValue] = leaves.map((t) => widen(t.grad as Tensor));
        expectClose({ out: widen(out), dQuery, dKey, dValue, lse: widen(lse) }, expected);
        for (const t of [out, lse, ...leaves]) t.dispose();
        dispose();
        expect(memory(device).tensors).toBe(before);
      },
    );
  });

describe('the option rope', () => {
  const device = 'wasm';
  const shape = [1, 4, 2, 8] as const;
  const x = tensor(new Float32Array(64).fill(0.5), shape, { device });
  const { cos, sin } = tables(6, 4, device);

  it('is in the matrix that attentionWeights makes', () => {
    const { expected: _, q, k, options, dispose } = problemOf({ ...base, batch: 1 }, 'half', 4, device);
    const { logits, masked, probabilities } = attentionWeights(q, k, options as object);
    const { lse, out } = attention(q, k, k, options);
    const rows = masked.toFloat32Sync();
    const sums = Float64Array.from({ length: rows.length / 6 }, (_, row) =>
      Math.log(rows.subarray(row * 6, row * 6 + 6).reduce((sum, s) => sum + Math.exp(s), 0)),
    );
    expect(maxError(lse.toFloat32Sync(), sums)).toBeLessThan(1e-5);
    for (const t of [logits, masked, probabilities, lse, out]) t.dispose();
    dispose();
  });

  it('is a part of the kernel on the processor', () => {
    const description = { q: shape, device, rope: { cos, sin }, backward: true } as const;
    const without = explain({ q: shape, device, backward: true });
    const explained = explain(description);
    expect(explained.composed).toEqual([]);
    expect(explained.workspaceBytes).toBe(without.workspaceBytes);
    using planned = plan(description);
    const saved = { q: x, k: x, v: x, ...attention(x, x, x, { rope: { cos, sin } }) };
    expect(planned.run(x, x, x).out.toFloat32Sync()).toEqual(saved.out.toFloat32Sync());
    expect(planned.runBackward(x).dk.toFloat32Sync()).toEqual(attentionBackward(x, saved).dk.toFloat32Sync());
  });

  it.skipIf(!hasEmulator)(
    onEmulator('is an operation before the kernel on CUDA: told by explain, refused by plan'),
    async () => {
      const device = 'emulator' as DeviceName;
      const description = { q: shape, device, rope: tables(6, 4, device) } as const;
      const [without, composed] = [explain({ q: shape, device }), explain(description)];
      expect(composed.composed).toEqual(['rope(q)', 'rope(k)']);
      expect(composed.workspaceBytes - without.workspaceBytes).toBe(2 * 64 * 4);
      await expectFailure(
        () => plan(description),
        'ERR_OPTION',
        /rope is given, and on emulator a plan holds the kernel/,
      );
    },
  );

  it.each(['float16', 'bfloat16'] as const)('turns %s in float32, also where tiles are pairs', (dtype) => {
    for (const on of ['wasm', ...(hasCpu ? ['cpu'] : [])] as DeviceName[]) {
      const { expected, q, k, v, options, dispose } = problemOf({ ...base, dtype } as Case, 'interleaved', 4, on);
      const narrow = [q, k, v].map((t) => tensor(t.toFloat32Sync(), t.shape, { dtype, device: on })) as Tensor[];
      const rope = options.rope as NonNullable<AttentionOptions['rope']>;
      const { out } = attention(narrow[0] as Tensor, narrow[1] as Tensor, narrow[2] as Tensor, { causal: true, rope });
      const error =
        maxError(widen(out as Tensor), expected.out as Float64Array) / magnitude(expected.out as Float64Array);
      expect(error, on).toBeLessThan(dtype === 'float16' ? 2e-3 : 2e-2);
      for (const t of [...narrow, out]) t.dispose();
      dispose();
    }
  });

  it('does not let what is hidden in', () => {
    const values = new Float32Array(64).fill(0.5);
    values.fill(Number.NaN, 48); // the last position
    const spoilt = tensor(values, shape, { device });
    const { out } = attention(spoilt, spoilt, spoilt, { causal: true, rope: { cos, sin } });
    const clean = attention(x, x, x, { causal: true, rope: { cos, sin } }).out;
    expect(out.slice(1, 0, 3).toFloat32Sync()).toEqual(clean.slice(1, 0, 3).toFloat32Sync());
  });

  it('keeps the angles and pairs of the forward pass for backward', async () => {
    const rope = { cos, sin, pairs: 'half' as Pairs };
    const saved = { q: x, k: x, v: x, ...attention(x, x, x, { rope }) };
    const expected = attentionBackward(x, saved).dq;
    rope.pairs = 'interleaved';
    expect(attentionBackward(x, saved).dq.toFloat32Sync()).toEqual(expected.toFloat32Sync());
    expect(() => attentionBackward(x, saved, { rope: { cos, sin, pairs: 'half' } })).not.toThrow();
    await expectFailure(() => attentionBackward(x, saved, { rope }), 'ERR_OPTION', /^rope is /);
  });

  it('refuses what does not fit, with nothing left', async () => {
    const wide = tensor(new Float32Array(30), [6, 5], { device });
    const narrow = tensor(new Float32Array(12), [6, 2], { device });
    const short = tables(3, 4, device);
    const low = tensor(new Float32Array(24), [6, 4], { device, dtype: 'bfloat16' });
    const across = tensor(new Float32Array(24), [4, 6], { device }).transpose(0, 1);
    const learned = parameter(tensor(new Float32Array(24), [6, 4], { device }));
    const gone = tensor(new Float32Array(24), [6, 4], { device });
    gone.dispose();
    const few = x.slice(1, 0, 2);
    const before = memory(device).bytesInUse;
    const cases: [unknown, string, RegExp][] = [
      [1, 'ERR_OPTION', /rope is 1/],
      [null, 'ERR_OPTION', /rope is null/],
      [{ cos, sin, base: 10 }, 'ERR_OPTION', /no option "base" in rope/],
      [{ cos }, 'ERR_OPTION', /rope\.sin is undefined/],
      [{ cos: [1], sin }, 'ERR_OPTION', /rope\.cos is \[1\]/],
      [{ cos, sin, keys: 1 }, 'ERR_OPTION', /rope\.keys is 1/],
      [{ cos, sin, keys: { cos } }, 'ERR_OPTION', /rope\.keys\.sin is undefined/],
      [
        { cos, sin, keys: { cos, sin: narrow } },
        'ERR_SHAPE',
        /rope\.keys\.sin has shape \[6, 2\] and rope\.cos \[6, 4\]/,
      ],
      [{ cos, sin, keys: { cos: gone, sin } }, 'ERR_DISPOSED', /rope\.keys\.cos/],
      [{ cos, sin, pairs: 'both' }, 'ERR_OPTION', /rope\.pairs is "both"/],
      [{ cos: wide, sin: wide }, 'ERR_SHAPE', /rope\.cos has shape \[6, 5\].*head dim of 8/],
      [{ cos, sin: narrow }, 'ERR_SHAPE', /rope\.sin has shape \[6, 2\] and rope\.cos \[6, 4\]/],
      [short, 'ERR_SHAPE', /rope\.cos has shape \[3, 4\].*the query positions are 0 to 3/],
      [{ cos: low, sin }, 'ERR_DTYPE', /rope\.cos is bfloat16/],
      [{ cos, sin: across }, 'ERR_SHAPE', /rope\.sin must be contiguous/],
      [{ cos: learned, sin }, 'ERR_AUTOGRAD', /rope\.cos needs a gradient/],
      [{ cos: gone, sin }, 'ERR_DISPOSED', /rope\.cos/],
    ];
    for (const [rope, code, message] of cases)
      await expectFailure(() => attention(x, x, x, { rope: rope as never }), code, message);
    await expectFailure(
      () => attention(x, few, few, { rope: { cos, sin } }),
      'ERR_SHAPE',
      /the query positions are -2 to 1/,
    );
    await expectFailure(
      () => attention(x, x, x, { rope: { cos, sin }, qLens: [2], kLens: [1] }),
      'ERR_SHAPE',
      /positions of sequence 0 are -1 to 0/,
    );
    expect(memory(device).bytesInUse).toBe(before);
  });

  it('reads no more angles than there are real positions', () => {
    const { cos, sin } = tables(2, 4, device);
    const { out } = attention(x, x, x, { rope: { cos, sin }, qLens: [2], kLens: [2] });
    const two = x.slice(1, 0, 2);
    const alone = attention(two, two, two, { rope: { cos, sin } }).out;
    expect(out.slice(1, 0, 2).toFloat32Sync()).toEqual(alone.toFloat32Sync());
    expect(Math.max(...out.slice(1, 2, 4).toFloat32Sync())).toBe(0);
  });

  it('takes empty tensors', () => {
    for (const empty of [
      [0, 4, 2, 8],
      [1, 0, 2, 8],
    ]) {
      const none = tensor(new Float32Array(0), empty, { device });
      expect(attention(none, none, none, { rope: { cos, sin } }).out.shape).toEqual(empty);
      const lens = new Array<number>(empty[0] as number).fill(0);
      expect(attention(none, none, none, { rope: { cos, sin }, qLens: lens, kLens: lens }).out.shape).toEqual(empty);
    }
  });
});
