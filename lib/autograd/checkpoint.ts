// Memory for time: a part of a model that is computed again when its gradients are wanted.
import { checkFunction } from '../base/check.js';
import { type DType, isFloat } from '../base/dtype.js';
import { optionError, show } from '../base/errors.js';
import { Draws } from '../tape/draws.js';
import { checkSynchronous, scope } from '../tape/scope.js';
import { gradientsThrough, isRecording, makeParameter, record, withoutRecordingBut } from '../tape/tape.js';
import { type AnyTensor, checkAnyTensor, isTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { tidying } from '../tensor/track.js';

type Inputs = readonly Tensor<DType, Shape>[];
type Results = Tensor<DType, Shape> | readonly Tensor<DType, Shape>[];

/** The tensors that a function gave. @throws ERR_OPTION */
export function tensorsOf(value: unknown, what: string): readonly AnyTensor[] {
  checkSynchronous(value, what);
  const all = Array.isArray(value) ? value : [value];
  for (const t of all)
    if (!isTensor(t)) throw optionError(`${what} gives ${show(t)}; it must give a tensor or several`);
  return all;
}

/**
 * `f(...inputs)`, of which nothing is kept for gradients but the inputs: where these are wanted, `f` runs once more. All
 * that it computes in between needs memory once at a time, and the time of a second forward pass. Chen et al., "Training
 * Deep Nets with Sublinear Memory Cost" (2016).
 *
 * Parameters that `f` uses get their gradients as always, and so do other tensors from outside. Seeds that it draws from
 * `Seeds`, as the layer Dropout does, are the same in both runs; whatever else it uses has to be as well. Where nothing is
 * recorded, `f` just runs.
 *
 * `const y = checkpoint((x) => block.forward(x), x)`
 *
 * @param f synchronous; what it makes besides its results is disposed
 * @param inputs of any dtype; gradients reach those that need them
 * @returns what `f` gives: a tensor or an array of them
 * @throws ERR_OPTION, and in `backward` ERR_AUTOGRAD where the second run differs from the first
 */
export function checkpoint<A extends Inputs, R extends Results>(f: (...inputs: A) => R, ...inputs: A): R {
  checkFunction(f, 'f');
  for (const [i, t] of inputs.entries()) checkAnyTensor(t, `input ${i}`);
  if (!isRecording()) return scope(() => f(...inputs));
  const draws = new Draws();
  const what = `the function ${f.name || 'of checkpoint()'}`;
  let isArray = false;
  const run = (own: readonly AnyTensor[]): readonly AnyTensor[] => {
    const value = f(...(own as unknown as A));
    isArray = Array.isArray(value);
    return tensorsOf(value, what);
  };
  const results = tidying(
    () => {
      // Handles without a track: what is met with one comes from outside.
      const own = inputs.map((t) => t.detach());
      const { result, found } = withoutRecordingBut(() => draws.first(() => run(own)));
      const all = result.map((t) => t.detach() as AnyTensor);
      const outside = found.filter((t) => !t.disposed);
      record(
        what,
        [...inputs, ...found],
        all.filter((t) => isFloat(t.dtype)),
        [...inputs, ...outside],
        (gradients, saved, needed) => {
          const again = () => {
            const leaves = saved.slice(0, inputs.length).map((t, i) => {
              const leaf = t.detach() as AnyTensor;
              if (needed[i]) makeParameter(leaf);
              return leaf;
            });
            const floats = tidying(
              () => draws.again(() => run(leaves)).filter((t) => isFloat(t.dtype)),
              (all) => all,
            );
            return { results: floats, ends: [...leaves, ...found] };
          };
          return gradientsThrough(what, again, gradients);
        },
      );
      return all;
    },
    (all) => all,
  );
  return (isArray ? results : results[0]) as unknown as R;
}
