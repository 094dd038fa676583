/** Gradients of gradients are not recorded: whoever asks for them is told so. */
import { describe, it } from 'vitest';
import {
  add,
  customOp,
  grad,
  mul,
  parameter,
  square,
  sum,
  type Tensor,
  tensor,
  valueAndGrad,
} from '../../lib/index.js';
import { testDevices } from '../support/devices.js';
import { expectFailure } from '../support/failure.js';

describe.each(testDevices)('$device', ({ device, present, title }) => {
  describe.skipIf(!present)(title('second derivatives'), () => {
    const make = (values: readonly number[]) => tensor(values, [values.length], { device });
    const f = (x: Tensor) => sum(square(x));
    const notRecorded = /gradients of gradients are not recorded/;

    it('of grad within grad are refused, not taken for zeros', async () => {
      const penalty = (x: Tensor) => add(f(x), sum(square(grad(f)(x)[0] as Tensor))) as Tensor;
      await expectFailure(() => grad(penalty)(make([1, 2])), 'ERR_AUTOGRAD', notRecorded);
      const byValue = (x: Tensor) => mul(valueAndGrad(f)(x).value, 2) as Tensor;
      await expectFailure(() => grad(byValue)(make([1, 2])), 'ERR_AUTOGRAD', notRecorded);
    });

    it('of parameters are refused', async () => {
      const p = parameter(make([1, 2]));
      const [g] = grad(f)(p);
      await expectFailure(() => sum(square(g as Tensor)).backward(), 'ERR_AUTOGRAD', notRecorded);
      f(p).backward();
      await expectFailure(() => sum(square(p.grad as Tensor)).backward(), 'ERR_AUTOGRAD', /no parameter has led to/);
    });

    it('are refused within a backward pass', async () => {
      const greedy = customOp({
        name: 'greedy',
        forward: (x: Tensor) => square(x),
        backward: () => [grad(f)(make([1, 2]))[0]],
      });
      const y = sum(greedy(parameter(make([1, 2]))));
      await expectFailure(() => y.backward(), 'ERR_AUTOGRAD', notRecorded);
    });

    it('are not in the way of a gradient that is only used', () => {
      const x = make([1, 2]);
      const detached = (t: Tensor) => add(f(t), sum((grad(f)(t)[0] as Tensor).detach())) as Tensor;
      grad(detached)(x);
    });
  });
});
