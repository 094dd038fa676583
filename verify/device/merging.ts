/** Merging states, with gradients. */
import { mergeStates, mergeStatesBackward, type Tensor } from 'flashattn';
import { roundTo } from '../cases/case.js';
import type { CaseDType } from '../cases/views.js';
import { make } from '../cases/views.js';
import type { ForwardResult } from '../oracle/attention.js';
import { GRADIENT_TOLERANCE, OUTPUT_TOLERANCE } from '../oracle/compare.js';
import { ulp } from '../oracle/float16.js';
import { headMajorRows, mergeBackward, mergeForward, type RowMap, seqMajorRows } from '../oracle/merge.js';
import { normal, uniform } from '../oracle/random.js';
import { type Check, CheckFailure } from './check.js';
import { ensureClose, owning } from './tensors.js';

const [batch, seq, heads, dim] = [2, 37, 3, 19];

/** A layout of states with its shapes. */
export interface Form {
  readonly name: string;
  readonly options: { readonly layout?: 'bshd' | 'bhsd' };
  readonly out: readonly number[];
  readonly lse: readonly number[];
  readonly rows: RowMap;
}

export const FORMS: readonly Form[] = [
  {
    name: 'bshd',
    options: { layout: 'bshd' },
    out: [batch, seq, heads, dim],
    lse: [batch, heads, seq],
    rows: seqMajorRows(heads, seq),
  },
  {
    name: 'bhsd',
    options: { layout: 'bhsd' },
    out: [batch, heads, seq, dim],
    lse: [batch, heads, seq],
    rows: headMajorRows,
  },
  { name: 'packed', options: {}, out: [seq, heads, dim], lse: [heads, seq], rows: seqMajorRows(heads, seq) },
];

export const count = (shape: readonly number[]): number => shape.reduce((a, b) => a * b, 1);

/** States of random rows; a third of the rows of every state is empty, and the last row of all states. */
export function randomStates(form: Form, parts: number, dtype: CaseDType, seed: number): ForwardResult[] {
  const next = uniform(seed);
  return Array.from({ length: parts }, (_, p) => {
    const lse = normal(count(form.lse), seed + 10 + p, 4).map(Math.fround);
    const out = roundTo(normal(count(form.out), seed + 50 + p), dtype);
    lse.forEach((_x, row) => {
      if (next() > 1 / 3 && row !== lse.length - 1) return;
      lse[row] = -Infinity;
      out.fill(0, form.rows(row) * dim, (form.rows(row) + 1) * dim);
    });
    return { out, lse };
  });
}

export const mergeCheck = (form: Form, parts: number, dtype: CaseDType): Check => ({
  name: `merging ${parts} states, ${form.name}, ${dtype}`,
  run: (device) =>
    owning((own) => {
      const rounding = (float32: number) => (dtype === 'float32' ? float32 : ulp(1, dtype));
      const lseTensor = (values: Float64Array) => own(make(values, form.lse, 'float32', device)) as Tensor<'float32'>;
      const states = randomStates(form, parts, dtype, 7 * parts);
      const uploads = states.map(({ out, lse }) => ({
        out: own(make(out, form.out, dtype, device)),
        lse: lseTensor(lse),
      }));
      const { out, lse } = mergeStates(uploads, form.options);
      const saved = { states: uploads, out: own(out), lse: own(lse) };
      const expected = mergeForward(states, form.rows);
      ensureClose('out', out, expected.out, rounding(OUTPUT_TOLERANCE));
      ensureClose('lse', lse, expected.lse, OUTPUT_TOLERANCE);

      const dOut = roundTo(normal(count(form.out), 300), dtype);
      const dOutTensor = own(make(dOut, form.out, dtype, device));
      for (const dLse of [undefined, normal(count(form.lse), 301).map(Math.fround)]) {
        const extras = dLse ? { dLse: lseTensor(dLse) } : {};
        const gradients = mergeStatesBackward(dOutTensor, saved, { ...form.options, ...extras });
        for (const gradient of gradients) {
          own(gradient.dOut);
          own(gradient.dLse);
        }
        for (const [p, reference] of mergeBackward(states, form.rows, dOut, dLse).entries()) {
          const gradient = gradients[p];
          if (!gradient) throw new CheckFailure(`state ${p} has no gradient`);
          ensureClose(`dOut of state ${p}`, gradient.dOut, reference.dOut, rounding(GRADIENT_TOLERANCE));
          // dLse holds dOut . (out_p - out), with an out that was rounded to the dtype.
          ensureClose(`dLse of state ${p}`, gradient.dLse, reference.dLse, 4 * rounding(GRADIENT_TOLERANCE));
        }
      }
    }),
});
