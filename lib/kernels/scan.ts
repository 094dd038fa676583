// What all scans share: recurrences along a sequence, one for each channel. native/structs/scan.h
import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand } from './operand.js';

/** Positions between two states that forward keeps for backward. */
const scanBlock = 32;
/** Channels of a group whose sums are taken first. */
const scanChannels = 32;
/** Numbers of a state with an axis of its own; half as many complex ones. */
export const mostScanState = 256;
/** Kernels count positions, channels and items in 32 bits. */
export const mostScanned = 2 ** 30;

export const scanBlocks = (length: number): number => Math.ceil(length / scanBlock);
export const scanParts = (channels: number): number => Math.ceil(channels / scanChannels);

/** [batch, length, channels] or [batch, length, groups, dim], with a contiguous last axis. */
export interface Sequences extends Operand {
  /** In elements. */
  readonly batchStride: number;
  readonly positionStride: number;
  readonly groupStride: number;
}

export interface ScanShape {
  readonly batch: number;
  readonly length: number;
  readonly channels: number;
}

export const sequencesRef = (s: Sequences | undefined) =>
  s && { data: addressOf(s), batch: s.batchStride, seq: s.positionStride, head: s.groupStride, dtype: s.dtype };

export function buffersOf(...operands: readonly (Operand | undefined)[]): DeviceBuffer[] {
  const buffers: DeviceBuffer[] = [];
  for (const operand of operands) if (operand) buffers.push(operand.buffer);
  return buffers;
}
