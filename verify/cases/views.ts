/** Tensors whose elements lie in memory in other ways than row-major, with NaN in everything around them. */
import { type DeviceName, type Tensor, tensor } from 'flashattn';
import { type LowDType, toBits } from '../oracle/float16.js';
import type { Layout } from '../oracle/problem.js';
import { testDevice } from './device.js';

export type CaseDType = 'float32' | LowDType;

/** Ways for a tensor to lie in memory. */
export const VIEW_KINDS = [
  'plain',
  'seqSlice',
  'headSlice',
  'dimSlice',
  'transposed',
  'interleaved',
  'stacked',
] as const;
export type ViewKind = (typeof VIEW_KINDS)[number];

/** A tensor of any dtype from numbers that the dtype holds exactly. */
export function make(
  values: Float64Array,
  shape: readonly number[],
  dtype: CaseDType,
  device: DeviceName = testDevice,
): Tensor {
  if (dtype === 'float32') return tensor(Float32Array.from(values), shape, { dtype, device });
  // A loop: Uint16Array.from with a function takes forty times as long.
  const bits = new Uint16Array(values.length);
  for (const [i, x] of values.entries()) bits[i] = toBits(x, dtype);
  return tensor(bits, shape, { dtype, device });
}

interface Embedding {
  /** Shape of the memory around the view. */
  readonly parent: readonly number[];
  /** Position in the parent of an element of the view. */
  readonly position: (index: readonly number[]) => readonly number[];
  readonly view: (parent: Tensor) => Tensor;
}

/** Axis `axis` is a part of a longer one: `before` elements precede it and `after` follow. */
function sliced(shape: readonly number[], axis: number, before: number, after: number): Embedding {
  const size = shape[axis] ?? 0;
  return {
    parent: shape.map((length, a) => (a === axis ? before + length + after : length)),
    position: (index) => index.map((i, a) => (a === axis ? i + before : i)),
    view: (parent) => parent.slice(axis, before, before + size),
  };
}

/** The view is one of three, chosen along an extra axis in front of `axis`: as q, k and v packed into one tensor. */
function selected(shape: readonly number[], axis: number): Embedding {
  const insert = (list: readonly number[], value: number): number[] => [
    ...list.slice(0, axis),
    value,
    ...list.slice(axis),
  ];
  return {
    parent: insert(shape, 3),
    position: (index) => insert(index, 1),
    view: (parent) => parent.select(axis, 1),
  };
}

function transposed(shape: readonly number[], a: number, b: number): Embedding {
  const swap = (list: readonly number[]): number[] =>
    list.map((value, axis) => (axis === a ? (list[b] ?? 0) : axis === b ? (list[a] ?? 0) : value));
  return { parent: swap(shape), position: swap, view: (parent) => parent.transpose(a, b) };
}

function embed(kind: ViewKind, shape: readonly number[], layout: Layout): Embedding {
  const seq = layout === 'varlen' ? 0 : layout === 'bshd' ? 1 : 2;
  const head = layout === 'bhsd' ? 1 : seq + 1;
  const dim = shape.length - 1;
  switch (kind) {
    case 'seqSlice':
      return sliced(shape, seq, 2, 3);
    case 'headSlice':
      return sliced(shape, head, 1, 1);
    case 'dimSlice':
      return sliced(shape, dim, 3, 2);
    case 'transposed':
      return transposed(shape, seq, head);
    case 'interleaved':
      return selected(shape, dim);
    case 'stacked':
      return selected(shape, 0);
    case 'plain':
      return { parent: shape, position: (index) => index, view: (parent) => parent };
  }
}

export interface Placed {
  readonly view: Tensor;
  /** All memory around the view, and the view itself. */
  readonly parent: Tensor;
}

/** Puts values into memory as `kind` says. Nothing may read the NaN around them. */
export function place(
  values: Float64Array,
  shape: readonly number[],
  dtype: CaseDType,
  layout: Layout,
  kind: ViewKind,
  device: DeviceName = testDevice,
): Placed {
  const { parent: parentShape, position, view } = embed(kind, shape, layout);
  const memory = new Float64Array(parentShape.reduce((a, b) => a * b, 1)).fill(NaN);
  const index = shape.map(() => 0);
  for (const value of values) {
    const at = position(index).reduce((offset, i, axis) => offset * (parentShape[axis] ?? 1) + i, 0);
    memory[at] = value;
    for (let axis = index.length - 1; axis >= 0; axis--) {
      index[axis] = (index[axis] ?? 0) + 1;
      if ((index[axis] ?? 0) < (shape[axis] ?? 0)) break;
      index[axis] = 0;
    }
  }
  const parent = make(memory, parentShape, dtype, device);
  return { parent, view: view(parent) };
}
