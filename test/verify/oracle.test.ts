/** The oracle has to be right by itself: published vectors, finite differences, and laws that attention obeys. */
import { join } from 'node:path';
import { describe, expect, it } from 'vitest';
import { type Instance, instantiate } from '../../verify/cases/case.js';
import { GoldenFile } from '../../verify/golden/file.js';
import { attentionBackward, attentionForward, type ForwardResult } from '../../verify/oracle/attention.js';
import { magnitude, maxError } from '../../verify/oracle/compare.js';
import { headMajorRows, mergeBackward, mergeForward, seqMajorRows } from '../../verify/oracle/merge.js';
import { keptElements, philox4x32, type Words2, type Words4 } from '../../verify/oracle/philox.js';
import type { Problem } from '../../verify/oracle/problem.js';
import { normal } from '../../verify/oracle/random.js';
import { sensitivity, solve } from '../../verify/oracle/sensitivity.js';
import { CASES } from '../support/references.js';

describe('Philox4x32-10', () => {
  // kat_vectors of Random123.
  const vectors: [Words4, Words2, Words4][] = [
    [
      [0, 0, 0, 0],
      [0, 0],
      [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
    ],
    [
      [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
      [0xffffffff, 0xffffffff],
      [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
    ],
    [
      [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344],
      [0xa4093822, 0x299f31d0],
      [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
    ],
  ];
  it.each(vectors)('counter %o, key %o', (counter, key, words) => {
    expect(philox4x32(counter, key)).toEqual(words);
  });

  it('keeps an element iff its word reaches the threshold', () => {
    const kept = keptElements({ p: 0.5, seed: 2n ** 40n + 5n }, 3, 2, 6);
    const words = [0, 1].flatMap((quad) => philox4x32([quad, 2, 3, 0], [5, 256]));
    expect(kept).toEqual(words.slice(0, 6).map((word) => word >= 2 ** 31));
  });
});

/** sum(out * dOut) + sum(lse * dLse), the scalar whose gradient the backward pass gives. */
function loss({ out, lse }: ForwardResult, { dOut, dLse }: Pick<Instance, 'dOut' | 'dLse'>): number {
  const weighted = (values: Float64Array, weights: Float64Array): number =>
    values.reduce((sum, value, n) => (value === -Infinity ? sum : sum + value * (weights[n] ?? 0)), 0);
  return weighted(out, dOut) + (dLse ? weighted(lse, dLse) : 0);
}

function centralDifferences(values: Float64Array, evaluate: () => number): Float64Array {
  const step = 1e-5;
  return values.map((value, n) => {
    values[n] = value + step;
    const above = evaluate();
    values[n] = value - step;
    const below = evaluate();
    values[n] = value;
    return (above - below) / (2 * step);
  });
}

function differentiable(p: Problem): Record<string, Float64Array> {
  return {
    dQuery: p.query,
    dKey: p.key,
    dValue: p.value,
    ...(p.bias && { dBias: p.bias.values }),
    ...(p.relative && { dRelativeBias: p.relative.table }),
    ...(p.sink && { dSink: p.sink }),
  };
}

describe('gradients against finite differences', () => {
  it.each(Object.entries(CASES))('%s', (_, c) => {
    const instance = instantiate(c);
    const gradients = { ...attentionBackward(instance.problem, instance.dOut, instance.dLse) } as Record<
      string,
      Float64Array
    >;
    const inputs = differentiable(instance.problem);
    expect(Object.keys(gradients).sort()).toEqual(Object.keys(inputs).sort());
    for (const [name, values] of Object.entries(inputs)) {
      const expected = centralDifferences(values, () => loss(attentionForward(instance.problem), instance));
      expect(maxError(gradients[name] ?? [], expected), name).toBeLessThan(1e-7);
    }
  });
});

describe('laws', () => {
  it('an element mask equals a bias of -Infinity', () => {
    const { problem, dOut, dLse } = instantiate({ ...CASES['bias that hides'], bias: [false, false, false, false] });
    const { bias, ...rest } = problem;
    if (!bias) throw new Error('the case has a bias');
    const shown = Uint8Array.from(bias.values, (x) => (x === -Infinity ? 0 : 1));
    const masked: Problem = { ...rest, mask: { shape: bias.shape, values: shown } };
    const hidden: Problem = {
      ...rest,
      bias: { shape: bias.shape, values: bias.values.map((x) => (x === -Infinity ? x : 0)) },
    };
    const expected = solve(hidden, dOut, dLse);
    for (const [name, values] of Object.entries(solve(masked, dOut, dLse))) {
      expect(maxError(values, expected[name] ?? []), name).toBe(0);
    }
  });

  it('NaN in keys that nobody sees reaches nothing', () => {
    const { problem, dOut, dLse } = instantiate({ ...CASES.causal, queryLength: 4, keyLength: 7, align: 'topLeft' });
    const expected = solve(problem, dOut, dLse);
    const hide = (values: Float64Array, dim: number): Float64Array =>
      values.map((x, n) => (Math.floor(n / (dim * problem.kvHeads)) % 7 >= 4 ? NaN : x));
    const poisoned = { ...problem, key: hide(problem.key, 3), value: hide(problem.value, 4) };
    for (const [name, values] of Object.entries(solve(poisoned, dOut, dLse))) {
      expect(maxError(values, expected[name] ?? []), name).toBe(0);
    }
  });

  it('sensitivity grows with the logits', () => {
    const { problem, dOut, dLse } = instantiate(CASES.plain);
    const calm = sensitivity(problem, dOut, dLse);
    const tense = sensitivity({ ...problem, scale: 20 }, dOut, dLse);
    expect(calm.out).toBeGreaterThan(1e-9);
    expect(calm.out).toBeLessThan(1e-6);
    expect(tense.out ?? 0).toBeGreaterThan(5 * (calm.out ?? 0));
  });
});

describe('merge', () => {
  const [heads, keys] = [2, 9];
  const { problem, dOut, dLse } = instantiate({
    seed: 9,
    layout: 'bshd',
    batch: 2,
    queryLength: 4,
    keyLength: keys,
    kvHeads: heads,
    headDim: 3,
    dLse: true,
  });
  const rows = seqMajorRows(heads, problem.queryLength);
  /** Keys are dealt to three parts; the third of them is empty. */
  const parts = [0, 1, 2].map((part): ForwardResult => {
    const values = Uint8Array.from({ length: keys }, (_, j) => (part < 2 && j % 2 === part ? 1 : 0));
    return attentionForward({ ...problem, mask: { shape: [1, 1, 1, keys], values } });
  });

  it('equals attention over all keys', () => {
    const [expected, merged] = [attentionForward(problem), mergeForward(parts, rows)];
    expect(maxError(merged.out, expected.out)).toBeLessThan(1e-14);
    expect(maxError(merged.lse, expected.lse)).toBeLessThan(1e-14);
  });

  it('of nothing but empty states is empty', () => {
    const empty = parts[2] as ForwardResult;
    const merged = mergeForward([empty, empty], rows);
    expect(magnitude(merged.out, 0)).toBe(0);
    expect(merged.lse.every((x) => x === -Infinity)).toBe(true);
  });

  it('has the gradient of finite differences', () => {
    const gradients = mergeBackward(parts, rows, dOut, dLse);
    parts.forEach((state, s) => {
      const evaluate = (): number => loss(mergeForward(parts, rows), { dOut, dLse });
      expect(maxError(gradients[s]?.dOut ?? [], centralDifferences(state.out, evaluate))).toBeLessThan(1e-8);
      if (s === 2) expect(magnitude(gradients[s]?.dLse ?? [], 0)).toBe(0);
      else expect(maxError(gradients[s]?.dLse ?? [], centralDifferences(state.lse, evaluate))).toBeLessThan(1e-8);
    });
  });

  it('reproduces the golden tree reduction', () => {
    const file = new GoldenFile(
      join(import.meta.dirname, '../../verify/golden/vectors/ring_merge__tree_reduce.safetensors'),
    );
    const [out, lse] = [file.tensor('part_out').values, file.tensor('part_lse').values];
    const states = Array.from({ length: 7 }, (_, p) => ({
      out: out.slice((p * out.length) / 7, ((p + 1) * out.length) / 7),
      lse: lse.slice((p * lse.length) / 7, ((p + 1) * lse.length) / 7),
    }));
    const merged = mergeForward(states, headMajorRows);
    expect(maxError(merged.out, file.tensor('out').values)).toBeLessThan(1e-13);
    expect(maxError(merged.lse, file.tensor('lse').values)).toBeLessThan(1e-13);
  });
});

describe('golden vectors', () => {
  const load = (name: string): GoldenFile =>
    new GoldenFile(join(import.meta.dirname, `../../verify/golden/vectors/${name}.safetensors`));

  /** The problem of a file in [batch, heads, seq, dim]. */
  function problemOf(file: GoldenFile): Problem {
    const [batch = 0, queryHeads = 0, queryLength = 0, headDim = 0] = file.tensor('q').shape;
    const [, kvHeads = 0, keyLength = 0, valueDim = 0] = file.tensor('v').shape;
    const window = file.params.numbers('window') as [number, number] | undefined;
    return {
      layout: 'bhsd',
      batch,
      queryLength,
      keyLength,
      queryHeads,
      kvHeads,
      headDim,
      valueDim,
      query: file.tensor('q').values,
      key: file.tensor('k').values,
      value: file.tensor('v').values,
      scale: file.params.number('scale'),
      causal: file.params.boolean('causal'),
      softcap: file.params.number('softcap'),
      window,
      qLens: file.params.numbers('q_lens'),
      kLens: file.params.numbers('k_lens'),
    };
  }

  function packedProblemOf(file: GoldenFile): Problem {
    const [queryLength = 0, queryHeads = 0, headDim = 0] = file.tensor('q').shape;
    const [keyLength = 0, kvHeads = 0, valueDim = 0] = file.tensor('v').shape;
    const cuSeqlensQ = [...file.integers('cu_q')];
    return {
      layout: 'varlen',
      batch: cuSeqlensQ.length - 1,
      queryLength,
      keyLength,
      queryHeads,
      kvHeads,
      headDim,
      valueDim,
      query: file.tensor('q').values,
      key: file.tensor('k').values,
      value: file.tensor('v').values,
      causal: file.params.boolean('causal'),
      cuSeqlensQ,
      cuSeqlensK: [...file.integers('cu_k')],
    };
  }

  function sinkProblemOf(file: GoldenFile): Problem {
    const [length = 0, kvHeads = 0, group = 0, headDim = 0] = file.tensor('q').shape;
    const window = file.params.number('window') ?? 0;
    return {
      ...packedProblemOfSingle(file, length, kvHeads, kvHeads * group, headDim),
      causal: true,
      sink: file.tensor('sinks').values,
      window: window > 0 ? [window - 1, 0] : undefined,
    };
  }

  function packedProblemOfSingle(
    file: GoldenFile,
    length: number,
    kvHeads: number,
    queryHeads: number,
    dim: number,
  ): Problem {
    return {
      layout: 'bshd',
      batch: 1,
      queryLength: length,
      keyLength: length,
      queryHeads,
      kvHeads,
      headDim: dim,
      valueDim: dim,
      query: file.tensor('q').values,
      key: file.tensor('k').values,
      value: file.tensor('v').values,
    };
  }

  function biasProblemOf(file: GoldenFile): Problem {
    const bias = file.tensor('bias');
    return { ...problemOf(file), bias: { values: bias.values, shape: bias.shape as [number, number, number, number] } };
  }

  function alibiProblemOf(file: GoldenFile): Problem {
    return { ...problemOf(file), alibi: file.tensor('slopes').values };
  }

  /** T5 through the bucket matrix of the file, which depends on j - i alone. */
  function t5ProblemOf(file: GoldenFile): Problem {
    const base = problemOf(file);
    const [queries, keys] = [base.queryLength, base.keyLength];
    const matrix = file.integers('bucket');
    const buckets = new Int32Array(queries + keys - 1);
    matrix.forEach((bucket, n) => {
      buckets[(n % keys) - Math.floor(n / keys) + queries - 1] = bucket;
    });
    const table = file.tensor('bias_table');
    const relative = { table: table.values, bucketCount: table.shape[0] ?? 0, buckets, origin: queries - 1 };
    return { ...base, scale: 1, causal: !file.params.boolean('bidirectional'), align: 'topLeft', relative };
  }

  const readers: Record<string, (file: GoldenFile) => Problem> = {
    dense_mha__causal_br_nq_gt_nk_emptyrows: problemOf,
    dense_mha__cross_dv_ne_dqk: problemOf,
    dense_mha__qkpad_causal: problemOf,
    dense_mha__scale_custom: problemOf,
    gqa__gqa: problemOf,
    mqa__mqa: problemOf,
    sliding_window__sliding_bidir: problemOf,
    sliding_window__sliding_causal: problemOf,
    softcap__softcap: problemOf,
    softcap__softcap_window: problemOf,
    varlen__docs_causal: packedProblemOf,
    varlen__docs_cross: packedProblemOf,
    attention_sink__full: sinkProblemOf,
    attention_sink__window: sinkProblemOf,
    dense_bias__bcast_batch_head: biasProblemOf,
    dense_bias__full: biasProblemOf,
    alibi__h6_bidir: alibiProblemOf,
    alibi__h8_causal: alibiProblemOf,
    t5_bias__bidir_cross: t5ProblemOf,
    t5_bias__causal: t5ProblemOf,
  };
  /** File name -> oracle name. */
  const names: Record<string, string> = {
    out: 'out',
    lse: 'lse',
    dq: 'dQuery',
    dk: 'dKey',
    dv: 'dValue',
    dbias: 'dBias',
    dbias_table: 'dRelativeBias',
    dsinks: 'dSink',
  };

  it.each(Object.entries(readers))('%s', (name, read) => {
    const file = load(name);
    const solution = solve(read(file), file.tensor('dout').values);
    for (const tensor of file.expected) {
      // Gradients of the larger files are stored as float32.
      const { values } = file.tensor(tensor);
      const tolerance = values.every((x) => x === Math.fround(x)) ? 5e-6 : 1e-12;
      const found = solution[names[tensor] ?? ''] ?? [];
      expect(maxError(found, values), tensor).toBeLessThan(tolerance * magnitude(values));
    }
  });
});

it('random numbers are normal', () => {
  const values = normal(20000, 3);
  const mean = values.reduce((a, b) => a + b, 0) / values.length;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / values.length;
  expect(Math.abs(mean)).toBeLessThan(0.03);
  expect(Math.abs(variance - 1)).toBeLessThan(0.03);
});
