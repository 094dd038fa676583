import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, type Strided } from './operand.js';
import { elementWork, operation } from './operation.js';
import { struct } from './struct.js';

const mostDims = 6;
const dims = { of: 'int64', count: mostDims } as const;

const copyParams = struct('CopyParams', {
  from: 'address',
  to: 'address',
  sizes: dims,
  fromStrides: dims,
  toStrides: dims,
  fromDtype: 'dtype',
  toDtype: 'dtype',
  accumulate: 'int32',
  reserved: 'int32',
});

export interface CopyOperands {
  readonly from: Strided;
  /** Of the same shape; no element lies at two places of it. */
  readonly to: Strided;
  /** Whether to add to what is there, in float32. Default false. */
  readonly accumulate?: boolean;
}

interface Axis {
  readonly size: number;
  readonly from: number;
  readonly to: number;
}

/** The same walk with as few axes as possible: neighbours that lie behind one another on both sides become one. */
function joinAxes(from: Strided, to: Strided): Axis[] {
  const axes: Axis[] = [];
  for (const [at, size] of from.shape.entries()) {
    if (size === 1) continue;
    const axis = { size, from: from.strides[at] ?? 0, to: to.strides[at] ?? 0 };
    const last = axes.at(-1);
    if (last && last.from === size * axis.from && last.to === size * axis.to)
      axes[axes.length - 1] = { ...axis, size: last.size * size };
    else axes.push(axis);
  }
  return axes;
}

/** Whether one launch can walk these arrays. */
export const fitsOneCopy = (from: Strided, to: Strided): boolean => joinAxes(from, to).length <= mostDims;

/** to[i...] = from[i...], rounded to the nearest even of its dtype, or added to what is there. */
export const copy = operation('copy', copyParams, ({ from, to, accumulate = false }: CopyOperands) => {
  const count = from.shape.reduce((product, n) => product * n, 1);
  if (count === 0) return undefined;
  const axes = joinAxes(from, to);
  const padding: Axis[] = Array.from({ length: mostDims - axes.length }, () => ({ size: 1, from: 0, to: 0 }));
  const all = [...padding, ...axes];
  return {
    params: {
      from: addressOf(from),
      to: addressOf(to),
      sizes: all.map((axis) => axis.size),
      fromStrides: all.map((axis) => axis.from),
      toStrides: all.map((axis) => axis.to),
      fromDtype: from.dtype,
      toDtype: to.dtype,
      accumulate: accumulate ? 1 : 0,
    },
    reads: [from.buffer],
    writes: [to.buffer],
    work: elementWork * count,
  };
});

/** A contiguous array as one axis. */
export const asStrided = (flat: Flat): Strided => ({ ...flat, shape: [flat.count], strides: [1] });

const fillParams = struct('FillParams', { data: 'address', count: 'int64', bits: 'uint32', reserved: 'int32' });

/** Writes 32 bits over and over into a buffer; allocations are padded to whole words. */
export const fill = operation('fill', fillParams, ({ buffer, bits }: { buffer: DeviceBuffer; bits: number }) => {
  const count = Math.ceil(buffer.byteLength / 4);
  if (count === 0) return undefined;
  return { params: { data: buffer.address, count, bits }, reads: [], writes: [buffer], work: count };
});

const peakParams = struct('PeakParams', { sink: 'address', items: 'int32', iterations: 'int32' });

/** Multiply-adds on registers alone. `sink` is [4]: on processors two factors first. */
export const peak = operation(
  'peak',
  peakParams,
  ({ sink, items, iterations }: { sink: DeviceBuffer; items: number; iterations: number }) => ({
    params: { sink: sink.address, items, iterations },
    reads: [],
    writes: [sink],
    work: Number.POSITIVE_INFINITY,
  }),
);
