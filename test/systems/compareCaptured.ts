/** Steps of training that are recorded once and run again. */
import { capture, mul, scope, sum, type Tensor } from 'flashattn';
import { expect } from 'vitest';

/** That a captured step of `run` over the parameter x gives, bit for bit, what it gives anew, also when x has changed. */
export function compareCaptured(x: Tensor, run: () => Tensor): void {
  const step = () => {
    const out = run();
    const loss = sum(mul(out, out) as Tensor);
    loss.backward();
    return loss;
  };
  const one = scope(step).toFloat32Sync()[0] as number;
  const first = x.grad?.toFloat32Sync();
  x.grad = undefined;
  using captured = capture(() => {
    x.grad = undefined;
    return { loss: step(), gradient: x.grad };
  });
  const replayed = captured.replay();
  expect(replayed.loss.toFloat32Sync()[0]).toBe(one);
  expect((replayed.gradient as unknown as Tensor).toFloat32Sync()).toEqual(first);
  mul(x.detach(), 2).copyInto(x.detach());
  const two = captured.replay().loss.toFloat32Sync()[0] as number;
  expect(two).toBe(scope(step).toFloat32Sync()[0]);
  expect(two).not.toBe(one);
}
