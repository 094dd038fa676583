import { describe, expect, it } from 'vitest';
import { type DeviceName, matmul, memory, scope, synchronize, zeros } from '../../lib/index.js';
import {
  AdamW,
  evaluate,
  GPT,
  type GPTOptions,
  generate,
  generator,
  SGD,
  type StepReport,
  TokenBatches,
  type Tokens,
  textTokens,
  tokensOf,
  train,
} from '../../lib/nn/index.js';
import { clipping, gpt } from '../../verify/oracle/transformer.js';
import { testDevices } from '../support/devices.js';
import { expectFailure, failureOf } from '../support/failure.js';
import { modelOf, shapeOf, weightsOf } from './models.js';

const device = 'wasm' as DeviceName;
const text = 'the quick brown fox jumps over the lazy dog; '.repeat(60);
const characters = [...new Set(text)].toSorted();
const encoder = { encode: (text: string) => Int32Array.from(text, (c) => characters.indexOf(c)) };
const tokens = textTokens(text, encoder);
const small: GPTOptions = { vocabulary: characters.length, context: 8, layers: 2, heads: 2, width: 8, device };

function runOf(options: Partial<GPTOptions> = {}) {
  const model = new GPT({ ...small, ...options });
  const optimizer = new AdamW(model.parameters(), { learningRate: 0.02 });
  const batches = new TokenBatches({ tokens, batch: 4, context: 8 });
  const dispose = () => {
    optimizer.dispose();
    model.dispose();
  };
  return { model, optimizer, batches, dispose };
}

describe('train', () => {
  it('lowers the loss on text that it has not seen, and gives the same for the same seed', async () => {
    const held = textTokens(text.slice(0, 400).split(' ').reverse().join(' '), encoder);
    const results = [];
    for (let run = 0; run < 2; run++) {
      const { model, optimizer, batches, dispose } = runOf({ layers: 1 });
      const before = await evaluate(model, held, { batch: 4, context: 8 });
      await train({ model, optimizer, batches, steps: 40 });
      results.push([before, await evaluate(model, held, { batch: 4, context: 8 })]);
      dispose();
    }
    const [[before, after], second] = results as [[number, number], number[]];
    expect(before).toBeCloseTo(Math.log(characters.length), 1);
    expect(after).toBeLessThan(before - 0.7);
    expect(second).toEqual([before, after]);
  });

  it.each([{ clip: 0 }, { dropout: 0.3, activation: 'swiglu' }, { accumulate: 3, dropout: 0.2 }] as const)(
    'has the same bits whether its steps are captured or not: %j',
    async ({ clip, accumulate, ...options }) => {
      // Threads take their memory with the first launch that is large enough for them.
      scope(() => void matmul(zeros([256, 256], { device }), zeros([256, 256], { device })));
      await synchronize(device);
      const results: unknown[] = [];
      for (const capture of [true, false]) {
        const before = memory(device);
        const { model, optimizer, batches, dispose } = runOf(options as Partial<GPTOptions>);
        const reports: unknown[] = [];
        const run = { model, optimizer, batches, capture, ...(clip === undefined ? {} : { clip }) };
        const rate = (step: number) => 1 / (step + 1);
        const onStep = ({ milliseconds, ...report }: StepReport) => void reports.push(report);
        await train({ ...run, steps: 6, rate, onStep, ...(accumulate ? { accumulate } : {}) });
        const weights = Object.entries(model.stateDict()).map(([name, t]) => [name, [...t.toFloat32Sync()]]);
        results.push({ reports, weights, seeds: model.randomState() });
        dispose();
        expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
      }
      expect(results[0]).toEqual(results[1]);
    },
  );

  it('reports each step in order, with the loss and the norm of its batch', async () => {
    const { model, optimizer, batches, dispose } = runOf({ layers: 1, rope: {} });
    const shape = shapeOf({ ...small, layers: 1, rope: {} });
    const same = new TokenBatches({ tokens, batch: 4, context: 8 });
    const weights = await weightsOf(model);
    const events: string[] = [];
    const reports: StepReport[] = [];
    const done = await train({
      ...{ model, optimizer, batches, firstStep: 3, steps: 7 },
      rate: (step) => {
        events.push(`rate ${step}`);
        return 1 / (1 + step);
      },
      onStep: async (report) => {
        reports.push(report);
        events.push(`begin ${report.step}`);
        await new Promise((resolve) => setTimeout(resolve, 5));
        events.push(`end ${report.step}`);
      },
    });
    expect(done).toBe(4);
    expect(optimizer.stepCount).toBe(4);
    // A step is queued before the one before it is known.
    expect(events.join()).toBe('rate 3,rate 4,begin 3,end 3,rate 5,begin 4,end 4,rate 6,begin 5,end 5,begin 6,end 6');
    expect(reports.map(({ step, rate }) => [step, rate])).toEqual([3, 4, 5, 6].map((step) => [step, 1 / (1 + step)]));
    const { inputs, targets } = same.next();
    const wanted = gpt(shape, weights, inputs, targets, 8);
    expect(reports[0]?.loss).toBeCloseTo(wanted.loss, 5);
    expect((reports[0]?.gradientNorm ?? 0) / clipping(Object.values(wanted.gradients), 1).norm).toBeCloseTo(1, 4);
    for (const { milliseconds } of reports) expect(milliseconds).toBeGreaterThan(0);
    dispose();
  });

  it('ends after the step under way when it is told to', async () => {
    const { model, optimizer, batches, dispose } = runOf();
    const stop = new AbortController();
    const steps: number[] = [];
    const onStep = ({ step }: StepReport) => {
      steps.push(step);
      if (step === 2) stop.abort();
    };
    expect(await train({ model, optimizer, batches, steps: 50, signal: stop.signal, onStep })).toBe(4);
    expect(steps).toEqual([0, 1, 2, 3]);
    expect(optimizer.stepCount).toBe(4);
    expect(await train({ model, optimizer, batches, steps: 50, signal: AbortSignal.abort() })).toBe(0);
    expect(await train({ model, optimizer, batches, steps: 2, firstStep: 2 })).toBe(0);
    expect(await train({ model, optimizer, batches, steps: 1, firstStep: 2 })).toBe(0);
    dispose();
  });

  it('leaves the model in the mode that it was in', async () => {
    const { model, optimizer, batches, dispose } = runOf({ dropout: 0.1 });
    let during: boolean | undefined;
    await train({
      ...{ model: model.eval(), optimizer, batches, steps: 1 },
      onStep: async () => {
        await evaluate(model, tokens, { batch: 4, context: 8, batches: 1 });
        during = model.blocks[0]?.drop.training;
      },
    });
    expect(during).toBe(true);
    expect(model.blocks[0]?.drop.training).toBe(false);
    for await (const _ of generate(model.train(), [1], { length: 2 })) expect(model.training).toBe(true);
    dispose();
  });

  for (const { device, present, title } of testDevices)
    it.skipIf(!present)(title('names the step and the tensor of a NaN'), async () => {
      for (const [clip, planted] of [
        [1, 'blocks.1.mlp.up.weight'],
        [0, 'blocks.0.norm1.bias'],
      ] as const) {
        const { model, optimizer, batches, dispose } = runOf({ device });
        const broken = model.namedParameters().get(planted);
        const held = memory(device).tensors;
        const onStep = ({ step }: StepReport) => {
          if (step !== 1) return;
          const values = broken?.toFloat32Sync() as Float32Array;
          values[1] = Number.NaN;
          broken?.write(values);
        };
        // The step after the one that is reported is under way already.
        await expectFailure(
          train({ model, optimizer, batches, steps: 9, clip, onStep }),
          'ERR_AUTOGRAD',
          `the loss of step 3 is NaN; ${planted} is the first tensor that holds such`,
        );
        // Nothing of the step stays but moments, which the first one has made.
        expect(memory(device).tensors).toBe(held + 2 * model.parameters().length);
        dispose();
      }
    });

  it('names gradients that overflow where the loss does not', async () => {
    const { model, batches, dispose } = runOf({ layers: 1 });
    const optimizer = new SGD(model.parameters());
    const weight = model.norm.weight;
    const before = await weightsOf(model);
    weight.write(weight.toFloat32Sync().map(() => 1e-38));
    const tiny = await weightsOf(model);
    const table = model.tokens.weight;
    table.write(table.toFloat32Sync().map((x) => x * 1e38));
    const failure = await failureOf(train({ model, optimizer, batches, steps: 3 }));
    expect(failure).toMatchObject({ code: 'ERR_AUTOGRAD' });
    expect(failure.message).toMatch(/of step 0 is .*all tensors of the model are finite/);
    expect(tiny).not.toEqual(before);
    optimizer.dispose();
    dispose();
  });

  it('throws what onStep and batches throw, with nothing left', async () => {
    const { model, optimizer, batches, dispose } = runOf();
    await train({ model, optimizer, batches, steps: 1 });
    const held = memory(device).tensors;
    const stop = new Error('stop');
    const thrown = await failureOf(
      train({
        ...{ model, optimizer, batches, steps: 5 },
        onStep: () => {
          throw stop;
        },
      }),
    );
    expect(thrown).toBe(stop);
    expect(memory(device).tensors).toBe(held);
    let reads = 0;
    const failing: Tokens = {
      length: tokens.length,
      read: (begin, count) => {
        if (++reads === 10) throw stop;
        return tokens.read(begin, count);
      },
    };
    const broken = new TokenBatches({ tokens: failing, batch: 4, context: 8 });
    expect(await failureOf(train({ model, optimizer, batches: broken, steps: 5, accumulate: 2 }))).toBe(stop);
    model.zeroGrad();
    expect(memory(device).tensors).toBe(held);
    dispose();
  });

  it('takes no more memory in 300 steps than in 5', async () => {
    const { model, optimizer, batches, dispose } = runOf({ rope: {}, dropout: 0.1, layers: 1 });
    const inUse: { tensors: number; bytes: number }[] = [];
    await train({
      ...{ model, optimizer, batches, steps: 300 },
      onStep: () => {
        const { tensors, bytesInUse } = memory(device);
        inUse.push({ tensors, bytes: bytesInUse });
      },
    });
    expect(inUse).toHaveLength(300);
    expect(new Set(inUse.slice(5, 299).map(({ tensors }) => tensors)).size).toBe(1);
    expect(Math.max(...inUse.map(({ bytes }) => bytes))).toBe(Math.max(...inUse.slice(0, 5).map(({ bytes }) => bytes)));
    dispose();
  });

  it('refuses options that are none', async () => {
    const { model, optimizer, batches, dispose } = runOf();
    const held = memory(device).tensors;
    const all = { model, optimizer, batches, steps: 1 };
    const cases: [object, RegExp][] = [
      [{ steps: -1 }, /steps is -1/],
      [{ firstStep: 0.5 }, /firstStep is 0.5/],
      [{ accumulate: 0 }, /accumulate is 0/],
      [{ clip: -1 }, /clip is -1/],
      [{ rate: () => Number.NaN }, /rate is NaN/],
      [{ epochs: 2 }, /no option "epochs"/],
    ];
    for (const [wrong, message] of cases)
      await expectFailure(train({ ...all, ...wrong } as never), 'ERR_OPTION', message);
    expect(memory(device).tensors).toBe(held);
    dispose();
  });
});

describe('evaluate', () => {
  it('is the mean loss of the first batches, without dropout', async () => {
    const options = { ...small, dropout: 0.5 };
    using model = modelOf(options);
    const held = memory(device).tensors;
    const wanted = [0, 1, 2].map((i) => {
      const [inputs, targets] = [tokens.read(16 * i, 16), tokens.read(16 * i + 1, 16)];
      return { inputs, targets };
    });
    const weights = await weightsOf(model);
    const losses = wanted.map(({ inputs, targets }) => gpt(shapeOf(options), weights, inputs, targets, 8).loss);
    const loss = await evaluate(model, tokens, { batch: 2, context: 8, batches: 3 });
    expect(loss).toBeCloseTo(
      losses.reduce((sum, x) => sum + x / 3, 0),
      4,
    );
    expect(memory(device).tensors).toBe(held);
    // Fewer windows than a batch has.
    const few = await evaluate(model, tokensOf(tokens.read(0, 17)), { batch: 50, context: 8 });
    expect(few).toBeCloseTo(losses[0] as number, 4);
  });

  it('refuses what it cannot do', async () => {
    using model = new GPT(small);
    const none = tokensOf(Int32Array.of(1, 2, 3));
    await expectFailure(evaluate(model, none, { batch: 1, context: 8 }), 'ERR_OPTION', /tokens has 3 tokens/);
    await expectFailure(evaluate(model, tokens, { batch: 1, context: 9 }), 'ERR_OPTION', /context is 9.*1 to 8/);
    await expectFailure(evaluate(model, tokens, { batch: 0, context: 8 }), 'ERR_OPTION', /batch is 0/);
    await expectFailure(evaluate(model, tokens, { batch: 1, context: 8, batches: 0 }), 'ERR_OPTION', /batches is 0/);
  });
});

async function written(...[model, prompt, options]: Parameters<typeof generate>): Promise<number[]> {
  const found: number[] = [];
  for await (const token of generate(model, prompt, options)) found.push(token);
  return found;
}

describe('generate', () => {
  it('gives the same for the same random numbers, beyond the context, and leaves nothing', async () => {
    using model = modelOf({ ...small, rope: {} });
    const before = await written(model, [1], { length: 20, random: generator(3) });
    const held = memory(device).tensors;
    const again = await written(model, [1], { length: 20, random: generator(3) });
    expect(again).toEqual(before);
    expect(before).toHaveLength(20);
    expect(before.every((token) => Number.isInteger(token) && token >= 0 && token < characters.length)).toBe(true);
    expect(await written(model, [1], { length: 20, random: generator(4) })).not.toEqual(before);
    expect(await written(model, [1], { length: 0 })).toEqual([]);
    expect(memory(device).tensors).toBe(held);
  });

  it('draws from the distribution of float64', async () => {
    const options = { ...small, layers: 1 };
    using model = modelOf(options, 2);
    const prompt = Int32Array.of(4, 2, 0);
    const { logits } = gpt(shapeOf(options), await weightsOf(model), prompt, prompt, 3);
    const last = [...logits.slice(2 * characters.length)];
    const order = [...last.keys()].sort((a, b) => (last[b] as number) - (last[a] as number));
    const next = (options: object) => written(model, prompt, { length: 1, ...options }).then(([token]) => token);
    expect(await next({ temperature: 0 })).toBe(order[0]);
    expect(await next({ topK: 1, random: () => 0.999 })).toBe(order[0]);
    expect(await next({ topK: 2, random: () => 0.9999999 })).toBe(order[1]);
    const temperature = 1.7;
    const weights = order.map((token) =>
      Math.exp(((last[token] as number) - (last[order[0] as number] as number)) / temperature),
    );
    const total = weights.reduce((sum, x) => sum + x, 0);
    let below = 0;
    for (const [i, weight] of weights.slice(0, 6).entries()) {
      const middle = (below + weight / 2) / total;
      expect(await next({ temperature, random: () => middle })).toBe(order[i]);
      below += weight;
    }
    // Only so many tokens are seen.
    const short = Int32Array.of(0);
    expect(await written(model, prompt, { length: 5, context: 1, temperature: 0 })).toEqual(
      await written(model, short, { length: 5, context: 1, temperature: 0 }),
    );
  });

  it('refuses what it cannot go on with', async () => {
    using model = new GPT(small);
    const cases: [ArrayLike<number>, object, RegExp][] = [
      [[], {}, /prompt is empty/],
      [[0, characters.length], {}, /prompt\[1\] is \d+; it must be an integer from 0 to/],
      [[-1], {}, /prompt\[0\] is -1/],
      [[0.5], {}, /prompt\[0\] is 0.5/],
      [[1], { length: -1 }, /length is -1/],
      [[1], { context: 9 }, /context is 9; it must be an integer from 1 to 8/],
      [[1], { context: 0 }, /context is 0/],
      [[1], { temperature: -1 }, /temperature is -1/],
      [[1], { topK: 0 }, /topK is 0/],
      [[1], { random: 3 }, /random is 3/],
    ];
    for (const [prompt, options, message] of cases)
      await expectFailure(written(model, prompt, { length: 1, ...options }), 'ERR_OPTION', message);
    const { weight } = model.norm;
    weight.write(weight.toFloat32Sync().fill(Number.NaN));
    await expectFailure(written(model, [1], { length: 1 }), 'ERR_AUTOGRAD', /the logit of token 0 is NaN/);
  });
});
