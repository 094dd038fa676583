/** Functions of tensors whose gradients come from the tape, against a definition in float64 and central differences of it. */
import { type DeviceName, type FloatDType, memory, mul, parameter, scope, sum, type Tensor, tensor } from 'flashattn';
import { expect } from 'vitest';
import { GRADIENT_TOLERANCE, OUTPUT_TOLERANCE } from '../../verify/oracle/compare.js';
import { data, differences, expectClose, type Named } from './regroup.js';

export type Shapes = Readonly<Record<string, readonly number[]>>;
export type Tensors<S extends Shapes> = { readonly [name in keyof S]: Tensor };
export type Arrays<S extends Shapes> = { readonly [name in keyof S]: Float64Array };

export interface Comparison<S extends Shapes> {
  readonly device: DeviceName;
  readonly shapes: S;
  /** Numbers of some inputs; the others are normal. */
  readonly values?: Partial<Arrays<S>>;
  /** Has the elements of what `run` gives. */
  readonly exact: (inputs: Arrays<S>) => ArrayLike<number>;
  readonly run: (inputs: Tensors<S>) => Tensor;
  readonly dtype?: FloatDType;
  readonly seed?: number;
  /** Relative to the largest element; default: what float32 allows. */
  readonly tolerance?: number;
}

const size = (shape: readonly number[]) => shape.reduce((product, n) => product * n, 1);

/** Compares out and all gradients, and that nothing is left. */
export function compareTaped<const S extends Shapes>(c: Comparison<S>): void {
  const { device, shapes, run, dtype = 'float32', seed = 1, tolerance } = c;
  const names = Object.keys(shapes);
  const before = memory(device).tensors;
  const inputs = Object.fromEntries(
    names.map((name, n) => [name, c.values?.[name] ?? data(size(shapes[name] ?? []), seed + n)]),
  );
  const exact = (named: Named) => Float64Array.from(c.exact(named as Arrays<S>));
  const expected = exact(inputs);
  const weights = data(expected.length, seed + names.length);
  const made: Tensor[] = [];
  scope(() => {
    const leaves = Object.fromEntries(
      names.map((name) => [
        name,
        parameter(tensor(inputs[name] as Float64Array, shapes[name] ?? [], { dtype, device }) as Tensor),
      ]),
    );
    // A scope leaves parameters.
    made.push(...Object.values(leaves));
    const out = run(leaves as Tensors<S>);
    expect(out.dtype).toBe(dtype);
    expectClose({ out: Float64Array.from(out.toFloat32Sync()) }, { out: expected }, tolerance ?? OUTPUT_TOLERANCE);
    sum(mul(out, tensor(weights, out.shape, { device }) as Tensor)).backward();
    const gradients = Object.fromEntries(
      names.map((name) => {
        const { grad } = leaves[name] as Tensor;
        return [name, grad ? Float64Array.from(grad.toFloat32Sync()) : new Float64Array(size(shapes[name] ?? []))];
      }),
    );
    expectClose(gradients, differences(inputs, weights, exact), tolerance ?? GRADIENT_TOLERANCE);
  });
  for (const t of made) t.dispose();
  expect(memory(device).tensors).toBe(before);
}
