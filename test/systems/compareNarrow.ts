/** Systems of 16 bits, against their definition in float64. */
import { type DeviceName, type FloatDType, memory, parameter, scope, sum, type Tensor, tensor } from 'flashattn';
import { expect } from 'vitest';
import { maxError } from '../../verify/oracle/compare.js';
import type { Inputs, Named } from './taped.js';

/** That results are of this dtype and near the definition on rounded inputs, gradients of it and finite, and nothing is left. */
export function compareNarrow(
  device: DeviceName,
  dtype: FloatDType,
  inputs: Inputs,
  system: (t: Named<Tensor>) => Tensor,
  definition: (values: Named<Float64Array>) => Float64Array,
  tolerance: number,
): void {
  const before = memory(device).tensors;
  const owned: Tensor[] = [];
  scope(() => {
    const t = Object.fromEntries(
      Object.entries(inputs).map(([name, { shape, data }]) => {
        const leaf = parameter(tensor(Float32Array.from(data), shape, { device, dtype }) as Tensor);
        owned.push(leaf);
        return [name, leaf];
      }),
    );
    const out = system(t);
    expect(out.dtype).toBe(dtype);
    const values = Object.fromEntries(
      Object.entries(t).map(([name, x]) => [name, Float64Array.from(x.toFloat32Sync())]),
    );
    expect(maxError(out.toFloat32Sync(), definition(values))).toBeLessThan(tolerance);
    sum(out).backward();
    for (const [name, x] of Object.entries(t)) {
      expect(x.grad?.dtype, name).toBe(dtype);
      expect(x.grad?.toFloat32Sync().every(Number.isFinite), name).toBe(true);
    }
  });
  for (const leaf of owned) leaf.dispose();
  expect(memory(device).tensors).toBe(before);
}
