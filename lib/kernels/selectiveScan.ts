import type { DeviceBuffer } from './memory.js';
import { addressOf, type Operand, tensorRef } from './operand.js';
import { operation } from './operation.js';
import { buffersOf, type ScanShape, type Sequences, scanParts, sequencesRef } from './scan.js';
import { struct } from './struct.js';

const params = struct('SelectiveScanParams', {
  u: tensorRef,
  dt: tensorRef,
  z: tensorRef,
  out: tensorRef,
  dOut: tensorRef,
  dU: tensorRef,
  dDt: tensorRef,
  dZ: tensorRef,
  b: tensorRef,
  c: tensorRef,
  dB: tensorRef,
  dC: tensorRef,
  a: 'address',
  skip: 'address',
  dtBias: 'address',
  initial: 'address',
  finalState: 'address',
  kept: 'address',
  dFinal: 'address',
  dInitial: 'address',
  dA: 'address',
  dSkip: 'address',
  dDtBias: 'address',
  ofSequences: 'address',
  ofChannels: 'address',
  batch: 'int32',
  length: 'int32',
  channels: 'int32',
  groups: 'int32',
  state: 'int32',
  softplus: 'int32',
});

export interface SelectiveScanShape extends ScanShape {
  readonly groups: number;
  readonly state: number;
}

/** What forward and backward read. Parameters and states are contiguous float32. */
interface SelectiveScanInputs extends SelectiveScanShape {
  /** [batch, length, channels] */
  readonly u: Sequences;
  readonly dt: Sequences;
  readonly z: Sequences | undefined;
  /** [batch, length, groups, state] */
  readonly b: Sequences;
  readonly c: Sequences;
  /** [channels, state] */
  readonly a: Operand;
  /** [channels] */
  readonly skip: Operand | undefined;
  readonly dtBias: Operand | undefined;
  readonly softplus: boolean;
}

export interface SelectiveScanOperands extends SelectiveScanInputs {
  readonly out: Sequences;
  /** [batch, channels, state] */
  readonly initial: Operand | undefined;
  readonly finalState: Operand | undefined;
  /** float32 [batch, blocks, state, channels]: the states that backward begins from. */
  readonly kept: Operand | undefined;
}

export interface SelectiveScanBackwardOperands extends SelectiveScanInputs {
  readonly kept: Operand;
  readonly dOut: Sequences;
  readonly dFinal: Operand | undefined;
  readonly dU: Sequences | undefined;
  readonly dDt: Sequences | undefined;
  readonly dZ: Sequences | undefined;
  readonly dB: Sequences | undefined;
  readonly dC: Sequences | undefined;
  readonly dInitial: Operand | undefined;
  readonly dA: Operand | undefined;
  readonly dSkip: Operand | undefined;
  readonly dDtBias: Operand | undefined;
  /** float32 scratch memory, where `selectiveScratch` says so. */
  readonly ofSequences: DeviceBuffer | undefined;
  readonly ofChannels: DeviceBuffer | undefined;
}

/** float32 elements of scratch memory: for the gradients of a, skip and dt_bias, and for those of b and c. */
export const selectiveScratch = ({ batch, length, channels, groups, state }: SelectiveScanShape) => ({
  ofSequences: 2 * batch * (state + 2) * channels,
  ofChannels: 2 * scanParts(channels / groups) * batch * length * groups * state,
});

const work = 24;

const inputsOf = (operands: SelectiveScanInputs) => ({
  u: sequencesRef(operands.u),
  dt: sequencesRef(operands.dt),
  z: sequencesRef(operands.z),
  b: sequencesRef(operands.b),
  c: sequencesRef(operands.c),
  a: addressOf(operands.a),
  skip: addressOf(operands.skip),
  dtBias: addressOf(operands.dtBias),
  batch: operands.batch,
  length: operands.length,
  channels: operands.channels,
  groups: operands.groups,
  state: operands.state,
  softplus: operands.softplus ? 1 : 0,
});

const inputBuffers = ({ u, dt, z, b, c, a, skip, dtBias }: SelectiveScanInputs) =>
  buffersOf(u, dt, z, b, c, a, skip, dtBias);

export const selectiveScan = operation('selectiveScan', params, (operands: SelectiveScanOperands) => {
  const { out, initial, finalState, kept, batch, length, channels, state } = operands;
  if (batch * channels === 0) return undefined;
  const reads = inputBuffers(operands);
  if (initial) reads.push(initial.buffer);
  return {
    params: {
      out: sequencesRef(out),
      dOut: undefined,
      dU: undefined,
      dDt: undefined,
      dZ: undefined,
      dB: undefined,
      dC: undefined,
      initial: addressOf(initial),
      finalState: addressOf(finalState),
      kept: addressOf(kept),
      dFinal: 0,
      dInitial: 0,
      dA: 0,
      dSkip: 0,
      dDtBias: 0,
      ofSequences: 0,
      ofChannels: 0,
      ...inputsOf(operands),
    },
    reads,
    writes: buffersOf(out, finalState, kept),
    work: work * batch * length * channels * (state + 1),
  };
});

/** Its gradients, each where it is wanted. */
export const selectiveScanBackward = operation(
  'selectiveScanBackward',
  params,
  (operands: SelectiveScanBackwardOperands) => {
    const { kept, dOut, dFinal, dU, dDt, dZ, dB, dC, dInitial, dA, dSkip, dDtBias } = operands;
    const { ofSequences, ofChannels, batch, length, channels, groups, state } = operands;
    // Without sequences the gradients of parameters are still written: zeros; without channels those of b and c.
    if (channels + batch * length * groups * state === 0) return undefined;
    const reads = inputBuffers(operands);
    for (const buffer of buffersOf(kept, dOut, dFinal)) reads.push(buffer);
    const writes = buffersOf(dU, dDt, dZ, dB, dC, dInitial, dA, dSkip, dDtBias);
    for (const scratch of [ofSequences, ofChannels]) if (scratch) writes.push(scratch);
    return {
      params: {
        out: undefined,
        dOut: sequencesRef(dOut),
        dU: sequencesRef(dU),
        dDt: sequencesRef(dDt),
        dZ: sequencesRef(dZ),
        dB: sequencesRef(dB),
        dC: sequencesRef(dC),
        initial: 0,
        finalState: 0,
        kept: addressOf(kept),
        dFinal: addressOf(dFinal),
        dInitial: addressOf(dInitial),
        dA: addressOf(dA),
        dSkip: addressOf(dSkip),
        dDtBias: addressOf(dDtBias),
        ofSequences: ofSequences?.address ?? 0,
        ofChannels: ofChannels?.address ?? 0,
        ...inputsOf(operands),
      },
      reads,
      writes,
      work: 3 * work * batch * length * channels * (state + 1) + channels * (state + 2),
    };
  },
);
