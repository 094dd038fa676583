/** What operations by index record: gradients find their way through them, against float64. */
import { describe, expect, it } from 'vitest';
import {
  crossEntropy,
  cumsum,
  embedding,
  parameter,
  scatterAdd,
  sort,
  type Tensor,
  takeAlongAxis,
  tensor,
  topK,
  zeros,
} from '../../lib/index.js';
import { crossEntropy as lossOracle } from '../../verify/oracle/crossEntropy.js';
import { addRows, takeRows } from '../../verify/oracle/embedding.js';
import { addAlong, cumulativeSum, sortIndices, takeAlong } from '../../verify/oracle/lines.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';

function numbers(count: number, seed: number): Float32Array {
  let random = seed * 2654435761;
  return Float32Array.from({ length: count }, () => {
    random = (Math.imul(random, 1664525) + 1013904223) >>> 0;
    return Math.floor((random / 2 ** 32) * 64 - 32) / 16;
  });
}

function expectNear(got: Tensor | undefined, wanted: ArrayLike<number>): void {
  const data = got?.toFloat32Sync() ?? [];
  expect(data.length).toBe(wanted.length);
  for (let at = 0; at < wanted.length; at++) expect(data[at]).toBeCloseTo(wanted[at] as number, 5);
}

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('gradients by index'), () => {
    it.each([
      ['beside the logits', false],
      ['in the place of logits that nobody has any more', true],
    ])('of a loss reach the rows of a table, %s', (_, isDisposed) => {
      const [rows, classes] = [7, 9];
      const values = numbers(rows * classes, 1);
      const table = parameter(tensor(values, [rows, classes], { device }));
      const [ids, targets] = [
        [0, 3, 3, 6, 1, 3],
        [1, 8, 0, -100, 2, 5],
      ] as const;
      const logits = embedding(table, tensor(ids, [6], { dtype: 'int32', device }));
      const t = tensor(targets, [6], { dtype: 'int32', device });
      const options = { labelSmoothing: 0.1, zLoss: 0.01 };
      const loss = crossEntropy(logits, t, options);
      const before = logits.toFloat32Sync().slice();
      if (isDisposed) logits.dispose();
      loss.backward(tensor([2], [], { device }));
      if (!isDisposed) expect(logits.toFloat32Sync()).toEqual(before);
      const exact = lossOracle(takeRows(values, classes, ids), classes, targets, { ...options, ignoreIndex: -100 });
      const gradients = exact.gradients.map((g) => (2 * g) / exact.count);
      expectNear(table.grad, addRows(rows, classes, ids, gradients));
    });

    it('of rows that were added up are taken', () => {
      const source = parameter(tensor(numbers(12, 2), [4, 3], { device }));
      const ids = [1, 0, 1, 1];
      const gradient = numbers(6, 3);
      const out = scatterAdd(2, tensor(ids, [4], { dtype: 'int32', device }), source);
      out.backward(tensor(gradient, [2, 3], { device }));
      expectNear(source.grad, takeRows(gradient, 3, ids));
      const target = zeros([2, 3], { device });
      expect(codeOf(() => scatterAdd(target, tensor(ids, [4], { dtype: 'int32', device }), source))).toBe(
        'ERR_AUTOGRAD',
      );
    });

    it('go to the places that were taken, and along sums to all before them', () => {
      const shape = [3, 5, 2];
      const data = numbers(30, 4);
      for (const axis of [0, 1, 2]) {
        const length = shape[axis] as number;
        const x = () => parameter(tensor(data, shape, { device }));
        const kept = shape.map((n, at) => (at === axis ? 2 : n));
        const size = (60 / length) | 0;
        const gradient = numbers(size, 5);
        const dOut = tensor(gradient, kept, { device });
        const order = sortIndices(data, shape, axis, 2, true);

        const best = x();
        topK(best, 2, axis).values.backward(dOut);
        expectNear(best.grad, addAlong(gradient, shape, axis, order, 2));

        const picked = x();
        const places = tensor(order, kept, { dtype: 'int32', device });
        const taken = takeAlongAxis(picked, places, axis);
        expectNear(taken, takeAlong(data, shape, axis, order, 2));
        taken.backward(dOut);
        expectNear(picked.grad, addAlong(gradient, shape, axis, order, 2));

        const whole = numbers(30, 6);
        const dWhole = tensor(whole, shape, { device });
        const sorted = x();
        sort(sorted, axis).values.backward(dWhole);
        expectNear(sorted.grad, addAlong(whole, shape, axis, sortIndices(data, shape, axis, length, false), length));

        const summed = x();
        cumsum(summed, axis).backward(dWhole);
        expectNear(summed.grad, cumulativeSum(whole, shape, axis, true));
      }
    });
  });
});
