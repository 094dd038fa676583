// Gradients of functions of tensors.

import { type DType, isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, show } from '../base/errors.js';
import { checkSynchronous, scope } from '../tape/scope.js';
import { makeParameter, record, whileRecording, withoutRecording } from '../tape/tape.js';
import { checkAnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { unwatched } from '../tensor/track.js';

export { scope } from '../tape/scope.js';

/**
 * The same memory as a tensor that gradients are added up for: what is computed of it is recorded, and `backward()` of a
 * result leaves its gradient in `grad`.
 *
 * @param t any floating-point dtype; it may be disposed, the parameter keeps the memory
 * @throws ERR_OPTION, ERR_DTYPE, ERR_DISPOSED, ERR_AUTOGRAD for a tensor that was computed of other parameters
 */
export function parameter<T extends Tensor>(t: T): T {
  checkTensor(t, 't');
  if (t.requiresGrad && !(t.track?.isLeaf ?? false))
    throw new FlashAttnError('ERR_AUTOGRAD', 't has been computed of parameters; detach() it first');
  const leaf = unwatched(() => t.detach());
  makeParameter(leaf);
  return leaf as unknown as T;
}

/**
 * What `f` returns; operations within it are not recorded.
 *
 * @param f synchronous
 * @throws ERR_OPTION when it returns a promise
 */
export function noGrad<T>(f: () => T): T {
  return withoutRecording(() => {
    const result = f();
    checkSynchronous(result, 'the function of noGrad()');
    return result;
  });
}

type Inputs = readonly Tensor<DType, Shape>[];
type Grads<A extends Inputs> = { readonly [i in keyof A]: A[i] | undefined };

/** A value with the gradients of the inputs, in their order; undefined for those that it does not depend on. */
export interface ValueAndGrads<A extends Inputs> {
  /** [] or whatever shape of one element the function gives. */
  readonly value: Tensor;
  readonly grads: Grads<A>;
}

/**
 * A function that gives the value of `f` with its gradients with respect to all inputs that are tensors of floating-point
 * numbers, also within `noGrad`. Parameters that `f` uses besides get theirs in `grad`. Everything else that `f` makes is
 * disposed.
 *
 * @param f synchronous; returns a tensor of one element
 */
export function valueAndGrad<A extends Inputs>(f: (...inputs: A) => Tensor): (...inputs: A) => ValueAndGrads<A> {
  if (typeof f !== 'function') throw optionError(`f is ${show(f)}; it must be a function of tensors`);
  return (...inputs) =>
    scope(() => {
      for (const [i, t] of inputs.entries()) {
        checkAnyTensor(t, `input ${i}`);
        t.operand(`input ${i}`, t.backend);
      }
      const leaves = inputs.map((t) => (isFloat(t.dtype) ? parameter((t as Tensor).detach()) : t));
      try {
        const value = whileRecording(true, () => f(...(leaves as unknown as A)));
        checkSynchronous(value, 'the function of valueAndGrad()');
        checkTensor(value, 'the result of f');
        if (value.size !== 1)
          throw new FlashAttnError('ERR_SHAPE', `f gives shape ${show(value.shape)}; it must give one element`);
        if (value.requiresGrad) value.backward();
        const grads = leaves.map((leaf) => (leaf as Tensor).grad?.detach());
        const result = value.detach();
        refuseGradients(inputs, [result, ...grads.filter((gradient) => gradient !== undefined)]);
        return { value: result, grads: grads as unknown as Grads<A> };
      } finally {
        for (const [i, leaf] of leaves.entries()) {
          if (leaf === inputs[i]) continue;
          (leaf as Tensor).grad = undefined;
          leaf.dispose();
        }
      }
    });
}

/** What has been computed of inputs by a walk that nobody recorded: gradients of it must not be taken for zeros. */
function refuseGradients(inputs: Inputs, results: readonly Tensor[]): void {
  record('valueAndGrad', inputs, results, [], () => {
    throw new FlashAttnError(
      'ERR_AUTOGRAD',
      'gradients of gradients are not recorded, and a loss depends on what grad() or valueAndGrad() gave: detach() that, or call it within noGrad()',
    );
  });
}

/** The gradients alone: see `valueAndGrad`. */
export function grad<A extends Inputs>(f: (...inputs: A) => Tensor): (...inputs: A) => Grads<A> {
  const both = valueAndGrad(f);
  return (...inputs) => {
    const { value, grads } = both(...inputs);
    value.dispose();
    return grads;
  };
}
