/** Operations of users: typed, with gradients that are checked, within everything that differentiates. */
import { describe, expect, expectTypeOf, it } from 'vitest';
import {
  checkpoint,
  customOp,
  exp,
  memory,
  mul,
  noGrad,
  parameter,
  scope,
  square,
  sum,
  type Tensor,
  tensor,
  valueAndGrad,
} from '../../lib/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

const cube = customOp({
  name: 'cube',
  forward: (x: Tensor) => {
    const squared = square(x);
    return { result: mul(squared, x), save: [squared] };
  },
  backward: ({ gradients: [dy], saved: [squared] }) => [dy && mul(mul(dy, squared as Tensor), 3)],
});

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('custom operations'), () => {
    const make = (values: readonly number[]) => tensor(values, [values.length], { device });

    it('give their gradient in backward()', () => {
      const x = parameter(make([1, -2, 3]));
      const y = cube(x);
      expect([...y.toFloat32Sync()]).toEqual([1, -8, 27]);
      sum(y).backward();
      expect([...(x.grad as Tensor).toFloat32Sync()]).toEqual([3, 12, 27]);
    });

    it('leave no memory behind within scope, also what only the graph has kept', () => {
      const [p, x] = [parameter(make([1, 2])), make([1, 2])];
      const before = memory(device);
      scope(() => void sum(cube(p)));
      scope(() => void valueAndGrad((t: Tensor) => sum(cube(t)))(x));
      scope(() => sum(cube(p)).backward());
      p.grad = undefined;
      expect(memory(device)).toMatchObject({ bytesInUse: before.bytesInUse, tensors: before.tensors });
    });

    it('work within valueAndGrad, checkpoint and noGrad', () => {
      const { value, grads } = valueAndGrad((x: Tensor) => sum(mul(cube(x), 2)))(make([1, 2]));
      expect(value.toFloat32Sync()[0]).toBe(18);
      expect([...(grads[0] as Tensor).toFloat32Sync()]).toEqual([6, 24]);
      const p = parameter(make([3]));
      sum(checkpoint((x: Tensor) => cube(x), p)).backward();
      expect(p.grad?.toFloat32Sync()[0]).toBe(27);
      expect(noGrad(() => cube(p)).requiresGrad).toBe(false);
    });

    it('have several inputs and results, of which not all need or have a gradient', () => {
      const seen: unknown[] = [];
      const split = customOp({
        name: 'productAndExp',
        forward: (a: Tensor, b: Tensor, ids: Tensor<'int32'>) => {
          const results = [mul(a, b) as Tensor, exp(a), ids] as const;
          return { result: results, save: [a, b, results[1]] as const };
        },
        backward: ({ gradients: [dProduct, dExp, dIds], saved: [a, b, e], needed }) => {
          seen.push(needed, dIds);
          expectTypeOf(needed).toEqualTypeOf<readonly [a: boolean, b: boolean, ids: boolean]>();
          let da: Tensor | undefined;
          if (dProduct) da = mul(dProduct, b) as Tensor;
          if (dExp) da = mul(dExp, e) as Tensor;
          return [da, dProduct && (mul(dProduct, a) as Tensor), undefined];
        },
      });
      const a = parameter(make([1, 2]));
      const ids = tensor(Int32Array.of(1, 2), [2], { device });
      const [product, exponential, same] = split(a, make([5, 7]), ids);
      expectTypeOf(same).toEqualTypeOf<Tensor<'int32'>>();
      expect(same.requiresGrad).toBe(false);
      ids.dispose();
      expect([...same.dataSync()]).toEqual([1, 2]);
      sum(product).backward();
      expect([...(a.grad as Tensor).toFloat32Sync()]).toEqual([5, 7]);
      a.grad = undefined;
      const again = split(a, make([5, 7]), same);
      sum(again[1]).backward();
      expect((a.grad as unknown as Tensor).toFloat32Sync()[0]).toBeCloseTo(Math.E, 5);
      expect(exponential.requiresGrad).toBe(true);
      expect(seen).toEqual([[true, false, false], undefined, [true, false, false], undefined]);
    });

    it('may give back an input, a gradient or one tensor for several inputs', () => {
      const straightThrough = customOp({
        name: 'straightThrough',
        forward: (x: Tensor, _y: Tensor) => x,
        backward: ({ gradients: [dy] }) => [dy, dy],
      });
      const [x, y] = [parameter(make([1, 2])), parameter(make([3, 4]))];
      const out = straightThrough(x, y);
      expect(out).not.toBe(x);
      expect(x.track?.isLeaf).toBe(true);
      sum(square(out)).backward();
      expect([...(x.grad as Tensor).toFloat32Sync()]).toEqual([2, 4]);
      expect([...(y.grad as Tensor).toFloat32Sync()]).toEqual([2, 4]);
      x.grad?.write([9, 9]);
      expect([...(y.grad as Tensor).toFloat32Sync()]).toEqual([2, 4]);
    });

    it('compute by any means', () => {
      const onHost = customOp({
        name: 'host',
        forward: (x: Tensor) => make([...x.toFloat32Sync()].map((v) => v * 10)),
        backward: ({ gradients: [dy] }) => [dy && make([...dy.toFloat32Sync()].map((v) => v * 10))],
      });
      const x = parameter(make([1, 2]));
      sum(onHost(x)).backward();
      expect([...(x.grad as Tensor).toFloat32Sync()]).toEqual([10, 10]);
    });

    it('refuse gradients that do not belong to their inputs, and change nothing then', async () => {
      const give = (gradient: unknown) => {
        const op = customOp({
          name: 'broken',
          forward: (x: Tensor) => square(x),
          backward: () => gradient as readonly [Tensor],
        });
        const x = parameter(make([1, 2]));
        const y = scope(() => sum(op(x)));
        return { x, backward: () => y.backward() };
      };
      const short = make([1]);
      const half = tensor([1, 2], [2], { device, dtype: 'float16' });
      const gone = make([1, 2]);
      gone.dispose();
      for (const [gradient, code, message] of [
        [[short], 'ERR_SHAPE', /the gradient of input 0 of broken has shape \[1\]; it must be \[2\]/],
        [[half], 'ERR_DTYPE', /the gradient of input 0 of broken is float16; it must be float32/],
        [[gone], 'ERR_DISPOSED', /the gradient of input 0 of broken has been disposed/],
        [[5], 'ERR_OPTION', /the gradient of input 0 of broken is 5/],
        [[], 'ERR_OPTION', /backward of broken gives \[\]; it must give an array of 1 gradients/],
        [short, 'ERR_OPTION', /backward of broken gives Tensor; it must give an array/],
      ] as const) {
        const { x, backward } = give(gradient);
        await expectFailure(backward, code, message);
        expect(x.grad).toBeUndefined();
      }
    });

    it('refuse what is no operation, and forward passes that give no tensor', async () => {
      const backward = () => [undefined] as const;
      await expectFailure(
        () => customOp({ name: 'x', forward: (t: Tensor) => t, backwards: backward } as never),
        'ERR_OPTION',
        /there is no option "backwards".*did you mean "backward"/,
      );
      await expectFailure(() => customOp({ name: 'x', forward: 1, backward } as never), 'ERR_OPTION', /forward is 1/);
      const none = customOp({ name: 'none', forward: (_: Tensor) => 3 as unknown as Tensor, backward });
      await expectFailure(() => none(make([1])), 'ERR_OPTION', /forward of none gives 3; it must give a tensor/);
      await expectFailure(() => none(7 as never), 'ERR_OPTION', /input 0 of none is 7/);
      const late = customOp({ name: 'late', forward: async (t: Tensor) => t, backward } as never);
      await expectFailure(
        () => (late as (t: Tensor) => unknown)(make([1])),
        'ERR_OPTION',
        /forward of late must be sync/,
      );
    });

    it('refuse to differentiate what has been written since', async () => {
      const x = parameter(make([1, 2]));
      const y = customOp({
        name: 'keeps',
        forward: (t: Tensor) => ({ result: square(t), save: [t] }),
        backward: ({ gradients: [dy], saved: [t] }) => [dy && (mul(dy, t as Tensor) as Tensor)],
      })(x);
      x.write([5, 6]);
      await expectFailure(() => sum(y).backward(), 'ERR_AUTOGRAD', /keeps needs tensor 0.*written since/);
    });
  });
});
