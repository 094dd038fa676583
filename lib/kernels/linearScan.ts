import { addressOf, type Operand, tensorRef } from './operand.js';
import { operation } from './operation.js';
import { buffersOf, type ScanShape, type Sequences, sequencesRef } from './scan.js';
import { struct } from './struct.js';

const params = struct('LinearScanParams', {
  x: tensorRef,
  gate: tensorRef,
  out: tensorRef,
  dOut: tensorRef,
  dX: tensorRef,
  dGate: tensorRef,
  initial: 'address',
  finalState: 'address',
  kept: 'address',
  dFinal: 'address',
  dInitial: 'address',
  batch: 'int32',
  length: 'int32',
  channels: 'int32',
  reserved: 'int32',
});

/** States are contiguous float32 [batch, channels]. */
export interface LinearScanOperands extends ScanShape {
  /** [batch, length, channels] */
  readonly x: Sequences;
  readonly gate: Sequences;
  readonly out: Sequences;
  readonly initial: Operand | undefined;
  readonly finalState: Operand | undefined;
  /** float32 [batch, blocks, channels]: the states that backward begins from. */
  readonly kept: Operand | undefined;
}

export interface LinearScanBackwardOperands extends ScanShape {
  readonly x: Sequences;
  readonly gate: Sequences;
  readonly kept: Operand;
  readonly dOut: Sequences;
  readonly dFinal: Operand | undefined;
  readonly dX: Sequences | undefined;
  readonly dGate: Sequences | undefined;
  readonly dInitial: Operand | undefined;
}

const work = 24;

/** out_t = e^(gate_t) out_{t-1} + x_t */
export const linearScan = operation('linearScan', params, (operands: LinearScanOperands) => {
  const { x, gate, out, initial, finalState, kept, batch, length, channels } = operands;
  if (batch * channels === 0) return undefined;
  return {
    params: {
      x: sequencesRef(x),
      gate: sequencesRef(gate),
      out: sequencesRef(out),
      dOut: undefined,
      dX: undefined,
      dGate: undefined,
      initial: addressOf(initial),
      finalState: addressOf(finalState),
      kept: addressOf(kept),
      dFinal: 0,
      dInitial: 0,
      batch,
      length,
      channels,
    },
    reads: buffersOf(x, gate, initial),
    writes: buffersOf(out, finalState, kept),
    work: work * batch * length * channels,
  };
});

/** Its gradients, each where it is wanted. */
export const linearScanBackward = operation('linearScanBackward', params, (operands: LinearScanBackwardOperands) => {
  const { x, gate, kept, dOut, dFinal, dX, dGate, dInitial, batch, length, channels } = operands;
  if (batch * channels === 0) return undefined;
  return {
    params: {
      x: sequencesRef(x),
      gate: sequencesRef(gate),
      out: undefined,
      dOut: sequencesRef(dOut),
      dX: sequencesRef(dX),
      dGate: sequencesRef(dGate),
      initial: 0,
      finalState: 0,
      kept: addressOf(kept),
      dFinal: addressOf(dFinal),
      dInitial: addressOf(dInitial),
      batch,
      length,
      channels,
    },
    reads: buffersOf(x, gate, kept, dOut, dFinal),
    writes: buffersOf(dX, dGate, dInitial),
    work: 2 * work * batch * length * channels,
  };
});
