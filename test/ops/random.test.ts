import { describe, expect, it } from 'vitest';
import { dropout, memory, normal, parameter, type Tensor, tensor, uniform } from '../../lib/index.js';
import { round } from '../../verify/oracle/float16.js';
import { philox4x32 } from '../../verify/oracle/philox.js';
import { dropoutFactors } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const seeds = [0, 1, 12345, 2 ** 53 - 1, 2n ** 64n - 1n, 0x123456789abcdef0n];

/** The first two words of Philox at a place, as fractions of 1 in steps of 2^-24. */
function fractions(seed: number | bigint, at: number): [number, number] {
  const key = [Number(BigInt(seed) & 0xffffffffn), Number(BigInt(seed) >> 32n)] as const;
  const [a, b] = philox4x32([at, 0, 0, 0], key);
  return [(a >>> 8) / 2 ** 24, (b >>> 8) / 2 ** 24];
}

/** Box and Muller: the logarithm is that of a number from (0, 1]. */
function boxMuller([u, v]: readonly [number, number]): number {
  return Math.sqrt(-2 * Math.log(u + 2 ** -24)) * Math.cos(2 * Math.PI * v);
}

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('random numbers'), () => {
    it('are uniform, those of Philox at their place, bit for bit', async () => {
      for (const seed of seeds)
        for (const shape of [[1], [67], [3, 5, 7], [0, 4]]) {
          using t = uniform(shape, { seed, device });
          const wanted = Float32Array.from({ length: t.size }, (_, at) => fractions(seed, at)[0]);
          expect(await t.data()).toEqual(wanted);
        }
    });

    it('are normal, to the last bits of Box and Muller', async () => {
      for (const seed of seeds) {
        using t = normal([2003], { seed, device });
        const values = await t.data();
        for (const [at, value] of values.entries()) {
          const wanted = boxMuller(fractions(seed, at));
          // Where the cosine is near 0 its argument has been rounded.
          expect(Math.abs(value - wanted), `seed ${seed}, element ${at}`).toBeLessThan(
            2e-6 * Math.max(1, Math.abs(wanted)),
          );
        }
      }
    });

    it('are between bounds, and around a mean', async () => {
      using flat = uniform([1000], { seed: 3, device, low: -2, high: 5 });
      using bell = normal([1000], { seed: 3, device, mean: 10, std: 0.5 });
      const [x, y] = [await flat.data(), await bell.data()];
      for (const [at, value] of x.entries()) {
        const [u] = fractions(3, at);
        expect(value).toBe(Math.fround(Math.fround(u * 7) + -2));
        expect(value >= -2 && value < 5).toBe(true);
      }
      for (const [at, value] of y.entries()) expect(value).toBeCloseTo(10 + 0.5 * boxMuller(fractions(3, at)), 5);
    });

    it('are rounded to the dtype', async () => {
      for (const dtype of ['float16', 'bfloat16'] as const) {
        using t = uniform([100], { seed: 5, device, dtype });
        expect(t.dtype).toBe(dtype);
        const wanted = Float32Array.from({ length: 100 }, (_, at) => round(fractions(5, at)[0], dtype));
        expect(await t.toFloat32()).toEqual(wanted);
      }
    });

    it('drop elements, and the same ones of the gradient', async () => {
      const values = Float32Array.from({ length: 105 }, (_, i) => i + 1);
      for (const [p, seed] of [
        [0.3, 7],
        [0, 7],
        [0.999, 2n ** 63n],
      ] as const) {
        const handle = tensor(values, [3, 5, 7], { device });
        const x = parameter(handle as Tensor);
        const out = dropout(x, { p, seed });
        const factors = dropoutFactors(105, p, BigInt(seed));
        expect(await out.data()).toEqual(values.map((value, at) => value * Math.fround(factors[at] as number)));
        const weights = tensor(values.toReversed(), [3, 5, 7], { device });
        out.backward(weights as Tensor);
        expect(await x.grad?.data()).toEqual(
          values.toReversed().map((value, at) => value * Math.fround(factors[at] as number)),
        );
        for (const t of [handle, x, out, weights]) t.dispose();
      }
    });

    it('drop by the place in the result, whatever the strides', async () => {
      using whole = tensor(
        Float32Array.from({ length: 12 }, () => 1),
        [3, 4],
        { device },
      );
      using turned = whole.transpose(0, 1);
      using out = dropout(turned, { p: 0.5, seed: 9 });
      expect([...(await out.toFloat32())]).toEqual([...dropoutFactors(12, 0.5, 9n)]);
    });
  });

describe('random numbers', () => {
  const device = 'wasm';

  it('have the moments of their distributions', async () => {
    using flat = uniform([100_000], { seed: 11, device });
    using bell = normal([100_000], { seed: 11, device });
    for (const [t, mean, variance, fourth] of [
      [flat, 0.5, 1 / 12, 1 / 80],
      [bell, 0, 1, 3],
    ] as const) {
      const values = await t.data();
      const moment = (k: number) => values.reduce((sum, x) => sum + (x - mean) ** k, 0) / values.length;
      expect(Math.abs(moment(1))).toBeLessThan(0.02 * Math.sqrt(variance));
      expect(moment(2) / variance).toBeCloseTo(1, 1);
      expect(moment(4) / fourth).toBeCloseTo(1, 1);
      const neighbours = values.reduce((sum, x, i) => sum + (x - mean) * ((values[i + 1] ?? mean) - mean), 0);
      expect(Math.abs(neighbours / values.length)).toBeLessThan(0.02 * variance);
    }
  });

  it('are the same on every device, bit for bit', async () => {
    const found = [];
    for (const { device, present } of testDevices) {
      if (!present) continue;
      using flat = uniform([777], { seed: 21n, device, low: -1 });
      using bell = normal([777], { seed: 21n, device, mean: 0.1, std: 0.02 });
      using half = normal([777], { seed: 22n, device, dtype: 'bfloat16' });
      found.push([await flat.data(), await bell.data(), await half.data()]);
    }
    for (const other of found.slice(1)) expect(other).toEqual(found[0]);
  });

  it('are refused where they are none', async () => {
    using x = tensor([1], [1], { device });
    const before = memory(device).tensors;
    const cases: [() => unknown, string, RegExp][] = [
      [() => uniform([2], { device } as never), 'ERR_OPTION', /seed is undefined/],
      [() => uniform([2], { device, seed: -1 }), 'ERR_OPTION', /seed is -1/],
      [() => uniform([2], { device, seed: 2n ** 64n }), 'ERR_OPTION', /seed is 18446744073709551616/],
      [() => uniform([2], { device, seed: 0.5 }), 'ERR_OPTION', /seed is 0.5/],
      [() => uniform([2], { device, seed: 1, high: Number.NaN }), 'ERR_OPTION', /high is NaN/],
      [() => uniform([2], { device, seed: 1, low: 2 }), 'ERR_OPTION', /high is 1.*>= 2/],
      [() => uniform([2], { device, seed: 1, dtype: 'int32' as never }), 'ERR_DTYPE', /dtype is "int32"/],
      [() => normal([2], { device, seed: 1, std: -1 }), 'ERR_OPTION', /std is -1/],
      [() => normal([-2], { device, seed: 1 }), 'ERR_SHAPE', /shape/],
      [() => dropout(x, { p: 1, seed: 1 }), 'ERR_OPTION', /p is 1; it must be from 0 to below 1/],
      [() => dropout(x, { p: 0.5 } as never), 'ERR_OPTION', /seed is undefined/],
    ];
    for (const [call, code, message] of cases) await expectFailure(call, code, message);
    expect(memory(device).tensors).toBe(before);
  });
});
