// Operations of users: a forward pass of any kind, with the gradient that belongs to it.
import { checkFunction, checkOptions, checkString, mustBe } from '../base/check.js';
import { type DType, isFloat } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { checkSynchronous } from '../tape/scope.js';
import { record, withoutRecording } from '../tape/tape.js';
import { sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkAnyTensor, isTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';
import { tensorsOf } from './checkpoint.js';

type Any = Tensor<DType, Shape>;
type Results = Any | readonly Any[];

/** What a forward pass returns where its backward pass needs tensors of it. */
export interface Saving<R extends Results, S extends readonly Any[]> {
  readonly result: R;
  /** Inputs, results or anything else that `forward` has made; what is saved may be disposed, and must not be written. */
  readonly save: S;
}

type ResultOf<F> = F extends Saving<infer R, readonly Any[]> ? R : F extends Results ? F : never;
type SavedOf<F> = F extends Saving<Results, infer S> ? S : readonly [];
type Each<R> = R extends readonly Any[] ? { readonly [i in keyof R]: R[i] | undefined } : readonly [R | undefined];

/** What the backward pass of a custom operation is given. */
export interface BackwardContext<Inputs extends readonly Any[], Forward> {
  /** By result, of its shape and dtype and of any strides; undefined where it is zero. */
  readonly gradients: Each<ResultOf<Forward>>;
  readonly saved: SavedOf<Forward>;
  /** By input whether its gradient is wanted. */
  readonly needed: { readonly [i in keyof Inputs]: boolean };
}

export interface CustomOp<Inputs extends readonly Any[], Forward> {
  /** As messages call it. */
  readonly name: string;
  /**
   * Computes the result, with operations of this package, of which nothing is recorded, or by any other means. Returns a
   * tensor or an array of them, or `{ result, save }`.
   */
  readonly forward: (...inputs: Inputs) => Forward;
  /** The gradients by input: of its shape and dtype, or undefined where it is zero or not needed. */
  readonly backward: (context: BackwardContext<Inputs, Forward>) => {
    readonly [i in keyof Inputs]: Tensor | undefined;
  };
}

/**
 * Makes an operation that gradients flow through as they do through those of the package: in `backward()`, within `scope`,
 * `valueAndGrad` and `checkpoint`. What both passes make besides what they return is disposed.
 *
 * ```ts
 * const clippedExp = customOp({
 *   name: 'clippedExp',
 *   forward: (x: Tensor) => {
 *     const y = exp(minimum(x, 10));
 *     return { result: y, save: [x, y] };
 *   },
 *   backward: ({ gradients: [dy], saved: [x, y] }) => [dy && mul(dy, where(less(x, 10), y, 0))],
 * });
 * clippedExp(x).backward(gradient);
 * ```
 *
 * @returns a function of tensors; it throws ERR_OPTION for what are none and where `forward` gives none. In `backward()` a
 *   gradient of another shape, dtype or device than its input throws ERR_SHAPE, ERR_DTYPE or ERR_DEVICE, with the name of the
 *   operation and the input
 * @throws ERR_OPTION
 */
export function customOp<Inputs extends readonly Any[], Forward>(
  definition: CustomOp<Inputs, Forward>,
): (...inputs: Inputs) => ResultOf<Forward> {
  checkOptions(definition, ['name', 'forward', 'backward'], 'the operation');
  const { name, forward, backward } = definition;
  checkString(name, 'name');
  checkFunction(forward, 'forward');
  checkFunction(backward, 'backward');
  return (...inputs) => {
    for (const [i, t] of inputs.entries()) {
      checkAnyTensor(t, `input ${i} of ${name}`);
      t.operand(`input ${i} of ${name}`, t.backend);
    }
    let isArray = false;
    const results = tidying(
      () => {
        const value: unknown = withoutRecording(() => forward(...inputs));
        checkSynchronous(value, `forward of ${name}`);
        const { result, save } = readForward(value, name);
        isArray = Array.isArray(result);
        // Handles of their own: an input that is given back as it is stays what it was.
        const all = tensorsOf(result, `forward of ${name}`).map((t) => t.detach() as AnyTensor);
        const indices = all.flatMap((t, i) => (isFloat(t.dtype) ? [i] : []));
        const floats = indices.map((i) => all[i] as AnyTensor);
        const likes = inputs.map(({ shape, dtype, backend }) => ({ shape, dtype, backend }));
        record(name, inputs, floats, save, (given, saved, needed) => {
          const gradients = new Array<Tensor | undefined>(all.length).fill(undefined);
          for (const [k, i] of indices.entries()) gradients[i] = given[k];
          const context = { gradients, saved, needed } as unknown as BackwardContext<Inputs, Forward>;
          return checkGradients(backward(context), name, likes, needed);
        });
        return all;
      },
      (all) => all,
    );
    return (isArray ? results : results[0]) as unknown as ResultOf<Forward>;
  };
}

function readForward(value: unknown, name: string): { readonly result: unknown; readonly save: readonly AnyTensor[] } {
  const saves = value !== null && typeof value === 'object' && !isTensor(value) && !Array.isArray(value);
  if (!saves) return { result: value, save: [] };
  checkOptions(value as Saving<Results, readonly Any[]>, ['result', 'save'], `what forward of ${name} gives`);
  const { result, save } = value as Saving<Results, readonly Any[]>;
  if (!Array.isArray(save)) throw mustBe(`save of ${name}`, save, 'an array of tensors');
  for (const [i, t] of save.entries()) checkAnyTensor(t, `save[${i}] of ${name}`);
  return { result, save };
}

type Like = Pick<AnyTensor, 'shape' | 'dtype' | 'backend'>;

/** Handles of their own for the gradients that a user's code gives. */
function checkGradients(
  value: unknown,
  name: string,
  inputs: readonly Like[],
  needed: readonly boolean[],
): (Tensor | undefined)[] {
  checkSynchronous(value, `backward of ${name}`);
  if (!Array.isArray(value) || value.length !== inputs.length)
    throw optionError(
      `backward of ${name} gives ${show(value)}; it must give an array of ${inputs.length} gradients, one for each input`,
    );
  for (const [i, gradient] of value.entries()) {
    if (gradient === undefined) continue;
    const argument = `the gradient of input ${i} of ${name}`;
    const { shape, dtype, backend } = inputs[i] as Like;
    checkAnyTensor(gradient, argument);
    if (!sameShape(gradient.shape, shape))
      throw shapeError(`${argument} has shape ${show(gradient.shape)}; it must be ${show(shape)}, that of the input`);
    if (gradient.dtype !== dtype)
      throw new FlashAttnError('ERR_DTYPE', `${argument} is ${gradient.dtype}; it must be ${dtype} as the input is`);
    gradient.operand(argument, backend);
  }
  return value.map((gradient: Tensor | undefined, i) => (needed[i] ? gradient?.detach() : undefined));
}
