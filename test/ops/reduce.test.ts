/** Sums, means, extremes, variances and log-sum-exps against float64, on every device. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import * as fa from '../../lib/index.js';
import { type FloatDType, memory, parameter, type Tensor, tensor, zeros } from '../../lib/index.js';
import { ulp32 } from '../../verify/oracle/elementwise.js';
import { uniform } from '../../verify/oracle/random.js';
import { groups, type ReductionName, reducedShape, reductions, variance } from '../../verify/oracle/reduce.js';
import { codeOf } from '../support/codeOf.js';
import { devicesWith } from '../support/devices.js';
import { unit } from '../support/numbers.js';
import { build, formArbitrary, shapeArbitrary } from './arrays.js';

const names = Object.keys(reductions) as ReductionName[];
const { sum, mean, max, min, logSumExp } = fa;
const called = { sum, mean, max, min, logSumExp, variance: fa.variance };

/** What float32 may change: a compensated sum is right to two units of the sum of the magnitudes, however many they are. */
function bound(name: ReductionName | 'variance', values: readonly number[], wanted: number): number {
  const size = values.reduce((sum, x) => sum + Math.abs(x), 0);
  if (name === 'max' || name === 'min') return 0;
  if (name === 'sum') return ulp32(wanted) + 2 ** -23 * size; // Kahan's bound
  if (name === 'mean') return 2 * ulp32(wanted) + (2 ** -23 * size) / Math.max(1, values.length);
  if (name === 'variance') return 8 * ulp32(wanted);
  return 4 * ulp32(wanted) + 2 ** -21;
}

function expectResult(
  got: Tensor,
  wanted: readonly number[],
  lists: readonly number[][],
  name: ReductionName | 'variance',
) {
  const values = got.toFloat32Sync();
  expect(values.length).toBe(wanted.length);
  for (const [at, want] of wanted.entries()) {
    const is = values[at] as number;
    const half = got.dtype === 'float32' || !Number.isFinite(want) ? 0 : unit(want, got.dtype) / 2;
    const near = Math.abs(is - want) <= bound(name, lists[at] as number[], want) + half;
    if (!near && !Object.is(is, Math.fround(want))) throw new Error(`${name}: element ${at} is ${is}, not ${want}`);
  }
}

const reductionCase = fc.record({
  shape: shapeArbitrary,
  form: formArbitrary(['float32', 'float32', 'float16', 'bfloat16']),
  named: fc.array(fc.nat(1), { minLength: 6, maxLength: 6 }),
  fromEnd: fc.boolean(),
  all: fc.boolean(),
  keepDims: fc.boolean(),
  name: fc.constantFrom(...names, 'variance' as const),
  correction: fc.constantFrom(0, 1),
});

const axesOf = ({
  shape,
  named,
  fromEnd,
  all,
}: {
  shape: readonly number[];
  named: number[];
  fromEnd: boolean;
  all: boolean;
}) =>
  all
    ? undefined
    : [...shape.keys()].filter((axis) => named[axis]).map((axis) => (fromEnd ? axis - shape.length : axis));

describe.each(devicesWith('elementwise', 'reduce'))('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('reductions'), () => {
    it('are those of float64 for all shapes, strides, dtypes and axes', () => {
      fc.assert(
        fc.property(reductionCase, (c) => {
          const axes = axesOf(c);
          const made = build(c.shape, c.form, device);
          const x = made.t as Tensor;
          const array = { shape: c.shape, data: made.data };
          const lists = groups(array, axes);
          const { name, keepDims } = c;
          const before = memory(device).tensors;
          const isExtreme = name === 'max' || name === 'min';
          if (isExtreme && (axes ?? [...c.shape.keys()]).some((axis) => c.shape.at(axis) === 0)) {
            expect(codeOf(() => called[name](x, axes, { keepDims }))).toBe('ERR_SHAPE');
          } else {
            const result =
              name === 'variance'
                ? fa.variance(x, axes, { keepDims, correction: c.correction })
                : called[name](x, axes, { keepDims });
            const f =
              name === 'variance' ? (list: readonly number[]) => variance(list, c.correction) : reductions[name];
            expect(result.shape).toEqual(reducedShape(c.shape, axes, keepDims));
            expect(result.dtype).toBe(c.form.dtype);
            expectResult(result as Tensor, lists.map(f), lists, name);
            result.dispose();
          }
          expect(memory(device).tensors).toBe(before);
          made.dispose();
        }),
        { numRuns: runs(400) },
      );
    });

    it.each(names)('%s is as exact over long axes, along every axis, and the same bits each time', (name) => {
      const shape = [3, runs(4096 * 2 + 5), 5];
      const next = uniform(7);
      const data = Float32Array.from({ length: shape.reduce((x, n) => x * n, 1) }, () => next() * 2 - 0.5);
      using x = tensor(data, shape, { device });
      for (const axes of [[1], [0, 1], [1, 2], [0, 1, 2], [2], [0]]) {
        const lists = groups({ shape, data }, axes);
        using result = called[name](x, axes);
        expectResult(result, lists.map(reductions[name]), lists, name);
        using again = called[name](x, axes);
        expect(again.dataSync()).toEqual(result.dataSync());
        using turned = x.permute([2, 1, 0]);
        using other = called[name](
          turned,
          axes.map((axis) => 2 - axis),
        );
        using back = axes.length === 1 ? other.transpose(0, 1) : other.reshape(result.shape);
        expectResult(back as Tensor, lists.map(reductions[name]), lists, name);
      }
    });

    it('sums keep what float32 cuts off', () => {
      const n = 10001;
      using x = tensor(
        Float32Array.from({ length: n }, (_, i) => (i === 0 ? 2 ** 24 : 1)),
        [n],
        { device },
      );
      using total = fa.sum(x);
      expect(total.toFloat32Sync()[0]).toBe(2 ** 24 + n - 1);
      using halves = tensor(new Float32Array(70000).fill(1), [70000], { dtype: 'float16', device });
      using mean = fa.mean(halves as Tensor);
      expect(mean.toFloat32Sync()[0]).toBe(1);
      using sum = fa.sum(halves as Tensor);
      expect(sum.toFloat32Sync()[0]).toBe(Infinity); // float16 ends at 65504
    });

    it('let NaN and Infinity through, to the results that they belong to', () => {
      const rows: [number[], Partial<Record<ReductionName, number>>][] = [
        [[1, NaN, 3], { sum: NaN, mean: NaN, max: NaN, min: NaN, logSumExp: NaN }],
        [[NaN, 1, Infinity], { sum: NaN, mean: NaN, max: NaN, min: NaN, logSumExp: NaN }],
        [[1, Infinity, 3], { sum: Infinity, mean: Infinity, max: Infinity, min: 1, logSumExp: Infinity }],
        [[-Infinity, Infinity, 0], { sum: NaN, mean: NaN, max: Infinity, min: -Infinity, logSumExp: Infinity }],
        [[-Infinity, 5, 5], { sum: -Infinity, max: 5, min: -Infinity, logSumExp: 5 + Math.log(2) }],
        [[-Infinity, -Infinity, -Infinity], { sum: -Infinity, max: -Infinity, logSumExp: -Infinity }],
        [[3e38, 3e38, 1], { sum: Infinity, mean: Infinity, max: Math.fround(3e38), min: 1 }],
        [[-3e38, -3e38, 1e38], { sum: -Infinity, max: Math.fround(1e38) }],
        [[1000, 1000, 1000], { logSumExp: 1000 + Math.log(3) }],
        [[-1000, -1001, -1e30], { logSumExp: -1000 + Math.log1p(Math.exp(-1)) }],
        [[2 ** -149, 2 ** -149, 2 ** -149], { sum: 3 * 2 ** -149, max: 2 ** -149 }],
      ];
      const data = rows.flatMap(([row]) => row);
      using x = tensor(new Float32Array(data), [rows.length, 3], { device });
      using columns = tensor(
        new Float32Array([0, 1, 2].flatMap((j) => rows.map(([row]) => row[j] as number))),
        [3, rows.length],
        { device },
      );
      for (const name of names) {
        using byRow = called[name](x, 1);
        using byColumn = called[name](columns, 0);
        for (const result of [byRow, byColumn])
          for (const [i, [row, wanted]] of rows.entries()) {
            const want = wanted[name];
            if (want === undefined) continue;
            const got = result.toFloat32Sync()[i] as number;
            const text = `${name}(${row}) is ${got}`;
            if (Number.isFinite(want)) expect(Math.abs(got - want), text).toBeLessThanOrEqual(Math.abs(want) * 2e-7);
            else expect(got, text).toBe(want);
          }
      }
    });

    it('of nothing are what they are of nothing', () => {
      using x = zeros([2, 0, 3], { device });
      const at = (t: Tensor) => [...t.toFloat32Sync()];
      using total = fa.sum(x, 1);
      expect(at(total)).toEqual([0, 0, 0, 0, 0, 0]);
      using mean = fa.mean(x, 1);
      expect(at(mean)).toEqual(new Array(6).fill(NaN));
      using logs = fa.logSumExp(x, 1);
      expect(at(logs)).toEqual(new Array(6).fill(-Infinity));
      using spread = fa.variance(x, 1);
      expect(at(spread)).toEqual(new Array(6).fill(NaN));
      using none = fa.max(x, 0);
      expect(none.shape).toEqual([0, 3]);
      using one = tensor([4], [1], { device });
      using single = fa.variance(one);
      expect(at(single)).toEqual([NaN]);
      using biased = fa.variance(one, 0, { correction: 0 });
      expect(at(biased)).toEqual([0]);
      using copy = fa.sum(one, []);
      expect(at(copy)).toEqual([4]);
    });

    it('take arrays whose axes no launch walks', () => {
      const shape = [2, 3, 2, 3, 2, 3, 2, 2];
      const data = Float32Array.from({ length: 864 }, (_, i) => Math.sin(i));
      using x = tensor(data, shape, { device });
      using turned = x.permute([7, 1, 5, 3, 4, 2, 6, 0]);
      using some = turned.slice(3, 0, 3, 2);
      const before = memory(device);
      for (const axes of [
        [0, 2, 4, 6],
        [1, 3, 5, 7],
      ]) {
        const lists = groups({ shape: some.shape, data: some.toFloat32Sync() }, axes);
        using result = fa.sum(some, axes);
        expectResult(result, lists.map(reductions.sum), lists, 'sum');
      }
      expect(memory(device).tensors).toBe(before.tensors);
      expect(memory(device).bytesInUse).toBe(before.bytesInUse);
    });

    it('have the gradients of calculus', () => {
      const shape = [3, 4, 5];
      const next = uniform(3);
      const data = Float32Array.from({ length: 60 }, () => next() * 4 - 2);
      const cases = [...names, 'variance' as const].flatMap((name) =>
        [[1], [0, 2], [0, 1, 2], []].flatMap((axes) => [true, false].map((keepDims) => ({ name, axes, keepDims }))),
      );
      for (const { name, axes, keepDims } of cases) {
        if (name === 'variance' && axes.length === 0) continue;
        using x = parameter(tensor(data, shape, { device }) as Tensor);
        using y = (called[name] as typeof fa.sum)(x, axes, { keepDims });
        using g = tensor(
          Float32Array.from({ length: y.size }, (_, i) => Math.cos(i)),
          y.shape,
          { device },
        ) as Tensor;
        y.backward(g);
        const lists = groups({ shape, data }, axes);
        const places = groups({ shape, data: data.map((_, i) => i) }, axes);
        const wanted = new Float64Array(60);
        for (const [at, list] of lists.entries())
          for (const [k, value] of list.entries()) {
            const others = { sum: 1, mean: 1 / list.length } as Partial<Record<string, number>>;
            const mean = list.reduce((sum, each) => sum + each, 0) / list.length;
            others.max = value === Math.max(...list) ? 1 : 0;
            others.min = value === Math.min(...list) ? 1 : 0;
            others.logSumExp = Math.exp(value - reductions.logSumExp(list));
            others.variance = (2 * (value - mean)) / (list.length - 1);
            wanted[places[at]?.[k] as number] = Math.cos(at) * (others[name] as number);
          }
        const got = x.grad?.toFloat32Sync() as Float32Array;
        for (const [at, want] of wanted.entries()) expect(Math.abs((got[at] as number) - want)).toBeLessThan(2e-6);
      }
    });

    it('share the gradient of an extreme, and give hidden rows none', () => {
      using x = parameter(tensor([3, 1, 3, 2, 2, 2], [2, 3], { device }) as Tensor);
      using most = fa.max(x, 1);
      using total = fa.sum(most);
      total.backward();
      const third = Math.fround(1 / 3);
      expect([...(x.grad?.toFloat32Sync() ?? [])]).toEqual([0.5, 0, 0.5, third, third, third]);
      using hidden = parameter(tensor([-Infinity, -Infinity, -Infinity, 0], [2, 2], { device }) as Tensor);
      using logs = fa.logSumExp(hidden, 1);
      logs.backward(fa.fused((y) => y.mul(0).equal(0).where(y, y).mul(0).add(1))(zeros([2], { device })));
      expect([...(hidden.grad?.toFloat32Sync() ?? [])]).toEqual([0, 0, 0, 1]);
    });

    it('weigh the gradient of logSumExp in float32 also for shorter dtypes', () => {
      const values = [10.25, 9.5, 8, 3];
      for (const dtype of ['bfloat16', 'float16'] as FloatDType[]) {
        using x = parameter(tensor(values, [4], { dtype, device }) as Tensor);
        using y = fa.logSumExp(x);
        expect(y.dtype).toBe(dtype);
        y.backward();
        const exact = reductions.logSumExp(values);
        for (const [i, got] of (x.grad?.toFloat32Sync() ?? []).entries()) {
          const wanted = Math.exp((values[i] as number) - exact);
          expect(Math.abs(got - wanted)).toBeLessThanOrEqual(unit(wanted, dtype) * 0.51);
        }
      }
    });

    it('say what does not fit', () => {
      using x = zeros([2, 3], { device });
      using ids = zeros([2], { dtype: 'int32', device });
      using flags = zeros([2], { dtype: 'bool', device });
      const before = memory(device).tensors;
      expect(() => fa.sum(x, 2)).toThrow('axis 2 must lie within [-2, 2) for [2, 3]');
      expect(() => fa.mean(x, [0, -2])).toThrow('axes is [0, -2]; axis 0 of [2, 3] is named twice');
      expect(codeOf(() => fa.sum(x, 0.5))).toBe('ERR_SHAPE');
      expect(codeOf(() => fa.sum(x, '0' as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.sum(x, null as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.sum(ids as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => fa.max(flags as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => fa.sum(x, 0, { keepDims: 1 as never }))).toBe('ERR_OPTION');
      expect(() => fa.sum(x, 0, { keepdims: true } as never)).toThrow('did you mean "keepDims"?');
      expect(codeOf(() => fa.sum(x, 0, { correction: 1 } as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.variance(x, 0, { correction: NaN }))).toBe('ERR_OPTION');
      using empty = zeros([2, 0], { device });
      expect(() => fa.max(empty, 1)).toThrow('x has shape [2, 0]; max over axes without elements has no value');
      const gone = zeros([2], { device });
      gone.dispose();
      for (const name of names) expect(codeOf(() => called[name](gone))).toBe('ERR_DISPOSED');
      expect(codeOf(() => fa.variance(gone))).toBe('ERR_DISPOSED');
      expect(memory(device).tensors).toBe(before + 1);
    });
  });
});
