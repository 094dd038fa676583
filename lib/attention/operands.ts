// From tensors to what kernels are given.
import type { FloatDType } from '../base/dtype.js';
import { FlashAttnError, shapeError, show } from '../base/errors.js';
import type { AttentionExtras, AttentionProblem } from '../kernels/attention.js';
import type { Backend } from '../kernels/device.js';
import type { Strided, View } from '../kernels/operand.js';
import { sameShape } from '../tensor/shape.js';
import { type AnyTensor, checkTensor, type Shape, type Tensor } from '../tensor/tensor.js';
import { viewOf } from './layout.js';
import type { AttentionOptions } from './options.js';
import { angleOperands } from './rotary.js';
import { tableOperands, tablesOf } from './scoreMod.js';
import { additiveTerm } from './terms.js';

export interface Inputs {
  readonly q: Tensor;
  readonly k: Tensor;
  readonly v: Tensor;
}

export function checkInputs(q: unknown, k: unknown, v: unknown): asserts q is Tensor {
  checkTensor(q, 'q');
  checkTensor(k, 'k');
  checkTensor(v, 'v');
  checkSameDType(k, 'k', q);
  checkSameDType(v, 'v', q);
}

function checkSameDType(t: Tensor, argument: string, q: Tensor): void {
  if (t.dtype !== q.dtype)
    throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype} and q is ${q.dtype}; they must be the same`);
}

/** Checks that an argument is a tensor of this shape and dtype. */
export function expect(t: unknown, argument: string, shape: Shape, dtype: FloatDType): asserts t is Tensor {
  checkTensor(t, argument);
  if (!sameShape(t.shape, shape)) throw shapeError(`${argument} has shape ${show(t.shape)}; it must be ${show(shape)}`);
  if (t.dtype !== dtype) throw new FlashAttnError('ERR_DTYPE', `${argument} is ${t.dtype}; it must be ${dtype}`);
}

/** A tensor of rank 1 to 4, aligned at the right with [batch, heads, Nq, Nk], which it broadcasts to. */
function stridedTerm(t: Tensor, argument: string, backend: Backend): Strided {
  const { buffer, offset } = t.operand(argument, backend);
  const strides: [number, number, number, number] = [0, 0, 0, 0];
  const missing = 4 - t.shape.length;
  for (let axis = 0; axis < t.shape.length; axis++) strides[axis + missing] = t.shape[axis] === 1 ? 0 : t.strides[axis];
  return { buffer, offset, dtype: t.dtype, shape: [...new Array<number>(missing).fill(1), ...t.shape], strides };
}

/** `tables`: what scoreMod looks up, where they are not the tensors that it has captured. */
function readExtras(options: AttentionOptions, backend: Backend, tables?: readonly AnyTensor[]): AttentionExtras {
  const { alibi, relativeBias, sink } = options;
  const term = additiveTerm(options);
  return {
    bias: term && stridedTerm(term.tensor, term.name, backend),
    alibi: alibi && 'shape' in alibi ? alibi.flat('alibi', backend) : undefined,
    relativeTable: relativeBias?.table.flat('relativeBias.table', backend),
    sink: sink?.flat('sink', backend),
    scoreTables: tableOperands(tables ?? tablesOf(options.scoreMod), backend),
    angles: angleOperands(options.rope, backend),
  };
}

/** What the caller gives to attention, checked. */
export interface InputOperands {
  readonly query: View;
  readonly key: View;
  readonly value: View;
  readonly extras: AttentionExtras;
}

/** @throws ERR_DEVICE, ERR_DISPOSED or ERR_SHAPE when kernels cannot use the tensors */
export function inputOperands(
  p: AttentionProblem,
  { q, k, v }: Inputs,
  options: AttentionOptions,
  tables?: readonly AnyTensor[],
): InputOperands {
  const { backend } = q;
  return {
    query: viewOf(q, p.layout, 'q', backend),
    key: viewOf(k, p.layout, 'k', backend),
    value: viewOf(v, p.layout, 'v', backend),
    extras: readExtras(options, backend, tables),
  };
}

/** The operands of options alone. */
export const optionOperands = readExtras;
