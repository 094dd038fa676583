import type { DeviceBuffer } from './memory.js';
import { addressOf, type Flat, type Operand } from './operand.js';
import { operation } from './operation.js';
import { struct } from './struct.js';

const params = struct('NormParams', {
  x: 'address',
  residual: 'address',
  gain: 'address',
  bias: 'address',
  out: 'address',
  sum: 'address',
  mean: 'address',
  rstd: 'address',
  dOut: 'address',
  dSum: 'address',
  dX: 'address',
  dGain: 'address',
  dBias: 'address',
  partial: 'address',
  rows: 'int64',
  dim: 'int64',
  xRow: 'int64',
  residualRow: 'int64',
  dOutRow: 'int64',
  dSumRow: 'int64',
  chunkRows: 'int64',
  partialRow: 'int64',
  chunks: 'int32',
  dtype: 'dtype',
  gainDtype: 'dtype',
  biasDtype: 'dtype',
  epsilon: 'float32',
  centered: 'int32',
});

/** Contiguous rows, `rowStride` elements from one to the next. */
export interface Rows extends Operand {
  readonly rowStride: number;
}

interface NormShape {
  readonly rows: number;
  readonly dim: number;
  /** Layer norm; RMS norm takes no mean off. */
  readonly centered: boolean;
  readonly epsilon: number;
}

export interface NormOperands extends NormShape {
  readonly x: Rows;
  /** Added to x, of its dtype. */
  readonly residual: Rows | undefined;
  /** [dim] */
  readonly gain: Flat | undefined;
  readonly bias: Flat | undefined;
  readonly out: Flat;
  /** x + residual, where there is a residual. */
  readonly sum: Flat | undefined;
  /** float32 [rows], where they are kept. */
  readonly mean: Flat | undefined;
  readonly rstd: Flat | undefined;
}

export interface NormBackwardOperands extends NormShape {
  /** What was normalised: x, or x + residual. */
  readonly x: Rows;
  readonly gain: Flat | undefined;
  /** What forward has kept. */
  readonly mean: Flat | undefined;
  readonly rstd: Flat;
  readonly dOut: Rows;
  /** The gradient that reaches x besides. */
  readonly dSum: Rows | undefined;
  readonly dX: Flat | undefined;
  readonly dGain: Flat | undefined;
  readonly dBias: Flat | undefined;
  /** `partialElements` of float32. */
  readonly partial: DeviceBuffer | undefined;
}

const mostChunks = 64;
const leastChunkRows = 16;
/** The widest vectors of any processor, in float32. */
const mostLanes = 16;

const partialRow = (dim: number) => Math.ceil(dim / mostLanes) * mostLanes;

/** The rows that are summed up apart: always the same, whatever runs them. */
function chunksOf(rows: number): { chunks: number; chunkRows: number } {
  const chunkRows = Math.max(leastChunkRows, Math.ceil(rows / mostChunks));
  return { chunks: Math.ceil(rows / chunkRows), chunkRows };
}

/** float32 elements of scratch memory for the gradients of gain and bias: of each chunk two sums of two parts. */
export const partialElements = (rows: number, dim: number): number => chunksOf(rows).chunks * 4 * partialRow(dim);

const work = 12;

function buffersOf(...operands: readonly (Operand | undefined)[]): DeviceBuffer[] {
  const buffers: DeviceBuffer[] = [];
  for (const operand of operands) if (operand) buffers.push(operand.buffer);
  return buffers;
}

/** out = (x - mean) rstd gain + bias, with x + residual in the place of x where there is a residual. */
export const norm = operation('norm', params, (operands: NormOperands) => {
  const { x, residual, gain, bias, out, sum, mean, rstd, rows, dim, centered, epsilon } = operands;
  if (rows === 0 || dim === 0) return undefined;
  return {
    params: {
      x: addressOf(x),
      residual: addressOf(residual),
      gain: addressOf(gain),
      bias: addressOf(bias),
      out: addressOf(out),
      sum: addressOf(sum),
      mean: addressOf(mean),
      rstd: addressOf(rstd),
      dOut: 0,
      dSum: 0,
      dX: 0,
      dGain: 0,
      dBias: 0,
      partial: 0,
      rows,
      dim,
      xRow: x.rowStride,
      residualRow: residual?.rowStride ?? 0,
      dOutRow: 0,
      dSumRow: 0,
      chunkRows: 0,
      partialRow: 0,
      chunks: 0,
      dtype: x.dtype,
      gainDtype: gain?.dtype,
      biasDtype: bias?.dtype,
      epsilon,
      centered: centered ? 1 : 0,
    },
    reads: buffersOf(x, residual, gain, bias),
    writes: buffersOf(out, sum, mean, rstd),
    work: work * rows * dim,
  };
});

/** The gradients of x (or x + residual), gain and bias, each where it is wanted. */
export const normBackward = operation('normBackward', params, (operands: NormBackwardOperands) => {
  const { x, gain, mean, rstd, dOut, dSum, dX, dGain, dBias, partial, rows, dim, centered, epsilon } = operands;
  // Without rows the gradients of gain and bias are still written: zeros.
  if (dim === 0 || (rows === 0 && !dGain && !dBias)) return undefined;
  const { chunks, chunkRows } = chunksOf(rows);
  const writes = buffersOf(dX, dGain, dBias);
  if (partial) writes.push(partial);
  return {
    params: {
      x: addressOf(x),
      residual: 0,
      gain: addressOf(gain),
      bias: 0,
      out: 0,
      sum: 0,
      mean: addressOf(mean),
      rstd: addressOf(rstd),
      dOut: addressOf(dOut),
      dSum: addressOf(dSum),
      dX: addressOf(dX),
      dGain: addressOf(dGain),
      dBias: addressOf(dBias),
      partial: partial?.address ?? 0,
      rows,
      dim,
      xRow: x.rowStride,
      residualRow: 0,
      dOutRow: dOut.rowStride,
      dSumRow: dSum?.rowStride ?? 0,
      chunkRows,
      partialRow: partialRow(dim),
      chunks,
      dtype: x.dtype,
      gainDtype: dGain?.dtype ?? gain?.dtype,
      biasDtype: dBias?.dtype,
      epsilon,
      centered: centered ? 1 : 0,
    },
    reads: buffersOf(x, gain, mean, rstd, dOut, dSum),
    writes,
    work: 2 * work * rows * dim + dim,
  };
});
