import { describe, expect, it } from 'vitest';
import { type DeviceName, memory, parameter, rope, type Tensor, tensor } from '../../lib/index.js';
import { maxError } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const single = (values: ArrayLike<number>) => Float32Array.from(values);

/** cos and sin of any angles, [length, half]. */
function anglesOf(length: number, half: number, device: DeviceName) {
  const angles = normal(length * half, 5, 3);
  const put = (f: (x: number) => number) => tensor(single(angles.map(f)), [length, half], { device });
  return { angles, cos: put(Math.cos), sin: put(Math.sin) };
}

/** x [outer, length, heads, dim]: z e^(i angle) for each pair as a complex number z; `sign` -1 turns back. */
function turned(
  x: ArrayLike<number>,
  [, length, heads, dim]: readonly [number, number, number, number],
  angles: Float64Array,
  pairs: 'half' | 'interleaved',
  sign = 1,
): Float64Array {
  const out = Float64Array.from(x);
  const half = angles.length / length;
  for (let row = 0; row * dim < x.length; row++)
    for (let i = 0; i < half; i++) {
      const angle = sign * (angles[(Math.floor(row / heads) % length) * half + i] as number);
      const [real, imaginary] = (pairs === 'half' ? [i, i + half] : [2 * i, 2 * i + 1]).map((at) => row * dim + at) as [
        number,
        number,
      ];
      const [a, b] = [x[real] as number, x[imaginary] as number];
      out[real] = a * Math.cos(angle) - b * Math.sin(angle);
      out[imaginary] = a * Math.sin(angle) + b * Math.cos(angle);
    }
  return out;
}

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('rope'), () => {
    const cases = (['half', 'interleaved'] as const).flatMap((pairs) =>
      [
        [[2, 5, 3, 8], 4],
        [[1, 7, 2, 10], 3],
        [[3, 1, 1, 2], 1],
        [[2, 0, 3, 4], 2],
      ].map(([shape, half]) => ({ pairs, shape: shape as [number, number, number, number], half: half as number })),
    );

    it.each(cases)(
      'turns $pairs pairs of $shape by $half angles, and gradients back',
      async ({ pairs, shape, half }) => {
        const before = memory(device).tensors;
        const size = shape.reduce((a, b) => a * b, 1);
        const { angles, cos, sin } = anglesOf(shape[1], half, device);
        const [values, weights] = [single(normal(size, 1)), single(normal(size, 2))];
        const handle = tensor(values, shape, { device }) as Tensor;
        const x = parameter(handle);
        const out = rope(x, { cos, sin }, { pairs });
        expect(out.shape).toEqual(shape);
        expect(maxError(await out.toFloat32(), turned(values, shape, angles, pairs))).toBeLessThan(2e-6);
        const gradient = tensor(weights, shape, { device }) as Tensor;
        out.backward(gradient);
        const got = (await x.grad?.toFloat32()) as Float32Array;
        expect(maxError(got, turned(weights, shape, angles, pairs, -1))).toBeLessThan(2e-6);
        for (const t of [handle, x, out, gradient, cos, sin]) t.dispose();
        expect(memory(device).tensors).toBe(before);
      },
    );

    it('takes views, and rounds to their dtype', async () => {
      const shape = [2, 4, 3, 6] as const;
      const { angles, cos, sin } = anglesOf(4, 3, device);
      const values = single(normal(144, 3));
      // [batch, heads, length, dim] seen as [batch, length, heads, dim].
      const stored = tensor(values, [2, 3, 4, 6], { device, dtype: 'bfloat16' });
      const view = stored.transpose(1, 2);
      const out = rope(view, { cos, sin });
      expect(out.dtype).toBe('bfloat16');
      const wanted = turned(await view.toFloat32(), shape, angles, 'half');
      const got = await out.toFloat32();
      for (const [at, value] of got.entries())
        expect(Math.abs(value - (wanted[at] as number))).toBeLessThan(2 ** -8 * Math.abs(value) + 1e-5);
      for (const t of [stored, view, out, cos, sin]) t.dispose();
    });
  });

describe('rope', () => {
  it('refuses what does not fit, with nothing left', async () => {
    const device = 'wasm';
    const { cos, sin } = anglesOf(4, 2, device);
    const x = tensor(new Float32Array(32), [4, 2, 4], { device });
    const flat = tensor(new Float32Array(8), [2, 4], { device });
    const turned = tensor(new Float32Array(8), [2, 4], { device }).transpose(0, 1);
    const before = memory(device).tensors;
    const cases: [() => unknown, string, RegExp][] = [
      [() => rope(flat, { cos, sin }), 'ERR_SHAPE', /\[2, 4\]/],
      [() => rope(x, { cos, sin: flat }), 'ERR_SHAPE', /angles\.sin has shape \[2, 4\]/],
      [() => rope(x, { cos: turned, sin }), 'ERR_SHAPE', /angles\.cos must be contiguous/],
      [() => rope(x, { cos, sin: undefined as never }), 'ERR_OPTION', /angles\.sin is undefined/],
      [() => rope(x, undefined as never), 'ERR_OPTION', /angles is undefined/],
      [() => rope(x, { cos, sin }, { pairs: 'both' as never }), 'ERR_OPTION', /pairs is "both"/],
      [() => rope(x, { cos, sin }, { base: 3 } as never), 'ERR_OPTION', /no option "base"/],
    ];
    for (const [call, code, message] of cases) await expectFailure(call, code, message);
    // Of one shape the two must be.
    const short = tensor(new Float32Array(4), [4, 1], { device });
    await expectFailure(() => rope(x, { cos, sin: short }), 'ERR_SHAPE', /angles\.sin.*\[4, 1\].*\[4, 2\]/);
    short.dispose();
    expect(memory(device).tensors).toBe(before);
  });
});
