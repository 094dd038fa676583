import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { memory, pad, parameter, split, stack, type Tensor, tensor, unbind, unsqueeze } from '../../lib/index.js';
import { normal } from '../../verify/oracle/random.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const count = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

/** Elements of a row-major array by their index. */
function visit(shape: readonly number[], use: (index: number[], at: number) => void): void {
  for (let at = 0; at < count(shape); at++) {
    let rest = at;
    const index = shape.map(() => 0);
    for (let axis = shape.length - 1; axis >= 0; axis--) {
      index[axis] = rest % (shape[axis] as number);
      rest = Math.floor(rest / (shape[axis] as number));
    }
    use(index, at);
  }
}

const placeOf = (index: readonly number[], shape: readonly number[]) =>
  index.reduce((place, i, axis) => place * (shape[axis] as number) + i, 0);

const shapes = fc.array(fc.integer({ min: 0, max: 4 }), { minLength: 1, maxLength: 4 });

for (const { device, present, title, runs } of testDevices)
  describe.skipIf(!present)(title('split, unbind, stack and pad'), () => {
    const make = (shape: readonly number[], seed = 1) => {
      const handle = tensor(Float32Array.from(normal(count(shape), seed)), shape as number[], { device }) as Tensor;
      const made = parameter(handle);
      handle.dispose();
      return made;
    };

    it('cut a tensor, whose gradient is put together of those of the parts', async () => {
      await fc.assert(
        fc.asyncProperty(
          shapes,
          fc.nat(),
          fc.integer({ min: 1, max: 3 }),
          fc.nat(7),
          async (shape, which, length, used) => {
            const axis = which % shape.length;
            const n = shape[axis] as number;
            const before = memory(device).tensors;
            const x = make(shape);
            const parts = split(x, length, axis);
            const values = await x.toFloat32();
            expect(parts).toHaveLength(Math.max(1, Math.ceil(n / length)));
            const wanted = new Float32Array(values.length);
            for (const [i, part] of parts.entries()) {
              const own = shape.with(axis, Math.min(length, n - i * length));
              expect(part.shape).toEqual(own);
              const got = await part.toFloat32();
              const gradient = tensor(Float32Array.from(normal(count(own), i + 5)), own, { device }) as Tensor;
              const weights = await gradient.toFloat32();
              visit(own, (index, at) => {
                const from = placeOf(index.with(axis, (index[axis] as number) + i * length), shape);
                expect(got[at]).toBe(values[from]);
                if (used & (1 << i)) wanted[from] = weights[at] as number;
              });
              // Of parts that nobody used it is 0.
              if (used & (1 << i)) part.backward(gradient, { retainGraph: true });
              gradient.dispose();
            }
            if (parts.some((_, i) => used & (1 << i))) expect(await x.grad?.toFloat32()).toEqual(wanted);
            for (const t of [...parts, x]) t.dispose();
            expect(memory(device).tensors).toBe(before);
          },
        ),
        { numRuns: runs(40) },
      );
    });

    it('take entries of an axis, and put them together again', async () => {
      await fc.assert(
        fc.asyncProperty(shapes, fc.nat(), async (shape, which) => {
          const axis = which % shape.length;
          if (shape[axis] === 0) return;
          const before = memory(device).tensors;
          const x = make(shape);
          const entries = unbind(x, axis);
          expect(entries.map((t) => t.shape)).toEqual(entries.map(() => shape.toSpliced(axis, 1)));
          const again = stack(entries, axis);
          expect(again.shape).toEqual(shape);
          expect(await again.toFloat32()).toEqual(await x.toFloat32());
          const behind = stack(entries, -1);
          expect(behind.shape).toEqual([...shape.toSpliced(axis, 1), shape[axis]]);
          const gradient = tensor(Float32Array.from(normal(count(shape), 9)), shape, { device }) as Tensor;
          again.backward(gradient);
          expect(await x.grad?.toFloat32()).toEqual(await gradient.toFloat32());
          for (const t of [...entries, again, behind, gradient, x]) t.dispose();
          expect(memory(device).tensors).toBe(before);
        }),
        { numRuns: runs(40) },
      );
    });

    it('put elements around, which have no gradient', async () => {
      await fc.assert(
        fc.asyncProperty(shapes, fc.array(fc.nat(2), { minLength: 8, maxLength: 8 }), async (shape, widths) => {
          const before = memory(device).tensors;
          const x = make(shape);
          const around = shape.map((_, axis) => [widths[2 * axis], widths[2 * axis + 1]] as [number, number]);
          const larger = shape.map((n, axis) => n + (around[axis]?.[0] ?? 0) + (around[axis]?.[1] ?? 0));
          const out = pad(x, around, 7.5);
          expect(out.shape).toEqual(larger);
          const gradient = tensor(Float32Array.from(normal(count(larger), 9)), larger, { device }) as Tensor;
          out.backward(gradient);
          const [values, got, weights] = [await x.toFloat32(), await out.toFloat32(), await gradient.toFloat32()];
          const wanted = new Float32Array(count(larger)).fill(7.5);
          const back = new Float32Array(values.length);
          visit(shape, (index, at) => {
            const to = placeOf(
              index.map((i, axis) => i + (around[axis]?.[0] ?? 0)),
              larger,
            );
            wanted[to] = values[at] as number;
            back[at] = weights[to] as number;
          });
          expect(got).toEqual(wanted);
          expect(await x.grad?.toFloat32()).toEqual(back);
          for (const t of [x, out, gradient]) t.dispose();
          expect(memory(device).tensors).toBe(before);
        }),
        { numRuns: runs(40) },
      );
    });
  });

describe('split, unbind, stack and pad', () => {
  const device = 'wasm';

  it('refuse what does not fit, with nothing left', async () => {
    using x = tensor([1, 2, 3, 4, 5, 6], [2, 3], { device });
    using y = tensor([1, 2], [2], { device });
    const before = memory(device).tensors;
    const cases: [() => unknown, string, RegExp][] = [
      [() => split(x, [1, 1], 1), 'ERR_SHAPE', /add up to 3/],
      [() => split(x, [], 1), 'ERR_OPTION', /lengths is \[\]/],
      [() => split(x, 0), 'ERR_OPTION', /lengths is 0/],
      [() => split(x, [4, -1], 1), 'ERR_OPTION', /lengths\[1\] is -1/],
      [() => split(x, 1, 2), 'ERR_SHAPE', /axis/],
      [() => stack([]), 'ERR_OPTION', /tensors is \[\]/],
      [() => stack([x, y]), 'ERR_SHAPE', /./],
      [() => stack([y, 3 as never]), 'ERR_OPTION', /3/],
      [() => unbind(x, -3), 'ERR_SHAPE', /axis/],
      [() => unsqueeze(x, 3), 'ERR_SHAPE', /axis/],
      [() => pad(x, [[1, 1]]), 'ERR_SHAPE', /widths/],
      [
        () =>
          pad(x, [
            [1, -1],
            [0, 0],
          ]),
        'ERR_OPTION',
        /widths\[0\]\[1\] is -1/,
      ],
      [() => pad(x, [3 as never, [0, 0]]), 'ERR_OPTION', /widths\[0\]/],
    ];
    for (const [call, code, message] of cases) await expectFailure(call, code, message);
    expect(memory(device).tensors).toBe(before);
  });

  it('give an axis of length 1 its place', () => {
    using x = tensor([1, 2, 3, 4, 5, 6], [2, 3], { device });
    for (const [axis, shape] of [
      [0, [1, 2, 3]],
      [1, [2, 1, 3]],
      [2, [2, 3, 1]],
      [-1, [2, 3, 1]],
      [-3, [1, 2, 3]],
    ] as const) {
      using raised = unsqueeze(x, axis);
      expect(raised.shape).toEqual(shape);
    }
  });
});
