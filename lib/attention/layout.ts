import { shapeError } from '../base/errors.js';
import type { AttentionProblem } from '../kernels/attention.js';
import type { Backend } from '../kernels/device.js';
import type { View } from '../kernels/operand.js';
import type { Shape, Tensor } from '../tensor/tensor.js';

/** The order of the dims of q, k, v and out. */
export type Layout = AttentionProblem['layout'];

/** Which axis is which. Packed sequences have no batch axis: they count as one batch entry. */
const axes = {
  bshd: { batch: 0, rows: 1, heads: 2, dim: 3 },
  bhsd: { batch: 0, rows: 2, heads: 1, dim: 3 },
  varlen: { batch: undefined, rows: 0, heads: 1, dim: 2 },
} as const satisfies Record<Layout, Readonly<Record<keyof Dims, number | undefined>>>;

/** For messages. */
export const orders: Readonly<Record<Layout, string>> = {
  bshd: '[batch, seq, heads, dim]',
  bhsd: '[batch, heads, seq, dim]',
  varlen: '[total, heads, dim]',
};

/** The dims of a tensor, whatever their order. */
export interface Dims {
  readonly batch: number;
  /** Along the sequence; all tokens of packed sequences. */
  readonly rows: number;
  readonly heads: number;
  readonly dim: number;
}

export const rankOf = (layout: Layout) => (layout === 'varlen' ? 3 : 4);

/** @param shape of the rank of the layout */
export function dimsOf(shape: Shape, layout: Layout): Dims {
  const { batch, rows, heads, dim } = axes[layout];
  return {
    batch: batch === undefined ? 1 : shape[batch],
    rows: shape[rows],
    heads: shape[heads],
    dim: shape[dim],
  };
}

/** The shape of out. */
export function outShape({ batch, rows, heads, dim }: Dims, layout: Layout): Shape {
  if (layout === 'varlen') return [rows, heads, dim];
  return layout === 'bshd' ? [batch, rows, heads, dim] : [batch, heads, rows, dim];
}

export const lseShape = ({ batch, rows, heads }: Dims, layout: Layout): Shape =>
  layout === 'varlen' ? [heads, rows] : [batch, heads, rows];

/** A tensor of the layout as kernels see it. */
export function viewOf(t: Tensor, layout: Layout, argument: string, backend: Backend): View {
  const { buffer, offset } = t.operand(argument, backend);
  const { dtype, shape, strides } = t;
  const { batch, rows, heads, dim } = axes[layout];
  if (strides[dim] !== 1 && shape[dim] !== 1 && t.size > 0)
    throw shapeError(`${argument} must be contiguous along its last dim, its stride is ${strides[dim]}`);
  return {
    buffer,
    offset,
    dtype,
    batchStride: batch === undefined ? 0 : strides[batch],
    seqStride: strides[rows],
    headStride: strides[heads],
  };
}
