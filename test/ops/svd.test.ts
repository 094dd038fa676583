/** Singular values against float64, vectors by what they must be, gradients against finite differences in float64. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import {
  add,
  cast,
  type FloatDType,
  matmul,
  memory,
  mul,
  parameter,
  scope,
  sum,
  svd,
  type Tensor,
  tensor,
  zeros,
} from '../../lib/index.js';
import { svd as oracle } from '../../verify/oracle/svd.js';
import { codeOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';
import { numbers, rounding, size } from '../support/samples.js';

const cases = fc.record({
  batch: fc.array(fc.integer({ min: 0, max: 3 }), { maxLength: 2 }),
  rows: fc.integer({ min: 0, max: 12 }),
  columns: fc.integer({ min: 0, max: 12 }),
  kind: fc.constantFrom('any', 'rank', 'equal', 'zero'),
  scale: fc.constantFrom(1, 2 ** 80, 2 ** -90),
  turned: fc.boolean(),
  seed: fc.nat({ max: 1000 }),
});

/** Matrices [count, m, n], some of them of few different rows, or with equal values. */
function matrices(kind: string, count: number, m: number, n: number, seed: number): Float32Array {
  if (kind === 'zero') return new Float32Array(count * m * n);
  const all = numbers(count * m * n, seed);
  if (kind === 'any') return all;
  return all.map((x, i) => {
    const [row, column] = [Math.floor(i / n) % m, i % n];
    if (kind === 'equal') return row === column ? 1.5 : 0;
    return (all[(Math.floor(i / (m * n)) * m + (row % 2)) * n + column] as number) * (row + 1) || x * 0;
  });
}

/** @returns by matrix the largest difference between u diag(s) v^T and x, and of u^T u and v^T v from one */
function errorsOf(x: Float32Array, u: Float32Array, s: Float32Array, v: Float32Array, m: number, n: number) {
  const r = Math.min(m, n);
  const count = r === 0 ? 0 : s.length / r;
  let [product, basis] = [0, 0];
  for (let b = 0; b < count; b++) {
    const [ofU, ofV] = [
      (i: number, k: number) => u[(b * m + i) * r + k] as number,
      (j: number, k: number) => v[(b * n + j) * r + k] as number,
    ];
    const most = s[b * r] as number;
    for (let i = 0; i < m; i++)
      for (let j = 0; j < n; j++) {
        let sum = 0;
        for (let k = 0; k < r; k++) sum += ofU(i, k) * (s[b * r + k] as number) * ofV(j, k);
        product = Math.max(product, Math.abs(sum - (x[(b * m + i) * n + j] as number)) / (most || 1));
      }
    for (const [of, length] of [
      [ofU, m],
      [ofV, n],
    ] as const)
      for (let k = 0; k < r; k++)
        for (let l = 0; l < r; l++) {
          let sum = 0;
          for (let i = 0; i < length; i++) sum += of(i, k) * of(i, l);
          basis = Math.max(basis, Math.abs(sum - (k === l ? 1 : 0)));
        }
  }
  return { product, basis };
}

describe.each(testDevices)('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('svd'), () => {
    const isSmall = device === ('emulator' as typeof device);

    it('takes matrices apart', () => {
      const before = memory(device).tensors;
      fc.assert(
        fc.property(cases, (c) => {
          const [m, n] = isSmall ? [c.rows % 6, c.columns % 6] : [c.rows, c.columns];
          const count = size(c.batch);
          const r = Math.min(m, n);
          scope(() => {
            const values = matrices(c.kind, count, m, n, c.seed).map((x) => x * c.scale);
            const plain = tensor(values, [...c.batch, m, n], { device });
            const x = c.turned ? plain.transpose(-2, -1).contiguous().transpose(-2, -1) : plain;
            const { u, s, v } = svd(x);
            expect([u.shape, s.shape, v.shape]).toEqual([
              [...c.batch, m, r],
              [...c.batch, r],
              [...c.batch, n, r],
            ]);
            const got = s.dataSync();
            const { product, basis } = errorsOf(values, u.dataSync(), got, v.dataSync(), m, n);
            expect(product).toBeLessThan(2e-6);
            expect(basis).toBeLessThan(4e-6);
            for (let b = 0; b < (r === 0 ? 0 : count); b++) {
              const exact = oracle(
                values.subarray(b * m * n, (b + 1) * m * n).map((x) => x / c.scale),
                m,
                n,
              ).s;
              for (const [k, value] of exact.entries()) {
                const own = (got[b * r + k] as number) / c.scale;
                // What X^T X loses of small values.
                expect(Math.abs(own - value)).toBeLessThan(1e-6 * (exact[0] as number) + 1e-7);
                if (k > 0) expect(own).toBeLessThanOrEqual((got[b * r + k - 1] as number) / c.scale);
              }
            }
          });
        }),
        { numRuns: runs(200) },
      );
      expect(memory(device).tensors).toBe(before);
    });

    it.each(['float16', 'bfloat16'] as const)('rounds to %s', (dtype: FloatDType) => {
      const x = cast(tensor(numbers(20, 4), [5, 4], { device }), dtype) as Tensor;
      const { u, s, v } = svd(x);
      expect([u.dtype, s.dtype, v.dtype]).toEqual([dtype, dtype, dtype]);
      const exact = oracle(x.toFloat32Sync(), 5, 4);
      for (const [k, value] of s.toFloat32Sync().entries())
        expect(Math.abs(value - (exact.s[k] as number))).toBeLessThan(2 * rounding[dtype] * value);
      const one = parameter(x);
      sum(svd(one).s).backward();
      expect(one.grad?.dtype).toBe(dtype);
    });

    it('goes up to 256 values', () => {
      for (const [m, n] of isSmall
        ? [[20, 33]]
        : [
            [256, 270],
            [300, 130],
          ]) {
        const values = numbers((m as number) * (n as number), 7);
        const { u, s, v } = svd(tensor(values, [m as number, n as number], { device }));
        const { product, basis } = errorsOf(
          values,
          u.toFloat32Sync(),
          s.toFloat32Sync(),
          v.toFloat32Sync(),
          m as number,
          n as number,
        );
        expect(product).toBeLessThan(1e-5);
        expect(basis).toBeLessThan(2e-5);
      }
    });

    it('makes NaN of the matrix that has NaN or Infinity, and of no other', () => {
      const values = numbers(3 * 6, 5);
      values[1] = Number.NaN;
      values[17] = Number.NEGATIVE_INFINITY;
      const { u, s, v } = svd(tensor(values, [3, 3, 2], { device }));
      for (const [t, each] of [
        [u, 6],
        [s, 2],
        [v, 4],
      ] as const)
        for (const [i, x] of t.toFloat32Sync().entries()) expect(Number.isNaN(x)).toBe(Math.floor(i / each) !== 1);
    });

    it('has the gradients of values and vectors', () => {
      const wanted = fc.record({
        m: fc.integer({ min: 1, max: isSmall ? 4 : 7 }),
        n: fc.integer({ min: 1, max: isSmall ? 4 : 7 }),
        of: fc.constantFrom('s', 'u', 'v', 'all'),
        seed: fc.nat({ max: 10000 }),
      });
      fc.assert(
        fc.property(wanted, ({ m, n, of, seed }) => {
          const r = Math.min(m, n);
          const values = numbers(m * n, seed);
          const { s: all } = oracle(values, m, n);
          const [first = 0] = all;
          const gaps = [...all].map((x, k) => x - (all[k + 1] ?? 0));
          fc.pre(first > 0 && Math.min(...gaps) > 0.1 * first);
          const c = numbers(r, seed + 1);
          const weights = { u: numbers(m * m, seed + 2), v: numbers(n * n, seed + 3), all: numbers(m * n, seed + 4) };
          const d = numbers(r, seed + 5);
          const [left, right] = [of === 'v' ? 'v' : 'u', of === 'u' ? 'u' : 'v'] as const;
          const weight = of === 's' ? undefined : weights[of];
          // sum of c s, and of weights * (left diag(d) right^T): whatever signs vectors have.
          const exact = (x: Float64Array) => {
            const factors = oracle(x, m, n);
            let loss =
              of === 'u' || of === 'v' ? 0 : [...factors.s].reduce((total, s, k) => total + s * (c[k] as number), 0);
            if (!weight) return loss;
            const [a, b] = [factors[left], factors[right]];
            const columns = b.length / r;
            for (let i = 0; i < a.length / r; i++)
              for (let j = 0; j < columns; j++)
                for (let k = 0; k < r; k++)
                  loss +=
                    (weight[i * columns + j] as number) *
                    (a[i * r + k] as number) *
                    (d[k] as number) *
                    (b[j * r + k] as number);
            return loss;
          };
          scope(() => {
            const x = parameter(tensor(values, [m, n], { device }));
            const factors = svd(x);
            let loss: Tensor | undefined;
            if (of === 's' || of === 'all') loss = sum(mul(factors.s, tensor(c, [r], { device })));
            if (weight) {
              const scaled = mul(factors[left], tensor(d, [r], { device })) as Tensor;
              const product = matmul(scaled, factors[right].transpose(-2, -1));
              const term = sum(mul(product, tensor(weight, product.shape, { device })));
              loss = loss ? (add(loss, term) as Tensor) : term;
            }
            loss?.backward();
            const got = x.grad?.toFloat32Sync() as Float32Array;
            const step = 1e-5;
            for (let i = 0; i < m * n; i++) {
              const moved = (by: number) => exact(Float64Array.from(values, (y, j) => (i === j ? y + by : y)));
              const slope = (moved(step) - moved(-step)) / (2 * step);
              if (!(Math.abs((got[i] as number) - slope) < 2e-4 * (1 + Math.abs(slope)) * (1 + 1 / first)))
                throw new Error(`element ${i} of the gradient is ${got[i]}, not ${slope}`);
            }
            x.dispose();
          });
        }),
        { numRuns: runs(100) },
      );
    });

    it('has finite gradients where values are equal, or 0', () => {
      for (const values of [
        [1, 0, 0, 1, 0, 0],
        [1, 1, 1, 1, 1, 1],
        [0, 0, 0, 0, 0, 0],
      ]) {
        const x = parameter(tensor(values, [3, 2], { device }));
        const { u, s, v } = svd(x);
        add(add(sum(u), sum(s)), sum(v)).backward();
        expect([...(x.grad?.toFloat32Sync() ?? [])].every(Number.isFinite)).toBe(true);
      }
      // The projection on a space of equal values does not depend on which vectors span it.
      const x = parameter(tensor([2, 0, 0, 2, 0, 0], [3, 2], { device }));
      const { u } = svd(x);
      const projection = matmul(u, u.transpose(-2, -1));
      sum(mul(projection, tensor([0, 0, 1, 0, 0, 1, 1, 1, 0], [3, 3], { device }))).backward();
      const wanted = [0, 0, 0, 0, 1, 1];
      for (const [i, got] of (x.grad?.toFloat32Sync() ?? []).entries()) expect(got).toBeCloseTo(wanted[i] as number, 5);
    });

    it('refuses what it cannot take apart', () => {
      expect(codeOf(() => svd(zeros([3], { device })))).toBe('ERR_SHAPE');
      expect(codeOf(() => svd(zeros([257, 257], { device })))).toBe('ERR_SHAPE');
      expect(codeOf(() => svd([] as unknown as Tensor))).toBe('ERR_OPTION');
      expect(codeOf(() => svd(zeros([2, 2], { dtype: 'int32', device }) as unknown as Tensor))).toBe('ERR_DTYPE');
      const x = zeros([2, 2], { device });
      x.dispose();
      expect(codeOf(() => svd(x))).toBe('ERR_DISPOSED');
    });
  });
});
