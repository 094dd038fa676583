/** Memory around tensors, NaN behind masks, rows and sequences of nothing, and numbers at the ends of their range. */
import { attention, type Tensor, tensor, zeros } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { type Case, type Instance, instantiate } from '../../verify/cases/case.js';
import { failuresOf, float32Failures } from '../../verify/cases/check.js';
import { runLibrary, shapeOf } from '../../verify/cases/library.js';
import { patternFailures, poisoned } from '../../verify/cases/poison.js';
import type { CaseDType } from '../../verify/cases/views.js';
import { place, VIEW_KINDS } from '../../verify/cases/views.js';
import { GRADIENT_TOLERANCE, magnitude, maxError } from '../../verify/oracle/compare.js';
import { extent, type Layout, type Problem } from '../../verify/oracle/problem.js';
import { normal } from '../../verify/oracle/random.js';
import { type Named, solve } from '../../verify/oracle/sensitivity.js';
import { testDevice } from '../support/device.js';
import { CASES } from '../support/references.js';

const LAYOUTS: readonly Layout[] = ['bshd', 'bhsd', 'varlen'];
const DTYPES: readonly CaseDType[] = ['float32', 'float16', 'bfloat16'];

/** A case in each layout, with sizes that are no multiples of any tile. */
function caseOf(layout: Layout, rest: Partial<Case> = {}): Case {
  const sizes =
    layout === 'varlen' ? { qLens: [19, 0, 40], kLens: [37, 5, 67] } : { batch: 2, queryLength: 37, keyLength: 67 };
  return { seed: 400, layout, kvHeads: 2, group: 2, headDim: 13, valueDim: 21, dLse: true, ...sizes, ...rest };
}

function expectSame(actual: Named, expected: Named): void {
  expect(Object.keys(actual).sort()).toEqual(Object.keys(expected).sort());
  for (const [name, values] of Object.entries(expected)) {
    expect(maxError(actual[name] ?? [], values), name).toBe(0);
  }
}

/** Equal bits, or on CUDA those of kernels that leave hidden pairs out instead of multiplying them by 0. */
function expectUntouched(actual: Named, expected: Named): void {
  if (testDevice === 'wasm') expectSame(actual, expected);
  for (const [name, values] of Object.entries(expected))
    expect(maxError(actual[name] ?? [], values) / magnitude(values), name).toBeLessThan(GRADIENT_TOLERANCE);
}

describe('memory around tensors', () => {
  const views = VIEW_KINDS.filter((kind) => kind !== 'plain');
  it.each(LAYOUTS.flatMap((layout) => DTYPES.map((dtype) => [layout, dtype] as const)))(
    'is not read: %s, %s',
    (layout, dtype) => {
      const c = caseOf(layout, { dtype, causal: true });
      const instance = instantiate(c);
      const plain = runLibrary(instance, c);
      expect(Object.values(plain).every((values) => values.every((x) => !Number.isNaN(x)))).toBe(true);
      for (const kind of views) expectSame(runLibrary(instance, { ...c, views: [kind, kind, kind, kind] }), plain);
    },
  );

  it('is not written through inputs', () => {
    const { problem } = instantiate(caseOf('bshd'));
    const placed = (['query', 'key', 'value'] as const).map((side) =>
      place(problem[side], shapeOf(problem, side), 'float32', problem.layout, 'dimSlice'),
    );
    const before = placed.map(({ parent }) => parent.dataSync());
    const [q, k, v] = placed.map(({ view }) => view) as [Tensor, Tensor, Tensor];
    attention(q, k, v, { layout: 'bshd', causal: true }).out.dataSync();
    expect(placed.map(({ parent }) => parent.dataSync())).toEqual(before);
  });

  it('is not written around results', () => {
    // Holes between guards, as large as the results, so that results come to lie between guards.
    const c = caseOf('bhsd', { bias: [false, true, false, false], sink: true, relative: 'distance' });
    const instance = instantiate(c);
    const p = instance.problem;
    const sizes = [p.query.length, p.key.length, p.value.length, instance.dOut.length, instance.dLse?.length ?? 0, 4];
    const guard = Float32Array.from(normal(64, 3));
    const guards: Tensor[] = [];
    const holes: Tensor[] = [];
    for (const size of [...sizes, ...sizes, ...sizes]) {
      holes.push(zeros([size]));
      guards.push(tensor(guard, [guard.length]));
    }
    for (const hole of holes) hole.dispose();
    const first = runLibrary(instance, c);
    for (const t of guards) expect(t.dataSync()).toEqual(guard);
    expectSame(runLibrary(instance, c), first);
    for (const t of guards) t.dispose();
  });
});

describe('numbers that nobody sees', () => {
  const poisons = [NaN, Infinity, -Infinity];
  const everything = {
    causal: true,
    softcap: 4,
    bias: [false, false, false, false],
    alibi: 'heads',
    relative: 'distance',
    sink: true,
  } as const;

  it.each(poisons)('%f in keys and values beyond their length', (poison) => {
    for (const options of [{}, { dropout: { p: 0.3, seed: 5 } }, everything]) {
      const { problem: p, dOut, dLse } = instantiate(caseOf('bshd', { ...options, kLens: [67, 34] }));
      const expected = runLibrary({ problem: p, dOut, dLse });
      const key = poisoned(p, 'key', p.key, 1, [34, 67], poison);
      const value = poisoned(p, 'value', p.value, 1, [34, 67], poison);
      expectUntouched(runLibrary({ problem: { ...p, key, value }, dOut, dLse }), expected);
    }
  });

  it.each(poisons)('%f in keys and values that a window or the diagonal hides from all', (poison) => {
    for (const options of [{ window: [3, 6] }, { causal: true }, { window: [-1, 0], ...everything }] as const) {
      const c = caseOf('bhsd', { ...options, align: 'topLeft' });
      const { problem: p, dOut, dLse } = instantiate(c);
      const expected = runLibrary({ problem: p, dOut, dLse });
      const hidden = [44, 67] as const;
      const key = poisoned(p, 'key', p.key, 0, hidden, poison);
      const value = poisoned(p, 'value', p.value, 0, hidden, poison);
      expectUntouched(runLibrary({ problem: { ...p, key, value }, dOut, dLse }), expected);
    }
  });

  it.each(poisons)('%f in keys and values that the bias hides from all', (poison) => {
    for (const options of [{}, { causal: true, dropout: { p: 0.2, seed: 5 } }] as const) {
      const { problem, dOut, dLse } = instantiate(caseOf('bshd', { ...options, bias: [true, true, true, false] }));
      const values = problem.bias?.values ?? new Float64Array(0);
      const bias = { shape: [1, 1, 1, 67] as const, values: values.map((x, j) => (j % 7 === 3 ? -Infinity : x)) };
      const p: Problem = { ...problem, bias };
      const expected = runLibrary({ problem: p, dOut, dLse });
      const key = poisoned(p, 'key', p.key, 1, [31, 32], poison);
      const value = poisoned(p, 'value', p.value, 1, [3, 4], poison);
      expectUntouched(runLibrary({ problem: { ...p, key, value }, dOut, dLse }), expected);
    }
  });

  it.each(poisons)('%f in queries and output gradients beyond their length', (poison) => {
    for (const options of [{}, { dropout: { p: 0.3, seed: 5 } }, everything]) {
      const { problem: p, dOut, dLse } = instantiate(caseOf('bhsd', { ...options, qLens: [37, 18] }));
      const expected = runLibrary({ problem: p, dOut, dLse });
      const query = poisoned(p, 'query', p.query, 1, [18, 37], poison);
      const poisonedOut = poisoned(p, 'out', dOut, 1, [18, 37], poison);
      const lse = dLse?.map((x, n) => (n >= dLse.length / 2 && n % 37 >= 18 ? poison : x));
      expectUntouched(runLibrary({ problem: { ...p, query }, dOut: poisonedOut, dLse: lse }), expected);
    }
  });

  it.each(poisons)('%f in queries and output gradients of rows that see nothing', (poison) => {
    const { problem: p, dOut, dLse } = instantiate(caseOf('bshd', { queryLength: 67, keyLength: 37, causal: true }));
    const expected = runLibrary({ problem: p, dOut, dLse });
    const query = poisoned(p, 'query', p.query, 0, [0, 30], poison);
    const poisonedOut = poisoned(p, 'out', dOut, 0, [0, 30], poison);
    expectUntouched(runLibrary({ problem: { ...p, query }, dOut: poisonedOut, dLse }), expected);
  });

  it('NaN in another packed sequence', () => {
    const { problem: p, dOut, dLse } = instantiate(caseOf('varlen', { causal: true }));
    const expected = runLibrary({ problem: p, dOut, dLse });
    // All of the second and the third sequence.
    const { queryBegin, keyBegin } = extent(p, 1);
    const bad = {
      ...p,
      query: poisoned(p, 'query', p.query, 0, [queryBegin, p.queryLength], NaN),
      key: poisoned(p, 'key', p.key, 0, [keyBegin, p.keyLength], NaN),
      value: poisoned(p, 'value', p.value, 0, [keyBegin, p.keyLength], NaN),
    };
    const actual = runLibrary({
      problem: bad,
      dOut: poisoned(p, 'out', dOut, 0, [queryBegin, p.queryLength], NaN),
      dLse,
    });
    const rows = {
      out: queryBegin * 4 * 21,
      dQuery: queryBegin * 4 * 13,
      dKey: keyBegin * 2 * 13,
      dValue: keyBegin * 2 * 21,
    };
    for (const [name, size] of Object.entries(rows)) {
      expect(maxError(actual[name]?.slice(0, size) ?? [], expected[name]?.slice(0, size) ?? [-1]), name).toBe(0);
    }
  });
});

describe('NaN that some rows see', () => {
  const masks: Readonly<Record<string, Partial<Case>>> = {
    everyone: {},
    causal: { causal: true },
    'causal, top left': { causal: true, align: 'topLeft' },
    window: { window: [5, 9] },
    'causal window': { causal: true, window: [33, 0] },
    'hiding bias': { bias: [true, true, false, false], biasHides: true },
    softcap: { causal: true, softcap: 3 },
    'all biases': {
      causal: true,
      bias: [false, false, false, false],
      alibi: 'heads',
      relative: 'distance',
      sink: true,
    },
  };
  const places: Readonly<Record<string, (instance: Instance) => Instance>> = {
    key: ({ problem: p, ...rest }) => ({
      ...rest,
      problem: { ...p, key: poisoned(p, 'key', p.key, 0, [41, 42], NaN) },
    }),
    value: ({ problem: p, ...rest }) => ({
      ...rest,
      problem: { ...p, value: poisoned(p, 'value', p.value, 0, [41, 42], NaN) },
    }),
    query: ({ problem: p, ...rest }) => ({
      ...rest,
      problem: { ...p, query: poisoned(p, 'query', p.query, 0, [17, 18], NaN) },
    }),
    'output gradient': ({ problem: p, dOut, ...rest }) => ({
      ...rest,
      problem: p,
      dOut: poisoned(p, 'out', dOut, 0, [17, 18], NaN),
    }),
  };
  const all = Object.keys(masks).flatMap((mask) => Object.keys(places).map((where) => [mask, where] as const));

  it.each(all)('%s, in one %s, reaches those rows and no other', (mask, where) => {
    for (const layout of ['bshd', 'varlen'] as const) {
      const sizes = layout === 'varlen' ? { qLens: [60, 9], kLens: [67, 5] } : { queryLength: 60 };
      const instance = places[where]?.(instantiate(caseOf(layout, { ...masks[mask], ...sizes })));
      if (!instance) throw new Error('unreachable');
      const actual = runLibrary(instance);
      expect(patternFailures(instance, actual)).toEqual([]);
      // The oracle agrees that something was seen.
      expect(Object.values(actual).some((values) => values.some(Number.isNaN))).toBe(true);
    }
  });

  it.each(['float16', 'bfloat16'] as const)('survives the conversion to %s', (dtype) => {
    const instance = instantiate(caseOf('bshd', { dtype, causal: true }));
    const p = instance.problem;
    const poisonedInstance = { ...instance, problem: { ...p, value: poisoned(p, 'value', p.value, 0, [41, 42], NaN) } };
    const { out } = runLibrary(poisonedInstance, { dtype, forwardOnly: true });
    const expected = solve(poisonedInstance.problem, instance.dOut).out ?? [];
    expect(Array.from(out ?? [], Number.isNaN)).toEqual(Array.from(expected, Number.isNaN));
  });

  it('an infinite value is seen as such', () => {
    const instance = instantiate(caseOf('bshd', { causal: true }));
    const p = instance.problem;
    const problem = { ...p, value: poisoned(p, 'value', p.value, 0, [41, 42], Infinity) };
    const { out } = runLibrary({ ...instance, problem }, { forwardOnly: true });
    const expected = solve(problem, instance.dOut).out ?? [];
    expect(Array.from(out ?? [], Number.isFinite)).toEqual(Array.from(expected, Number.isFinite));
  });
});

describe('rows and sequences of nothing', () => {
  const zero = (values: Float64Array | undefined, begin: number, end: number): void => {
    expect(values?.slice(begin, end).every((x) => x === 0)).toBe(true);
  };

  it.each(Object.entries(CASES))('%s: as the oracle', (_, c) => expect(failuresOf(c)).toEqual([]));

  it('rows without keys are exactly zero, with lse -Infinity and no gradient', () => {
    const c = caseOf('bhsd', { batch: 1, queryLength: 67, keyLength: 37, causal: true, kvHeads: 1, group: 1 });
    const result = runLibrary(instantiate(c));
    zero(result.out, 0, 30 * 21);
    zero(result.dQuery, 0, 30 * 13);
    expect(result.lse?.slice(0, 30).every((x) => x === -Infinity)).toBe(true);
    expect(result.lse?.slice(30).every(Number.isFinite)).toBe(true);
  });

  it('a bias of -Infinity everywhere leaves nothing', () => {
    const instance = instantiate(caseOf('bshd', { bias: [true, true, true, true] }));
    const bias = { shape: [1, 1, 1, 1] as const, values: Float64Array.of(-Infinity) };
    const result = runLibrary({ ...instance, problem: { ...instance.problem, bias } });
    for (const name of ['out', 'dQuery', 'dKey', 'dValue', 'dBias']) zero(result[name], 0, Infinity);
    expect(result.lse?.every((x) => x === -Infinity)).toBe(true);
  });

  it('a row with nothing but a sink has lse = sink and passes the gradient of lse to it', () => {
    const c = caseOf('bshd', { batch: 1, queryLength: 67, keyLength: 37, causal: true, sink: true });
    const instance = instantiate(c);
    expect(failuresOf(c)).toEqual([]);
    const { lse } = runLibrary(instance);
    expect(lse?.[0]).toBeCloseTo(instance.problem.sink?.[0] ?? NaN, 5);
  });

  it('a window that lies beyond all keys', () => {
    expect(failuresOf(caseOf('bshd', { window: [0, 0], align: 'topLeft', queryLength: 90, keyLength: 3 }))).toEqual([]);
  });

  it.each([
    ['no keys', { batch: 2, queryLength: 5, keyLength: 0 }],
    ['no queries', { batch: 2, queryLength: 0, keyLength: 5 }],
    ['no batch', { batch: 0, queryLength: 5, keyLength: 5 }],
    ['no real lengths', { batch: 2, queryLength: 5, keyLength: 5, qLens: [0, 0], kLens: [0, 0] }],
  ])('%s', (_, sizes) => {
    for (const layout of ['bshd', 'bhsd'] as const) expect(failuresOf(caseOf(layout, sizes))).toEqual([]);
  });

  it.each([
    ['every sequence is empty', [0, 0], [0, 0]],
    ['no keys at all', [3, 4], [0, 0]],
    ['no queries at all', [0, 0], [3, 4]],
    ['no sequences', [], []],
    ['empty at both ends', [0, 70, 0], [0, 35, 0]],
    ['many tiny ones', Array.from({ length: 60 }, (__, n) => n % 3), Array.from({ length: 60 }, (__, n) => n % 4)],
  ])('packed: %s', (_, qLens, kLens) => {
    for (const causal of [false, true]) expect(failuresOf(caseOf('varlen', { qLens, kLens, causal }))).toEqual([]);
  });

  it('packed: tokens behind the last sequence take no part', () => {
    const instance = instantiate(caseOf('varlen', { qLens: [20, 17, 9], kLens: [30, 37, 11] }));
    const p = { ...instance.problem, batch: 2, cuSeqlensQ: [0, 20, 37], cuSeqlensK: [0, 30, 67] };
    expect(float32Failures({ ...instance, problem: p }, runLibrary({ ...instance, problem: p }))).toEqual([]);
  });

  it.each(DTYPES)('one query, one key, one dim: %s', (dtype) => {
    const c: Case = { seed: 6, layout: 'bshd', dtype, queryLength: 1, keyLength: 1, headDim: 1 };
    expect(failuresOf(c)).toEqual([]);
    const instance = instantiate(c);
    expect(runLibrary(instance, { dtype }).out).toEqual(instance.problem.value);
  });
});

describe('numbers at the ends of their range', () => {
  /** Scales queries so that the largest logit is `size`. */
  function withLogits(instance: Instance, size: number): Instance {
    const p = instance.problem;
    const largest = Math.sqrt(p.headDim) * magnitude(p.query) * magnitude(p.key);
    const query = p.query.map((x) => Math.fround((x * size * Math.sqrt(p.headDim)) / largest));
    return { ...instance, problem: { ...p, query } };
  }

  it.each([100, 1000, 1e4])('logits up to %f', (size) => {
    for (const options of [{}, { causal: true }, { softcap: size }, { sink: true, dLse: true }]) {
      const instance = withLogits(instantiate(caseOf('bshd', { ...options, headDim: 16 })), size);
      expect(float32Failures(instance, runLibrary(instance))).toEqual([]);
    }
  });

  it.each([-1e4, 1e4])('a bias of %f on all logits', (size) => {
    const instance = instantiate(caseOf('bshd', { bias: [false, false, false, false] }));
    const p = instance.problem;
    const values = p.bias?.values.map((x) => Math.fround(x + size)) ?? new Float64Array(0);
    const shifted = { ...instance, problem: { ...p, bias: { shape: [2, 4, 37, 67] as const, values } } };
    expect(float32Failures(shifted, runLibrary(shifted))).toEqual([]);
  });

  it('logits that rise and fall by thousands from one key tile to the next', () => {
    const instance = instantiate(caseOf('bshd', { keyLength: 300, bias: [true, true, true, false], sink: true }));
    const values = Float64Array.from({ length: 300 }, (_, j) => 3000 * Math.sin(j / 20));
    const bias = { shape: [1, 1, 1, 300] as const, values: values.map(Math.fround) };
    const waving = { ...instance, problem: { ...instance.problem, bias } };
    expect(float32Failures(waving, runLibrary(waving))).toEqual([]);
  });

  it('denormal inputs', () => {
    const instance = instantiate(caseOf('bshd'));
    const tiny = (values: Float64Array): Float64Array => values.map((x) => Math.fround(x * 1e-40));
    const { query, key, value } = instance.problem;
    for (const inputs of [
      { query: tiny(query) },
      { key: tiny(key) },
      { value: tiny(value) },
      { query: tiny(query), key: tiny(key), value: tiny(value) },
    ]) {
      const problem = { ...instance.problem, ...inputs };
      expect(float32Failures({ ...instance, problem }, runLibrary({ ...instance, problem }))).toEqual([]);
    }
    const faint = { ...instance, dOut: tiny(instance.dOut) };
    expect(float32Failures(faint, runLibrary(faint))).toEqual([]);
  });

  it('subnormal float16 values are numbers like all others', () => {
    const instance = instantiate(caseOf('bshd', { dtype: 'float16' }));
    const value = instance.problem.value.map(() => 777 * 2 ** -24);
    const problem = { ...instance.problem, value };
    const { out } = runLibrary({ ...instance, problem }, { dtype: 'float16', forwardOnly: true });
    expect(out?.every((x) => x === 777 * 2 ** -24)).toBe(true);
  });

  it('the largest float16 stays finite', () => {
    const instance = instantiate(caseOf('bshd', { dtype: 'float16' }));
    const problem = { ...instance.problem, value: instance.problem.value.map((x) => Math.sign(x) * 65504 || 65504) };
    const { out } = runLibrary({ ...instance, problem }, { dtype: 'float16', forwardOnly: true });
    expect(out?.every((x) => Math.abs(x) <= 65504)).toBe(true);
  });

  it('a sink of -Infinity is no sink, and a huge one takes everything', () => {
    const instance = instantiate(caseOf('bshd', { sink: true }));
    const heads = instance.problem.queryHeads;
    const withSink = (sink: number): Named =>
      runLibrary({ ...instance, problem: { ...instance.problem, sink: new Float64Array(heads).fill(sink) } });
    const { dSink, ...absent } = withSink(-Infinity);
    const { sink: _, ...problem } = instance.problem;
    expectSame(absent, runLibrary({ ...instance, problem }));
    expect(dSink?.every((x) => x === 0)).toBe(true);
    const huge = withSink(1e4);
    expect(huge.out?.every((x) => x === 0)).toBe(true);
    expect(huge.lse?.every((x) => x === 1e4)).toBe(true);
  });
});

describe('repeats are bit-equal', () => {
  it.each([1, 8, 33, 64, 96, 128, 129, 192, 256])('head dim %i', (headDim) => {
    const c = caseOf('bshd', {
      headDim,
      valueDim: headDim,
      queryLength: 150,
      keyLength: 130,
      causal: true,
      deterministic: true,
    });
    const instance = instantiate(c);
    const first = runLibrary(instance, c);
    for (let repeat = 0; repeat < 3; repeat++) expectSame(runLibrary(instance, c), first);
  });

  it.each(DTYPES)('with everything, %s', (dtype) => {
    const c = caseOf('varlen', {
      dtype,
      qLens: [130, 7, 64],
      kLens: [140, 9, 33],
      bias: [true, false, false, true],
      alibi: 'batch',
      relative: 'positions',
      sink: true,
      dropout: { p: 0.2, seed: 99 },
      deterministic: true,
    });
    const instance = instantiate(c);
    const first = runLibrary(instance, c);
    for (let repeat = 0; repeat < 3; repeat++) expectSame(runLibrary(instance, c), first);
  });
});
