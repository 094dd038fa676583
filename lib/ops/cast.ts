import { checkDType, type DType, type FloatDType, isFloat } from '../base/dtype.js';
import { converted } from '../tape/arithmetic.js';
import { record } from '../tape/tape.js';
import { copyElements } from '../tensor/copies.js';
import { type AnyTensor, allocating, checkAnyTensor, type Shape, type Tensor } from '../tensor/tensor.js';

/**
 * The elements in another dtype, row-major: floating-point numbers to nearest, ties to even; to int32 towards zero, the
 * nearest int32 of what is none and 0 of NaN; to bool whether they are not zero.
 *
 * @param x any strides
 * @throws ERR_DTYPE, ERR_OPTION, ERR_DISPOSED, ERR_OUT_OF_MEMORY
 */
export function cast<D extends DType, const S extends Shape>(x: Tensor<DType, S>, dtype: D): Tensor<D, S> {
  checkAnyTensor(x, 'x');
  checkDType(dtype, 'dtype');
  const source: AnyTensor = x;
  const { backend } = source;
  return allocating(backend, (allocate) => {
    const result = allocate(source.shape, dtype);
    copyElements(backend, source.strided('x', backend), result.strided('the result', backend), false);
    if (isFloat(dtype)) {
      const own = source.dtype as FloatDType;
      record('cast', [source], [result], [], ([gradient]) => [gradient && converted(gradient, own)]);
    }
    return result as unknown as Tensor<D, S>;
  });
}
