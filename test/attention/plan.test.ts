/** A plan computes what attention computes, into the same memory every time. */
import { attention, attentionBackward, type FloatDType, memory, plan, Tensor } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { type Case, instantiate } from '../../verify/cases/case.js';
import { lseShape, optionsOf, shapeOf } from '../../verify/cases/library.js';
import { make } from '../../verify/cases/views.js';
import { testDevice } from '../support/device.js';
import { CASES } from '../support/references.js';

/** A problem and its tensors, of a dtype that only the run knows. */
function problemOf(c: Case, dtype: FloatDType) {
  const { problem: p, dOut, dLse } = instantiate({ ...c, dtype });
  const options = optionsOf(p, dtype, (t) => t);
  const q = make(p.query, shapeOf(p, 'query'), dtype);
  const k = make(p.key, shapeOf(p, 'key'), dtype);
  const v = make(p.value, shapeOf(p, 'value'), dtype);
  const g = make(dOut, shapeOf(p, 'out'), dtype);
  const gLse = dLse && (make(dLse, lseShape(p), 'float32') as Tensor<'float32'>);
  const problem = { q: q.shape, k: k.shape, v: v.shape, dtype, device: testDevice, ...options };
  return { problem, options, q, k, v, g, gLse };
}

const dataOf = (results: object): unknown[] =>
  Object.entries(results).flatMap(([name, t]) => (t instanceof Tensor ? [[name, t.dataSync()]] : []));

describe('plan', () => {
  it.each(Object.entries(CASES))('%s: bit-equal to attention', (_, c) => {
    for (const dtype of ['float32', 'bfloat16'] as const) {
      const { problem, options, q, k, v, g, gLse } = problemOf(c, dtype);
      const result = attention(q, k, v, options);
      const gradients = attentionBackward(g, { q, k, v, ...result }, { ...options, ...(gLse && { dLse: gLse }) });
      using planned = plan<FloatDType>({ ...problem, backward: true });
      // Twice: the second run finds the memory of the first.
      for (let run = 0; run < 2; run++) {
        expect(dataOf(planned.run(q, k, v))).toEqual(dataOf(result));
        expect(dataOf(planned.runBackward(g, gLse))).toEqual(dataOf(gradients));
      }
    }
  });

  it('returns the same tensors and allocates nothing when it runs', () => {
    const { problem, q, k, v, g, gLse } = problemOf(CASES['dense, with everything'], 'float32');
    using planned = plan<FloatDType>({ ...problem, backward: true });
    const [first, firstGradients] = [planned.run(q, k, v), planned.runBackward(g, gLse)];
    const before = memory(testDevice);
    for (let run = 0; run < 20; run++) {
      const [again, gradients] = [planned.run(q, k, v), planned.runBackward(g, gLse)];
      expect(again.out).toBe(first.out);
      expect(gradients.dq).toBe(firstGradients.dq);
    }
    expect(memory(testDevice)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
    expect(memory(testDevice).bytesPeak).toBe(before.bytesPeak);
  });

  it('gives its memory back', () => {
    const { problem } = problemOf(CASES.plain, 'float32');
    const before = memory(testDevice);
    plan<FloatDType>({ ...problem, backward: true }).dispose();
    expect(memory(testDevice)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
  });

  it('sees what is written into its inputs', () => {
    const { problem, q, k, v } = problemOf(CASES.plain, 'float32');
    using planned = plan<FloatDType>(problem);
    const first = planned.run(q, k, v).out.dataSync();
    v.write(Float32Array.from(v.dataSync(), (x) => 2 * x));
    expect(planned.run(q, k, v).out.dataSync()).toEqual(first.map((x) => 2 * x));
  });
});
