/** The matrix itself, against its definition in float64. */
import { type AttentionOptions, attention, attentionWeights, masks, memory, type Tensor } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { type Case, instantiate } from '../../verify/cases/case.js';
import { optionsOf, shapeOf, widen } from '../../verify/cases/library.js';
import { make } from '../../verify/cases/views.js';
import { dot } from '../../verify/oracle/attention.js';
import { maxError } from '../../verify/oracle/compare.js';
import { keptElements } from '../../verify/oracle/philox.js';
import {
  alibiSlope,
  broadcastIndex,
  diagonal,
  extent,
  keyRow,
  type Problem,
  queryRow,
  relativeIndex,
  scaleOf,
  visible,
} from '../../verify/oracle/problem.js';
import { testDevice } from '../support/device.js';
import { CASES } from '../support/references.js';

function expected(p: Problem): Record<'logits' | 'masked' | 'probabilities', Float64Array> {
  const size = p.batch * p.queryHeads * p.queryLength * p.keyLength;
  const logits = new Float64Array(size).fill(-Infinity);
  const masked = logits.slice();
  const probabilities = new Float64Array(size);
  for (let b = 0; b < p.batch; b++)
    for (let h = 0; h < p.queryHeads; h++)
      for (let i = 0; i < extent(p, b).queryLength; i++) {
        const { keyLength } = extent(p, b);
        const row = ((b * p.queryHeads + h) * p.queryLength + i) * p.keyLength;
        for (let j = 0; j < keyLength; j++) {
          let s = scaleOf(p) * dot(p.query, queryRow(p, b, h, i), p.key, keyRow(p, b, h, j), p.headDim);
          if (p.softcap) s = p.softcap * Math.tanh(s / p.softcap);
          if (p.bias) s += p.bias.values[broadcastIndex(p.bias, b, h, i, j)] as number;
          if (p.relative) s += p.relative.table[relativeIndex(p, p.relative, h, i, j)] as number;
          if (p.alibi) s -= alibiSlope(p, b, h) * Math.abs(diagonal(p, b, i) - j);
          if (p.scoreMod) s = p.scoreMod.value(s, b, h, i, j);
          logits[row + j] = s;
          if (visible(p, b, h, i, j)) masked[row + j] = s;
        }
        const sink = p.sink ? Math.exp(p.sink[h] as number) : 0;
        const seen = masked.subarray(row, row + keyLength).map(Math.exp);
        const sum = seen.reduce((a, e) => a + e, sink);
        const kept = p.dropout && keptElements(p.dropout, b * p.queryHeads + h, i, keyLength);
        seen.forEach((e, j) => {
          const factor = kept && p.dropout ? (kept[j] ? 1 / (1 - p.dropout.p) : 0) : 1;
          if (e > 0) probabilities[row + j] = (factor * e) / sum;
        });
      }
  return { logits, masked, probabilities };
}

function check(c: Case, options?: AttentionOptions): void {
  const { problem: p } = instantiate(c);
  const q = make(p.query, shapeOf(p, 'query'), 'float32');
  const k = make(p.key, shapeOf(p, 'key'), 'float32');
  const weights = attentionWeights(q, k, (options ?? optionsOf(p, 'float32', (t) => t)) as object);
  for (const [name, values] of Object.entries(expected(p))) {
    const found = weights[name as 'logits'];
    expect(found.shape).toEqual([p.batch, p.queryHeads, p.queryLength, p.keyLength]);
    expect(maxError(widen(found), values), name).toBeLessThan(2e-5);
  }
}

const dense = Object.entries(CASES as Record<string, Case>).filter(([, { layout }]) => layout !== 'varlen');

describe('attentionWeights', () => {
  it.each(dense)('%s', (_, c) => check(c));

  it('has more keys than a head can have dims', () =>
    check({ ...CASES.causal, batch: 1, queryLength: 3, keyLength: 300 }));

  it('gives what out is made of, masks and dtypes included, and leaves nothing behind', () => {
    const { problem: p } = instantiate({ ...CASES.causal, queryLength: 9, keyLength: 70, dtype: 'bfloat16' });
    const of = (values: Float64Array, side: 'query' | 'key' | 'value') => make(values, shapeOf(p, side), 'bfloat16');
    const [q, k, v] = [of(p.query, 'query'), of(p.key, 'key'), of(p.value, 'value')];
    const options = { mask: masks.or(masks.slidingWindow(3, 3), masks.prefix(2)), causal: true };
    const before = memory(testDevice).tensors;
    const { logits, masked, probabilities } = attentionWeights(q, k, options as object);
    const out = widen(attention(q as Tensor<'bfloat16'>, k as never, v as never, options as object).out);
    const [weights, hidden] = [widen(probabilities), widen(masked)];
    expect(memory(testDevice).tensors).toBe(before + 3 + 2);
    for (let b = 0; b < p.batch; b++)
      for (let h = 0; h < p.queryHeads; h++)
        for (let i = 0; i < 9; i++)
          for (let d = 0; d < p.valueDim; d++) {
            let sum = 0;
            for (let j = 0; j < 70; j++) {
              const at = ((b * p.queryHeads + h) * 9 + i) * 70 + j;
              expect(weights[at] === 0).toBe(hidden[at] === Number.NEGATIVE_INFINITY);
              sum += (weights[at] as number) * (p.value[keyRow(p, b, h, j) * p.valueDim + d] as number);
            }
            expect(Math.abs(sum - (out[queryRow(p, b, h, i) * p.valueDim + d] as number))).toBeLessThan(0.03);
          }
    expect(widen(logits).every(Number.isFinite)).toBe(true);
  });

  it('takes no packed sequences', () => {
    const { problem: p } = instantiate(CASES.packed);
    const q = make(p.query, shapeOf(p, 'query'), 'float32');
    const k = make(p.key, shapeOf(p, 'key'), 'float32');
    expect(() => attentionWeights(q, k, optionsOf(p, 'float32', (t) => t) as object)).toThrow('slice it');
  });
});
