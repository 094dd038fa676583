// What the recorder and the operations compute with: launches of single kernels, recorded by nobody.
import type { DType, FloatDType } from '../base/dtype.js';
import type { Backend } from '../kernels/device.js';
import { compile, type ElementwiseOperands, elementwise, fitsOneLaunch, type Program } from '../kernels/elementwise.js';
import { input, scalar } from '../kernels/expression.js';
import type { Strided } from '../kernels/operand.js';
import { fitsOneReduction, partialElements, type Reduction, reduce } from '../kernels/reduce.js';
import { copyElements } from '../tensor/copies.js';
import { type AnyTensor, allocating, type Shape, type Tensor } from '../tensor/tensor.js';

/** An operand of a larger shape: strides of 0 where it is repeated. */
export function broadcast(t: AnyTensor, argument: string, shape: Shape, backend: Backend): Strided {
  const { buffer, offset } = t.operand(argument, backend);
  const own = t.shape;
  const missing = shape.length - own.length;
  const strides = new Array<number>(shape.length);
  for (let axis = 0; axis < shape.length; axis++)
    strides[axis] = axis < missing || own[axis - missing] === 1 ? 0 : t.strides[axis - missing];
  return { buffer, offset, dtype: t.dtype, shape, strides };
}

/** One index of the first axis. */
const at = <Array extends Strided>(array: Array, index: number): Array => ({
  ...array,
  offset: array.offset + index * array.strides[0],
  shape: array.shape.slice(1),
  strides: array.strides.slice(1),
});

/** Queues a program, as several launches where its arrays have more axes than a kernel walks. */
export function launchElementwise(backend: Backend, operands: ElementwiseOperands): void {
  const { inputs, outputs } = operands;
  const { shape } = outputs[0];
  if (shape.length <= 4 || fitsOneLaunch(shape, [...inputs, ...outputs])) {
    backend.launch(elementwise, operands);
    return;
  }
  for (let index = 0; index < shape[0]; index++)
    launchElementwise(backend, {
      ...operands,
      inputs: inputs.map((array) => at(array, index)),
      outputs: outputs.map((array) => at(array, index)),
    });
}

/** A new tensor of a formula with one output. */
export function compute<D extends DType>(
  backend: Backend,
  program: Program,
  inputs: readonly AnyTensor[],
  shape: Shape,
  dtype: D,
  scalars: readonly number[] = [],
): Tensor<D, Shape> {
  return allocating(backend, (allocate) => {
    const operands = inputs.map((t) => broadcast(t, 'a gradient', shape, backend));
    const result = allocate(shape, dtype);
    launchElementwise(backend, {
      program,
      inputs: operands,
      outputs: [result.strided('the result', backend)],
      scalars,
    });
    return result;
  });
}

const sumOfTwo = compile([input(0).add(input(1))], 2);

/** a + b of one shape and dtype. */
export const addTensors = (a: Tensor, b: Tensor): Tensor => compute(a.backend, sumOfTwo, [a, b], a.shape, a.dtype);

/** a += b of one shape and dtype, with the same bits as `addTensors`. */
export function addInPlace(a: Tensor, b: Tensor): void {
  const { backend } = a;
  const target = a.strided('a gradient', backend);
  const inputs = [target, b.strided('a gradient', backend)];
  launchElementwise(backend, { program: sumOfTwo, inputs, outputs: [target] });
  a.written();
}

const oneNumber = compile([scalar(0)], 0);

/** A tensor of one number. */
export const filled = <D extends DType>(backend: Backend, shape: Shape, dtype: D, value: number): Tensor<D, Shape> =>
  compute(backend, oneNumber, [], shape, dtype, [value]);

/** Overwrites every element of a tensor. */
export function fill(t: AnyTensor, value: number): void {
  const outputs = [t.strided('a tensor', t.backend)];
  launchElementwise(t.backend, { program: oneNumber, inputs: [], outputs, scalars: [value] });
  t.written();
}

/** One number of a tensor of them, for all elements of a shape. */
export function numberAt(numbers: AnyTensor, at: number, shape: readonly number[]): Strided {
  const { buffer, offset } = numbers.operand('numbers', numbers.backend);
  return { buffer, offset: offset + at, dtype: numbers.dtype, shape, strides: shape.map(() => 0) };
}

const programsOfNumbers: Program[] = [];

/** Overwrites a tensor [n] with numbers of the host, a few, in order behind what uses it: nothing waits. */
export function writeNumbers(t: AnyTensor, numbers: readonly number[]): void {
  const { length } = numbers;
  programsOfNumbers[length] ??= compile(
    numbers.map((_, i) => scalar(i)),
    0,
  );
  const program = programsOfNumbers[length] as Program;
  launchElementwise(t.backend, {
    program,
    inputs: [],
    outputs: numbers.map((_, i) => numberAt(t, i, [1])),
    scalars: numbers,
  });
}

const product = compile([input(0).mul(scalar(0))], 1);

/** A tensor multiplied by a number. */
export const scaled = <D extends DType>(t: Tensor, factor: number, dtype: D): Tensor<D, Shape> =>
  compute(t.backend, product, [t], t.shape, dtype, [factor]);

/** The tensor itself, as a handle of its own, or a row-major copy of a strided view. */
export const inRows = (t: Tensor): Tensor => (t.isContiguous ? t.detach() : t.contiguous());

interface ReduceOptions {
  readonly reduction: Reduction;
  readonly scale?: number;
  readonly dtype: DType;
}

/** A new contiguous tensor of the kept axes: sums, or extremes, over those that `reduced` names. */
export function reduceAxes(
  t: AnyTensor,
  reduced: readonly boolean[],
  { reduction, scale = 1, dtype }: ReduceOptions,
): AnyTensor {
  const { backend } = t;
  const kept = t.shape.filter((_, axis) => !reduced[axis]);
  const strided = t.strided('x', backend);
  if (!fitsOneReduction(strided, reduced)) {
    const axes = t.shape.map((_, axis) => axis);
    const order = [...axes.filter((axis) => !reduced[axis]), ...axes.filter((axis) => reduced[axis])];
    const own = t.detach();
    const permuted = own.permute(order);
    own.dispose();
    let copy: AnyTensor;
    try {
      copy = permuted.contiguous();
    } finally {
      permuted.dispose();
    }
    try {
      return reduceAxes(
        copy,
        order.map((axis) => reduced[axis]),
        { reduction, scale, dtype },
      );
    } finally {
      copy.dispose();
    }
  }
  return allocating(backend, (allocate) => {
    const result = allocate(kept, dtype);
    const elements = partialElements(t.shape, reduced);
    const partial = elements > 0 ? backend.allocate(4 * elements, 'deviceWritten') : undefined;
    try {
      backend.launch(reduce, {
        from: strided,
        reduced,
        to: result.flat('the result', backend),
        reduction,
        scale,
        partial,
      });
    } finally {
      if (partial) backend.free(partial);
    }
    return result;
  });
}

/** The gradient of what was broadcast: summed over what it was repeated along, in its shape. */
export function sumTo(gradient: Tensor, shape: Shape, dtype: FloatDType = gradient.dtype): Tensor {
  const missing = gradient.shape.length - shape.length;
  const reduced = gradient.shape.map((n, axis) => axis < missing || (shape[axis - missing] === 1 && n !== 1));
  if (reduced.some((is) => is)) {
    const sum = reduceAxes(gradient, reduced, { reduction: 'sum', dtype }) as Tensor;
    const shaped = sum.reshape(shape);
    sum.dispose();
    return shaped;
  }
  if (dtype === gradient.dtype) return gradient.detach();
  return converted(gradient, dtype);
}

/** The same elements in another dtype. */
export function converted<D extends DType>(t: AnyTensor, dtype: D): Tensor<D, Shape> {
  const { backend } = t;
  return allocating(backend, (allocate) => {
    const result = allocate(t.shape, dtype);
    copyElements(backend, t.strided('x', backend), result.strided('the result', backend), false);
    return result;
  });
}

/** Zeros with a gradient where the view of them that `again` makes lies. */
export function embedded(gradient: Tensor, shape: Shape, again: (t: Tensor) => Tensor): Tensor {
  const result = filled(gradient.backend, shape, gradient.dtype, 0) as Tensor;
  let part: Tensor | undefined;
  try {
    part = again(result);
    gradient.copyInto(part);
    return result;
  } catch (error) {
    result.dispose();
    throw error;
  } finally {
    part?.dispose();
  }
}
