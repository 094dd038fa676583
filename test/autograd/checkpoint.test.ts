/** Parts that are computed again for their gradients: the same bits with less memory. */
import { describe, expect, it } from 'vitest';
import {
  add,
  checkpoint,
  concat,
  crossEntropy,
  matmul,
  memory,
  mul,
  noGrad,
  parameter,
  scope,
  square,
  sum,
  type Tensor,
  tanh,
  tensor,
  valueAndGrad,
} from '../../lib/index.js';
import { Dropout, GPT, Seeds } from '../../lib/nn/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const bits = (t: Tensor | undefined) => Buffer.from((t as Tensor).dataSync().buffer).toString('hex');

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('checkpoint'), () => {
    const numbers = (shape: readonly number[], seed = 1) => {
      const count = shape.reduce((a, b) => a * b, 1);
      return tensor(
        Float32Array.from({ length: count }, (_, i) => Math.sin(seed + 3 * i)),
        shape,
        { device },
      );
    };

    it('gives inputs, parameters and tensors from outside the same gradients', () => {
      const gradients = [false, true].map((isCheckpointed) => {
        const [x, w, b] = [numbers([4, 6]), numbers([6, 6], 2), numbers([6], 3)].map((t) => parameter(t as Tensor));
        const outside = square(b as Tensor);
        const f = (t: Tensor) => tanh(add(tanh(matmul(t, w as Tensor)), outside));
        const first = mul(x as Tensor, 2) as Tensor;
        const y = isCheckpointed ? checkpoint(f, first) : f(first);
        // Used beside it too: gradients from both ways are added up.
        sum(add(square(y), matmul(x as Tensor, w as Tensor))).backward();
        return [y, x?.grad, w?.grad, b?.grad].map(bits);
      });
      expect(gradients[1]).toEqual(gradients[0]);
    });

    it('may be nested, and have several inputs and results of any dtype', () => {
      const ids = tensor(Int32Array.of(0, 2, 1), [3], { device });
      const gradients = [false, true].map((isCheckpointed) => {
        const [x, w] = [parameter(numbers([3, 4])), parameter(numbers([4, 4], 2))];
        const inner = (t: Tensor) => tanh(matmul(t, w)) as Tensor;
        const again = isCheckpointed
          ? <A extends readonly Tensor[], R extends Tensor>(f: (...a: A) => R, ...a: A) =>
              checkpoint(f as never, ...a) as R
          : <A extends readonly Tensor[], R extends Tensor>(f: (...a: A) => R, ...a: A) => f(...a);
        const outer = (t: Tensor, i: Tensor<'int32'>) => {
          const h = again(inner, again(inner, t));
          return [h, i, crossEntropy(h, i)] as const;
        };
        const [h, same, loss] = isCheckpointed ? checkpoint(outer, x, ids) : outer(x, ids);
        expect(same.requiresGrad).toBe(false);
        add(loss, sum(h)).backward();
        return [h, loss, x.grad, w.grad].map((t) => bits(t as Tensor));
      });
      expect(gradients[1]).toEqual(gradients[0]);
    });

    it('works within valueAndGrad and scope, for an input that f gives back, and where nothing needs a gradient', () => {
      const { grads } = valueAndGrad((x: Tensor) =>
        scope(() => sum(checkpoint((t: Tensor) => t, mul(x, 3) as Tensor))),
      )(numbers([2]));
      expect([...(grads[0] as Tensor).toFloat32Sync()]).toEqual([3, 3]);
      const plain = numbers([2]);
      expect(checkpoint((t: Tensor) => square(t), plain).requiresGrad).toBe(false);
      const p = parameter(plain);
      expect(noGrad(() => checkpoint((t: Tensor) => square(t), p)).requiresGrad).toBe(false);
      expect(checkpoint(() => square(p)).requiresGrad).toBe(true);
    });

    it('can be walked twice with retainGraph', () => {
      const x = parameter(numbers([3]));
      const loss = sum(checkpoint((t: Tensor) => square(t), x));
      loss.backward(undefined, { retainGraph: true });
      const once = (x.grad as Tensor).toFloat32Sync();
      loss.backward();
      expect([...(x.grad as unknown as Tensor).toFloat32Sync()]).toEqual([...once].map((g) => 2 * g));
    });

    it('drops the same elements in both runs, and goes on behind them', () => {
      const run = (isCheckpointed: boolean) => {
        const drop = new Dropout(0.5, { seed: 7 });
        const x = parameter(numbers([400]));
        const f = (t: Tensor) => drop.forward(drop.forward(t));
        const y = isCheckpointed ? checkpoint((t: Tensor) => checkpoint(f, t), x) : f(x);
        sum(y).backward();
        return [bits(y), bits(x.grad as Tensor), drop.seeds.state];
      };
      expect(run(true)).toEqual(run(false));
    });

    it('refuses second runs that differ from the first', async () => {
      const x = parameter(numbers([4]));
      const seeds = new Seeds(1);
      let runs = 0;
      const failing = (f: (t: Tensor) => Tensor) => {
        runs = 0;
        const y = checkpoint(f, x);
        return () => sum(y).backward();
      };
      const other = parameter(numbers([4], 5));
      await expectFailure(
        failing((t) => (runs++ === 0 ? square(t) : square(t.slice(0, 0, 2)))),
        'ERR_AUTOGRAD',
        /result 0 of the function .* is float32 \[2\] in its second run; it was float32 \[4\]/,
      );
      await expectFailure(
        failing((t) => (runs++ === 0 ? square(t) : (mul(t, other) as Tensor))),
        'ERR_AUTOGRAD',
        /other parameters in its second run/,
      );
      await expectFailure(
        failing((t) => {
          if (runs++ > 0) seeds.next();
          return square(t);
        }),
        'ERR_AUTOGRAD',
        /more random seeds in its second run/,
      );
      expect(x.grad).toBeUndefined();
      const w = parameter(numbers([4], 6));
      const y = checkpoint((t: Tensor) => mul(t, w) as Tensor, x);
      w.write([1, 2, 3, 4]);
      await expectFailure(() => sum(y).backward(), 'ERR_AUTOGRAD', /written since/);
    });

    it('refuses what is no function of tensors', async () => {
      const x = numbers([2]);
      await expectFailure(() => checkpoint(1 as never, x), 'ERR_OPTION', /f is 1/);
      await expectFailure(() => checkpoint((t: Tensor) => t, 2 as never), 'ERR_OPTION', /input 0 is 2/);
      await expectFailure(() => checkpoint((() => 'x') as never, x), 'ERR_OPTION', /gives "x"; it must give a tensor/);
      await expectFailure(() => checkpoint((async (t: Tensor) => t) as never, x), 'ERR_OPTION', /must be synchronous/);
    });

    it('keeps the inputs alone, and leaves nothing behind', () => {
      const deep = (t: Tensor) => {
        let h = t;
        for (let i = 0; i < 8; i++) h = tanh(h);
        return h;
      };
      const held = (isCheckpointed: boolean) => {
        const x = parameter(numbers([1024]));
        const before = memory(device).bytesInUse;
        const y = scope(() => {
          const own = mul(x, 1) as Tensor;
          return isCheckpointed ? checkpoint(deep, own) : deep(own);
        });
        const bytes = memory(device).bytesInUse - before;
        scope(() => sum(y).backward());
        const gradient = bits(x.grad as Tensor);
        y.dispose();
        x.grad = undefined;
        const left = memory(device).bytesInUse - before;
        x.dispose();
        return { bytes, left, gradient };
      };
      const [plain, small] = [held(false), held(true)];
      expect(small.gradient).toBe(plain.gradient);
      expect(plain.bytes).toBe(9 * 4096);
      expect(small.bytes).toBe(2 * 4096);
      expect([plain.left, small.left]).toEqual([0, 0]);
    });

    it('is an option of a model, with the same gradients', () => {
      const options = { vocabulary: 11, context: 8, layers: 2, width: 16, heads: 2, dropout: 0.2, device, seed: 3 };
      const run = (checkpoint: boolean) => {
        const model = new GPT({ ...options, checkpoint });
        const tokens = Int32Array.from({ length: 16 }, (_, i) => (i * 7) % 11);
        const ids = tensor(tokens, [2, 8], { device });
        const before = memory(device).bytesInUse;
        const loss = model.loss(ids, ids);
        const bytes = memory(device).bytesInUse - before;
        loss.backward();
        const all = concat(
          model.parameters().map((t) => (t.grad as Tensor).reshape([t.size])),
          0,
        );
        return { bytes, gradients: bits(all as Tensor), loss: bits(loss as unknown as Tensor) };
      };
      const [plain, small] = [run(false), run(true)];
      expect({ ...small, bytes: 0 }).toEqual({ ...plain, bytes: 0 });
      expect(small.bytes).toBeLessThan(plain.bytes / 3);
    });
  });
});
