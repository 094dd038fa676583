import type { DType } from '../base/dtype.js';
import { FlashAttnError, optionError, shapeError, show } from '../base/errors.js';
import { record } from '../tape/tape.js';
import { checkAxis } from '../tensor/shape.js';
import { allocating, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/**
 * Tensors behind one another along an axis, as one new tensor; queued on the device.
 *
 * @param tensors at least one, of one dtype and device, with the same dims but for `axis`
 * @throws ERR_SHAPE, ERR_DTYPE, ERR_OPTION, ERR_DEVICE, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function concat<D extends DType>(tensors: readonly Tensor<D, Shape>[], axis = 0): Tensor<D, Shape> {
  if (!Array.isArray(tensors) || tensors.length === 0)
    throw optionError(`tensors is ${show(tensors)}; it must be an array of at least one tensor`);
  for (const [i, t] of tensors.entries()) checkTensor(t, `tensors[${i}]`);
  const [first] = tensors as [Tensor<D, Shape>];
  const along = checkAxis(axis, first.shape);
  const { backend, dtype } = first;
  for (const [i, t] of tensors.entries()) {
    if (
      t.shape.length !== first.shape.length ||
      t.shape.some((n: number, at: number) => at !== along && n !== first.shape[at])
    )
      throw shapeError(
        `tensors[${i}] has shape ${show(t.shape)}; it must be that of tensors[0], ${show(first.shape)}, but for axis ${along}`,
      );
    if (t.dtype !== dtype)
      throw new FlashAttnError(
        'ERR_DTYPE',
        `tensors[${i}] is ${t.dtype} and tensors[0] is ${dtype}; they must be the same`,
      );
    t.operand(`tensors[${i}]`, backend);
  }
  const lengths = tensors.map((t) => t.shape[along]);
  const total = lengths.reduce((sum, n) => sum + n, 0);
  return allocating(backend, (allocate) => {
    const result = allocate(
      first.shape.map((n, at) => (at === along ? total : n)),
      dtype,
    ) as Tensor<D, Shape>;
    let begin = 0;
    for (const [i, t] of tensors.entries()) {
      const part = result.slice(along, begin, begin + lengths[i]);
      t.copyInto(part);
      part.dispose();
      begin += lengths[i];
    }
    record('concat', tensors, [result], [], ([gradient]) => {
      let from = 0;
      return lengths.map((n) => {
        from += n;
        return gradient?.slice(along, from - n, from);
      });
    });
    return result;
  });
}
