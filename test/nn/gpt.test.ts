import { describe, expect, it } from 'vitest';
import { memory, noGrad, scope, tensor } from '../../lib/index.js';
import { AdamW, GPT, type GPTOptions } from '../../lib/nn/index.js';
import { magnitude, maxError } from '../../verify/oracle/compare.js';
import { adamW, gpt, type Weights } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';
import { modelOf, normError, onDevice, read, relativeError, shapeOf, textOf, weightsOf } from './models.js';

/** Odd sizes throughout, so that nothing fits a tile. */
const base = { vocabulary: 11, context: 7, layers: 2, heads: 2, width: 6 } as const;
const slopes = [0.7, 0.2, 0.05];

const variants: Readonly<Record<string, GPTOptions>> = {
  'of GPT-2': { ...base, seed: 5 },
  'of Llama, with shared heads': {
    ...{ ...base, heads: 4, kvHeads: 2, width: 16, norm: 'rms', activation: 'swiglu', hidden: 9 },
    ...{ rope: {}, bias: false, tied: false },
  },
  'with ALiBi, one head of keys, geluTanh': {
    ...{ ...base, heads: 3, kvHeads: 1, width: 9, alibi: slopes, activation: 'geluTanh', tied: false },
  },
  'with some dims turned in neighbouring pairs, silu, its own head dim': {
    ...{ ...base, headDim: 10, rope: { dims: 4, pairs: 'interleaved', base: 100 }, norm: 'rms', activation: 'silu' },
    ...{ epsilon: 1e-3 },
  },
  'with rotary and learned positions, relu, without biases': {
    ...{ ...base, width: 8, rope: { base: 500 }, positions: 'learned', activation: 'relu', bias: false, epsilon: 1e-2 },
  },
  'with dropout': { ...base, dropout: 0.25, tied: false },
  'with blocks that are computed again, and dropout': { ...base, width: 8, dropout: 0.25, checkpoint: true, rope: {} },
};

// Adam divides by the size of a gradient: where that is 0, as of the bias of keys, a small epsilon makes steps of noise.
const hyper = { rate: 0.05, betas: [0.8, 0.95], epsilon: 1e-3, weightDecay: 0.1 } as const;
/** Float64 copies of weights with their moments, which a step changes. */
function startOf(weights: Weights) {
  const entries = Object.entries(weights).map(([name, { shape, data }]) => {
    const zeros = () => new Float64Array(data.length);
    return [name, { shape, data: Float64Array.from(data), mean: zeros(), meanSquare: zeros() }] as const;
  });
  return Object.fromEntries(entries);
}

/** Gradients and parameters of some steps, each against float64. */
async function compareSteps(
  options: GPTOptions,
  steps: number,
  batch: number,
  compare: (name: string, got: Float32Array, wanted: Float64Array) => void,
): Promise<void> {
  const { device = 'wasm', dropout = 0, vocabulary, context } = options;
  using model = modelOf(options);
  using optimizer = new AdamW(model.parameters(), {
    ...{ learningRate: hyper.rate, betas: hyper.betas, epsilon: hyper.epsilon, weightDecay: hyper.weightDecay },
  });
  const state = startOf(await weightsOf(model));
  expect(model.parameterCount).toBe(Object.values(state).reduce((sum, { data }) => sum + data.length, 0));
  for (let step = 1; step <= steps; step++) {
    const text = textOf(vocabulary, batch, context - (step % 2), step);
    const shape = shapeOf(options, dropout > 0 ? { model, p: dropout } : undefined);
    const wanted = gpt(shape, state, text.ids, text.targets, text.length);
    const { ids, targets } = onDevice(text, device);
    const loss = model.loss(ids, targets);
    loss.backward();
    compare(`loss of step ${step}`, await loss.data(), Float64Array.of(wanted.loss));
    for (const [name, t] of model.namedParameters())
      compare(`gradient of ${name} in step ${step}`, await read(t.grad), wanted.gradients[name] as Float64Array);
    optimizer.step();
    optimizer.zeroGrad();
    for (const [name, weight] of Object.entries(state))
      adamW(weight.data, wanted.gradients[name] as Float64Array, weight, step, hyper);
    for (const [name, t] of model.namedParameters())
      compare(`${name} after step ${step}`, await read(t), state[name]?.data as Float64Array);
    for (const t of [ids, targets, loss]) t.dispose();
  }
}

for (const { device, present, title } of testDevices) {
  const isEmulated = (device as string) === 'emulator';
  describe.skipIf(!present)(title('a GPT'), () => {
    const all = Object.entries(variants).filter(([name]) => !isEmulated || /Llama|dropout$/.test(name));
    it.each(all)('%s takes steps as float64 does', async (_, options) => {
      let worst = { error: 0, name: '' };
      await compareSteps({ ...options, device }, isEmulated ? 1 : 3, isEmulated ? 1 : 3, (name, got, wanted) => {
        // Of a bias of keys the gradient is 0, and what is left of it rounding of larger numbers.
        // From the second step on weights differ already.
        const tolerance = name.endsWith('step 1') ? 2e-5 : 5e-4;
        const error = maxError(got, wanted) / magnitude(wanted, 1e-3) / tolerance;
        if (error > worst.error) worst = { error, name };
      });
      expect(worst.error, worst.name).toBeLessThan(1);
      expect(worst.error).toBeGreaterThan(0);
    });

    it.skipIf(isEmulated).each([
      ['bfloat16', 0.05],
      ['float16', 0.01],
    ] as const)('computes in %s within its precision', async (compute, tolerance) => {
      const options = { ...variants['of Llama, with shared heads'], compute, device } as GPTOptions;
      let worst = { error: 0, name: '' };
      await compareSteps(options, 1, 3, (name, got, wanted) => {
        const error = normError(got, wanted);
        if (error > worst.error) worst = { error, name };
      });
      expect(worst.error, worst.name).toBeLessThan(tolerance);
      expect(worst.error).toBeGreaterThan(tolerance / 100);
    });

    it('has the losses of float64 over 20 steps', async () => {
      const options: GPTOptions = { ...base, layers: 1, width: 8, kvHeads: 1, rope: {}, device };
      using model = modelOf(options);
      using optimizer = new AdamW(model.parameters(), { learningRate: 0.02 });
      const state = startOf(await weightsOf(model));
      const shape = shapeOf(options);
      const text = textOf(base.vocabulary, 2, 5);
      const { ids, targets } = onDevice(text, device);
      const losses: [got: number, wanted: number][] = [];
      for (let step = 1; step <= 20; step++) {
        const wanted = gpt(shape, state, text.ids, text.targets, text.length);
        using loss = model.loss(ids, targets);
        loss.backward();
        optimizer.step();
        optimizer.zeroGrad();
        for (const [name, weight] of Object.entries(state))
          adamW(weight.data, wanted.gradients[name] as Float64Array, weight, step, {
            ...{ rate: 0.02, betas: [0.9, 0.999], epsilon: 1e-8, weightDecay: 0.01 },
          });
        losses.push([(await loss.data())[0] as number, wanted.loss]);
      }
      ids.dispose();
      targets.dispose();
      const [first, last] = [losses[0], losses[19]] as [[number, number], [number, number]];
      expect(last[1]).toBeLessThan(first[1] - 0.5);
      for (const [got, wanted] of losses) expect(Math.abs(got - wanted)).toBeLessThan(1e-3);
    });
  });
}

describe('a GPT', () => {
  const device = 'wasm';
  const row = (...values: number[]) => tensor(Int32Array.from(values), [1, values.length], { device });

  it('predicts a token from those before it alone', async () => {
    for (const options of Object.values(variants)) {
      using model = modelOf({ ...options, device });
      model.eval();
      using first = row(1, 2, 3, 4, 5);
      using second = row(1, 2, 3, 4, 6);
      using a = model.forward(first);
      using b = model.forward(second);
      const [x, y] = [await read(a), await read(b)];
      const before = 4 * base.vocabulary;
      expect(x.subarray(0, before)).toEqual(y.subarray(0, before));
      expect(x.subarray(before)).not.toEqual(y.subarray(before));
    }
  });

  it('gives the logits of float64, of a text shorter than the one before it too', async () => {
    const options: GPTOptions = { ...base, width: 8, rope: {}, positions: 'learned', device };
    using model = modelOf(options);
    for (const length of [3, 7, 1, 5]) {
      const text = textOf(base.vocabulary, 2, length, length);
      const wanted = gpt(shapeOf(options), await weightsOf(model), text.ids, text.targets, length);
      const put = onDevice(text, device);
      const logits = noGrad(() => model.forward(put.ids));
      expect(logits.shape).toEqual([2, length, base.vocabulary]);
      expect(relativeError(await read(logits), wanted.logits)).toBeLessThan(2e-5);
      for (const t of [logits, put.ids, put.targets]) t.dispose();
    }
  });

  it.each(Object.entries(variants))('%s leaves nothing behind, with its gradients and tables', (_, options) => {
    const before = memory(device).tensors;
    const model = modelOf({ ...options, device });
    const text = onDevice(textOf(base.vocabulary, 2, 4), device);
    const held = memory(device).tensors;
    const loss = model.loss(text.ids, text.targets);
    loss.backward();
    loss.dispose();
    model.zeroGrad();
    // Tables of rotary positions stay.
    expect(memory(device).tensors - held).toBe(options.rope ? 2 * options.layers : 0);
    noGrad(() => model.forward(text.ids)).dispose();
    model.loss(text.ids, text.targets).dispose();
    expect(memory(device).tensors - held).toBe(options.rope ? 2 * options.layers : 0);
    scope(() => model.loss(text.ids, text.targets).backward());
    model.dispose();
    text.ids.dispose();
    text.targets.dispose();
    expect(memory(device).tensors).toBe(before);
  });

  it('of Llama has the shape of Llama', () => {
    using model = GPT.llama({ ...base, heads: 4, kvHeads: 2, width: 16, device });
    const shapes = Object.fromEntries([...model.namedParameters()].map(([name, t]) => [name, t.shape]));
    expect(shapes).toEqual({
      'tokens.weight': [11, 16],
      ...Object.fromEntries(
        [0, 1].flatMap((i) => [
          [`blocks.${i}.norm1.weight`, [16]],
          [`blocks.${i}.attention.qkv.weight`, [32, 16]],
          [`blocks.${i}.attention.out.weight`, [16, 16]],
          [`blocks.${i}.norm2.weight`, [16]],
          [`blocks.${i}.mlp.up.weight`, [128, 16]],
          [`blocks.${i}.mlp.down.weight`, [16, 64]],
        ]),
      ),
      'norm.weight': [16],
      'head.weight': [11, 16],
    });
  });

  it('begins with the same weights on every device, for a seed', async () => {
    const weights = [];
    for (const { device, present } of testDevices) {
      if (!present) continue;
      using model = new GPT({ ...base, seed: 42, device });
      weights.push(await weightsOf(model));
    }
    for (const other of weights.slice(1)) expect(other).toEqual(weights[0]);
    using next = new GPT({ ...base, seed: 43, device });
    expect(await weightsOf(next)).not.toEqual(weights[0]);
    // Each of those that are drawn has numbers of its own.
    const drawn = Object.entries(weights[0] as Weights).filter(([name]) => !/norm|bias/.test(name));
    expect(new Set(drawn.map(([, { data }]) => data[0])).size).toBe(drawn.length);
  });

  it.each<[string, object, string, RegExp]>([
    ['an unknown option', { vocab: 3 }, 'ERR_OPTION', /there is no option "vocab"/],
    ['a width that heads do not divide', { width: 7 }, 'ERR_OPTION', /width 7 .*heads 2/],
    ['heads of keys that do not divide heads', { heads: 3, width: 6, kvHeads: 2 }, 'ERR_OPTION', /kvHeads is 2/],
    ['an unknown activation', { activation: 'tanh' }, 'ERR_OPTION', /activation is "tanh"/],
    ['an unknown norm', { norm: 'batch' }, 'ERR_OPTION', /norm is "batch"/],
    ['a dropout of all', { dropout: 1 }, 'ERR_OPTION', /is 1; it must be from 0 to below 1/],
    ['no layers', { layers: 0 }, 'ERR_OPTION', /layers is 0/],
    ['an odd number of turned dims', { width: 8, rope: { dims: 3 } }, 'ERR_OPTION', /rope.dims is 3; it must be even/],
    ['unknown pairs', { width: 8, rope: { pairs: 'whole' } }, 'ERR_OPTION', /rope.pairs is "whole"/],
    ['an integer dtype', { dtype: 'int32' }, 'ERR_DTYPE', /dtype/],
    ['positions that are none', { positions: 'sinus' }, 'ERR_OPTION', /positions is "sinus"/],
    ['a negative epsilon', { epsilon: -1 }, 'ERR_OPTION', /epsilon is -1/],
  ])('refuses %s, and leaves nothing', async (_, wrong, code, message) => {
    const before = memory(device).tensors;
    await expectFailure(() => new GPT({ ...base, device, ...wrong } as GPTOptions), code, message);
    expect(memory(device).tensors).toBe(before);
  });

  it('refuses ids that are none, and texts longer than its context', async () => {
    using model = new GPT({ ...base, device });
    const held = memory(device).tensors;
    using high = row(0, 11);
    using low = row(-1, 0);
    using long = row(1, 2, 3, 4, 5, 6, 7, 8);
    using flat = tensor(Int32Array.of(1, 2), [2], { device });
    using float = tensor([1, 2], [1, 2], { device });
    await expectFailure(() => model.forward(high), 'ERR_OPTION', /ids\[0, 1\] is 11.*0 to 10/);
    await expectFailure(() => model.loss(low, low), 'ERR_OPTION', /is -1/);
    await expectFailure(() => model.forward(long), 'ERR_SHAPE', /\[1, 8\].*1 to 7 long/);
    await expectFailure(() => model.forward(flat), 'ERR_SHAPE', /\[2\]/);
    await expectFailure(() => model.forward(float as never), 'ERR_DTYPE', /int32/);
    expect(memory(device).tensors).toBe(held + 5);
  });
});
