/** Patterns that weigh or choose keys, or add some, against their definitions. */
import {
  type AdaptiveSpanOptions,
  adaptiveSpanAttention,
  adaptiveSpanAttentionBackward,
  adaptiveSpanReach,
  add,
  cast,
  longT5GlobalAttention,
  longT5GlobalAttentionBackward,
  longT5GlobalTokens,
  longT5GlobalTokensBackward,
  longT5LocalAttention,
  longT5LocalAttentionBackward,
  masks,
  type Tensor,
  t5RelativeBias,
  topKAttention,
  topKAttentionBackward,
  zeros,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { topKLimit } from '../../lib/systems/topK.js';
import { codeOf, codeOfPromise } from '../support/codeOf.js';
import { compareTaped } from './compareTaped.js';
import {
  attend,
  check,
  data,
  dot,
  eachRow,
  expectClose,
  inputsOf,
  load,
  type Named,
  own,
  range,
  rowOf,
  values,
} from './regroup.js';

describe('LongT5', () => {
  const buckets = 8;
  const cases = [
    {
      dims: { batch: 2, tokens: 11, heads: 2, kvHeads: 1, dim: 3, valueDim: 4 },
      radius: 2,
      blockSize: 3,
      lens: [11, 7],
    },
    {
      dims: { batch: 3, tokens: 9, heads: 1, kvHeads: 1, dim: 4, valueDim: 4 },
      radius: 4,
      blockSize: 4,
      lens: [9, 3, 0],
    },
    {
      dims: { batch: 1, tokens: 8, heads: 2, kvHeads: 2, dim: 4, valueDim: 4 },
      radius: 0,
      blockSize: 2,
      lens: undefined,
    },
  ];

  it.each(cases)('%j', ({ dims: d, radius, blockSize, lens }) => {
    const blocks = Math.floor(d.tokens / blockSize);
    const own4 = (tokens: number, heads: number, dim: number): number[] => [d.batch, tokens, heads, dim];
    const tables = { biasTable: data(buckets * d.heads, 63), globalBiasTable: data(buckets * d.heads, 64) };
    const inputs: Named = {
      ...inputsOf(d, 60),
      ...tables,
      kGlobal: data(d.batch * blocks * d.kvHeads * d.dim, 65),
      vGlobal: data(d.batch * blocks * d.kvHeads * d.valueDim, 66),
    };
    const bucketOf = t5RelativeBias(load(tables.biasTable, [buckets, d.heads]), {
      queryLength: 16,
      keyLength: 16,
      maxDistance: 6,
    });
    const bias = (table: Float64Array | undefined, distance: number, h: number): number =>
      table?.[(bucketOf.buckets[distance + bucketOf.origin] ?? NaN) * d.heads + h] ?? NaN;
    const forward = (named: Named, withGlobal: boolean): Float64Array =>
      eachRow(d, named, ({ b, h, i, query, key }) => {
        const length = lens?.[b] ?? d.tokens;
        if (i >= length) return range(d.valueDim).map(() => 0);
        const near = range(length).filter((j) => Math.abs(i - j) <= radius);
        const keys = near.map((j) => key(j, { bias: bias(named.biasTable, j - i, h) }));
        const count = Math.floor(length / blockSize);
        const place = Math.min(Math.floor(i / blockSize), count - 1);
        const kvHead = Math.floor(h / (d.heads / d.kvHeads));
        const { kGlobal, vGlobal } = named;
        if (!withGlobal || !kGlobal || !vGlobal) return attend(query, keys, 1).out;
        const global = range(count).map((c) => ({
          row: rowOf(kGlobal, own4(blocks, d.kvHeads, d.dim), b, c, kvHead),
          value: rowOf(vGlobal, own4(blocks, d.kvHeads, d.valueDim), b, c, kvHead),
          bias: bias(named.globalBiasTable, c - place, h),
        }));
        return attend(query, [...keys, ...global], 1).out;
      });
    const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 67);
    const [q, k, v] = [
      load(inputs.q, own4(d.tokens, d.heads, d.dim)),
      load(inputs.k, own4(d.tokens, d.kvHeads, d.dim)),
      load(inputs.v, own4(d.tokens, d.kvHeads, d.valueDim)),
    ] as const;
    const gradient = load(dOut, own4(d.tokens, d.heads, d.valueDim));
    const options = {
      radius,
      maxDistance: 6,
      biasTable: load(tables.biasTable, [buckets, d.heads]) as Tensor,
      ...(lens && { lens }),
    };

    const local = longT5LocalAttention(q, k, v, options);
    const near = longT5LocalAttentionBackward(gradient, local.saved);
    local.saved.dispose();
    const { q: q_ = dOut, k: k_ = dOut, v: v_ = dOut } = inputs;
    const localInputs = { q: q_, k: k_, v: v_, biasTable: tables.biasTable };
    const localGradients = { q: near.dq, k: near.dk, v: near.dv, biasTable: near.dBiasTable };
    check(localInputs, dOut, (named) => forward(named, false), { out: local.out, gradients: localGradients });

    const global = longT5GlobalAttention(
      q,
      k,
      v,
      load(inputs.kGlobal, own4(blocks, d.kvHeads, d.dim)),
      load(inputs.vGlobal, own4(blocks, d.kvHeads, d.valueDim)),
      { ...options, blockSize, globalBiasTable: load(tables.globalBiasTable, [buckets, d.heads]) as Tensor },
    );
    const all = longT5GlobalAttentionBackward(gradient, global.saved);
    global.saved.dispose();
    const gradients = {
      q: all.dq,
      k: all.dk,
      v: all.dv,
      kGlobal: all.dkGlobal,
      vGlobal: all.dvGlobal,
      biasTable: all.dBiasTable,
      globalBiasTable: all.dGlobalBiasTable,
    };
    check(inputs, dOut, (named) => forward(named, true), { out: global.out, gradients });
  });

  it('sums blocks, and hands gradients back to their tokens', () => {
    const x = load(
      Float64Array.from({ length: 2 * 7 }, (_, n) => 10 ** (n % 7) * (n < 7 ? 1 : 2)),
      [2, 7, 1],
    );
    const options = { blockSize: 2, lens: [7, 3] };
    expect([...values(longT5GlobalTokens(x, options))]).toEqual([11, 1100, 1110000, 222, 0, 0]);
    const dTokens = load(Float64Array.of(1, 2, 3, 4, 5, 6), [2, 3, 1]);
    const dx = [...values(longT5GlobalTokensBackward(dTokens, 7, options))];
    expect(dx).toEqual([1, 1, 2, 2, 3, 3, 3, 4, 4, 4, 0, 0, 0, 0]);
  });

  it('refuses bad arguments', () => {
    const q = own(zeros([2, 8, 2, 4]));
    const side = own(zeros([2, 3, 2, 4]));
    expect(codeOf(() => longT5LocalAttention(q, q, q, { radius: -1 }))).toBe('ERR_OPTION');
    expect(codeOf(() => longT5LocalAttention(q, q, q, { radius: 1, lens: [9, 1] }))).toBe('ERR_OPTION');
    expect(codeOf(() => longT5LocalAttention(q, q, q, { radius: 1, biasTable: own(zeros([8, 3])) }))).toBe('ERR_SHAPE');
    expect(codeOf(() => longT5GlobalAttention(q, q, q, side, side, { radius: 1, blockSize: 2 }))).toBe('ERR_SHAPE');
    expect(codeOf(() => longT5GlobalAttention(q, q, q, side, side, { radius: 1, blockSize: 9 }))).toBe('ERR_SHAPE');
    expect(codeOf(() => longT5GlobalAttention(q, q, q, side, side, { radius: 1, blockSize: 0 }))).toBe('ERR_OPTION');
    expect(codeOf(() => longT5GlobalTokens(own(zeros([2, 8])), { blockSize: 2 }))).toBe('ERR_SHAPE');
    expect(codeOf(() => longT5GlobalTokensBackward(side, 8, { blockSize: 2 }))).toBe('ERR_SHAPE');
  });
});

describe('top-k', () => {
  const cases = [
    {
      keep: 3,
      causal: true,
      masked: false,
      dims: { batch: 2, tokens: 9, heads: 2, kvHeads: 1, dim: 4, valueDim: 3 },
      keys: 11,
    },
    {
      keep: 2,
      causal: false,
      masked: true,
      dims: { batch: 1, tokens: 7, heads: 2, kvHeads: 2, dim: 4, valueDim: 4 },
      keys: 40,
    },
    {
      keep: 50,
      causal: false,
      masked: false,
      dims: { batch: 1, tokens: 5, heads: 1, kvHeads: 1, dim: 3, valueDim: 3 },
      keys: 6,
    },
  ];

  it.each(cases.flatMap((c) => [true, false].map((renormalize) => ({ ...c, renormalize }))))(
    '%j',
    ({ keep, causal, masked, dims: d, keys, renormalize }) => {
      const inputs = inputsOf(d, 70, keys);
      const visible = (h: number, i: number, j: number): boolean =>
        (!causal || j <= i + keys - d.tokens) && (!masked || (i + j + h) % 3 !== 0);
      const scale = 1 / Math.sqrt(d.dim);
      const forward = (named: Named): Float64Array =>
        eachRow(d, named, ({ h, i, query, key }) => {
          const seen = range(keys)
            .filter((j) => visible(h, i, j))
            .map((j) => key(j));
          const ranked = seen.map((each) => ({ each, logit: dot(query, each.row) })).sort((a, b) => b.logit - a.logit);
          const all = ranked.map(({ each }, rank) => ({ ...each, weight: rank < keep ? 1 : 0 }));
          return attend(query, renormalize ? all.slice(0, keep) : all, scale).out;
        });
      const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 75);
      const mask = masks.predicate((_, h, i, j) => visible(h, i, j), { heads: d.heads });
      const { out, lse, saved } = topKAttention(
        load(inputs.q, [d.batch, d.tokens, d.heads, d.dim]),
        load(inputs.k, [d.batch, keys, d.kvHeads, d.dim]),
        load(inputs.v, [d.batch, keys, d.kvHeads, d.valueDim]),
        { keep, causal, renormalize, ...(masked && { mask }) },
      );
      expect(own(lse).shape).toEqual([d.batch, d.heads, d.tokens]);
      const { dq, dk, dv } = topKAttentionBackward(load(dOut, [d.batch, d.tokens, d.heads, d.valueDim]), saved);
      saved.dispose();
      check(inputs, dOut, forward, { out, gradients: { q: dq, k: dk, v: dv } });
    },
  );

  it.each([true, false])('gives the same for some queries at a time and for all, renormalize: %s', (renormalize) => {
    const dims = { batch: 2, tokens: 9, heads: 2, kvHeads: 1, dim: 4, valueDim: 3 };
    const inputs = inputsOf(dims, 71, 12);
    const dOut = data(2 * 9 * 2 * 3, 76);
    const run = () => {
      const { out, lse, saved } = topKAttention(
        load(inputs.q, [2, 9, 2, 4]),
        load(inputs.k, [2, 12, 1, 4]),
        load(inputs.v, [2, 12, 1, 3]),
        { keep: 4, causal: true, renormalize },
      );
      const gradients = topKAttentionBackward(load(dOut, [2, 9, 2, 3]), saved);
      saved.dispose();
      return Object.fromEntries(Object.entries({ out, lse, ...gradients }).map(([name, t]) => [name, values(t)]));
    };
    const usual = topKLimit.logits;
    try {
      const whole = run();
      topKLimit.logits = 2 * 2 * 12 * 4;
      expectClose(run(), whole, 1e-6);
    } finally {
      topKLimit.logits = usual;
    }
  });

  it.each(['float32', 'bfloat16'] as const)('has gradients in backward(), in %s', (dtype) => {
    const dims = { batch: 1, tokens: 5, heads: 2, kvHeads: 2, dim: 4, valueDim: 4 };
    compareTaped({
      device: 'auto',
      dtype,
      ...(dtype === 'bfloat16' && { tolerance: 0.04 }),
      shapes: { q: [1, 5, 2, 4], k: [1, 8, 2, 4], v: [1, 8, 2, 4] },
      exact: (named) =>
        eachRow(dims, named, ({ query, key }) => {
          const ranked = range(8)
            .map((j) => key(j))
            .sort((a, b) => dot(query, b.row) - dot(query, a.row));
          const { out, lse } = attend(query, ranked.slice(0, 3), 0.5);
          return out.map((x) => x + lse);
        }),
      run: ({ q, k, v }) => {
        const { out, lse } = topKAttention(q as never, k as never, v as never, { keep: 3 });
        const shared = cast(lse.transpose(1, 2).contiguous().reshape([1, 5, 2, 1]) as Tensor, dtype);
        return add(out, shared) as Tensor;
      },
    });
  });

  it('does not see what hidden keys hold, and is NaN where a key that is seen is', () => {
    const numbers = data(24, 77);
    const bad = numbers.map((x, at) => (at >= 8 && at < 12 ? NaN : x));
    const q = load(data(24, 78), [1, 6, 1, 4]);
    const run = (keys: Float64Array, options: { causal?: boolean; mask?: ReturnType<typeof masks.causal> }) => {
      const t = load(keys, [1, 6, 1, 4]);
      const { out, lse, saved } = topKAttention(q, t, t, { keep: 2, ...options });
      saved.dispose();
      own(lse);
      return [...values(out)];
    };
    const seen = run(numbers, { causal: true });
    const causal = run(bad, { causal: true });
    expect(causal.slice(0, 8)).toEqual(seen.slice(0, 8));
    expect(causal.slice(8).every(Number.isNaN)).toBe(true);
    const mask = masks.predicate((_b, _h, _i, j) => j !== 2);
    expect(run(bad, { mask })).toEqual(run(numbers, { mask }));
  });

  it('gives zeros to a query that sees nothing, and takes all keys where fewer are seen', () => {
    const t = load(data(16, 79), [1, 4, 1, 4]);
    const mask = masks.predicate((_b, _h, i, j) => j < i);
    const { out, lse, saved } = topKAttention(t, t, t, { keep: 2, mask });
    saved.dispose();
    const first = [...data(4, 79)];
    expect([...values(out)].slice(0, 4)).toEqual([0, 0, 0, 0]);
    expect(values(lse)[0]).toBe(-Infinity);
    expectClose({ out: values(out).slice(4, 8) }, { out: Float64Array.from(first) }, 1e-6);
  });

  it('keeps every key that ties', () => {
    const q = load(Float64Array.of(1), [1, 1, 1, 1]);
    const k = load(Float64Array.of(2, 1, 2, 3), [1, 4, 1, 1]);
    const v = load(Float64Array.of(1, 10, 100, 1000), [1, 4, 1, 1]);
    const { out, lse, saved } = topKAttention(q, k, v, { keep: 2 });
    const total = Math.exp(3) + 2 * Math.exp(2);
    expect(values(lse)[0]).toBeCloseTo(Math.log(total), 5);
    expect(values(out)[0]).toBeCloseTo((1000 * Math.exp(3) + 101 * Math.exp(2)) / total, 3);
    saved.dispose();
  });

  it('refuses bad arguments', () => {
    const q = own(zeros([1, 4, 2, 4]));
    expect(codeOf(() => topKAttention(q, q, q, { keep: 0 }))).toBe('ERR_OPTION');
    expect(codeOf(() => topKAttention(q, q, q, { keep: 1, mask: {} as never }))).toBe('ERR_OPTION');
    expect(codeOf(() => topKAttention(q, q, q, { keep: 1, renormalize: 1 as never }))).toBe('ERR_OPTION');
    const three = masks.predicate(() => true, { heads: 3 });
    expect(codeOf(() => topKAttention(q, q, q, { keep: 1, mask: three }))).toBe('ERR_OPTION');
    expect(codeOf(() => topKAttention(q, own(zeros([2, 4, 2, 4])), q, { keep: 1 }))).toBe('ERR_SHAPE');
    expect(codeOf(() => topKAttention(q, own(zeros([1, 4, 2, 5])), q, { keep: 1 }))).toBe('ERR_SHAPE');
  });
});

describe('adaptive span', () => {
  const cases = [
    {
      dims: { batch: 2, tokens: 4, heads: 2, kvHeads: 1, dim: 3, valueDim: 4 },
      longest: 9,
      ramp: 3,
      spans: [0.13, 0.62],
      positions: true,
    },
    {
      dims: { batch: 1, tokens: 5, heads: 3, kvHeads: 3, dim: 4, valueDim: 4 },
      longest: 12,
      ramp: 5,
      spans: [0.02, 0.97, 0.4],
      positions: true,
    },
    {
      dims: { batch: 1, tokens: 3, heads: 2, kvHeads: 2, dim: 4, valueDim: 4 },
      longest: 7,
      ramp: 2,
      spans: [0.3, 0.55],
      positions: false,
    },
  ];

  it.each(cases)('%j', ({ dims: d, longest, ramp, spans, positions }) => {
    const inputs: Named = {
      ...inputsOf(d, 80, longest + d.tokens),
      span: Float64Array.from(spans, Math.fround),
      ...(positions && { keyPe: data(d.dim * longest, 84) }),
    };
    const scale = 1 / Math.sqrt(d.dim);
    const forward = (named: Named): Float64Array =>
      eachRow(d, named, ({ h, i, query, key }) => {
        const keys = range(longest).map((c) => {
          const share = ((named.span?.[h] ?? NaN) * longest - (longest - 1 - c)) / ramp + 1;
          const position = range(d.dim).map((n) => named.keyPe?.[n * longest + c] ?? 0);
          return key(i + c, { bias: scale * dot(query, position), weight: Math.min(Math.max(share, 0), 1) });
        });
        const { out, mass } = attend(query, keys, scale);
        return out.map((x) => x / mass);
      });
    const dOut = data(d.batch * d.tokens * d.heads * d.valueDim, 85);
    const options: AdaptiveSpanOptions = {
      span: load(inputs.span, [d.heads]) as Tensor as Tensor<'float32'>,
      ramp,
      ...(positions && { keyPe: load(inputs.keyPe, [d.dim, longest]) as Tensor as Tensor<'float32'> }),
    };
    const { out, saved } = adaptiveSpanAttention(
      load(inputs.q, [d.batch, d.tokens, d.heads, d.dim]),
      load(inputs.k, [d.batch, longest + d.tokens, d.kvHeads, d.dim]),
      load(inputs.v, [d.batch, longest + d.tokens, d.kvHeads, d.valueDim]),
      options,
    );
    const gradients = adaptiveSpanAttentionBackward(load(dOut, [d.batch, d.tokens, d.heads, d.valueDim]), saved);
    saved.dispose();
    const { dq, dk, dv, dSpan, dKeyPe } = gradients;
    const named = { q: dq, k: dk, v: dv, span: dSpan, ...(positions && { keyPe: dKeyPe }) };
    check(inputs, dOut, forward, { out, gradients: named });
  });

  type Four = Parameters<typeof adaptiveSpanAttention<'float32'>>[0];
  const four = (numbers: Float64Array, tokens: number) => load(numbers, [1, tokens, 2, 4]) as Tensor as Four;
  /** L = 8 keys before 3 queries of 2 heads. */
  const small = (seed: number) => ({
    q: four(data(24, seed), 3),
    k: four(data(88, seed + 1), 11),
    v: four(data(88, seed + 2), 11),
  });
  const spans = (...shares: number[]) =>
    load(Float64Array.from(shares), [shares.length]) as Tensor as Tensor<'float32', readonly number[]>;

  it('sees nothing beyond a span, nor beyond a reach that holds all of it', async () => {
    const { q, k, v } = small(90);
    const span = spans(0.2, 0.45);
    const options = { span, ramp: 1 };
    const all = adaptiveSpanAttention(q, k, v, options);
    const expected = values(all.out);
    const reach = await adaptiveSpanReach(span, { longest: 8, ramp: 1 });
    expect(reach).toEqual([4, 6]);
    const near = adaptiveSpanAttention(q, k, v, { ...options, reach });
    expectClose({ out: values(near.out) }, { out: expected }, 1e-6);
    // A query that sees one key gives its value.
    const cut = adaptiveSpanAttention(q, k, v, { ...options, reach: 1 });
    expectClose({ out: values(cut.out) }, { out: data(88, 92).slice(56, 80) }, 1e-6);
    for (const { saved } of [all, near, cut]) saved.dispose();
    // The first key is beyond the reach: what it holds does not matter.
    const poisoned = (seed: number) =>
      four(
        data(88, seed).map((x, at) => (at < 8 ? NaN : x)),
        11,
      );
    const beside = adaptiveSpanAttention(q, poisoned(91), poisoned(92), { ...options, reach });
    expectClose({ out: values(beside.out) }, { out: expected }, 1e-6);
    const gradients = adaptiveSpanAttentionBackward(four(data(24, 7), 3), beside.saved);
    beside.saved.dispose();
    for (const t of Object.values(gradients)) expect(values(t as Tensor).every(Number.isFinite)).toBe(true);
  });

  it('gives zeros where all weights are', () => {
    const { q, k, v } = small(93);
    const { out, saved } = adaptiveSpanAttention(q, k, v, { span: spans(-1, 0), ramp: 2 });
    const { dSpan, ...gradients } = adaptiveSpanAttentionBackward(four(data(24, 7), 3), saved);
    saved.dispose();
    expect(values(out).every((x, at) => (at % 8 < 4 ? x === 0 : x !== 0))).toBe(true);
    expect(values(dSpan)[0]).toBe(0);
    const dq = values(gradients.dq);
    expect(dq.every((x, at) => at % 8 >= 4 || x === 0)).toBe(true);
    for (const t of [gradients.dk, gradients.dv]) expect(values(t).every(Number.isFinite)).toBe(true);
  });

  it('looks at spans to tell how far they reach', async () => {
    expect(await adaptiveSpanReach(spans(0, 0.5, 1), { longest: 100, ramp: 4 })).toEqual([5, 55, 100]);
    const look = (span: Tensor, longest = 8) => codeOfPromise(adaptiveSpanReach(span as never, { longest, ramp: 2 }));
    expect(await look(spans(0.5, 1.5))).toBe('ERR_OPTION');
    expect(await look(spans(NaN))).toBe('ERR_OPTION');
    expect(await look(spans(0.5), 0)).toBe('ERR_OPTION');
    expect(await look(own(zeros([2, 1])))).toBe('ERR_SHAPE');
  });

  it.each(['float32', 'bfloat16'] as const)('has gradients in backward(), in %s', (dtype) => {
    const [longest, heads] = [6, 2];
    compareTaped({
      device: 'auto',
      dtype,
      ...(dtype === 'bfloat16' && { tolerance: 0.04 }),
      shapes: { q: [1, 3, heads, 4], k: [1, 9, heads, 4], v: [1, 9, heads, 4], span: [heads], keyPe: [4, longest] },
      values: { span: Float64Array.of(0.25, 0.75) },
      exact: (named) =>
        eachRow({ batch: 1, tokens: 3, heads, kvHeads: heads, dim: 4, valueDim: 4 }, named, ({ h, i, query, key }) => {
          const keys = range(longest).map((c) => {
            const share = ((named.span[h] ?? NaN) * longest - (longest - 1 - c)) / 3 + 1;
            const position = range(4).map((n) => named.keyPe[n * longest + c] ?? NaN);
            return key(i + c, { bias: dot(query, position) / 2, weight: Math.min(Math.max(share, 0), 1) });
          });
          const { out, mass } = attend(query, keys, 0.5);
          return out.map((x) => x / mass);
        }),
      run: ({ q, k, v, span, keyPe }) => {
        const options = { span: cast(span, 'float32'), ramp: 3, keyPe: cast(keyPe, 'float32') };
        return adaptiveSpanAttention(q as never, k as never, v as never, options as never).out as Tensor;
      },
    });
  });

  it('refuses bad arguments', () => {
    const q = own(zeros([1, 4, 2, 4]));
    const k = own(zeros([1, 12, 2, 4]));
    const span = own(zeros([2]));
    const run = (options: Partial<AdaptiveSpanOptions>): string =>
      codeOf(() => adaptiveSpanAttention(q, k, k, { span, ramp: 2, ...options }));
    expect(run({ ramp: 0 })).toBe('ERR_OPTION');
    expect(run({ span: own(zeros([3])) })).toBe('ERR_SHAPE');
    expect(run({ span: own(zeros([2], { dtype: 'bfloat16' })) as never })).toBe('ERR_DTYPE');
    expect(run({ reach: 0 })).toBe('ERR_OPTION');
    expect(run({ reach: [9, 1] })).toBe('ERR_OPTION');
    expect(run({ reach: [1, 2, 3] })).toBe('ERR_OPTION');
    expect(run({ keyPe: own(zeros([4, 9])) })).toBe('ERR_SHAPE');
    expect(codeOf(() => adaptiveSpanAttention(q, q, q, { span, ramp: 2 }))).toBe('ERR_SHAPE');
  });
});
