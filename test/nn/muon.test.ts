import { describe, expect, it } from 'vitest';
import { type DeviceName, memory, parameter, scope, type Tensor, tensor } from '../../lib/index.js';
import { AdamW, clipGradients, Muon } from '../../lib/nn/index.js';
import { magnitude, maxError } from '../../verify/oracle/compare.js';
import { muon, orthogonalized } from '../../verify/oracle/muon.js';
import { normal } from '../../verify/oracle/random.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { modelOf, onDevice, read, textOf } from './models.js';

const shapes = [
  [5, 9],
  [13, 4],
  [6, 6],
  [1, 3],
] as const;

const single = (values: Float64Array) => Float64Array.from(values, Math.fround);

function parameterOf(values: ArrayLike<number>, shape: readonly number[], device: DeviceName): Tensor {
  const handle = tensor(Float32Array.from(values), shape, { device }) as Tensor;
  const made = parameter(handle);
  handle.dispose();
  return made;
}

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('Muon'), () => {
    it.each([
      ['by default', {}],
      ['without looking ahead', { nesterov: false, momentum: 0.5, learningRate: 0.3 }],
      ['with decay, in three iterations', { weightDecay: 0.5, iterations: 3, learningRate: 0.1 }],
    ])('is that of float64 %s', async (_, options) => {
      const before = memory(device).tensors;
      const weights = shapes.map(([n, m], i) => ({
        ...{ data: single(normal(n * m, i + 1)), mean: new Float64Array(n * m), shape: [n, m] as const },
      }));
      const parameters = weights.map(({ data, shape }) => parameterOf(data, shape, device));
      const optimizer = new Muon(parameters, options);
      const all = { learningRate: 0.02, momentum: 0.95, nesterov: true, weightDecay: 0, iterations: 5, ...options };
      for (let step = 0; step < 3; step++) {
        optimizer.rate = 1 / (1 + step);
        for (const [i, { data, mean, shape }] of weights.entries()) {
          const gradient = single(normal(data.length, 10 * step + i + 50, 0.01));
          (parameters[i] as Tensor).grad = tensor(Float32Array.from(gradient), shape, { device }) as Tensor;
          muon(data, shape, gradient, mean, { ...all, rate: all.learningRate * optimizer.rate });
        }
        optimizer.step();
        for (const [i, { data, mean }] of weights.entries()) {
          expect(maxError(await read(parameters[i]), data)).toBeLessThan(3e-5 * magnitude(data));
          expect(maxError(await read(optimizer.state().tensors[`${i}.momentum`]), mean)).toBeLessThan(1e-8);
        }
      }
      optimizer.dispose();
      for (const t of parameters) t.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it('takes gradients with their scale, and no step where that is NaN', async () => {
      const values = single(normal(12, 1));
      const t = parameterOf(values, [3, 4], device);
      using optimizer = new Muon([t], { momentum: 0.5 });
      const gradients = [single(normal(12, 2)), single(normal(12, 3))];
      const mean = new Float64Array(12);
      const set = (gradient: ArrayLike<number>) => {
        t.grad = tensor(Float32Array.from(gradient), [3, 4], { device }) as Tensor;
      };
      for (const gradient of gradients) {
        set(gradient);
        const { scale, norm } = clipGradients([t], 0.1);
        const factor = (await scale.data())[0] as number;
        const scaled = gradient.map((g) => g * factor);
        muon(values, [3, 4], scaled, mean, {
          rate: 0.02,
          momentum: 0.5,
          nesterov: true,
          weightDecay: 0,
          iterations: 5,
        });
        optimizer.step({ gradientScale: scale });
        expect(maxError(await read(t), values)).toBeLessThan(3e-5);
        scale.dispose();
        norm.dispose();
      }
      const before = [await read(t), await read(optimizer.state().tensors['0.momentum'])];
      set(values.map((_, i) => (i === 3 ? Number.NaN : 1)));
      const { scale, norm } = clipGradients([t], 1);
      optimizer.step({ gradientScale: scale });
      expect([await read(t), await read(optimizer.state().tensors['0.momentum'])]).toEqual(before);
      for (const each of [t, scale, norm]) each.dispose();
    });
  });

describe('Muon', () => {
  const device = 'wasm';

  it('makes steps whose singular values are near 1', () => {
    const x = orthogonalized(3, 7, normal(21, 4), 5);
    for (let i = 0; i < 3; i++) {
      let length = 0;
      for (let j = 0; j < 7; j++) length += (x[i * 7 + j] as number) ** 2;
      expect(length).toBeGreaterThan(0.4);
      expect(length).toBeLessThan(1.6);
    }
  });

  it('trains the matrices of a model while AdamW trains the rest', async () => {
    using model = modelOf({ vocabulary: 11, context: 6, layers: 1, heads: 2, width: 8, device });
    const matrices = model.blocks.flatMap((block) => block.parameters().filter((t) => t.shape.length === 2));
    const others = model.parameters().filter((t) => !matrices.includes(t));
    expect(matrices).toHaveLength(4);
    using first = new Muon(matrices);
    using second = new AdamW(others, { learningRate: 0.01 });
    const { ids, targets } = onDevice(textOf(11, 2, 6), device);
    const losses: number[] = [];
    for (let step = 0; step < 15; step++) {
      using loss = scope(() => {
        const own = model.loss(ids, targets);
        own.backward();
        return own.detach();
      });
      for (const optimizer of [first, second]) {
        optimizer.step();
        optimizer.zeroGrad();
      }
      losses.push((await loss.data())[0] as number);
    }
    expect(losses[14]).toBeLessThan((losses[0] as number) - 0.5);
    ids.dispose();
    targets.dispose();
  });

  it('is for matrices', async () => {
    const vector = parameterOf([1, 2], [2], device);
    const matrix = parameterOf([1, 2], [1, 2], device);
    await expectFailure(() => new Muon([matrix, vector]), 'ERR_SHAPE', /parameter 1 has shape \[2\]/);
    await expectFailure(() => new Muon([matrix], { iterations: 0 }), 'ERR_OPTION', /iterations is 0/);
    await expectFailure(() => new Muon([matrix], { betas: [1] } as never), 'ERR_OPTION', /no option "betas"/);
    vector.dispose();
    matrix.dispose();
  });
});
