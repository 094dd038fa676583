import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand, tensorRef } from './operand.js';
import { operation } from './operation.js';
import { buffersOf, type ScanShape, type Sequences, sequencesRef } from './scan.js';
import { struct } from './struct.js';

const params = struct('DiagonalScanParams', {
  u: tensorRef,
  out: tensorRef,
  dOut: tensorRef,
  dU: tensorRef,
  a: 'address',
  w: 'address',
  initial: 'address',
  finalState: 'address',
  kept: 'address',
  dFinal: 'address',
  dInitial: 'address',
  dA: 'address',
  dW: 'address',
  ofSequences: 'address',
  batch: 'int32',
  length: 'int32',
  channels: 'int32',
  state: 'int32',
});

/** Parameters and states are contiguous float32, of pairs for complex numbers. */
interface DiagonalScanInputs extends ScanShape {
  /** [batch, length, channels] */
  readonly u: Sequences;
  /** [channels, state, 2] */
  readonly a: Operand;
  readonly w: Operand;
  readonly state: number;
}

export interface DiagonalScanOperands extends DiagonalScanInputs {
  readonly out: Sequences;
  /** [batch, channels, state, 2] */
  readonly initial: Operand | undefined;
  readonly finalState: Operand | undefined;
  /** float32 [batch, blocks, state, 2, channels]: the states that backward begins from. */
  readonly kept: Operand | undefined;
}

export interface DiagonalScanBackwardOperands extends DiagonalScanInputs {
  readonly kept: Operand;
  readonly dOut: Sequences;
  readonly dFinal: Operand | undefined;
  readonly dU: Sequences | undefined;
  readonly dInitial: Operand | undefined;
  readonly dA: Operand | undefined;
  readonly dW: Operand | undefined;
  /** `diagonalScratch` float32 elements. */
  readonly ofSequences: DeviceBuffer | undefined;
}

export const diagonalScratch = ({ batch, channels }: ScanShape, state: number): number => 8 * batch * channels * state;

const work = 12;

export const diagonalScan = operation('diagonalScan', params, (operands: DiagonalScanOperands) => {
  const { u, a, w, out, initial, finalState, kept, batch, length, channels, state } = operands;
  if (batch * channels === 0) return undefined;
  return {
    params: {
      u: sequencesRef(u),
      out: sequencesRef(out),
      dOut: undefined,
      dU: undefined,
      a: addressOf(a),
      w: addressOf(w),
      initial: addressOf(initial),
      finalState: addressOf(finalState),
      kept: addressOf(kept),
      dFinal: 0,
      dInitial: 0,
      dA: 0,
      dW: 0,
      ofSequences: 0,
      batch,
      length,
      channels,
      state,
    },
    reads: buffersOf(u, a, w, initial),
    writes: buffersOf(out, finalState, kept),
    work: work * batch * length * channels * (state + 1),
  };
});

/** Its gradients, each where it is wanted. */
export const diagonalScanBackward = operation(
  'diagonalScanBackward',
  params,
  (operands: DiagonalScanBackwardOperands) => {
    const { u, a, w, kept, dOut, dFinal, dU, dInitial, dA, dW, ofSequences, batch, length, channels, state } = operands;
    // Without sequences the gradients of parameters are still written: zeros.
    if (channels === 0) return undefined;
    const writes = buffersOf(dU, dInitial, dA, dW);
    if (ofSequences) writes.push(ofSequences);
    return {
      params: {
        u: sequencesRef(u),
        out: undefined,
        dOut: sequencesRef(dOut),
        dU: sequencesRef(dU),
        a: addressOf(a),
        w: addressOf(w),
        initial: 0,
        finalState: 0,
        kept: addressOf(kept),
        dFinal: addressOf(dFinal),
        dInitial: addressOf(dInitial),
        dA: addressOf(dA),
        dW: addressOf(dW),
        ofSequences: ofSequences?.address ?? 0,
        batch,
        length,
        channels,
        state,
      },
      reads: buffersOf(u, a, w, kept, dOut, dFinal),
      writes,
      work: 4 * work * batch * length * channels * (state + 1) + 2 * channels * state,
    };
  },
);
