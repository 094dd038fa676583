import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand } from './operand.js';
import { operation } from './operation.js';
import type { Rows } from './rowsByIndex.js';
import { struct } from './struct.js';

export const lossReductions = ['none', 'sum', 'mean'] as const;
export type LossReduction = (typeof lossReductions)[number];

export interface LossProblem {
  readonly rows: number;
  readonly classes: number;
  /** The target of rows that do not count. */
  readonly ignoreIndex: number;
  readonly labelSmoothing: number;
  readonly zLoss: number;
  readonly reduction: LossReduction;
}

interface LossInputs {
  readonly problem: LossProblem;
  /** [rows, classes] */
  readonly logits: Rows;
  /** Contiguous [rows] of int32. */
  readonly targets: Operand;
  /** Contiguous [2, rows] of float32: the nearest float, and what is missing from it. */
  readonly lse: Operand;
  /** [] of float32: how many rows are not ignored. */
  readonly count: Operand | undefined;
}

export interface LossOperands extends LossInputs {
  /** Contiguous [rows] of float32. */
  readonly losses: Operand;
  /** [] of float32; it and the count are there unless the reduction is 'none'. */
  readonly result: Operand | undefined;
}

export interface LossBackwardOperands extends LossInputs {
  /** [rows] of float32; of stride 0 unless the reduction is 'none'. */
  readonly dLoss: Rows;
  /** [rows, classes]: other memory than the logits, or the same with the same stride. */
  readonly dLogits: Rows;
}

const params = struct('CrossEntropyParams', {
  logits: 'address',
  targets: 'address',
  losses: 'address',
  lse: 'address',
  result: 'address',
  counted: 'address',
  dLoss: 'address',
  dLogits: 'address',
  logitsRow: 'int64',
  dLogitsRow: 'int64',
  dLossRow: 'int64',
  dtype: 'dtype',
  rows: 'int32',
  classes: 'int32',
  ignored: 'int32',
  smoothing: 'float32',
  z: 'float32',
  reduction: 'int32',
  reserved: 'int32',
});

/** In floating-point operations: an exponential, and what a logit costs to read. */
const workOfLogit = 32;

const paramsOf = ({ problem, logits, targets, lse, count }: LossInputs) => ({
  logits: addressOf(logits),
  targets: addressOf(targets),
  losses: 0,
  lse: addressOf(lse),
  result: 0,
  counted: addressOf(count),
  dLoss: 0,
  dLogits: 0,
  logitsRow: logits.rowStride,
  dLogitsRow: 0,
  dLossRow: 0,
  dtype: logits.dtype,
  rows: problem.rows,
  classes: problem.classes,
  ignored: problem.ignoreIndex,
  smoothing: problem.labelSmoothing,
  z: problem.zLoss,
  reduction: lossReductions.indexOf(problem.reduction),
});

/** The losses of rows and what they add up to. */
export const crossEntropy = operation('crossEntropy', params, (operands: LossOperands) => {
  const { problem, logits, targets, losses, lse, result, count } = operands;
  if (problem.rows === 0 && !result) return undefined;
  const writes: DeviceBuffer[] = [losses.buffer, lse.buffer];
  if (result) writes.push(result.buffer);
  if (count) writes.push(count.buffer);
  return {
    params: { ...paramsOf(operands), losses: addressOf(losses), result: addressOf(result) },
    reads: [logits.buffer, targets.buffer],
    writes,
    work: workOfLogit * problem.rows * problem.classes,
  };
});

export const crossEntropyBackward = operation('crossEntropyBackward', params, (operands: LossBackwardOperands) => {
  const { problem, logits, targets, lse, count, dLoss, dLogits } = operands;
  if (problem.rows === 0 || problem.classes === 0) return undefined;
  const reads = [logits.buffer, targets.buffer, lse.buffer, dLoss.buffer];
  if (count) reads.push(count.buffer);
  return {
    params: {
      ...paramsOf(operands),
      dLoss: addressOf(dLoss),
      dLogits: addressOf(dLogits),
      dLogitsRow: dLogits.rowStride,
      dLossRow: dLoss.rowStride,
    },
    reads,
    writes: [dLogits.buffer],
    work: workOfLogit * problem.rows * problem.classes,
  };
});
