/** Numbers at the ends of the range of float32, in every input. */
import { attention, attentionBackward, tensor } from 'flashattn';
import { describe, expect, it } from 'vitest';
import { float32Failures } from '../../verify/cases/check.js';
import { extremes } from '../../verify/cases/extremes.js';
import { runLibrary } from '../../verify/cases/library.js';
import { testDevice } from '../support/device.js';

const device = testDevice;

describe('extremes of the range of float32', () => {
  it.each(extremes().map(({ name, problem }) => [name, problem] as const))('%s', (_, instance) => {
    // So that gradients through large values fit in float32.
    const small = { ...instance, dOut: instance.dOut.map((x) => Math.fround(x * 1e-4)) };
    expect(float32Failures(small, runLibrary(small))).toEqual([]);
  });

  it.each(['float16', 'bfloat16'] as const)('the lowest %s in a bias hides nothing', (dtype) => {
    const lowest = dtype === 'float16' ? -65504 : -3.3895313892515355e38;
    const rows = (values: number[]) => tensor(values, [1, values.length, 1, 1], { dtype, device });
    const [q, k, v] = [rows([1]), rows([0, 0, 0, 0]), rows([1, 2, 3, 6])] as const;
    const bias = tensor(new Array(4).fill(lowest), [1, 1, 1, 4], { dtype, device });
    const { out, lse } = attention(q, k, v, { bias });
    expect([...out.toFloat32Sync()]).toEqual([3]);
    expect(lse.dataSync()[0]).toBeCloseTo(lowest + Math.log(4), 2);
    const { dv } = attentionBackward(rows([8]), { q, k, v, out, lse }, { bias });
    expect([...dv.toFloat32Sync()]).toEqual([2, 2, 2, 2]);
  });

  it('is infinite where q.k is, and then as any arithmetic has it', () => {
    const rows = (values: number[]) => tensor(values, [1, values.length, 1, 1], { device });
    const q = rows([3e38]);
    const v = rows([1, 2]);
    const hidden = attention(q, rows([-3e38, 1e-38]), v, { scale: 1 });
    expect(hidden.out.dataSync()[0]).toBe(2);
    expect(attention(q, rows([3e38, 1e-38]), v, { scale: 1 }).out.dataSync()[0]).toBeNaN();
  });
});
