/** What a function leaves behind is told with the operation and the line that made it. */
import { describe, expect, it } from 'vitest';
import {
  add,
  checkLeaks,
  exp,
  fused,
  matmul,
  memory,
  mul,
  noGrad,
  parameter,
  scope,
  sum,
  type Tensor,
  tensor,
} from '../../lib/index.js';
import { AdamW, GPT } from '../../lib/nn/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure, failureOf } from '../support/failure.js';

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('checkLeaks'), () => {
    const make = (shape: readonly number[]) =>
      tensor(new Float32Array(shape.reduce((a, b) => a * b, 1)).fill(0.5), shape, { device }) as Tensor;

    it('names what was left, and where it was made', async () => {
      const x = make([4, 4]);
      const shifted = fused(function shifted(t) {
        return t.add(1);
      });
      const { code, message } = await failureOf(() =>
        checkLeaks(() => {
          const kept = exp(x);
          const product = matmul(kept, x);
          const part = product.slice(0, 0, 2);
          product.dispose();
          add(x, 1).dispose();
          shifted(x);
          return [kept, part];
        }),
      );
      expect(code).toBe('ERR_LEAK');
      expect(message).toMatch(/^f leaves 1 tensors or graphs behind:\n {2}float32 \[4, 4\], made by shifted at /);
      expect(message).toMatch(/test\/autograd\/checkLeaks\.test\.ts:\d+:\d+$/);
      const several = await failureOf(() =>
        checkLeaks(() => {
          exp(x);
          matmul(x, x);
          x.slice(1, 0, 3);
          make([2]);
        }),
      );
      const lines = several.message.split('\n').slice(1);
      expect(lines.map((line) => line.replace(/ at .*/, '').trim())).toEqual([
        'float32 [4, 4], made by exp',
        'float32 [4, 4], made by matmul',
        'float32 [4, 3], made by Tensor.slice',
        'float32 [2], made by tensor',
      ]);
      const numbers = lines.map((line) => Number(/test\.ts:(\d+):\d+$/.exec(line)?.[1]));
      expect(numbers[1]).toBe((numbers[0] as number) + 1);
      expect(numbers[2]).toBe((numbers[0] as number) + 2);
    });

    it('finds the graph that a tensor left behind holds', async () => {
      const p = parameter(make([3, 3]));
      let y: Tensor = p;
      const forgetful = () => {
        const h = exp(p);
        y = matmul(h, p) as Tensor;
        h.dispose();
      };
      const frugal = () => {
        forgetful();
        y.dispose();
      };
      const { code, message } = await failureOf(() => checkLeaks(forgetful));
      expect(code).toBe('ERR_LEAK');
      expect(message).toMatch(/what exp keeps for its gradient, made by exp at .*checkLeaks\.test\.ts/);
      expect(message).toMatch(/what matmul keeps for its gradient, made by matmul at /);
      y.dispose();
      const { tensors } = memory(device);
      checkLeaks(frugal);
      checkLeaks(() => scope(forgetful));
      expect(memory(device).tensors).toBe(tensors);
      checkLeaks(() => noGrad(frugal));
      const loss = checkLeaks(() => scope(() => sum(mul(exp(p), p))));
      checkLeaks(() => loss.backward());
      expect(p.grad).toBeDefined();
    });

    it('passes steps of training, and lists no more than fits', async () => {
      const model = new GPT({ vocabulary: 7, context: 6, layers: 1, width: 8, heads: 2, device });
      const optimizer = new AdamW(model.parameters());
      const ids = tensor(Int32Array.of(1, 2, 3, 4, 5, 6), [1, 6], { device });
      checkLeaks(() => {
        const loss = model.loss(ids, ids);
        loss.backward();
        optimizer.step();
        loss.dispose();
      });
      const { message } = await failureOf(() => checkLeaks(() => void Array.from({ length: 30 }, () => make([1]))));
      expect(message.split('\n')).toHaveLength(22);
      expect(message).toMatch(/\.\.\. 30 in all$/);
    });

    it('passes errors on, and refuses promises', async () => {
      expect(() =>
        checkLeaks(() => {
          throw new RangeError('its own');
        }),
      ).toThrow(new RangeError('its own'));
      await expectFailure(() => checkLeaks(async () => 1), 'ERR_OPTION', /must be synchronous/);
      await expectFailure(() => checkLeaks(1 as never), 'ERR_OPTION', /f is 1/);
    });
  });
});
