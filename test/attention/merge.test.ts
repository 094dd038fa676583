/** Merging attention over parts of the keys, against its oracle and against attention over all keys. */
import {
  attention,
  attentionBackward,
  type FloatDType,
  mergeStates,
  mergeStatesBackward,
  type Shape,
  type Tensor,
} from 'flashattn';
import { describe, expect, it } from 'vitest';
import { instantiate } from '../../verify/cases/case.js';
import { widen } from '../../verify/cases/library.js';
import type { CaseDType } from '../../verify/cases/views.js';
import { make } from '../../verify/cases/views.js';
import { DTYPES } from '../../verify/device/grid.js';
import { count, FORMS, type Form, mergeCheck, randomStates } from '../../verify/device/merging.js';
import type { ForwardResult } from '../../verify/oracle/attention.js';
import { GRADIENT_TOLERANCE, magnitude, maxError, OUTPUT_TOLERANCE } from '../../verify/oracle/compare.js';
import { mergeForward } from '../../verify/oracle/merge.js';
import { normal } from '../../verify/oracle/random.js';
import { testDevice } from '../support/device.js';

interface Upload {
  readonly out: Tensor;
  readonly lse: Tensor<'float32'>;
}

function upload(form: Form, dtype: CaseDType, state: ForwardResult): Upload {
  return { out: make(state.out, form.out, dtype), lse: make(state.lse, form.lse, 'float32') as Tensor<'float32'> };
}

describe.each(FORMS)('$name', (form) => {
  const { options } = form;

  it.each(DTYPES)('merges and differentiates %s', async (dtype) => {
    for (const parts of [1, 2, 3, 16]) await mergeCheck(form, parts, dtype).run(testDevice);
  });

  it('of empty states alone is empty and has no gradient', () => {
    const empty = { out: new Float64Array(count(form.out)), lse: new Float64Array(count(form.lse)).fill(-Infinity) };
    const states = [empty, empty].map((state) => upload(form, 'float32', state));
    const merged = mergeStates(states, options);
    expect(widen(merged.out).every((x) => x === 0)).toBe(true);
    expect(widen(merged.lse).every((x) => x === -Infinity)).toBe(true);
    const dOut = make(normal(count(form.out), 3).map(Math.fround), form.out, 'float32');
    for (const gradient of mergeStatesBackward<FloatDType, Shape>(dOut, { states, ...merged }, options)) {
      expect(widen(gradient.dOut).every((x) => x === 0)).toBe(true);
      expect(widen(gradient.dLse).every((x) => x === 0)).toBe(true);
    }
  });

  it('is bit-equal on repeats', () => {
    const states = randomStates(form, 5, 'float32', 9).map((state) => upload(form, 'float32', state));
    const [first, second] = [mergeStates(states, options), mergeStates(states, options)];
    expect(second.out.dataSync()).toEqual(first.out.dataSync());
    expect(second.lse.dataSync()).toEqual(first.lse.dataSync());
  });
});

describe('attention in parts', () => {
  // Cuts of the keys, some of them inside of tiles, one part without keys for any row.
  const cuts = [0, 5, 64, 64, 97, 150];

  it.each(['bshd', 'bhsd'] as const)('equals attention over all keys, with gradients: %s', (layout) => {
    const {
      problem: p,
      dOut,
      dLse,
    } = instantiate({
      seed: 12,
      layout,
      batch: 2,
      queryLength: 41,
      keyLength: 150,
      kvHeads: 2,
      group: 2,
      headDim: 24,
      dLse: true,
    });
    const seqAxis = layout === 'bshd' ? 1 : 2;
    const shape = (length: number, count_: number): number[] =>
      layout === 'bshd' ? [2, length, count_, 24] : [2, count_, length, 24];
    const tensorOf = (values: Float64Array, length: number, count_: number): Tensor<'float32'> =>
      make(values, shape(length, count_), 'float32') as Tensor<'float32'>;
    const q = tensorOf(p.query, 41, 4);
    const [k, v] = [tensorOf(p.key, 150, 2), tensorOf(p.value, 150, 2)];
    const g = tensorOf(dOut, 41, 4);
    const gLse = make(dLse ?? new Float64Array(0), [2, 4, 41], 'float32') as Tensor<'float32'>;

    const whole = attention(q, k, v, { layout });
    const expected = attentionBackward(g, { q, k, v, ...whole }, { layout, dLse: gLse });

    const parts = cuts.slice(1).map((end, n) => {
      const part = (t: Tensor<'float32'>): Tensor<'float32'> => t.slice(seqAxis, cuts[n] ?? 0, end);
      return { k: part(k), v: part(v) };
    });
    const states = parts.map((part) => attention(q, part.k, part.v, { layout }));
    const merged = mergeStates(states, { layout });
    expect(maxError(widen(merged.out), widen(whole.out))).toBeLessThan(OUTPUT_TOLERANCE);
    expect(maxError(widen(merged.lse), widen(whole.lse))).toBeLessThan(OUTPUT_TOLERANCE * magnitude(widen(whole.lse)));

    // Two ways to the gradients: through the gradients of the states, and with the merged result as the saved one.
    const stateGradients = mergeStatesBackward(g, { states, ...merged }, { layout, dLse: gLse });
    const dq = [new Float64Array(q.size), new Float64Array(q.size)] as const;
    parts.forEach((part, n) => {
      const state = { q, ...part, ...states[n]! };
      const through = attentionBackward(stateGradients[n]!.dOut, state, { layout, dLse: stateGradients[n]!.dLse });
      const direct = attentionBackward(g, { q, ...part, ...merged }, { layout, dLse: gLse });
      for (const [way, found] of [through, direct].entries()) {
        widen(found.dq).forEach((x, at) => {
          const sum = dq[way]!;
          sum[at] = (sum[at] ?? 0) + x;
        });
        for (const name of ['dk', 'dv'] as const) {
          const reference = widen(expected[name].slice(seqAxis, cuts[n] ?? 0, cuts[n + 1] ?? 0));
          expect(maxError(widen(found[name]), reference), name).toBeLessThan(GRADIENT_TOLERANCE * magnitude(reference));
        }
      }
    });
    const reference = widen(expected.dq);
    for (const sum of dq) expect(maxError(sum, reference)).toBeLessThan(GRADIENT_TOLERANCE * magnitude(reference));
  });

  it('is exact where a part is far below the others', () => {
    const form = FORMS[0]!;
    const [a, b] = randomStates(form, 2, 'float32', 21) as [ForwardResult, ForwardResult];
    const low = { out: b.out, lse: b.lse.map((x) => x - 1e4) };
    const merged = mergeStates(
      [a, low].map((state) => upload(form, 'float32', state)),
      { layout: 'bshd' },
    );
    const expected = mergeForward([a, low], form.rows);
    expect(maxError(widen(merged.out), expected.out)).toBeLessThan(OUTPUT_TOLERANCE * magnitude(expected.out));
    expect(maxError(widen(merged.lse), expected.lse)).toBeLessThan(OUTPUT_TOLERANCE * magnitude(expected.lse));
  });
});
