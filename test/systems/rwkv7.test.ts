/** The WKV of RWKV-7. Tests of the engine hold corrections of rank one against float64: here, what they are for. */
import { mul, neg, type Tensor, tensor, zeros } from 'flashattn';
import { deltaRule, rwkv7Wkv } from 'flashattn/systems';
import { describe, expect, it } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import { errorOf } from '../support/codeOf.js';
import { testDevices } from '../support/devices.js';

const [batch, seq, heads, dim] = [2, 70, 2, 8];
const shape = [batch, seq, heads, dim];

function wave(n: number, seed: number): Float32Array {
  return Float32Array.from({ length: n }, (_, i) => Math.sin(seed * (i + 1) * 1.7));
}

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('RWKV-7'), () => {
    it('that takes out what it writes anew is the delta rule', () => {
      const size = batch * seq * heads * dim;
      const unit = wave(size, 2);
      for (let row = 0; row < size; row += dim) {
        const norm = Math.hypot(...unit.subarray(row, row + dim));
        for (let d = row; d < row + dim; d++) unit[d] = (unit[d] as number) / norm;
      }
      const on = (values: Float32Array, of: readonly number[]) => tensor(values, of, { device });
      const [q, k, v] = [on(wave(size, 1), shape), on(unit, shape), on(wave(size, 3), shape)];
      const rates = wave(size / dim, 4).map((x) => (x + 1) / 2);
      const beta = on(rates, [batch, seq, heads]);
      const spread = on(
        Float32Array.from({ length: size }, (_, i) => rates[Math.floor(i / dim)] as number),
        shape,
      );
      const w = zeros(shape, { device });
      const written = mul(k, spread);
      const ours = rwkv7Wkv(q as never, written as never, v as never, { w, a: neg(k), b: written });
      const expected = deltaRule(q as never, k as never, v as never, { beta, scale: 1 });
      const values = (t: Tensor) => t.dataSync() as Float32Array;
      expect(maxError(values(ours.out), values(expected.out))).toBeLessThan(2e-5);
      expect(maxError(values(ours.state), values(expected.state))).toBeLessThan(2e-5);
    });

    it('refuses what does not fit', () => {
      const x = zeros(shape, { device }) as never;
      expect(errorOf(() => rwkv7Wkv(x, x, x, { w: x, a: zeros([2, 70, 2, 4], { device }), b: x }))).toMatch(
        /^ERR_SHAPE: a has shape \[2, 70, 2, 4\]; it must be \[2, 70, 2, 8\]/,
      );
      expect(errorOf(() => rwkv7Wkv(x, x, x, { w: x, a: x } as never))).toMatch(/^ERR_OPTION: b is missing/);
    });
  });
