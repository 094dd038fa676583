/** The forms in which masks, biases and lengths may be given: each against the oracle. */
import {
  attention,
  attentionBackward,
  type BooleanMask,
  blockMask,
  type DenseOptions,
  masks,
  memory,
  type Tensor,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { type Case, type CaseDType, type Instance, instantiate } from '../../verify/cases/case.js';
import { failuresIn } from '../../verify/cases/check.js';
import { optionsOf, shapeOf, widen } from '../../verify/cases/library.js';
import { make } from '../../verify/cases/views.js';
import type { Broadcast } from '../../verify/oracle/problem.js';
import { uniform } from '../../verify/oracle/random.js';
import { testDevice } from '../support/device.js';

const sizes: Case = {
  ...{ seed: 31, layout: 'bshd', batch: 2, queryLength: 70, keyLength: 131, kvHeads: 1, group: 2, headDim: 8 },
};
const [batch, heads, nq, nk] = [2, 2, 70, 131];
const full = [batch, heads, nq, nk] as const;

/** Runs forward and backward with these options instead of the instance's own. */
function failures(instance: Instance, options: object, dtype: CaseDType = 'float32', without: string[] = []): string[] {
  const { problem: p, dOut } = instance;
  const of = (values: Float64Array, side: 'query' | 'key' | 'value' | 'out') => make(values, shapeOf(p, side), dtype);
  const [q, k, v] = [of(p.query, 'query'), of(p.key, 'key'), of(p.value, 'value')];
  const result = attention(q, k, v, options as DenseOptions);
  const { dq, dk, dv, dBias } = attentionBackward(of(dOut, 'out'), { q, k, v, ...result });
  const results = { out: result.out, lse: result.lse, dQuery: dq, dKey: dk, dValue: dv, ...(dBias && { dBias }) };
  const actual = Object.fromEntries(Object.entries(results).map(([name, t]) => [name, widen(t)]));
  return failuresIn(instance, dtype, actual).filter((line) => !without.some((name) => line === `${name} is missing`));
}

/** A bias as an interleaved view: every second column of a wider tensor whose last two axes are swapped. */
function strided({ values, shape: [b, h, i, j] }: Broadcast, dtype: CaseDType): Tensor {
  const wide = new Float64Array(values.length * 2);
  for (let at = 0; at < values.length; at++) {
    const [column, row, outer] = [at % j, Math.floor(at / j) % i, Math.floor(at / (i * j))];
    wide[((outer * j + column) * 2 + 1) * i + row] = values[at] as number;
  }
  return make(wide, [b, h, j, 2, i], dtype).select(3, 1).transpose(2, 3);
}

describe('bias', () => {
  const axes = [
    [[false, false, false, false], 4],
    [[true, false, false, false], 3],
    [[true, true, false, false], 2],
    [[true, true, true, false], 1],
    [[true, false, true, false], 3],
    [[true, true, false, true], 2],
  ] as const;

  it.each(axes)('broadcast over %j, in rank %i', (bias, rank) => {
    const instance = instantiate({ ...sizes, bias });
    const { values, shape } = instance.problem.bias as Broadcast;
    const tensor = make(values, shape.slice(4 - rank), 'float32');
    expect(failures(instance, { bias: tensor })).toEqual([]);
    // As a mask it has no gradient.
    expect(failures(instance, { attnMask: tensor }, 'float32', ['dBias'])).toEqual([]);
  });

  it.each(['float32', 'float16', 'bfloat16'] as const)('as a strided view, %s', (dtype) => {
    for (const [bias] of axes) {
      const instance = instantiate({ ...sizes, dtype, bias });
      const view = strided(instance.problem.bias as Broadcast, dtype);
      expect(failures(instance, { bias: view }, dtype)).toEqual([]);
    }
  });
});

describe('attnMask of booleans', () => {
  const random = uniform(5);

  function given(shape: readonly number[]): { mask: BooleanMask; term: Broadcast<Uint8Array> } {
    const count = shape.reduce((a, b) => a * b, 1);
    const data = Uint8Array.from({ length: count }, (_, at) => (random() < 0.5 || at % 90 > 60 ? 1 : 0));
    const padded = [...[1, 1, 1].slice(0, 4 - shape.length), ...shape] as unknown as typeof full;
    return { mask: { data, shape }, term: { values: data, shape: padded } };
  }

  it.each([[[nk]], [[nq, nk]], [[nq, 1]], [[heads, nq, nk]], [[batch, 1, 1, nk]], [[batch, heads, nq, nk]]])(
    'of shape %j',
    (shape) => {
      const { mask, term } = given(shape);
      const instance = instantiate({ ...sizes, causal: true });
      const masked = { ...instance, problem: { ...instance.problem, mask: term } };
      expect(failures(masked, { causal: true, attnMask: mask })).toEqual([]);
      const booleans = { data: Array.from(mask.data, Boolean), shape };
      expect(failures(masked, { causal: true, attnMask: booleans })).toEqual([]);
    },
  );

  it.each([
    ['a mask', masks.slidingWindow(20, 30)],
    ['a block mask', blockMask(masks.slidingWindow(20, 30), { nq, nk })],
  ])('combines with %s', (_, mask) => {
    const { mask: attnMask, term } = given([batch, heads, nq, nk]);
    const instance = instantiate(sizes);
    const within = term.values.map((seen, at) => {
      const distance = (at % nk) - (Math.floor(at / nk) % nq) - (nk - nq);
      return distance >= -20 && distance <= 30 ? seen : 0;
    });
    const masked = { ...instance, problem: { ...instance.problem, mask: { ...term, values: within } } };
    expect(failures(masked, { mask, attnMask })).toEqual([]);
  });

  it('leaves few device copies behind', () => {
    const { problem: p } = instantiate(sizes);
    const [q, k] = [make(p.query, shapeOf(p, 'query'), 'float32'), make(p.key, shapeOf(p, 'key'), 'float32')];
    const { mask } = given([batch, heads, nq, nk]);
    const step = () => {
      const { out, lse } = attention(q, k, k, { attnMask: mask } as object);
      out.dispose();
      lse.dispose();
    };
    for (let n = 0; n < 20; n++) step();
    const before = memory(testDevice).bytesInUse;
    for (let n = 0; n < 100; n++) step();
    expect(memory(testDevice).bytesInUse).toBe(before);
  });
});

describe('a mask that meets ever longer sequences', () => {
  it('keeps device copies for few of them', () => {
    const { problem: p } = instantiate({ ...sizes, batch: 1, queryLength: 1, keyLength: 400 });
    const [q, k] = [make(p.query, shapeOf(p, 'query'), 'float32'), make(p.key, shapeOf(p, 'key'), 'float32')];
    const mask = masks.predicate((_b, _h, _i, j) => j % 3 !== 0);
    const bytes: number[] = [];
    for (let length = 200; length <= 400; length++) {
      const keys = k.slice(1, 0, length);
      const { out, lse } = attention(q, keys, keys, { mask } as object);
      for (const t of [keys, out, lse]) t.dispose();
      bytes.push(memory(testDevice).bytesInUse);
    }
    // Eight copies at most, of seven partial blocks and their lists each.
    expect(Math.max(...bytes) - Math.min(...bytes.slice(0, 1))).toBeLessThan(9 * 7 * 600);
  });

  it('is right again for a length that it has forgotten', () => {
    const instance = instantiate({ ...sizes, queryLength: 3 });
    const seen = (j: number) => j % 5 !== 2;
    const mask = masks.predicate((_b, _h, _i, j) => seen(j));
    const term = {
      values: Uint8Array.from({ length: nk }, (_, j) => (seen(j) ? 1 : 0)),
      shape: [1, 1, 1, nk] as const,
    };
    const masked = { ...instance, problem: { ...instance.problem, mask: term } };
    const options = { ...optionsOf(instance.problem, 'float32', (t) => t), mask };
    expect(failures(masked, options)).toEqual([]);
    for (let length = 1; length < 30; length++) {
      const other = instantiate({ ...sizes, queryLength: 3, keyLength: length });
      const shape = [1, 1, 1, length] as const;
      const shorter = { values: term.values.slice(0, length), shape };
      expect(failures({ ...other, problem: { ...other.problem, mask: shorter } }, { mask })).toEqual([]);
    }
    expect(failures(masked, options)).toEqual([]);
  });
});

describe('lengths', () => {
  it('may be 64-bit integers', () => {
    const lengths = { qLens: [70, 12], kLens: [131, 40] };
    const instance = instantiate({ ...sizes, ...lengths });
    const big = { qLens: BigInt64Array.from([70n, 12n]), kLens: BigInt64Array.from([131n, 40n]) };
    expect(failures(instance, big)).toEqual([]);
  });
});

it('softcap 0 is none', () => {
  expect(failures(instantiate(sizes), { softcap: 0 })).toEqual([]);
});
