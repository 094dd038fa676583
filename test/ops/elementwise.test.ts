/** Arithmetic on elements against float64, on every device: numbers of every kind, shapes, strides, dtypes, gradients. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import * as fa from '../../lib/index.js';
import { type FloatDType, memory, parameter, type Tensor, tensor, zeros } from '../../lib/index.js';
import { type BinaryName, binary, comparisons, type UnaryName, unary } from '../../verify/oracle/elementwise.js';
import { codeOf } from '../support/codeOf.js';
import { devicesWith } from '../support/devices.js';
import { anyNumbers, rounded, specials, unitsApart, worstOf } from '../support/numbers.js';
import { arrayArbitrary, build, shapesThatBroadcast } from './arrays.js';

const f64 = (name: UnaryName) => unary[name].f as (x: number) => number;
type Call = (x: Tensor) => Tensor;
const functions: Record<UnaryName, Call> = {
  ...(Object.fromEntries(
    Object.keys(unary).map((name) => [name, (fa as unknown as Record<string, Call>)[name]]),
  ) as Record<UnaryName, Call>),
  geluTanh: (x) => fa.gelu(x, { approximate: 'tanh' }),
};
const unaryNames = Object.keys(unary) as UnaryName[];
const binaryNames = Object.keys(binary) as BinaryName[];
const binaryCall = (name: string) => (fa as unknown as Record<string, (a: unknown, b: unknown) => Tensor>)[name];

const { equal, notEqual, less, lessEqual, greater, greaterEqual } = fa;
const compared = { equal, notEqual, less, lessEqual, greater, greaterEqual };

/** Units in the last place of float32. */
const units: Partial<Record<string, number>> = {
  ...{ neg: 0, abs: 0, sign: 0, floor: 0, round: 0, relu: 0, sqrt: 0.5, square: 0.5 },
  ...{ add: 0.5, sub: 0.5, mul: 0.5, div: 0.5, minimum: 0, maximum: 0, pow: 0.51 },
  ...{ exp: 1.5, log: 1.5, rsqrt: 1.5, expm1: 2, sin: 2, cos: 2, tanh: 2, erf: 2, log1p: 3, sigmoid: 3, silu: 4 },
  // The tail of the normal distribution, times x.
  ...{ softplus: 3, gelu: 7 },
};
const isIn: Partial<Record<UnaryName, (x: number) => boolean>> = {
  sin: (x) => Math.abs(x) < 2 ** 30,
  cos: (x) => Math.abs(x) < 2 ** 30,
};

/** 1 + tanh cancels: what is left is as wrong as tanh is of x. A factor that is subnormal is right to half a unit of those. */
const slack: Partial<Record<UnaryName, (x: number) => number>> = {
  silu: (x) => Math.abs(x) * 2 ** -149,
  gelu: (x) => Math.abs(x) * 2 ** -149,
  geluTanh: (x) => Math.abs(x) * 2 ** -22,
};

function expectNear(got: ArrayLike<number>, x: ArrayLike<number>, name: UnaryName, dtype: FloatDType = 'float32') {
  const f = f64(name);
  const extra = slack[name];
  const near = (at: number) => {
    const wanted = f(x[at] as number);
    return extra && Math.abs((got[at] as number) - wanted) <= extra(x[at] as number) ? (got[at] as number) : wanted;
  };
  const worst = worstOf(got, near, dtype);
  const text = `${name}(${x[worst.at]}) is ${got[worst.at]}, not ${f(x[worst.at] as number)}: ${worst.units} units`;
  expect(worst.units, text).toBeLessThanOrEqual(units[name] ?? 4);
}

describe.each(devicesWith('elementwise', 'reduce'))('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('elementwise operations'), () => {
    it.each(unaryNames)('%s is right for numbers of every kind', (name) => {
      const values = anyNumbers(runs(40000), 1).map((x) => ((isIn[name] ?? (() => true))(x) ? x : 1));
      using x = tensor(values, [values.length], { device });
      using result = functions[name](x as Tensor);
      expectNear(result.toFloat32Sync(), values, name);
    });

    it.each(['float16', 'bfloat16'] as const)('every %s number is computed in float32 and rounded once', (dtype) => {
      const step = Math.ceil(65536 / runs(65536));
      const bits = Uint16Array.from({ length: Math.floor(65536 / step) }, (_, i) => i * step);
      using x = tensor(bits, [bits.length], { dtype, device });
      const values = x.toFloat32Sync();
      for (const name of ['neg', 'exp', 'log', 'tanh', 'gelu', 'sigmoid', 'square', 'rsqrt', 'round'] as const) {
        using result = functions[name](x as Tensor);
        expect(result.dtype).toBe(dtype);
        expectNear(result.toFloat32Sync(), values, name, dtype);
      }
    });

    it.each(binaryNames)('%s is right for pairs of every kind', (name) => {
      const pairs = specials.concat(Number.NaN).flatMap((a) => [...specials, Number.NaN].map((b) => [a, b] as const));
      const n = runs(20000);
      const left = new Float32Array([...anyNumbers(n, 2).slice(0, n), ...pairs.map(([a]) => a)]);
      const right = new Float32Array([...anyNumbers(n + 8, 3).slice(8), ...pairs.map(([, b]) => b)]);
      using a = tensor(left, [left.length], { device });
      using b = tensor(right, [right.length], { device });
      using result = binaryCall(name)(a, b);
      const got = result.toFloat32Sync();
      const { f } = binary[name];
      const worst = worstOf(got, (at) => f(left[at] as number, right[at] as number));
      const { at } = worst;
      const wanted = f(left[at] as number, right[at] as number);
      const text = `${name}(${left[at]}, ${right[at]}) is ${got[at]}, not ${wanted}`;
      expect(worst.units, text).toBeLessThanOrEqual(units[name] as number);
    });

    it.each(Object.keys(comparisons) as (keyof typeof comparisons)[])('%s compares as IEEE 754 does', (name) => {
      const all = [...specials, Number.NaN];
      using a = tensor(new Float32Array(all), [all.length, 1], { device });
      using b = tensor(new Float32Array(all), [all.length], { device });
      using result = compared[name](a, b);
      expect(result.dtype).toBe('bool');
      const single = all.map(Math.fround);
      const wanted = single.flatMap((x) => single.map((y) => Number(comparisons[name](x, y))));
      expect([...result.dataSync()]).toEqual(wanted);
      using withNumber = compared[name](a, 1);
      expect([...withNumber.dataSync()]).toEqual(single.map((x) => Number(comparisons[name](x, 1))));
    });

    it('walks all shapes, strides, dtypes and numbers in the place of tensors', () => {
      const operand = fc.record({ array: arrayArbitrary, number: fc.constantFrom(-1.5, 0.25, 3), isNumber: fc.nat(7) });
      fc.assert(
        fc.property(
          shapesThatBroadcast(2),
          fc.tuple(operand, operand),
          fc.constantFrom(...binaryNames),
          ({ shapes, shape }, [first, second], name) => {
            const sides = [first, second].map(({ array, number, isNumber }, i) => {
              const made = build(shapes[i] as number[], array, device);
              return { made, arg: isNumber === 0 && i === 1 ? number : made.t, isNumber: isNumber === 0 && i === 1 };
            });
            const [a, b] = sides as [(typeof sides)[0], (typeof sides)[0]];
            const tensors = sides.filter((side) => !side.isNumber).map(({ made }) => made.t);
            const outShape = b.isNumber ? (shapes[0] as number[]) : shape;
            const floats = tensors.map((t) => t.dtype as string).filter((dtype) => dtype !== 'bool');
            const dtype = (new Set(floats).size === 1 ? floats[0] : 'float32') as FloatDType;
            using result = binaryCall(name)(a.arg, b.arg);
            expect(result.shape).toEqual(outShape);
            expect(result.dtype).toBe(dtype);
            const x = a.made.expanded(outShape);
            const y = b.isNumber ? x.map(() => b.arg as number) : b.made.expanded(outShape);
            const worst = worstOf(
              result.toFloat32Sync(),
              (at) => binary[name].f(x[at] as number, y[at] as number),
              dtype,
            );
            expect(worst.units).toBeLessThanOrEqual(units[name] as number);
            for (const { made } of sides) made.dispose();
          },
        ),
        { numRuns: runs(200) },
      );
    });

    it('chooses with where, among tensors and numbers of every shape and dtype', () => {
      fc.assert(
        fc.property(shapesThatBroadcast(3), fc.array(arrayArbitrary, { minLength: 3, maxLength: 3 }), (s, arrays) => {
          const [c, a, b] = s.shapes.map((shape, i) => build(shape, arrays[i] as never, device)) as [
            ReturnType<typeof build>,
            ReturnType<typeof build>,
            ReturnType<typeof build>,
          ];
          using result = fa.where(c.t as Tensor, a.t as Tensor, b.t as Tensor);
          const [condition, x, y] = [c, a, b].map((each) => each.expanded(s.shape)) as [number[], number[], number[]];
          const wanted = condition.map((is, at) => (is !== 0 ? x[at] : y[at]) as number);
          // bool and a float of another dtype, or two floats that differ: float32.
          const dtype = result.dtype as FloatDType;
          expect([...result.toFloat32Sync()]).toEqual(wanted.map((value) => rounded(value, dtype)));
          for (const each of [a, b, c]) each.dispose();
        }),
        { numRuns: runs(80) },
      );
      using x = tensor([Number.NaN, -0, 2], [3], { device });
      using chosen = fa.where(x as Tensor, 1, Number.POSITIVE_INFINITY);
      expect([...chosen.toFloat32Sync()]).toEqual([1, Infinity, 1]);
    });

    it('clamps, and leaves NaN alone', () => {
      using x = tensor([Number.NaN, -Infinity, -2, -1, 0.5, 1, 3, Infinity], [8], { device });
      using result = fa.clamp(x, -1, 1);
      expect([...result.toFloat32Sync()]).toEqual([Number.NaN, -1, -1, -1, 0.5, 1, 1, 1]);
    });

    it('gives an element the same bits wherever it lies: alone, in a long row, in a column', () => {
      const values = anyNumbers(3 * runs(33000), 4);
      const n = values.length / 3;
      using x = tensor(values, [3, n], { device });
      using turned = x.transpose(0, 1);
      using column = tensor(new Float32Array(0), [0], { device });
      for (const name of ['gelu', 'exp', 'silu', 'sin', 'log1p'] as const) {
        using whole = functions[name](x as Tensor);
        using across = functions[name](turned as Tensor);
        using back = across.transpose(0, 1);
        expect(back.dataSync()).toEqual(whole.dataSync());
        using part = x.slice(1, 7, 30, 3);
        using few = functions[name](part as Tensor);
        using same = whole.slice(1, 7, 30, 3);
        expect(few.dataSync()).toEqual(same.dataSync());
        using none = functions[name](column as Tensor);
        expect(none.shape).toEqual([0]);
      }
    });

    it('walks arrays of more axes than a kernel does', () => {
      const shape = [2, 3, 2, 3, 2, 3, 2];
      const values = Float32Array.from({ length: 432 }, (_, i) => i);
      using x = tensor(values, shape, { device });
      using turned = x.permute([6, 1, 4, 3, 2, 5, 0]);
      using y = fa.add(x, turned);
      const other = turned.toFloat32Sync();
      expect([...y.toFloat32Sync()]).toEqual([...values].map((value, i) => value + (other[i] as number)));
    });

    it.each(unaryNames)('%s has the gradient of calculus', (name) => {
      const { slope } = unary[name];
      const positive = ['log', 'sqrt', 'rsqrt', 'log1p'].includes(name);
      const values = Float32Array.from({ length: 300 }, (_, i) => (positive ? 0.02 : -6) + i * 0.0401);
      const weights = Float32Array.from({ length: 300 }, (_, i) => Math.sin(i));
      using x = parameter(tensor(values, [20, 15], { device }) as Tensor);
      using g = tensor(weights, [20, 15], { device }) as Tensor;
      using y = functions[name](x);
      y.backward(g);
      const got = x.grad?.toFloat32Sync();
      for (const [at, value] of values.entries()) {
        const wanted = (slope as (x: number) => number)(value) * (weights[at] as number);
        const bound = 1e-5 * Math.abs(wanted) + 3e-6 * Math.abs(weights[at] as number);
        expect(Math.abs((got?.[at] ?? 0) - wanted), `${name}'(${value})`).toBeLessThanOrEqual(bound);
      }
    });

    it.each(binaryNames)('%s has the gradients of calculus, summed over what was repeated', (name) => {
      const a = Float32Array.from({ length: 12 }, (_, i) => 0.4 + 0.23 * i);
      const b = Float32Array.from({ length: 4 }, (_, i) => 1.7 - 0.31 * i);
      using x = parameter(tensor(a, [3, 4], { device }) as Tensor);
      using y = parameter(tensor(b, [4], { device }) as Tensor);
      using result = binaryCall(name)(x, y);
      using total = fa.sum(result);
      total.backward();
      const wantedB = new Float64Array(4);
      const gotA = x.grad?.toFloat32Sync() as Float32Array;
      for (const [at, value] of a.entries()) {
        const [left, right] = binary[name].slopes(value, b[at % 4] as number);
        expect(gotA[at]).toBeCloseTo(left, 4);
        (wantedB[at % 4] as number) += right;
      }
      const gotB = y.grad?.toFloat32Sync() as Float32Array;
      for (const [at, wanted] of wantedB.entries())
        expect(Math.abs((gotB[at] as number) - wanted)).toBeLessThanOrEqual(2e-5 * (1 + Math.abs(wanted)));
    });

    it('has the gradients that are agreed on at kinks and edges', () => {
      const gradientAt = (f: (x: Tensor) => Tensor, values: number[]) => {
        using x = parameter(tensor(values, [values.length], { device }) as Tensor);
        using y = f(x);
        using total = fa.sum(y);
        total.backward();
        return [...(x.grad?.toFloat32Sync() ?? [])];
      };
      expect(gradientAt(fa.relu, [-1, -0, 0, 2])).toEqual([0, 0, 0, 1]);
      expect(gradientAt(fa.abs, [-3, 0, 2])).toEqual([-1, 0, 1]);
      expect(gradientAt((x) => fa.maximum(x, 1), [0, 1, 2])).toEqual([0, 0.5, 1]);
      expect(gradientAt((x) => fa.clamp(x, -1, 1), [-2, -1, 0, 1, 2])).toEqual([0, 1, 1, 1, 0]);
      expect(gradientAt((x) => fa.pow(x, 2), [-3, 0, 2])).toEqual([-6, 0, 4]);
      expect(gradientAt((x) => fa.pow(x, 0), [-3, 0, 2])).toEqual([0, 0, 0]);
      expect(gradientAt((x) => fa.pow(0, x), [1, 2])).toEqual([0, 0]);
      expect(gradientAt(fa.sqrt, [0])).toEqual([Infinity]);
      expect(gradientAt(fa.softplus, [0, 200, -200])).toEqual([0.5, 1, 0]);
      // What was not chosen has gradient 0, not NaN.
      expect(gradientAt((x) => fa.where(fa.greater(x, 0), fa.log(x), 0), [-1, 0, 2])).toEqual([-0, NaN, 0.5]);
    });

    it('converts gradients to the dtype of what they are of', () => {
      using x = parameter(tensor([1, 2], [2], { dtype: 'bfloat16', device }) as Tensor);
      using y = parameter(tensor([3, 4], [2, 1], { dtype: 'float16', device }) as Tensor);
      using z = fa.mul(x, y);
      expect(z.dtype).toBe('float32');
      using total = fa.sum(z);
      total.backward();
      expect([x.grad?.dtype, y.grad?.dtype]).toEqual(['bfloat16', 'float16']);
      expect([...(x.grad?.toFloat32Sync() ?? []), ...(y.grad?.toFloat32Sync() ?? [])]).toEqual([7, 7, 3, 3]);
    });

    it('compiles formulas into one pass, with their gradients', () => {
      const swiglu = fa.fused((gate, x) => gate.mul(gate.sigmoid()).mul(x));
      const values = Float32Array.from({ length: 60 }, (_, i) => Math.sin(i) * 3);
      using gate = parameter(tensor(values, [5, 12], { device }) as Tensor);
      using x = parameter(tensor(values.slice(20, 32), [12], { device }) as Tensor);
      using fusedResult = swiglu(gate, x);
      using s = fa.silu(gate);
      using composed = fa.mul(s, x);
      const [got, wanted] = [fusedResult.toFloat32Sync(), composed.toFloat32Sync()];
      for (const [at, value] of wanted.entries()) expect(got[at]).toBeCloseTo(value, 5);
      using total = fa.sum(fusedResult);
      total.backward();
      const fused = [gate, x].map((t) => t.grad?.toFloat32Sync() as Float32Array);
      gate.grad = undefined;
      x.grad = undefined;
      using other = fa.sum(composed);
      other.backward();
      for (const [i, t] of [gate, x].entries())
        for (const [at, value] of (t.grad?.toFloat32Sync() ?? []).entries())
          expect((fused[i] as Float32Array)[at]).toBeCloseTo(value, 4);
      using constant = fa.fused((_) => fa.Expression.of('add', 1, 2))(x);
      expect([...constant.toFloat32Sync()]).toEqual(new Array(12).fill(3));
      using plain = fa.fused((_) => 7 as never)(x);
      expect([...plain.toFloat32Sync()]).toEqual(new Array(12).fill(7));
    });

    it('refuses formulas that no kernel holds, before anything is computed', () => {
      const long = fa.fused((x) => {
        let sum = x;
        for (let i = 0; i < 80; i++) sum = sum.mul(x).add(i % 2);
        return sum;
      });
      using x = tensor([1], [1], { device });
      expect(() => long(x)).toThrow('the expression has 160 instructions; one kernel holds at most 72');
      // The formula alone fits, but its gradient does not.
      const half = fa.fused((x) => {
        let sum = x;
        for (let i = 0; i < 30; i++) sum = sum.mul(sum.sin());
        return sum;
      });
      half(x).dispose();
      using p = parameter(x as Tensor);
      expect(codeOf(() => half(p))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.fused(3 as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.fused(() => 3 as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.fused((_) => 'x' as never)(x))).toBe('ERR_OPTION');
      expect(() => fa.fused((x) => x)()).toThrow('0 arguments; the formula has 1');
      const many = fa.fused((a, b, c, d, e, f, g, h, i, j, k, l) =>
        [b, c, d, e, f, g, h, i, j, k, l].reduce((sum, each) => sum.add(each), a),
      );
      expect(() => many(...new Array(12).fill(x))).toThrow('13 inputs and outputs; one kernel holds at most 12');
    });

    it('says what does not fit, and leaves nothing behind', () => {
      const before = memory(device);
      using a = zeros([2, 3, 4], { device });
      using b = zeros([2, 2, 4], { device });
      using ids = zeros([4], { dtype: 'int32', device });
      expect(() => fa.add(a, b)).toThrow(
        'b has shape [2, 2, 4], which does not broadcast with [2, 3, 4] of a: axis -2 has 2 where it must have 3 or 1',
      );
      expect(codeOf(() => fa.where(a, b, 0))).toBe('ERR_SHAPE');
      expect(() => fa.mul(a, ids as never)).toThrow('b is int32; mul is for floating-point numbers: cast() converts');
      expect(codeOf(() => fa.exp(ids as never))).toBe('ERR_DTYPE');
      expect(codeOf(() => fa.add(1, 2))).toBe('ERR_OPTION');
      expect(() => fa.add(a, '2' as never)).toThrow('b is "2"; it must be a tensor');
      expect(codeOf(() => fa.exp(undefined as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.gelu(a, { approximate: 'exact' as never }))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.gelu(a, { approx: 'tanh' } as never))).toBe('ERR_OPTION');
      expect(codeOf(() => fa.clamp(a, 0, undefined as never))).toBe('ERR_OPTION');
      const gone = zeros([4], { device });
      gone.dispose();
      expect(codeOf(() => fa.add(a, gone))).toBe('ERR_DISPOSED');
      expect(codeOf(() => fa.sqrt(gone))).toBe('ERR_DISPOSED');
      const elsewhere = device === 'wasm' ? 'cpu' : 'wasm';
      if (fa.status(elsewhere).device === elsewhere) {
        using far = zeros([4], { device: elsewhere });
        expect(() => fa.add(a, far)).toThrow(`b is on ${elsewhere}; all tensors of this call must be on ${a.device}`);
      }
      expect(memory(device).tensors).toBe(before.tensors + 3);
    });

    it('takes numbers that float32 rounds', () => {
      using x = tensor([1, 2], [2], { device });
      using sum = fa.add(x, 0.1);
      expect([...sum.toFloat32Sync()]).toEqual([1, 2].map((value) => Math.fround(value + Math.fround(0.1))));
      using huge = fa.mul(x, 1e300);
      expect([...huge.toFloat32Sync()]).toEqual([Infinity, Infinity]);
      expect(unitsApart(1, 1, 'float32')).toBe(0);
    });
  });
});

describe('the derivatives of the oracle', () => {
  const difference = (f: (x: number) => number, x: number) => {
    const h = 1e-5 * Math.max(1, Math.abs(x));
    return (f(x - 2 * h) - 8 * f(x - h) + 8 * f(x + h) - f(x + 2 * h)) / (12 * h);
  };

  it.each(unaryNames)('%s: are finite differences', (name) => {
    const { f, slope } = unary[name] as { f: (x: number) => number; slope: (x: number) => number };
    for (const x of [-4.3, -2.51, -1.3, -0.6, 0.31, 0.7, 1.4, 2.6, 5.2]) {
      if (x < 0 && Number.isNaN(f(x))) continue;
      expect(Math.abs(difference(f, x) - slope(x))).toBeLessThan(1e-8 * (1 + Math.abs(slope(x))));
    }
  });

  it.each(binaryNames)('%s: are finite differences', (name) => {
    const { f, slopes } = binary[name];
    for (const [a, b] of [
      [0.7, 1.3],
      [2.2, -0.8],
      [1.1, 3.4],
    ] as const) {
      const [left, right] = slopes(a, b);
      expect(difference((x) => f(x, b), a)).toBeCloseTo(left, 7);
      expect(difference((x) => f(a, x), b)).toBeCloseTo(right, 7);
    }
  });

  it('erf and the normal distribution are those of tables', () => {
    // Abramowitz and Stegun, tables 7.1 and 26.1.
    for (const [x, wanted] of [
      [0.1, 0.1124629160182849],
      [0.5, 0.5204998778130465],
      [1, 0.8427007929497149],
      [2, 0.9953222650189527],
      [3, 0.9999779095030014],
    ] as const)
      expect(Math.abs(unary.erf.f(x) - wanted)).toBeLessThan(4e-16);
    for (const [x, wanted] of [
      [-1, 0.15865525393145707],
      [-3, 1.34989803163009e-3],
      [-6, 9.865876450376946e-10],
      [-10, 7.619853024160525e-24],
      [1.5, 0.9331927987311419],
    ] as const)
      expect(Math.abs(unary.gelu.f(x) / x / wanted - 1)).toBeLessThan(1e-14);
  });
});
