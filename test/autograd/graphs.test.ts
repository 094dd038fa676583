/** Gradients of random graphs: views, broadcasts, reductions and products that share their inputs, against a float64 tape. */
import fc from 'fast-check';
import { describe, expect, it } from 'vitest';
import { memory, parameter, scope, type Tensor, tensor } from '../../lib/index.js';
import { normal } from '../../verify/oracle/random.js';
import { Variable } from '../../verify/oracle/tape.js';
import { devicesWith } from '../support/devices.js';
import { evaluate, inputShapes, libraryEngine, oracleEngine, type Step, stepsArbitrary } from './graphs.js';

const count = (shape: readonly number[]) => shape.reduce((x, n) => x * n, 1);

const graphs = fc.record({ shapes: inputShapes, steps: stepsArbitrary(12), seed: fc.nat(10_000), early: fc.boolean() });

function valuesOf(shape: readonly number[], seed: number): Float32Array {
  return Float32Array.from(normal(count(shape), seed, 0.8));
}

interface Wanted {
  readonly value: number;
  readonly gradients: Float64Array[];
  readonly decisions: boolean[];
  readonly nearestKink: number;
}

function oracle(shapes: readonly (readonly number[])[], steps: readonly Step[], seed: number): Wanted {
  const decisions: boolean[] = [];
  Variable.nearestKink = Infinity;
  const inputs = shapes.map((shape, i) => Variable.of(valuesOf(shape, seed + i), shape));
  const value = evaluate(oracleEngine(decisions), inputs, steps);
  value.backward();
  const gradients = inputs.map(({ gradient }) => gradient);
  return { value: value.data[0] as number, gradients, decisions, nearestKink: Variable.nearestKink };
}

describe.each(devicesWith('elementwise', 'reduce', 'matmul'))('$device', ({ device, present, title, runs }) => {
  describe.skipIf(!present)(title('random graphs'), () => {
    it('have the value and the gradients of the float64 tape, and leave nothing behind', () => {
      fc.assert(
        fc.property(graphs, ({ shapes, steps, seed, early }) => {
          const wanted = oracle(shapes, steps, seed);
          const before = memory(device);
          // Where two numbers are equal but for rounding, which of them wins is anybody's.
          fc.pre(wanted.nearestKink > 1e-4);
          const parameters = shapes.map((shape, i) =>
            scope(() => parameter(tensor(valuesOf(shape, seed + i), [...shape], { device }) as Tensor)),
          );
          const made: Tensor[] = [];
          const loss = evaluate(
            libraryEngine(wanted.decisions, (t) => made.push(t)),
            parameters,
            steps,
          );
          // What the user disposes is still there for the gradient.
          if (early) for (const t of made) if (t !== loss) t.dispose();
          const value = loss.toFloat32Sync()[0] as number;
          expect(Math.abs(value - wanted.value)).toBeLessThan(2e-5 * (1 + Math.abs(wanted.value)));
          if (loss.requiresGrad) loss.backward();
          for (const [i, p] of parameters.entries()) {
            const gradient = wanted.gradients[i] as Float64Array;
            const largest = gradient.reduce((x, y) => Math.max(x, Math.abs(y)), 0);
            const got = p.grad?.toFloat32Sync() ?? new Float32Array(gradient.length);
            if (p.grad) expect([p.grad.shape, p.grad.dtype]).toEqual([p.shape, p.dtype]);
            for (const [at, want] of gradient.entries())
              if (!(Math.abs((got[at] as number) - want) <= 1e-4 * largest + 1e-5))
                throw new Error(`gradient ${at} of parameter ${i} is ${got[at]}, not ${want}`);
          }
          for (const t of [...made, ...parameters]) t.dispose();
          expect(memory(device).tensors).toBe(before.tensors);
          expect(memory(device).bytesInUse).toBe(before.bytesInUse);
        }),
        { numRuns: runs(400) },
      );
    });
  });
});

describe('the float64 tape', () => {
  it('gives finite differences', () => {
    fc.assert(
      fc.property(graphs, ({ shapes, steps, seed }) => {
        const inputs = shapes.map((shape, i) => Float64Array.from(valuesOf(shape, seed + i)));
        const valueAt = (which: number, at: number, by: number) => {
          const all = shapes.map((shape, i) => Variable.of(inputs[i] as Float64Array, shape));
          (all[which] as Variable).data[at] = ((inputs[which] as Float64Array)[at] as number) + by;
          const replay = oracleEngine([]);
          let next = 0;
          return evaluate({ ...replay, isLarge: () => decisions[next++] as boolean }, all, steps).data[0] as number;
        };
        const { gradients, decisions, nearestKink } = oracle(shapes, steps, seed);
        fc.pre(nearestKink > 1e-3);
        for (const [which, gradient] of gradients.entries()) {
          const at = seed % gradient.length;
          const h = 1e-5;
          const difference =
            (8 * (valueAt(which, at, h) - valueAt(which, at, -h)) -
              valueAt(which, at, 2 * h) +
              valueAt(which, at, -2 * h)) /
            (12 * h);
          expect(Math.abs(difference - (gradient[at] as number))).toBeLessThan(1e-6 * (1 + Math.abs(difference)));
        }
      }),
      { numRuns: 150 },
    );
  });
});
