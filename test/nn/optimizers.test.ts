import { describe, expect, it } from 'vitest';
import { type DeviceName, memory, parameter, type Tensor, tensor } from '../../lib/index.js';
import {
  AdamW,
  clipGradients,
  GPT,
  loadCheckpoint,
  Seeds,
  SGD,
  saveCheckpoint,
  schedule,
  TokenBatches,
  type TokenBatchesState,
  tokensOf,
  train,
} from '../../lib/nn/index.js';
import { magnitude, maxError } from '../../verify/oracle/compare.js';
import { normal, uniform } from '../../verify/oracle/random.js';
import { adamW, clipping, sgd } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { temporaryFolder } from '../support/folder.js';
import { read, weightsOf } from './models.js';

const at = temporaryFolder();

type FloatDType = 'float32' | 'bfloat16';

function parameterOf(values: ArrayLike<number>, device: DeviceName, dtype: FloatDType = 'float32'): Tensor {
  const handle = tensor(Float32Array.from(values), [values.length], { device, dtype }) as Tensor;
  const made = parameter(handle);
  handle.dispose();
  return made;
}

const setGradient = (t: Tensor, values: ArrayLike<number>) => {
  t.grad = tensor(Float32Array.from(values), t.shape, { device: t.device as DeviceName, dtype: t.dtype }) as Tensor;
};

const single = (values: Float64Array) => Float64Array.from(values, Math.fround);

for (const { device, present, title } of testDevices)
  describe.skipIf(!present)(title('optimizers'), () => {
    const sizes = [1, 7, 130];
    const begin = () => sizes.map((n, i) => single(normal(n, i + 1)));

    it.each([
      ['AdamW', {}],
      ['AdamW with all options', { learningRate: 0.3, betas: [0.5, 0.7], epsilon: 0.1, weightDecay: 0.4 }],
      ['AdamW without memory', { betas: [0, 0], weightDecay: 0, epsilon: 1e-3 }],
    ] as const)('%s is that of float64', async (_, options) => {
      const wanted = begin().map((data) => {
        return { data, mean: new Float64Array(data.length), meanSquare: new Float64Array(data.length) };
      });
      const parameters = wanted.map(({ data }) => parameterOf(data, device));
      const optimizer = new AdamW(parameters, options);
      const {
        learningRate = 1e-3,
        betas = [0.9, 0.999],
        epsilon = 1e-8,
        weightDecay = 0.01,
      } = options as Partial<{
        learningRate: number;
        betas: [number, number];
        epsilon: number;
        weightDecay: number;
      }>;
      for (let step = 1; step <= 5; step++) {
        const rate = 1 / step;
        optimizer.rate = rate;
        for (const [i, weight] of wanted.entries()) {
          const gradient = single(normal(weight.data.length, 100 * step + i));
          setGradient(parameters[i] as Tensor, gradient);
          adamW(weight.data, gradient, weight, step, { rate: rate * learningRate, betas, epsilon, weightDecay });
        }
        optimizer.step();
        const { tensors } = optimizer.state();
        for (const [i, { data, mean, meanSquare }] of wanted.entries()) {
          expect(maxError(await read(parameters[i]), data)).toBeLessThan(2e-6 * magnitude(data));
          expect(maxError(await read(tensors[`${i}.mean`]), mean)).toBeLessThan(1e-6);
          expect(maxError(await read(tensors[`${i}.meanSquare`]), meanSquare)).toBeLessThan(
            2e-6 * magnitude(meanSquare),
          );
        }
      }
      expect(optimizer.stepCount).toBe(5);
      optimizer.dispose();
      for (const t of parameters) t.dispose();
    });

    it('AdamW corrects by the steps of each parameter, as PyTorch does', async () => {
      const hyper = { betas: [0.8, 0.9] as [number, number], epsilon: 1e-4, weightDecay: 0.1 };
      const wanted = begin().map((data) => {
        return { data, mean: new Float64Array(data.length), meanSquare: new Float64Array(data.length), steps: 0 };
      });
      const parameters = wanted.map(({ data }) => parameterOf(data, device));
      let optimizer = new AdamW(parameters, { learningRate: 0.1, ...hyper });
      // Which parameters have a gradient, step by step.
      const present = [[0, 1], [0], [0, 2], [0, 1, 2], [1], [0, 2]];
      for (const [step, those] of present.entries()) {
        optimizer.zeroGrad();
        for (const i of those) {
          const own = wanted[i] as (typeof wanted)[number];
          const gradient = single(normal(own.data.length, 100 * step + i));
          setGradient(parameters[i] as Tensor, gradient);
          adamW(own.data, gradient, own, ++own.steps, { rate: 0.1, ...hyper });
        }
        optimizer.step();
        for (const [i, { data }] of wanted.entries())
          expect(maxError(await read(parameters[i]), data), `${step} ${i}`).toBeLessThan(3e-6 * magnitude(data));
        if (step !== 3) continue;
        // Goes on from a state that has been through JSON.
        const { step: count, tensors, steps } = optimizer.state();
        expect(steps).toEqual({ 1: 2, 2: 2 });
        const next = new AdamW(parameters, { learningRate: 0.1, ...hyper });
        next.restore({ step: count, tensors, steps: JSON.parse(JSON.stringify(steps)) });
        optimizer.dispose();
        optimizer = next;
      }
      expect(optimizer.stepCount).toBe(6);
      expect(optimizer.state().steps).toEqual({ 0: 5, 1: 3, 2: 3 });
      optimizer.dispose();
      for (const t of parameters) t.dispose();
    });

    it.each([
      ['SGD', {}],
      ['SGD with momentum', { momentum: 0.9, learningRate: 0.1 }],
      ['SGD with all options', { momentum: 0.7, nesterov: true, weightDecay: 0.2, learningRate: 0.1 }],
    ])('%s is that of float64', async (_, options) => {
      const wanted = begin();
      const sums = wanted.map(({ length }) => new Float64Array(length));
      const parameters = wanted.map((data) => parameterOf(data, device));
      const optimizer = new SGD(parameters, options);
      const hyper = { rate: 1e-2, momentum: 0, nesterov: false, weightDecay: 0, ...options };
      if ('learningRate' in options) hyper.rate = options.learningRate as number;
      for (let step = 1; step <= 4; step++) {
        for (const [i, data] of wanted.entries()) {
          const gradient = single(normal(data.length, 100 * step + i));
          setGradient(parameters[i] as Tensor, gradient);
          sgd(data, gradient, sums[i] as Float64Array, hyper);
        }
        optimizer.step();
        for (const [i, data] of wanted.entries())
          expect(maxError(await read(parameters[i]), data)).toBeLessThan(2e-6 * magnitude(data));
      }
      optimizer.dispose();
      for (const t of parameters) t.dispose();
    });

    it('clip by the norm of all gradients, which the step applies', async () => {
      for (const most of [0.5, 1e6, Number.POSITIVE_INFINITY]) {
        const data = begin();
        const gradients = data.map(({ length }, i) => single(normal(length, 50 + i)));
        const parameters = data.map((values) => parameterOf(values, device));
        gradients.forEach((gradient, i) => {
          setGradient(parameters[i] as Tensor, gradient);
        });
        const wanted = clipping(gradients, most);
        const { scale, norm } = clipGradients(parameters, most);
        expect(scale.shape).toEqual([1]);
        expect((await norm.data())[0] / wanted.norm).toBeCloseTo(1, 6);
        expect((await scale.data())[0] / wanted.scale).toBeCloseTo(1, 6);
        const optimizer = new SGD(parameters, { learningRate: 1 });
        optimizer.step({ gradientScale: scale });
        for (const [i, values] of data.entries())
          expect(
            maxError(
              await read(parameters[i]),
              values.map((w, j) => w - wanted.scale * (gradients[i]?.[j] as number)),
            ),
          ).toBeLessThan(2e-6);
        for (const t of [...parameters, scale, norm, optimizer]) t.dispose();
      }
    });

    it.each([Number.NaN, Number.POSITIVE_INFINITY])('change nothing where a gradient is %s', async (broken) => {
      for (const make of [AdamW, SGD]) {
        const parameters = [parameterOf([1, 2, 3], device), parameterOf([4], device)];
        const optimizer = new make(parameters, { learningRate: 0.1 } as never);
        const [first, second] = parameters as [Tensor, Tensor];
        setGradient(first, [1, 1, 1]);
        setGradient(second, [1]);
        optimizer.step();
        const before = [await read(first), await read(second), ...(await valuesOf(optimizer.state().tensors))];
        setGradient(second, [broken]);
        const { scale, norm } = clipGradients(parameters, 1);
        expect(await scale.data()).toEqual(Float32Array.of(Number.NaN));
        expect((await norm.data())[0]).toBe(broken);
        optimizer.step({ gradientScale: scale });
        expect([await read(first), await read(second), ...(await valuesOf(optimizer.state().tensors))]).toEqual(before);
        for (const t of [...parameters, scale, norm, optimizer]) t.dispose();
      }
    });
  });

const valuesOf = (tensors: Readonly<Record<string, Tensor>>) =>
  Promise.all(Object.values(tensors).map((t) => t.toFloat32()));

describe('an optimizer', () => {
  const device = 'wasm';

  it('has groups with options of their own, and counts a parameter without a gradient not at all', async () => {
    const before = memory(device).tensors;
    const parameters = [1, 2, 3].map((value) => parameterOf([value], device));
    const [a, b, c] = parameters as [Tensor, Tensor, Tensor];
    using optimizer = new SGD([{ parameters: [a, c], options: { learningRate: 0.5 } }, b], { learningRate: 0.1 });
    setGradient(a, [1]);
    setGradient(b, [1]);
    optimizer.step();
    expect([await read(a), await read(b), await read(c)].map(([x]) => x)).toEqual([0.5, Math.fround(1.9), 3]);
    expect(Object.keys(optimizer.state().tensors)).toEqual(['0.momentum', '2.momentum']);
    optimizer.zeroGrad();
    expect(a.grad).toBeUndefined();
    optimizer.dispose();
    for (const t of parameters) t.dispose();
    expect(memory(device).tensors).toBe(before);
  });

  it('rounds steps to the dtype of a parameter, with moments in float32', async () => {
    const t = parameterOf([1, -2], device, 'bfloat16');
    using optimizer = new AdamW([t], { learningRate: 0.1, weightDecay: 0 });
    setGradient(t, [1, 1]);
    optimizer.step();
    expect([...(await read(t))]).toEqual([0.8984375, -2.09375]);
    expect(optimizer.state().tensors['0.mean']?.dtype).toBe('float32');
    t.dispose();
  });

  it('restores a state, and sets what the state has not to 0', async () => {
    const [a, b] = [parameterOf([1, 2], device), parameterOf([3], device)] as const;
    using first = new AdamW([a, b]);
    setGradient(a, [1, 2]);
    first.step();
    using second = new AdamW([a, b]);
    setGradient(b, [5]);
    second.step();
    second.restore(first.state());
    expect(second.stepCount).toBe(1);
    const { tensors } = second.state();
    expect(await read(tensors['0.mean'])).toEqual(await read(first.state().tensors['0.mean']));
    expect(await read(tensors['1.mean'])).toEqual(new Float32Array(1));
    // What it is asked to begin with is its own memory.
    second.restore({ step: 4, tensors: second.prepare().tensors });
    expect(second.stepCount).toBe(4);
    expect(await read(tensors['0.mean'])).toEqual(await read(first.state().tensors['0.mean']));
    a.dispose();
    b.dispose();
  });

  it('refuses a state of other parameters, with nothing restored', async () => {
    const t = parameterOf([1, 2], device);
    using optimizer = new AdamW([t]);
    setGradient(t, [1, 2]);
    optimizer.step();
    const before = await valuesOf(optimizer.state().tensors);
    using long = tensor([1, 2, 3], [3], { device }) as Tensor & Disposable;
    using right = tensor([1, 2], [2], { device }) as Tensor & Disposable;
    using short = tensor([1, 2], [2], { device, dtype: 'bfloat16' }) as Tensor & Disposable;
    const cases: [object, string, RegExp][] = [
      [{ step: 1, tensors: { '0.mean': right, '0.meanSquare': long } }, 'ERR_SHAPE', /0\.meanSquare.*\[3\].*\[2\]/],
      [{ step: 1, tensors: { '0.mean': right, '1.mean': right } }, 'ERR_OPTION', /"1\.mean", which this optimizer/],
      [{ step: 1, tensors: { '0.mean': right, '0.meanSquare': short } }, 'ERR_OPTION', /bfloat16; it must be float32/],
      [{ step: -1, tensors: {} }, 'ERR_OPTION', /state\.step is -1/],
      [{ step: 1, tensors: {}, steps: { 0: 2 } }, 'ERR_OPTION', /state\.steps\[0\] is 2; .* from 0 to 1/],
      [{ step: 1, tensors: {}, steps: { 1: 1 } }, 'ERR_OPTION', /steps of parameter "1", which this optimizer has not/],
      [{ step: 1, tensors: {}, steps: 1 }, 'ERR_OPTION', /state\.steps is 1/],
      [{ step: 1, tensors: { '0.mean': 3 } }, 'ERR_OPTION', /0\.mean of the state is 3/],
    ];
    for (const [state, code, message] of cases)
      await expectFailure(() => optimizer.restore(state as never), code, message);
    expect(await valuesOf(optimizer.state().tensors)).toEqual(before);
    expect(optimizer.stepCount).toBe(1);
    t.dispose();
  });

  it('refuses what it cannot use', async () => {
    const t = parameterOf([1, 2], device);
    using plain = tensor([1], [1], { device }) as Tensor & Disposable;
    const cases: [() => unknown, string, RegExp][] = [
      [() => new AdamW([plain]), 'ERR_OPTION', /parameter 0 of group 0 is none/],
      [() => new AdamW([t, t]), 'ERR_OPTION', /parameter 0 of group 1 comes twice/],
      [() => new AdamW([t], { learningRate: -1 }), 'ERR_OPTION', /learningRate is -1/],
      [() => new AdamW([t], { betas: [0.9, 1.5] }), 'ERR_OPTION', /betas\[1\] is 1.5/],
      [() => new AdamW([t], { rate: 3 } as never), 'ERR_OPTION', /no option "rate"/],
      [() => new SGD([t], { momentum: 2 }), 'ERR_OPTION', /momentum is 2/],
      [() => new SGD([{ parameters: [t], options: { lr: 1 } as never }]), 'ERR_OPTION', /no option "lr" in options of/],
      [() => new SGD([{ parameters: t as never }]), 'ERR_OPTION', /parameters of group 0/],
      [() => new SGD('all' as never), 'ERR_OPTION', /parameters is "all"/],
      [() => new SGD([t]).step({ gradientScale: t }), 'ERR_SHAPE', /gradientScale has shape \[2\]/],
      [() => clipGradients([t], 1), 'ERR_OPTION', /no parameter has a gradient/],
      [() => clipGradients([t], -1), 'ERR_OPTION', /most is -1/],
    ];
    for (const [call, code, message] of cases) await expectFailure(call, code, message);
    t.dispose();
  });

  it('takes no step at all when a parameter has been disposed', async () => {
    const [a, b] = [parameterOf([1], device), parameterOf([1], device)] as const;
    using optimizer = new SGD([a, b]);
    setGradient(a, [1]);
    setGradient(b, [1]);
    b.dispose();
    await expectFailure(() => optimizer.step(), 'ERR_DISPOSED', /parameter 1 has been disposed/);
    expect(await read(a)).toEqual(Float32Array.of(1));
    expect(optimizer.stepCount).toBe(0);
    a.dispose();
  });
});

describe('a schedule', () => {
  it('is what its formula says, at every step', () => {
    const warm = schedule({ kind: 'constant', steps: 10, warmup: 4 });
    expect([0, 1, 2, 3, 4, 9, 20].map(warm)).toEqual([0.25, 0.5, 0.75, 1, 1, 1, 1]);
    const cosine = schedule({ kind: 'cosine', steps: 10, warmup: 2, least: 0.2 });
    expect(cosine(1)).toBe(1);
    for (let step = 2; step <= 10; step++)
      expect(cosine(step)).toBeCloseTo(0.2 + 0.4 * (1 + Math.cos((Math.PI * (step - 2)) / 8)), 14);
    expect(cosine(2)).toBe(1);
    expect(cosine(6)).toBeCloseTo(0.6, 15);
    expect(cosine(10)).toBeCloseTo(0.2, 15);
    expect(cosine(1000)).toBeCloseTo(0.2, 15);
    const wsd = schedule({ kind: 'wsd', steps: 10, warmup: 2, decaySteps: 4 });
    expect(Array.from({ length: 12 }, (_, step) => wsd(step))).toEqual([
      ...[0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25, 0, 0],
    ]);
    expect(schedule({ kind: 'wsd', steps: 10, least: 0.5 })(9)).toBe(0.75);
  });

  it('may be all warmup', () => {
    for (const kind of ['constant', 'cosine', 'wsd'] as const)
      for (const steps of [1, 2, 9]) {
        const rate = schedule({ kind, steps, warmup: steps });
        expect(Array.from({ length: steps }, (_, step) => rate(step))).toEqual(
          Array.from({ length: steps }, (_, step) => (step + 1) / steps),
        );
        expect(rate(steps)).toBeGreaterThanOrEqual(0);
      }
  });

  it.each([
    [{ kind: 'linear', steps: 3 }, /kind is "linear"/],
    [{ kind: 'cosine', steps: 0 }, /steps is 0/],
    [{ kind: 'cosine', steps: 3, warmup: 4 }, /warmup is 4/],
    [{ kind: 'cosine', steps: 3, least: 2 }, /least is 2/],
    [{ kind: 'wsd', steps: 3, warmup: 2, decaySteps: 2 }, /decaySteps is 2/],
  ])('refuses %o', async (options, message) => {
    await expectFailure(() => schedule(options as never), 'ERR_OPTION', message);
  });
});

const vocabulary = 13;
const tokens = tokensOf(
  Int32Array.from(
    { length: 500 },
    (() => {
      const next = uniform(9);
      return () => Math.floor(next() * vocabulary);
    })(),
  ),
);

/** Everything that a process has. */
function processOf(device: DeviceName, batch = 2) {
  const model = new GPT({
    ...{ vocabulary, context: 6, layers: 2, heads: 2, width: 8, dropout: 0.1, rope: {}, seed: 4 },
    device,
  });
  const decayed = model.parameters().filter((t) => t.shape.length > 1);
  const others = model.parameters().filter((t) => t.shape.length === 1);
  const optimizer = new AdamW([{ parameters: decayed }, { parameters: others, options: { weightDecay: 0 } }], {
    learningRate: 0.01,
  });
  const batches = new TokenBatches({ tokens, batch, context: 6, seed: 2 });
  const losses: number[] = [];
  const run = (firstStep: number, steps: number) =>
    train({
      ...{ model, optimizer, batches, firstStep, steps },
      rate: schedule({ kind: 'cosine', steps: 12, warmup: 3 }),
      onStep: ({ loss }) => {
        losses.push(loss);
      },
    });
  const dispose = () => {
    optimizer.dispose();
    model.dispose();
  };
  return { model, optimizer, batches, losses, run, dispose };
}

for (const { device, present, title } of testDevices)
  describe.skipIf(!present || (device as string) === 'emulator')(title('a run'), () => {
    it('goes on from a checkpoint bit for bit', async () => {
      const path = at(`${device}.safetensors`);
      const straight = processOf(device);
      await straight.run(0, 12);

      const first = processOf(device);
      await first.run(0, 5);
      await saveCheckpoint(path, {
        model: first.model.stateDict(),
        optimizer: first.optimizer.state().tensors,
        step: 5,
        random: first.model.randomState(),
        extra: { batches: { ...first.batches.state() } },
      });
      first.dispose();

      const second = processOf(device);
      const { tensors } = second.optimizer.prepare();
      const { step, random, extra } = await loadCheckpoint(path, {
        model: second.model.stateDict(),
        optimizer: tensors,
      });
      second.optimizer.restore({ step, tensors });
      second.batches.restore((extra as unknown as { batches: TokenBatchesState }).batches);
      second.model.restoreRandom(random as Record<string, string>);
      await second.run(step, 12);

      expect([...first.losses, ...second.losses]).toEqual(straight.losses);
      expect(await weightsOf(second.model)).toEqual(await weightsOf(straight.model));
      expect(await valuesOf(second.optimizer.state().tensors)).toEqual(
        await valuesOf(straight.optimizer.state().tensors),
      );
      expect(second.optimizer.stepCount).toBe(12);
      second.dispose();
      straight.dispose();
    });

    it('accumulates two batches as if they were one', async () => {
      const results = [];
      for (const [batch, accumulate] of [
        [4, 1],
        [2, 2],
      ] as const) {
        using model = new GPT({ vocabulary, context: 6, layers: 1, heads: 2, width: 8, seed: 4, device });
        using optimizer = new SGD(model.parameters(), { learningRate: 0.5 });
        const batches = new TokenBatches({ tokens, batch, context: 6, seed: 2 });
        const losses: number[] = [];
        const norms: number[] = [];
        await train({
          ...{ model, optimizer, batches, steps: 4, accumulate, clip: 0.1 },
          onStep: ({ loss, gradientNorm }) => {
            losses.push(loss);
            norms.push(gradientNorm);
          },
        });
        results.push({ losses, norms, weights: await weightsOf(model) });
      }
      const [one, two] = results as [(typeof results)[0], (typeof results)[0]];
      expect(maxError(two.losses, one.losses)).toBeLessThan(1e-5);
      expect(maxError(two.norms, one.norms)).toBeLessThan(1e-5);
      for (const [name, { data }] of Object.entries(one.weights))
        expect(maxError(two.weights[name]?.data as Float64Array, data), name).toBeLessThan(1e-5);
    });
  });

describe('seeds', () => {
  it('are restored as they were', () => {
    const seeds = new Seeds(2n ** 64n - 1n);
    const state = seeds.state;
    const drawn = [seeds.next(), seeds.next()];
    seeds.restore(state);
    expect([seeds.next(), seeds.next()]).toEqual(drawn);
    expect(drawn[1]).toBeLessThan(2n ** 64n);
  });
});
