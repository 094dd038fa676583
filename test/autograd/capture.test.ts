/** What has been captured computes what the function does, bit by bit, over what its tensors hold by then. */
import { describe, expect, it } from 'vitest';
import {
  add,
  alibiSlopes,
  argmax,
  attention,
  capture,
  checkpoint,
  dropout,
  embedding,
  matmul,
  memory,
  mul,
  normal,
  parameter,
  scope,
  softmax,
  square,
  sum,
  type Tensor,
  tensor,
  uniform,
  zeros,
} from '../../lib/index.js';
import { AdamW, clipGradients, GPT, type GPTOptions, Muon, SGD, schedule } from '../../lib/nn/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const bits = (t: Tensor | undefined) => Buffer.from((t as Tensor).dataSync().buffer).toString('hex');

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('capture'), () => {
    const make = (values: readonly number[], shape: readonly number[] = [values.length]) =>
      tensor(values, shape, { device }) as Tensor;
    const numbers = (shape: readonly number[], seed = 1) => {
      const count = shape.reduce((a, b) => a * b, 1);
      return make(
        Array.from({ length: count }, (_, i) => Math.sin(seed + 3 * i)),
        shape,
      );
    };

    it('gives the results of its first run, and those of each replay then', async () => {
      const x = make([1, 2, 3]);
      using captured = capture(() => {
        const squared = square(x);
        return { sum: sum(squared), deep: [mul(squared, 2), x] as const };
      });
      const { sum: total, deep } = captured.result;
      expect(deep[1]).toBe(x);
      expect(total.toFloat32Sync()[0]).toBe(14);
      expect([...deep[0].toFloat32Sync()]).toEqual([2, 8, 18]);
      for (const factor of [2, -3]) {
        x.write([factor, 0, factor]);
        expect(captured.replay().sum).toBe(total);
        expect((await total.data())[0]).toBe(2 * factor * factor);
      }
    });

    it('reads in between see their own replay', async () => {
      const x = make([0, 0]);
      using captured = capture(() => {
        // Memory that is free when the result is made: the next replay writes there before anything else.
        let t = add(x, 1);
        for (let i = 0; i < 3; i++) t = add(mul(t, 2), x);
        return mul(t, 1);
      });
      const reads = [1, 2, 3, 4, 5].map((value) => {
        x.write([value, -value]);
        return captured.replay().data();
      });
      const expected = [1, 2, 3, 4, 5].map((x) => {
        const f = (v: number) => 8 * (v + 1) + 7 * v;
        return [f(x), f(-x)];
      });
      expect((await Promise.all(reads)).map((r) => [...(r as Float32Array)])).toEqual(expected);
    });

    const small = { vocabulary: 13, context: 12, layers: 2, width: 16, heads: 2 };
    const models: readonly (readonly [string, GPTOptions, boolean])[] = [
      ['GPT', small, true],
      ['Llama', { ...small, norm: 'rms', activation: 'swiglu', rope: {}, bias: false, tied: false, kvHeads: 1 }, true],
      ['GPT in bfloat16, computed again', { ...small, compute: 'bfloat16', checkpoint: true }, true],
      ['GPT with SGD', small, false],
    ];

    it.each(models)('a training step of a %s has the same bits over 20 steps', async (_, options, isAdam) => {
      const tokens = (step: number) => Int32Array.from({ length: 24 }, (_, i) => (i * (step + 3) + step * step) % 13);
      const rate = schedule({ kind: 'cosine', steps: 20, warmup: 3 });
      const train = async (isCaptured: boolean) => {
        using model = new GPT({ ...options, device, seed: 5 });
        const parameters = model.parameters();
        const groups = [
          { parameters: parameters.slice(0, 2), options: { weightDecay: 0 } },
          { parameters: parameters.slice(2) },
        ];
        using optimizer = isAdam
          ? new AdamW(groups, { learningRate: 1e-2 })
          : new SGD(parameters, { learningRate: 0.1, momentum: 0.9, nesterov: true });
        const ids = tensor(tokens(0), [2, 12], { device });
        const targets = tensor(tokens(1), [2, 12], { device });
        const step = () => {
          const loss = model.loss(ids, targets);
          loss.backward();
          const { scale } = clipGradients(parameters, 0.5);
          optimizer.step({ gradientScale: scale });
          optimizer.zeroGrad();
          return loss as unknown as Tensor;
        };
        const losses: string[] = [];
        optimizer.rate = rate(0);
        const captured = isCaptured ? capture(step) : undefined;
        const first = captured ? captured.result : scope(step);
        losses.push(bits(first));
        for (let i = 1; i < 20; i++) {
          ids.write(tokens(i));
          targets.write(tokens(i + 1));
          optimizer.rate = rate(i);
          losses.push(bits(captured ? captured.replay() : scope(step)));
        }
        const state = parameters.map(bits);
        const { stepCount } = optimizer;
        captured?.dispose();
        return { losses, state, stepCount };
      };
      const [plain, replayed] = [await train(false), await train(true)];
      expect(new Set(plain.losses).size).toBe(20);
      expect(replayed).toEqual(plain);
    });

    it('keeps what a call uploads for itself alone: positions of packed sequences', () => {
      const before = memory(device).tensors;
      const [cos, sin] = [numbers([8, 2], 4), numbers([8, 2], 5)] as [Tensor<'float32'>, Tensor<'float32'>];
      const [q, k, v] = [numbers([9, 2, 4]), numbers([9, 1, 4], 2), numbers([9, 1, 4], 3)] as unknown as [
        Tensor<'float32', readonly [number, number, number]>,
        Tensor<'float32', readonly [number, number, number]>,
        Tensor<'float32', readonly [number, number, number]>,
      ];
      const options = { cuSeqlensQ: [0, 3, 9], cuSeqlensK: [0, 4, 9], causal: true, offset: 1, rope: { cos, sin } };
      const attend = () => {
        const { out, lse } = attention(q, k, v, options);
        lse.dispose();
        return out;
      };
      const captured = capture(attend);
      for (const factor of [1, 3, -1]) {
        q.write(Float32Array.from({ length: 72 }, (_, i) => Math.cos(factor * i)));
        // Memory that the recording has let go of would be written meanwhile.
        for (let i = 0; i < 5; i++) attend().dispose();
        using expected = attend();
        captured.replay();
        expect(bits(captured.result as Tensor)).toBe(bits(expected as Tensor));
      }
      captured.dispose();
      for (const t of [cos, sin, q, k, v]) t.dispose();
      expect(memory(device).tensors).toBe(before);
    });

    it('steps of parameters that have counted differently have the same bits', () => {
      const train = (isCaptured: boolean) => {
        const [often, seldom, later] = [numbers([3]), numbers([4], 2), numbers([2], 3)].map((t) => parameter(t)) as [
          Tensor,
          Tensor,
          Tensor,
        ];
        using adam = new AdamW([often, { parameters: [seldom, later], options: { betas: [0.5, 0.6] } }]);
        const step = (those: readonly Tensor[]) => {
          const total = those.map((t) => sum(square(t))).reduce((a, b) => add(a, b));
          total.backward();
          adam.step();
          adam.zeroGrad();
          return total as Tensor;
        };
        scope(() => step([often, later]));
        scope(() => step([often, later]));
        const all = [often, seldom, later];
        // Two captures: each replay counts for the parameters of its own.
        using both = isCaptured ? capture(() => step(all)) : undefined;
        if (!both) scope(() => step(all));
        using one = isCaptured ? capture(() => step([seldom])) : undefined;
        if (!one) scope(() => step([seldom]));
        for (const which of [0, 1, 1, 0, 0]) {
          const captured = which === 0 ? both : one;
          if (captured) captured.replay();
          else scope(() => step(which === 0 ? all : [seldom]));
        }
        return { bits: all.map(bits), steps: adam.state().steps, count: adam.stepCount };
      };
      const plain = train(false);
      expect([plain.count, plain.steps]).toEqual([9, { 0: 6, 1: 7, 2: 6 }]);
      expect(train(true)).toEqual(plain);
    });

    it('steps of Muon and AdamW have the same bits, and are none where the scale is NaN', () => {
      const train = (isCaptured: boolean) => {
        const parameters = [parameter(numbers([5, 3])), parameter(numbers([3, 4], 2))] as const;
        const [wide, narrow] = parameters;
        const [x, scale] = [numbers([2, 5], 3), make([1], [])];
        using muon = new Muon([{ parameters: [wide], options: { weightDecay: 0.5 } }, narrow]);
        const bias = parameter(numbers([4], 4));
        using adam = new AdamW([bias]);
        const step = () => {
          const loss = sum(square(add(matmul(matmul(x, wide), narrow), bias)));
          loss.backward();
          for (const optimizer of [muon, adam]) {
            optimizer.step({ gradientScale: scale });
            optimizer.zeroGrad();
          }
          return loss;
        };
        using captured = isCaptured ? capture(step) : undefined;
        if (!captured) scope(step);
        const moments = () => [muon, adam].flatMap((optimizer) => Object.values(optimizer.state().tensors));
        const all = () => [...parameters, bias, ...moments()].map(bits).join();
        const states = [all()];
        for (const [i, factor] of [0.5, Number.NaN, 1, 2].entries()) {
          scale.write([factor]);
          muon.rate = adam.rate = 1 / (i + 2);
          if (captured) captured.replay();
          else scope(step);
          states.push(all());
        }
        return { states, steps: [muon.stepCount, adam.stepCount] };
      };
      const { states, steps } = train(false);
      expect(steps).toEqual([5, 5]);
      expect(states[2]).toBe(states[1]);
      expect(new Set(states).size).toBe(4);
      expect(train(true)).toEqual({ states, steps });
    });

    it('adds gradients up in the same memory', () => {
      const [w, x] = [parameter(numbers([4, 3])), numbers([2, 4], 2)];
      using captured = capture(() => sum(matmul(x, w)).backward());
      const once = (w.grad as Tensor).toFloat32Sync();
      const memoryOfGradient = w.grad;
      captured.replay();
      captured.replay();
      expect(w.grad).toBe(memoryOfGradient);
      expect([...(w.grad as unknown as Tensor).toFloat32Sync()]).toEqual(
        [...once].map((g) => Math.fround(Math.fround(g + g) + g)),
      );
    });

    it('makes gradients anew where it begins without them', () => {
      const [w, x] = [parameter(numbers([4, 3])), numbers([2, 4], 2)];
      using captured = capture(() => {
        w.grad = undefined;
        sum(matmul(x, w)).backward();
        sum(square(w)).backward();
      });
      captured.replay();
      const expected = x.toFloat32Sync();
      const [a, b] = [w.toFloat32Sync(), (w.grad as Tensor).toFloat32Sync()];
      for (let i = 0; i < 12; i++) {
        const row = Math.floor(i / 3);
        expect(b[i]).toBeCloseTo((expected[row] as number) + (expected[4 + row] as number) + 2 * (a[i] as number), 5);
      }
    });

    it('has memory of its own, which it reuses and gives back', () => {
      const x = numbers([4096]);
      const before = memory(device);
      const captured = capture(() => {
        let t = x;
        for (let i = 0; i < 100; i++) t = mul(t, 1.01) as Tensor;
        return t;
      });
      const bytes = memory(device).bytesInUse - before.bytesInUse;
      // scope() keeps all of them until its end: this is what the function needs, however often it runs.
      expect(bytes).toBeLessThan(2 * 2 ** 20);
      for (let i = 0; i < 10; i++) captured.replay();
      expect(memory(device).bytesInUse - before.bytesInUse).toBe(bytes);
      captured.dispose();
      captured.dispose();
      expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });

      using reused = capture(() => {
        let t = mul(x, 1) as Tensor;
        for (let i = 0; i < 200; i++) {
          const next = mul(t, 1.01) as Tensor;
          t.dispose();
          t = next;
        }
        return t;
      });
      expect(memory(device).bytesInUse - before.bytesInUse).toBeLessThan(2 ** 19);
      reused.replay();
    });

    it('keeps what it uses in memory, whoever disposes it', () => {
      const before = memory(device).bytesInUse;
      const x = make([1, 2]);
      const captured = capture(() => square(x));
      x.dispose();
      const others = Array.from({ length: 20 }, () => make([7, 7]));
      expect([...captured.replay().toFloat32Sync()]).toEqual([1, 4]);
      for (const t of others) t.dispose();
      captured.dispose();
      expect(memory(device).bytesInUse).toBe(before);
      expect(captured.result.disposed).toBe(true);
    });

    it('keeps gradients in memory after it has gone', () => {
      const before = memory(device).bytesInUse;
      const w = parameter(make([1, 2]));
      const captured = capture(() => {
        w.grad = undefined;
        sum(square(w)).backward();
      });
      captured.replay();
      captured.dispose();
      expect([...(w.grad as unknown as Tensor).toFloat32Sync()]).toEqual([2, 4]);
      w.grad = undefined;
      w.dispose();
      const left = memory(device).bytesInUse - before;
      expect(left).toBeLessThanOrEqual(256); // the tensor that the parameter was made of
    });

    it('lets another capture, and the tape, know what it has overwritten', async () => {
      const x = make([1, 2]);
      using first = capture(() => mul(x, 2));
      const p = parameter(first.result as Tensor);
      const loss = sum(square(p));
      using second = capture(() => mul(first.result, 10));
      x.write([3, 4]);
      first.replay();
      expect([...second.replay().toFloat32Sync()]).toEqual([60, 80]);
      await expectFailure(() => loss.backward(), 'ERR_AUTOGRAD', /written since/);
    });

    it('goes with attention of every kind that needs no random numbers', () => {
      const [q, k, v] = [numbers([1, 20, 2, 8]), numbers([1, 20, 2, 8], 2), numbers([1, 20, 2, 8], 3)];
      const bias = tensor(numbers([20]).toFloat32Sync(), [20], { device, dtype: 'float16' });
      const step = () => attention(q, k, v, { causal: true, alibi: alibiSlopes(2), bias }).out as Tensor;
      using captured = capture(step);
      v.write(numbers([1, 20, 2, 8], 7).toFloat32Sync());
      expect(bits(captured.replay())).toBe(bits(step()));
    });

    it('gives results of other dtypes, and of several axes', () => {
      const x = numbers([5, 6]);
      using captured = capture(() => [argmax(x, 1), softmax(x.transpose(0, 1), 0)] as const);
      x.write(numbers([5, 6], 8).toFloat32Sync());
      const [best, shares] = captured.replay();
      expect([...best.dataSync()]).toEqual([...argmax(x, 1).dataSync()]);
      expect(bits(shares as Tensor)).toBe(bits(softmax(x.transpose(0, 1), 0) as Tensor));
    });

    it('asks for a seed before every replay, and gives its gradient the same', () => {
      const steps = 6;
      const run = (captures: boolean) => {
        let seed = 41n;
        const next = () => seed++ + 2n ** 60n + 2n ** 31n;
        const w = parameter(numbers([4, 9]));
        const x = numbers([5, 4], 2);
        const step = () => {
          w.grad = undefined;
          const block = (t: Tensor) => dropout(t, { p: 0.4, seed: next }) as Tensor;
          const h = checkpoint((t: Tensor) => block(matmul(block(t), w)), x);
          const noise = uniform([5, 9], { device, seed: next });
          sum(mul(square(add(h, noise)), normal([5, 9], { device, seed: next }))).backward();
          return mul((w as { grad: Tensor | undefined }).grad as Tensor, 1);
        };
        if (!captures) return Array.from({ length: steps }, () => bits(scope(step)));
        using captured = capture(step);
        const seen = [bits(captured.result)];
        while (seen.length < steps) seen.push(bits(captured.replay()));
        return seen;
      };
      const expected = run(false);
      expect(run(true)).toEqual(expected);
      expect(new Set(expected).size).toBe(steps);
    });

    it('compares ids that the host writes with the size of their table before each replay', async () => {
      const table = numbers([3, 2]);
      const ids = tensor([0, 1, 2], [3], { device, dtype: 'int32' });
      using captured = capture(() => embedding(table, ids.slice(0, 1, 3)));
      ids.write([0, 2, 1]);
      expect(bits(captured.replay())).toBe(bits(embedding(table, tensor([2, 1], [2], { device, dtype: 'int32' }))));
      ids.write([0, 1, 3]);
      await expectFailure(() => captured.replay(), 'ERR_OPTION', /ids\[1\] is 3; it must be a row of the table/);
      ids.write([2, 0, 0]);
      expect(bits(captured.replay())).toBe(bits(embedding(table, tensor([0, 0], [2], { device, dtype: 'int32' }))));
    });

    it('leaves nothing behind of its seeds', () => {
      const x = numbers([8]);
      const before = memory(device);
      const captured = capture(() => dropout(x, { p: 0.5, seed: () => 7 }));
      captured.replay();
      captured.dispose();
      expect(() =>
        capture(() => {
          dropout(x, { p: 0.5, seed: () => 7 });
          return normal([2], { seed: 1, device });
        }),
      ).toThrow(/a seed that is a function is asked before each of them/);
      // And where it fails after all has been recorded.
      let runs = 0;
      const another = () => {
        const dropped = dropout(x, { p: 0.5, seed: () => 7 });
        return runs++ === 0 ? dropped : dropped.slice(0, 0, 1);
      };
      expect(() => capture(another)).toThrow(/other tensors in its second run/);
      expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
    });

    it('refuses a replay before anything of it is done', async () => {
      const p = parameter(numbers([3, 2]));
      const ids = tensor([0, 1], [2], { device, dtype: 'int32' });
      using optimizer = new AdamW([p]);
      const ones = make([1, 1, 1, 1], [2, 2]);
      let seed = 0;
      using captured = capture(() => {
        const noise = dropout(ones, { p: 0.5, seed: () => seed++ }) as Tensor;
        sum(mul(noise, embedding(p, ids))).backward();
        optimizer.step();
        optimizer.zeroGrad();
        return sum(p);
      });
      const before = [seed, optimizer.stepCount, bits(p)];
      ids.write([0, 3]);
      await expectFailure(() => captured.replay(), 'ERR_OPTION', /ids\[1\] is 3/);
      ids.write([0, 2]);
      optimizer.restore({ ...optimizer.state(), step: 5, steps: { 0: 2 } });
      expect([seed, 1, bits(p)]).toEqual(before);
      captured.replay();
      expect([seed, optimizer.stepCount]).toEqual([2, 6]);
    });

    it('refuses what would be the same in every replay, and leaves nothing behind', async () => {
      const x = make([1, 2]);
      const p = parameter(x);
      const before = memory(device);
      const option = async (step: () => unknown, message: RegExp) => {
        await expectFailure(() => capture(step), 'ERR_OPTION', message);
        p.grad = undefined;
        expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
      };
      await option(() => square(x).dataSync(), /reading a tensor has to wait/);
      await option(() => add(x, make([1, 1])), /the host writes a tensor/);
      await option(() => x.write([1, 2]), /makes no tensor|the host writes/);
      await option(() => dropout(x, { p: 0.5, seed: 1 }), /dropout cannot be captured/);
      await option(() => normal([2], { seed: 1, device }), /random numbers cannot be captured/);
      await option(() => capture(() => square(x)).result, /within a function that is being captured/);
      await option(async () => square(x), /must be synchronous/);
      let runs = 0;
      await option(() => (runs++ % 2 === 0 ? square(x) : x.slice(0, 0, 1)), /other tensors in its second run/);
      await option(() => {
        sum(square(p)).backward();
        return dropout(x, { p: 0.5, seed: 1 });
      }, /dropout cannot/);
      await expectFailure(() => capture(3 as never), 'ERR_OPTION', /step is 3/);
    });

    it('needs no result where it is told the device', () => {
      const [from, to] = [make([1, 2]), make([0, 0])];
      using captured = capture(() => from.copyInto(to), { device });
      from.write([3, 4]);
      captured.replay();
      expect([...to.toFloat32Sync()]).toEqual([3, 4]);
    });

    it('refuses two steps of one optimizer, and replays of what has gone', async () => {
      const p = parameter(make([1, 2]));
      using optimizer = new AdamW([p]);
      const twice = () => {
        sum(square(p)).backward();
        optimizer.step();
        optimizer.step();
        return sum(p);
      };
      await expectFailure(() => capture(twice), 'ERR_OPTION', /a step of an optimizer can be captured once/);
      const captured = capture(() => zeros([2], { device }));
      captured.dispose();
      await expectFailure(() => captured.replay(), 'ERR_DISPOSED', /has been disposed/);
    });
  });
});
