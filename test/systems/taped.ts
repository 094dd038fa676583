/** Systems with gradients from the tape, against float64 definitions and their differences along random directions. */
import { add, type DeviceName, memory, mul, parameter, scope, sum, type Tensor, tensor } from 'flashattn';
import { expect } from 'vitest';
import { magnitude, maxError } from '../../verify/oracle/compare.js';
import { normal } from '../../verify/oracle/random.js';

export interface Input {
  readonly shape: readonly number[];
  readonly data: Float64Array;
}

export type Inputs = Readonly<Record<string, Input>>;
export type Named<T> = Readonly<Record<string, T>>;

const sizeOf = (shape: readonly number[]): number => shape.reduce((product, n) => product * n, 1);

/** Normal numbers that float32 holds, around a mean. */
export const input = (shape: readonly number[], seed: number, scale = 1, mean = 0): Input => ({
  shape,
  data: normal(sizeOf(shape), seed).map((x) => Math.fround(mean + scale * x)),
});

export interface Ran {
  readonly outputs: Named<Float64Array>;
  readonly gradients: Named<Float64Array>;
}

/** Runs f on parameters, as `scope` does, differentiates the sum of its outputs times cotangents, and checks that nothing is left behind. */
export function run(
  device: DeviceName,
  inputs: Inputs,
  f: (t: Named<Tensor>) => Named<Tensor>,
  cotangents: Named<Float64Array> | undefined,
): Ran {
  const before = memory(device).tensors;
  const owned: Tensor[] = [];
  const own = <T extends Tensor>(t: T): T => {
    owned.push(t);
    return t;
  };
  try {
    const parameters: Record<string, Tensor> = {};
    for (const [name, { shape, data }] of Object.entries(inputs)) {
      const values = own(tensor(Float32Array.from(data), shape, { device }) as Tensor);
      parameters[name] = cotangents ? own(parameter(values)) : values;
    }
    const made = scope(() => f(parameters));
    for (const t of Object.values(made)) own(t);
    let loss: Tensor | undefined;
    for (const [name, weights] of Object.entries(cotangents ?? {})) {
      const output = made[name] as Tensor;
      const weighed = own(
        mul(output, own(tensor(Float32Array.from(weights), output.shape, { device }) as Tensor)) as Tensor,
      );
      const part = own(sum(weighed));
      loss = loss ? own(add(loss, part) as Tensor) : part;
    }
    loss?.backward();
    const read = (t: Tensor | undefined) => Float64Array.from(t?.toFloat32Sync() ?? []);
    return {
      outputs: Object.fromEntries(Object.entries(made).map(([name, t]) => [name, read(t)])),
      gradients: Object.fromEntries(Object.entries(parameters).map(([name, t]) => [name, read(t.grad)])),
    };
  } finally {
    for (const t of owned) t.dispose();
    expect(memory(device).tensors).toBe(before);
  }
}

const dot = (a: ArrayLike<number>, b: ArrayLike<number>): number => {
  let total = 0;
  for (let i = 0; i < a.length; i++) total += (a[i] ?? Number.NaN) * (b[i] ?? Number.NaN);
  return total;
};

const STEP = 1e-5;

/** Holds out of f against a float64 definition, and its gradients against differences of that. */
export function checkSystem(
  device: DeviceName,
  inputs: Inputs,
  f: (t: Named<Tensor>) => Tensor,
  definition: (values: Named<Float64Array>) => Float64Array,
  { out: outTolerance = 5e-5, gradient: gradientTolerance = 1e-3 } = {},
): void {
  const values = Object.fromEntries(Object.entries(inputs).map(([name, { data }]) => [name, data]));
  const expected = definition(values);
  const dOut = normal(expected.length, 99).map(Math.fround);
  const { outputs, gradients } = run(device, inputs, (t) => ({ out: f(t) }), { out: dOut });
  expect(maxError(outputs.out ?? [], expected) / magnitude(expected), 'out').toBeLessThan(outTolerance);
  for (const [at, [name, data]] of Object.entries(values).entries()) {
    const gradient = gradients[name] as Float64Array;
    const direction = normal(data.length, 200 + at);
    const moved = (step: number) =>
      dot(definition({ ...values, [name]: data.map((x, i) => x + step * (direction[i] ?? Number.NaN)) }), dOut);
    const slope = (moved(STEP) - moved(-STEP)) / (2 * STEP);
    const size = Math.sqrt(dot(gradient, gradient) * Math.max(1, dot(direction, direction) / Math.max(1, data.length)));
    expect(Math.abs(dot(gradient, direction) - slope) / Math.max(1, size), `gradient of ${name}`).toBeLessThan(
      gradientTolerance,
    );
  }
}

/** Two runs that must agree but for rounding. */
export function expectSame(a: Ran, b: Ran, tolerance = 1e-4): void {
  for (const kind of ['outputs', 'gradients'] as const)
    for (const [name, values] of Object.entries(a[kind])) {
      const error = maxError(b[kind][name] ?? [], values) / magnitude(values);
      expect(error, `${kind} ${name}`).toBeLessThan(tolerance);
    }
}
